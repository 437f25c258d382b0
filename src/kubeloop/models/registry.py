"""MLflow: model versions, their aliases, and the lineage of each version.

Only this module imports mlflow. A version's source is the model folder itself, which becomes an MLflow model with the
file `MLmodel`, so that KServe, MLflow and kubeloop read the same immutable files.
"""

import functools
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa

from kubeloop import paths
from kubeloop.config import Loop, Settings
from kubeloop.errors import KubeloopError
from kubeloop.stores import kept, whole
from kubeloop.tasks.reference import OTHER, Reference

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
CHALLENGER = "challenger"
_RUN_TAG = "kubeloop.run"
_KSERVE_READS = ("s3", "gs", "abfs", "wasbs", "hdfs", "pvc", "oci")
_EXAMPLE_ROWS = 5
_REQUIREMENTS = ["onnxruntime>=1.22", "numpy>=2.0"]


_ADDRESSES = (
    *(("experiments", "artifact_location"), ("runs", "artifact_uri"), ("model_versions", "source")),
    *(("model_versions", "storage_location"), ("logged_models", "artifact_location")),
)
"""Tables and columns of MLflow's database that hold addresses of artifacts."""
log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


class RegistryError(KubeloopError):
    """The registry does not hold the requested version; the message says what to do."""

    lasting = True


class RegistryAwayError(RegistryError):
    """The registry does not answer."""

    lasting = False


def _asks(call: Callable[Concatenate[Settings, P], R]) -> Callable[Concatenate[Settings, P], R]:
    """Wrap calls to MLflow: if a server does not answer the client's own retries, raise RegistryAwayError."""

    @functools.wraps(call)
    def wrapped(settings: Settings, /, *args: P.args, **kwargs: P.kwargs) -> R:
        from mlflow.exceptions import MlflowException

        try:
            return call(settings, *args, **kwargs)
        except MlflowException as error:
            # If the server itself refuses, the error is of a subclass or has another code.
            if type(error) is not MlflowException or error.error_code != "INTERNAL_ERROR":
                raise
            if not settings.mlflow_uri.startswith("http"):
                raise
            raise RegistryAwayError(
                f"MLflow at {settings.mlflow_uri} does not answer; check that it runs and that KUBELOOP_MLFLOW_URI "
                f"names it ({str(error)[:300]})"
            ) from error

    return wrapped


@dataclass(frozen=True)
class Version:
    """One registered version of a model."""

    name: str
    version: str
    uri: str
    sha256: str
    run: str
    run_id: str
    created_at: int
    aliases: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The model folder, for a version whose artifacts are on this machine."""
        return paths.local(self.uri) or Path(self.uri)


@_asks
def register(
    settings: Settings,
    loop: Loop,
    folder: Path,
    *,
    run: str,
    tags: Mapping[str, str],
    artifacts: Path | None = None,
) -> Version:
    """Register a model folder as the next version and make it the challenger.

    A second call for the same pipeline run returns the version of the first call, so an interrupted run that starts
    again never leaves two versions of one model.

    Args:
        settings: where MLflow is.
        loop: the use case; its name is the model's.
        folder: the model folder, with `model.onnx` and `model.json`.
        run: name of the pipeline run.
        tags: lineage: which data, features, code and gate decision made this version.
        artifacts: folder with figures and reports to store with the model.
    """
    import mlflow

    client = _client(settings)
    found = [version for version in versions(settings, loop.name) if version.run == run]
    if found:
        _alias(client, found[0], CHALLENGER)
        return found[0]
    facts = kept.loads(folder / "model.json")
    with _run(client, settings, loop, run) as run_id:
        for name, value in facts["metrics"].items():
            if isinstance(value, (int, float)) and value == value:
                client.log_metric(run_id, name, float(value))
        for name, value in {**facts.get("parameters", {}), "algorithm": facts.get("algorithm")}.items():
            client.log_param(run_id, name, value)
        for name, value in tags.items():
            client.set_tag(run_id, name, value)
        if artifacts is not None:
            client.log_artifacts(run_id, str(artifacts), "evaluation")
        with tempfile.TemporaryDirectory() as scratch:
            client.log_artifacts(run_id, str(_package(folder, Path(scratch) / "model")), "model")
        source = f"{client.get_run(run_id).info.artifact_uri}/model"
        try:
            client.create_registered_model(loop.name, description=loop.description)
        except mlflow.exceptions.MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        created = client.create_model_version(
            loop.name,
            source,
            run_id=run_id,
            tags={**tags, _RUN_TAG: run, "kubeloop.sha256": facts["sha256"]},
        )
    version = _version(settings, created)
    _alias(client, version, CHALLENGER)
    return version


@_asks
def promote(settings: Settings, version: Version) -> None:
    """Move the champion alias to a version and remove the challenger alias."""
    client = _client(settings)
    _alias(client, version, CHAMPION)
    current = client.get_registered_model(version.name).aliases
    if str(current.get(CHALLENGER)) == version.version:
        client.delete_registered_model_alias(version.name, CHALLENGER)


@_asks
def tag(settings: Settings, version: Version, tags: Mapping[str, str]) -> None:
    """Add lineage that is known only after registration, such as the address where a version is served."""
    client = _client(settings)
    for name, value in tags.items():
        client.set_model_version_tag(version.name, version.version, name, value)


def champion(settings: Settings, name: str) -> Version | None:
    """Return the version that the champion alias names, or None before the first promotion."""
    return next((version for version in versions(settings, name) if CHAMPION in version.aliases), None)


@_asks
def versions(settings: Settings, name: str) -> list[Version]:
    """Return every version of a model, oldest first; none if the model was never registered."""
    client = _client(settings)
    names = {model.name: model for model in client.search_registered_models(f"name = '{name}'")}
    if name not in names:
        return []
    aliases: dict[str, list[str]] = {}
    for alias, number in names[name].aliases.items():
        aliases.setdefault(str(number), []).append(alias)
    found = client.search_model_versions(f"name = '{name}'")
    return sorted(
        (_version(settings, item, tuple(sorted(aliases.get(str(item.version), ())))) for item in found),
        key=lambda version: int(version.version),
    )


@_asks
def folder(settings: Settings, version: Version) -> Path:
    """Return a version's model folder; fetch it if its artifacts are not on this machine."""
    if (here := paths.local(version.uri)) is not None:
        return here
    import mlflow

    mlflow.set_tracking_uri(settings.mlflow_uri)
    target = paths.inside(settings.state / "models", version.name, version.version, what="the model")
    if not target.is_dir():
        with tempfile.TemporaryDirectory(dir=_made(target.parent)) as scratch:
            whole.move(Path(mlflow.artifacts.download_artifacts(version.uri, dst_path=scratch)), target)
    return target


def storage_uri(version: Version) -> str:
    """Return the address from which KServe reads a version; unlike an alias, it never changes.

    Raises:
        RegistryError: MLflow stores the model where only its own server, or only this machine, can read it.
    """
    if version.uri.partition("://")[0] not in _KSERVE_READS:
        raise RegistryError(
            f"version {version.version} of {version.name} is at {version.uri}, which KServe cannot read; start the "
            "MLflow server with --default-artifact-root s3://... and --no-serve-artifacts, and train again"
        )
    return version.uri


def get(settings: Settings, name: str, number: str) -> Version:
    """Return one version.

    Raises:
        RegistryError: there is no such version.
    """
    known = versions(settings, name)
    for version in known:
        if version.version == number:
            return version
    raise RegistryError(f"{name} has no version {number}; it has {', '.join(v.version for v in known) or 'none'}")


def _client(settings: Settings) -> "MlflowClient":
    import mlflow

    # MLflow's messages on its database and its environment do not help a person who follows a run.
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="mlflow")
    return mlflow.MlflowClient(tracking_uri=settings.mlflow_uri, registry_uri=settings.mlflow_uri)


@contextmanager
def _run(client: "MlflowClient", settings: Settings, loop: Loop, run: str) -> Iterator[str]:
    """Log to the MLflow run of the pipeline, or to a new run if there is none."""
    import mlflow

    if settings.mlflow_run_id:
        yield settings.mlflow_run_id
        return
    experiment = client.get_experiment_by_name(loop.name)
    if experiment is not None and _is_here(settings):
        _move_in(settings, experiment.artifact_location)
    if experiment is None:
        location = _artifacts(settings) if _is_here(settings) else None
        experiment_id = client.create_experiment(loop.name, artifact_location=location)
    else:
        experiment_id = experiment.experiment_id
    # An attempt that was killed has left its run open; this attempt continues it.
    query = f"attributes.status = 'RUNNING' and tags.`{_RUN_TAG}` = '{run}'"
    opened = client.search_runs([experiment_id], query) or [
        client.create_run(experiment_id, run_name=run, tags={_RUN_TAG: run})
    ]
    run_id = opened[0].info.run_id
    try:
        yield run_id
    except BaseException:
        # If MLflow does not answer, its run stays open, and the next attempt continues it.
        with suppress(mlflow.exceptions.MlflowException):
            client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED")


def _is_here(settings: Settings) -> bool:
    """Return whether MLflow's database is this state folder's own, so that its artifacts are too."""
    return settings.mlflow_uri == f"sqlite:///{settings.state}/mlflow.db"


def _artifacts(settings: Settings) -> str:
    return (settings.state / "mlartifacts").as_uri()


def _move_in(settings: Settings, before: str) -> None:
    """In a state folder that was copied or moved, let MLflow write to the new place instead of the old one."""
    here = _artifacts(settings)
    if before == here or not before.endswith("/mlartifacts"):
        return
    log.warning("the state was copied or moved: MLflow's artifacts are at %s, no longer at %s", here, before)
    engine = sa.create_engine(settings.mlflow_uri)
    with engine.begin() as connection:
        for table, column in _ADDRESSES:
            moved = f"UPDATE {table} SET {column} = :here || substr({column}, :size) WHERE {column} = :before"  # noqa: S608
            connection.execute(
                sa.text(f"{moved} OR substr({column}, 1, :size) = :before || '/'"),
                {"here": here, "before": before, "size": len(before) + 1},
            )
    engine.dispose()


def _package(folder: Path, target: Path) -> Path:
    """Make an MLflow model of the folder: MLmodel with signature, input example and requirements."""
    import mlflow
    import numpy as np
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec

    facts = kept.loads(folder / "model.json")
    kinds = {item["name"]: item["kind"] for item in facts["features"]}
    graph = onnx.load(folder / "model.onnx")
    shapes = {value.name: (-1, *(size.dim_value for size in value.type.tensor_type.shape.dim[1:]))
              for value in (*graph.graph.input, *graph.graph.output)}  # fmt: skip
    # MLflow puts a model's answers into a data frame, which cannot hold several numbers per row; with tensors in the
    # signature it returns arrays by name, also for a frame.
    flat = all(len(shape) == 1 for shape in shapes.values())

    def spec(value: onnx.ValueInfoProto) -> ColSpec | TensorSpec:
        text = value.type.tensor_type.elem_type == onnx.TensorProto.STRING
        if flat:
            return ColSpec(DataType.string if text else DataType.float, value.name)
        return TensorSpec(np.dtype("O") if text else np.dtype(np.float32), shapes[value.name], value.name)

    asked, answered = (Schema([spec(value) for value in side]) for side in (graph.graph.input, graph.graph.output))
    mlflow.onnx.save_model(
        graph,
        target,
        signature=ModelSignature(asked, answered),
        input_example=_example(folder)[list(kinds)],
        pip_requirements=_REQUIREMENTS,
        save_as_external_data=False,
        onnx_execution_providers=["CPUExecutionProvider"],
    )
    # MLflow writes the graph again; the digest is that of the file that we checked.
    shutil.copytree(folder, target, dirs_exist_ok=True)
    return target


def _example(folder: Path) -> "pd.DataFrame":
    """Return a few real rows of the training data, from the sample that the folder holds as its reference.

    Everyone who may read the model may also read these rows and that sample, so data that must stay private cannot be
    a feature. Rows without missing values come first; in others, a missing number is NaN and a missing category is the
    empty string.
    """
    import numpy as np
    import pandas as pd

    known = Reference.load(folder / "reference")
    # A code of -1, for a missing value, finds the last one.
    texts = {
        name: np.array([*("" if value == OTHER else value for value in known.categories[name]), ""], dtype=object)[
            codes
        ]
        for name, codes in zip(known.categorical_names, known.categorical.T, strict=True)
    }
    missing = np.isnan(known.numeric).any(axis=1)
    for column in texts.values():
        missing |= column == ""
    rows = np.argsort(missing, kind="stable")[:_EXAMPLE_ROWS]
    columns: dict[str, Any] = dict(zip(known.numeric_names, known.numeric[rows].T, strict=True))
    columns |= {name: column[rows].tolist() for name, column in texts.items()}
    return pd.DataFrame(columns)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _alias(client: "MlflowClient", version: Version, alias: str) -> None:
    client.set_registered_model_alias(version.name, alias, version.version)


def _version(settings: Settings, item: "ModelVersion", aliases: tuple[str, ...] = ()) -> Version:
    tags: dict[str, Any] = dict(item.tags)
    return Version(
        name=item.name,
        version=str(item.version),
        uri=paths.rehome(item.source or "", settings.state) if _is_here(settings) else item.source or "",
        sha256=tags.get("kubeloop.sha256", ""),
        run=tags.get(_RUN_TAG, ""),
        run_id=item.run_id or "",
        created_at=item.creation_timestamp,
        aliases=aliases,
        tags=tags,
    )
