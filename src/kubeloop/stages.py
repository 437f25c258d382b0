"""The steps of the training pipeline, as functions over files: what a component calls, and nothing of kfp.

Each reads and writes only the paths it is given and the services that `Settings` names, so that a step
can be repeated after an interruption and cached by its inputs.
"""

import hashlib
import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from kubeloop import __version__, names, sources
from kubeloop.config import Loop, Settings, instant
from kubeloop.failures import told

if TYPE_CHECKING:
    import pandas as pd

    from kubeloop.delivery import Applied
    from kubeloop.gates import Verdict
    from kubeloop.registry import Version

TRAINING_SET = "training"
"""Table name, and so suite name, of the training set."""


class StageError(RuntimeError):
    """A step cannot go on; the message says what to change."""


@dataclass(frozen=True)
class Window:
    """What a run may see and learn from: labelled events of [start, as_of), known at as_of."""

    start: datetime
    as_of: datetime

    @classmethod
    def ending(cls, loop: Loop, as_of: datetime) -> "Window":
        """Return the training window that ends at a moment."""
        return cls(as_of - loop.training.window, as_of)


class Begun(NamedTuple):
    """What all steps of a run share."""

    as_of: str
    run: str
    snapshot: str


@told
def begin(settings: Settings, as_of: str, run: str, job: str) -> Begun:
    """Fix the moment, the name and the data of a run.

    Args:
        settings: where the raw data are, if they are taken in already.
        as_of: the moment, ISO 8601; now when empty.
        run: unique name; the job's when empty.
        job: what the pipeline system calls the run.
    """
    moment = instant(as_of) if as_of else datetime.now(UTC)
    return Begun(moment.isoformat(), run or job, digest(settings.raw) if sources.tables(settings.raw) else "")


class Extract(NamedTuple):
    """What was read: rows by table, and the digest of the raw data."""

    rows: dict[str, int]
    snapshot: str


@told
def extract(loop: Loop, settings: Settings, as_of: datetime, out: Path, snapshot: str = "") -> Extract:
    """Write the raw tables as they were known at `as_of`, with the history that rolling features need.

    Args:
        loop: the use case.
        settings: where the raw data are; they are taken in when they are not there yet.
        as_of: the run's moment.
        out: folder of the tables.
        snapshot: digest of the raw data, computed here when it is empty.
    """
    sources.take_in(loop, settings)
    window = Window.ending(loop, as_of)
    rows = sources.cut(loop, settings.raw, out, since=window.start - loop.features.history, as_of=as_of)
    return Extract(rows, snapshot or digest(settings.raw))


@told
def validate_raw(
    loop: Loop, settings: Settings, raw: Path, as_of: datetime, run: str, clean: Path, page: Path
) -> dict[str, Any]:
    """Validate the raw tables; good rows go to `clean`, bad ones to the quarantine, the findings to an HTML `page`.

    Raises:
        ValidationFailed: an expectation does not hold beyond its tolerance.
    """
    return _validate(loop, settings, sources.tables(raw), as_of, run, clean, page, "raw")


@told
def validate_training_set(
    loop: Loop, settings: Settings, table: Path, as_of: datetime, run: str, clean: Path, page: Path
) -> dict[str, Any]:
    """Validate the training set; its good rows go to the file `clean`, the findings to an HTML `page`.

    Raises:
        ValidationFailed: an expectation does not hold beyond its tolerance.
    """
    folder = clean.with_name(f"{clean.name}.d")
    report = _validate(loop, settings, {TRAINING_SET: table}, as_of, run, folder, page, TRAINING_SET)
    (folder / f"{TRAINING_SET}.parquet").replace(clean)
    folder.rmdir()
    return report


def _validate(
    loop: Loop,
    settings: Settings,
    tables: Mapping[str, Path],
    as_of: datetime,
    run: str,
    clean: Path,
    page: Path,
    what: str,
) -> dict[str, Any]:
    from kubeloop import validation, validation_html

    report = validation.validate(
        tables,
        settings.home / loop.features.repo / "expectations",
        as_of=as_of,
        docs=settings.state / "data-docs" / run / what,
        quarantine=settings.state / "quarantine" / run,
        clean=clean,
    )
    page.write_text(validation_html.html(f"{loop.name}: {what} data", report))
    validation.require(report)
    return report.to_dict()


@told
def build_features(loop: Loop, settings: Settings, raw: Path, as_of: datetime, out: Path) -> int:
    """Join every labelled event of the window with its features as known at the time; return the rows.

    Args:
        loop: the use case.
        settings: where the feature repo is.
        raw: folder of validated raw tables.
        as_of: the run's moment.
        out: Parquet file of the training set; the feature tables lie beside it while they are needed.

    Raises:
        StageError: no event of the window has a label yet.
    """
    from kubeloop import features

    repo = settings.home / loop.features.repo
    window = Window.ending(loop, as_of)
    rows = features.events(repo, raw, start=window.start, end=as_of, labelled_by=as_of)
    if not rows.num_rows:
        raise StageError(f"no event between {window.start:%Y-%m-%d} and {as_of:%Y-%m-%d} has a label known by then")
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        features.build(repo, raw, Path(scratch))
        table = features.training_set(Path(scratch), loop.features.service, rows)
    pq.write_table(table, out, compression="zstd")
    return int(table.num_rows)


@told
def train(loop: Loop, training_set: Path, out: Path, settings: Settings | None = None) -> dict[str, Any]:
    """Fit, export, prove on the hold-out that both predict the same, and write the model folder; return its card.

    Where `pipelines.train_job` says so, a TrainJob does it on a cluster, and the folder is fetched from the bucket.

    Raises:
        DeliveryError: the TrainJob is refused, fails or takes too long.
    """
    from kubeloop import export, model_folder, training

    if loop.pipelines.train_job and settings and loop.delivery.applier != "local":
        from kubeloop.delivery import train_job

        # The same data and use case are the same job: a step that is repeated finds what it has begun.
        name = f"{loop.name[:40]}-{digest(training_set)[:8]}{loop.digest()[:8]}"
        train_job.train(loop, settings, name, training_set, out)
        return asdict(model_folder.read(out))
    frame = pq.read_table(training_set).to_pandas()
    learn, holdout = training.split(frame, loop.training.holdout)
    fitted = training.fit(learn, loop.training, metric=loop.gates.metric)
    card = model_folder.write(out, fitted, export.to_onnx(fitted), learn, holdout, name=loop.name)
    return asdict(card)


@dataclass(frozen=True)
class Evaluation:
    """What the hold-out says of a model, in the shapes that KFP's artifacts take."""

    metrics: dict[str, float]
    roc: tuple[list[float], list[float], list[float]]
    classes: list[str]
    confusion: list[list[int]]


@told
def evaluate(loop: Loop, model: Path, training_set: Path, out: Path, report: Path) -> Evaluation:
    """Measure the model on the hold-out.

    Args:
        loop: the use case.
        model: model folder.
        training_set: Parquet file of the training set.
        out: folder for the figures, the report and the hold-out's predictions.
        report: the report once more, as one HTML file.
    """
    from kubeloop import curves, evaluation, evaluation_html, model_folder, training

    frame = pq.read_table(training_set).to_pandas()
    _, holdout = training.split(frame, loop.training.holdout)
    card = model_folder.read(model)
    scores = model_folder.predict(model, holdout)
    labels = holdout["label"].to_numpy()
    metrics = {name: value for name, value in card.metrics.items() if value is not None}
    slices = evaluation.slices(
        _columns(holdout, loop.gates.slices), labels, scores, loop.gates.slices, loop.gates.slice_min_rows
    )
    drawn = curves.draw(labels, scores)
    facts = {"algorithm": card.algorithm, "trained from": card.trained_from, "trained to": card.trained_to}
    page = evaluation_html.html(
        f"{loop.name}: the hold-out", metrics, drawn, slices, importance=card.importance, facts=facts
    )
    out.mkdir(parents=True, exist_ok=True)
    for target in (out / "evaluation.html", report):
        target.write_text(page)
    for name, figure in curves.figures(drawn, metrics).items():
        figure.savefig(out / f"{name}.png", dpi=110)
    pq.write_table(
        pa.table({"event_id": holdout["event_id"], "label": labels, "score": scores}), out / "holdout.parquet"
    )
    metrics["size_bytes"] = float((model / model_folder.GRAPH).stat().st_size)
    return Evaluation(
        metrics,
        (drawn.roc.x, drawn.roc.y, drawn.roc.threshold),
        ["negative", "positive"],
        drawn.confusion.matrix,
    )


@told
def gate(loop: Loop, settings: Settings, run: str, model: Path, training_set: Path) -> "Verdict":
    """Compare the new model with the champion on the same newest hold-out.

    Rows that the champion was trained on are left out, or it would be judged on its own lessons. A run that is
    resumed after its model was registered keeps the verdict it was registered with: by then the champion may be
    that very model.

    Raises:
        StageError: too few rows are newer than the champion's training data.
    """
    from kubeloop import gates, model_folder, registry, training

    known = registry.versions(settings, loop.name)
    ours = next((version for version in known if version.run == run), None)
    if ours is not None:
        return gates.Verdict.from_dict(json.loads(ours.tags["kubeloop.gate"]))
    frame = pq.read_table(training_set).to_pandas()
    _, holdout = training.split(frame, loop.training.holdout)
    champion = current_champion(loop, settings)
    if champion is None:
        return gates.first(holdout["label"].to_numpy(), model_folder.predict(model, holdout), loop.gates)
    folder = registry.folder(settings, champion)
    trained_to = model_folder.read(folder).trained_to
    unseen = holdout[holdout["event_timestamp"] > datetime.fromisoformat(trained_to)]
    if len(unseen) < loop.gates.slice_min_rows:
        raise StageError(
            f"only {len(unseen)} of the hold-out's rows are newer than the data that champion {champion.version} was "
            f"trained on ({trained_to}); retrain later, or with a longer training.holdout"
        )
    return gates.compare(
        unseen["label"].to_numpy(),
        model_folder.predict(folder, unseen),
        model_folder.predict(model, unseen),
        loop.gates,
        blocks=gates.time_blocks(unseen["event_timestamp"].dt.tz_localize(None), loop.gates.block),
        slices=_columns(unseen, loop.gates.slices),
        seed=loop.training.seed,
    )


def current_champion(loop: Loop, settings: Settings) -> "Version | None":
    """Return the version that a new one has to beat.

    With GitOps the branch decides: a person may have reverted a promotion, or merged a proposal, and the alias follows.
    """
    from kubeloop import registry

    champion = registry.champion(settings, loop.name)
    if loop.delivery.git is None or loop.delivery.applier != "gitops":
        return champion
    from kubeloop.delivery import gitops

    lineage = gitops.named(loop.delivery.git, settings, loop.name)
    told = lineage.get(names.VERSION), lineage.get(names.DIGEST)
    served = next((v for v in registry.versions(settings, loop.name) if (v.version, v.sha256) == told), None)
    if served is None or served == champion:
        return champion
    registry.promote(settings, served)
    return served


def _columns(frame: "pd.DataFrame", names: Sequence[str]) -> dict[str, Any]:
    missing = [name for name in names if name not in frame]
    if missing:
        raise StageError(f"gates.slices names {', '.join(missing)}, which the training set does not have")
    return {name: frame[name].to_numpy() for name in names}


def numbers(verdict: "Verdict") -> dict[str, float]:
    """Return what a verdict rests on as metrics, for the pipeline's page."""
    found = {"champion": verdict.champion, "challenger": verdict.challenger, "difference": verdict.difference}
    if verdict.interval is not None:
        found |= {"interval_low": verdict.interval[0], "interval_high": verdict.interval[1]}
    return {f"{verdict.metric}_{name}": value for name, value in found.items() if value is not None}


@told
def register(
    loop: Loop,
    settings: Settings,
    *,
    model: Path,
    training_set: Path,
    evaluation: Path,
    verdict: str,
    run: str,
    as_of: datetime,
    reason: str,
    snapshot: str,
) -> str:
    """Register the model with its lineage, whatever the gate decided; return the version."""
    from kubeloop import model_folder, registry

    card = model_folder.read(model)
    tags = {
        "kubeloop.as_of": as_of.isoformat(),
        "kubeloop.reason": reason,
        "kubeloop.trained_from": card.trained_from,
        "kubeloop.trained_to": card.trained_to,
        "kubeloop.raw_sha256": snapshot,
        "kubeloop.training_set_sha256": digest(training_set),
        "kubeloop.feature_service": loop.features.service,
        "kubeloop.feature_repo_sha256": digest(settings.home / loop.features.repo),
        "kubeloop.config_sha256": loop.digest(),
        "kubeloop.code": code_version(settings),
        "kubeloop.gate": verdict,
        "kubeloop.promoted": json.dumps(json.loads(verdict)["promote"]),
    }
    version = registry.register(settings, loop, model, run=run, tags=tags, artifacts=evaluation).version
    if settings.bucket:
        _tell(loop, settings, model, verdict, run, version)
    return version


def _tell(loop: Loop, settings: Settings, model: Path, verdict: str, run: str, version: str) -> None:
    """Put where others look: the reference, for the monitor, and the outcome, for the trigger.

    The outcome holds only once the run has succeeded: a promoted version may yet fail to become ready.
    """
    from kubeloop.bucket import Bucket

    decision = json.loads(verdict)
    outcome = {"promote": decision["promote"], "reason": decision["reason"], "version": version}
    bucket = Bucket.open(settings)
    bucket.push(model / "reference", names.reference(loop.name, version))
    bucket.put(names.outcome(run), json.dumps(outcome).encode())


@told
def deploy(loop: Loop, settings: Settings, version: str) -> "Applied":
    """Serve a registered version and, once it answers, make it the champion.

    The alias moves last: whoever reads it finds a model that serves. A version that waits for a review does not, and
    stays the challenger.

    Raises:
        DeliveryError: the version does not become ready; the old champion goes on serving.
        StageError: a newer version is the champion; a run that is resumed late must not take its place.
    """
    from kubeloop import registry

    found = registry.get(settings, loop.name, version)
    champion = registry.champion(settings, loop.name)
    if champion is not None and int(champion.version) > int(version):
        raise StageError(
            f"version {champion.version} is the champion and newer than version {version}, which is not served again; "
            "start a new run instead"
        )
    applied = serve(loop, settings, found)
    now = datetime.now(UTC).isoformat()
    if applied.proposal:
        registry.tag(settings, found, {"kubeloop.proposal": applied.proposal, "kubeloop.proposed_at": now})
        return applied
    registry.promote(settings, found)
    registry.tag(settings, found, {"kubeloop.served_at": applied.url, "kubeloop.promoted_at": now})
    return applied


def serve(loop: Loop, settings: Settings, version: "Version") -> "Applied":
    """Apply the InferenceService of a version and wait until it answers; by GitOps it may be proposed only.

    Raises:
        DeliveryError: the version does not become ready.
    """
    from kubeloop import registry, services
    from kubeloop.delivery.apply import apply
    from kubeloop.serving import pods
    from kubeloop.serving.manifest import ModelRef, inference_service

    here = loop.delivery.applier == "local"
    uri = version.uri if here else registry.storage_uri(version)
    manifest = inference_service(
        loop,
        ModelRef(version.version, uri, version.sha256, version.run),
        logger_url=services.address(settings, "collector"),
        # A pod finds the feature repo in its image; tables and store are shared.
        feature_dir=settings.features if here else settings.home / loop.features.repo,
    )
    verdict = json.loads(version.tags.get("kubeloop.gate", "{}"))
    why = "; ".join(filter(None, (version.tags.get("kubeloop.reason"), verdict.get("reason"))))
    return apply(loop, manifest if here else pods.place(loop, manifest), settings, why=why)


def digest(path: Path) -> str:
    """Return the SHA-256 hex digest of a file, or of a folder's Python, SQL and YAML files with their names."""
    found = hashlib.sha256()
    if path.is_file():
        files = [path]
    else:
        files = sorted(file for file in path.rglob("*") if file.suffix in (".py", ".sql", ".yaml", ".parquet"))
    for file in files:
        found.update(file.name.encode() if file is path else str(file.relative_to(path)).encode())
        found.update(hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()


def code_version(settings: Settings) -> str:
    """Return kubeloop's version, with the commit of the image or of the loop's folder where there is one."""
    if settings.code:
        return f"{__version__}+{settings.code}"
    try:
        commit = subprocess.run(
            ["git", "-C", str(settings.home), "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__}+{commit}"
