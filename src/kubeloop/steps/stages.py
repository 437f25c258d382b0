"""The steps from raw data to an evaluated model as functions over files, which the components call; no kfp here.

Each reads and writes only the given paths and the services that `Settings` names, so that a step can be repeated after
an interruption and cached by its inputs.
"""

import hashlib
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from kubeloop import paths
from kubeloop.config import Loop, Settings, past
from kubeloop.data import sources
from kubeloop.errors import KubeloopError
from kubeloop.steps import loops
from kubeloop.stores import whole
from kubeloop.stores.bucket import Bucket

if TYPE_CHECKING:
    import pandas as pd

    from kubeloop.tasks.tabular.model_folder import Card

_log = logging.getLogger(__name__)

TRAINING_SET = "training"
"""Name of the training set's table, and so of its suite."""


class StageError(KubeloopError):
    """A step cannot continue; the message says what to change."""

    lasting = True


@dataclass(frozen=True)
class Window:
    """What a run may see and learn from: labelled events of [start, as_of), known at as_of."""

    start: datetime
    as_of: datetime

    @classmethod
    def ending(cls, loop: Loop, as_of: datetime) -> "Window":
        """Return the training window that ends at a moment; it never begins before `replay.train_from`."""
        start = as_of - loop.training.window
        return cls(max(start, loop.replay.train_from) if loop.replay else start, as_of)


class Begun(NamedTuple):
    """What all steps of a run share."""

    as_of: str
    run: str
    snapshot: str
    loop: str


def begin(settings: Settings, loop: str, as_of: str, run: str, job: str) -> Begun:
    """Fix the moment, the name and the data of a run, and keep its use case under a reference.

    Args:
        settings: where the raw data are, if they are imported already.
        loop: the use case, as JSON, or a reference to it.
        as_of: the moment, ISO 8601; now if empty.
        run: unique name; the job's if empty.
        job: the pipeline system's name of the run.

    Raises:
        StageError: the run has no name.
        ConfigError: the use case or the moment is not valid.
        BucketError: there is a bucket, but it does not accept the use case.
    """
    if not run and not job:
        # Every run without a name would find what is cached for the empty name.
        raise StageError("the run has no name, like a recurring run with a fixed version: use `kubeloop schedule`")
    moment = past(as_of) if as_of else datetime.now(UTC)
    snapshot = digest(settings.raw) if sources.tables(settings.raw) else ""
    known = loops.read(loop, settings)
    reference = loops.keep(known, settings)
    _log.info("run %s, as of %s", run or job, moment.isoformat())
    if said := loops.stale(known, settings):
        _log.warning("%s", said)
    return Begun(moment.isoformat(), run or job, snapshot, reference)


class Extract(NamedTuple):
    """What was read: rows by table, and the digest of the raw data."""

    rows: dict[str, int]
    snapshot: str


def extract(loop: Loop, settings: Settings, as_of: datetime, out: Path, snapshot: str = "") -> Extract:
    """Write the raw tables as they were known at `as_of`, with the history that rolling features need.

    Args:
        loop: the use case.
        settings: where the raw data are; they are imported if they are missing, or written by `source.live`.
        as_of: the run's moment.
        out: folder of the tables.
        snapshot: digest of the raw data, computed here if it is empty.
    """
    since = Window.ending(loop, as_of).start - loop.features.history
    with sources.of_run(loop, settings, since=since, as_of=as_of) as raw:
        rows = sources.cut(loop, raw, out, since=since, as_of=as_of)
        _log.info("rows known by then: %s", ", ".join(f"{name} {count:,}" for name, count in rows.items()))
        # The run began with the digest of the stored tables, which may differ.
        return Extract(rows, snapshot if snapshot and raw == settings.raw else digest(raw))


def validate_raw(
    loop: Loop, settings: Settings, raw: Path, as_of: datetime, run: str, clean: Path, page: Path
) -> dict[str, Any]:
    """Validate the raw tables; good rows go to `clean`, bad ones to the quarantine, the findings to an HTML `page`.

    Raises:
        ValidationFailed: an expectation does not hold beyond its tolerance.
        BucketError: there is a bucket, and it does not take the Data Docs and the quarantine.
    """
    misfits = sources.tables(raw / sources.MISFITS)
    return _validate(loop, settings, sources.tables(raw), as_of, run, clean, page, "raw", misfits)


def validate_training_set(
    loop: Loop, settings: Settings, table: Path, as_of: datetime, run: str, clean: Path, page: Path
) -> dict[str, Any]:
    """Validate the training set; its good rows go to the file `clean`, the findings to an HTML `page`.

    Raises:
        ValidationFailed: an expectation does not hold beyond its tolerance.
        BucketError: there is a bucket, and it does not take the Data Docs and the quarantine.
    """
    folder = clean.with_name(f"{clean.name}.d")
    report = _validate(loop, settings, {TRAINING_SET: table}, as_of, run, folder, page, TRAINING_SET)
    whole.move(folder / f"{TRAINING_SET}.parquet", clean)
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
    misfits: Mapping[str, Path] | None = None,
) -> dict[str, Any]:
    docs = paths.inside(settings.state / "data-docs", run, what="the run") / what
    quarantine = paths.inside(settings.state / "quarantine", run, what="the run")
    from kubeloop.data import findings, validation, validation_page, validation_report

    suites = settings.home / loop.features.repo / "expectations"
    report = validation.validate(
        tables, suites, as_of=as_of, docs=docs, quarantine=quarantine, clean=clean, misfits=misfits
    )
    if settings.bucket:
        # The state folder of a pod is deleted with the pod.
        bucket = Bucket.open(settings)
        pages, rows = f"data-docs/{loop.name}/{run}/{what}", f"quarantine/{loop.name}/{run}"
        bucket.push(docs, pages)
        bucket.push(quarantine, rows)
        report = replace(report, docs=bucket.address(pages), quarantine=bucket.address(rows))
        findings.expire_in_bucket(bucket, loop, datetime.now(UTC))
    findings.expire_on_disk(settings.state, loop, datetime.now(UTC))
    word = "passed" if report.passed else "failed"
    _log.info("%s data: %s; Data Docs: %s/index.html; quarantine: %s", what, word, report.docs, report.quarantine)
    for sentence in validation_report.held_back(report):
        _log.warning("%s", sentence)
    page.write_text(validation_page.html(f"{loop.name}: {what} data", report))
    validation.require(report)
    return report.to_dict()


def build_features(loop: Loop, settings: Settings, raw: Path, as_of: datetime, out: Path) -> int:
    """Join every labelled event of the window with its features as known at the time; return the rows.

    Args:
        loop: the use case.
        settings: where the feature repo is.
        raw: folder of validated raw tables.
        as_of: the run's moment.
        out: Parquet file of the training set; the feature tables are next to it while they are needed.

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
    _log.info("%d labelled events from %s to %s", table.num_rows, window.start.isoformat(), as_of.isoformat())
    return int(table.num_rows)


def train(
    loop: Loop, training_set: Path, out: Path, holdout: Path | None = None, settings: Settings | None = None
) -> dict[str, Any]:
    """Fit, export, prove on the hold-out that both predict the same, and write the model folder; return its card.

    If `pipelines.train_job` is set, a TrainJob does it on a cluster, and its files are fetched from the bucket.

    Args:
        loop: the use case.
        training_set: Parquet file.
        out: folder of the model.
        holdout: file of the newest rows with the model's answers, for evaluation and gate; not written if left out.
        settings: those of the installation, for a TrainJob.

    Raises:
        DeliveryError: the TrainJob is refused, fails or takes too long.
    """
    from kubeloop.tasks.tabular import candidate, model_folder

    if loop.pipelines.train_job and settings and loop.delivery.applier != "local":
        from kubeloop.delivery import train_job

        # The same data and use case give the same job, so a repeated step finds the one that it has begun.
        name = f"{loop.name[:40]}-{digest(training_set)[:8]}{loop.digest()[:8]}"
        train_job.train(loop, settings, name, training_set, out, holdout)
        return _told(model_folder.read(out))
    card = candidate.build(loop, training_set, out, holdout)
    assert card  # noqa: S101 - the only machine is the first one
    return _told(card)


def _told(card: "Card") -> dict[str, Any]:
    _log.info("%s learned from %d events, %s to %s", card.algorithm, card.rows, card.trained_from, card.trained_to)
    for text in card.warnings:
        _log.warning("%s", text)
    return asdict(card)


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of a model in the forms of KFP's artifacts; None for those that its kind does not have."""

    metrics: dict[str, float]
    roc: tuple[list[float], list[float], list[float]] | None
    classes: list[str] | None
    confusion: list[list[int]] | None


def evaluate(loop: Loop, model: Path, holdout: Path, out: Path, report: Path) -> Evaluation:
    """Measure the model on the hold-out.

    Args:
        loop: the use case.
        model: model folder.
        holdout: the newest rows with the model's answers, as `train` writes them.
        out: folder for the figures, the report and the hold-out's predictions.
        report: the report again, as one HTML file.
    """
    from kubeloop.tasks import slices
    from kubeloop.tasks.tabular import holdout as answered
    from kubeloop.tasks.tabular import maker, model_folder

    kind = maker.of(loop)
    rows, y, answers = answered.read(holdout, kind.task)
    card = model_folder.read(model)
    metrics = card.known_metrics()
    parts = slices.measure(
        kind.task,
        slice_columns(rows, loop.gates.slices),
        y,
        answers,
        loop.gates.slices,
        loop.gates.slice_min_rows,
    )
    out.mkdir(parents=True, exist_ok=True)
    moments = rows["event_timestamp"].dt.tz_localize(None).to_numpy()
    shown = kind.show(f"{loop.name}: the hold-out", card, maker.HoldOut(y, answers, moments, parts), out)
    for target in (out / "evaluation.html", report):
        target.write_text(shown.page)
    columns = dict(zip(kind.task.columns, answers.T if answers.ndim > 1 else [answers], strict=True))
    pq.write_table(
        pa.table({"event_id": rows["event_id"], "label": rows["label"].to_numpy(), **columns}),
        out / "holdout.parquet",
    )
    _log.info("hold-out: %s", ", ".join(f"{name} {metrics[name]:.4f}" for name in kind.task.metrics if name in metrics))
    metrics["size_bytes"] = float((model / model_folder.GRAPH).stat().st_size)
    roc = None if shown.roc is None else (_rounded(shown.roc[0]), _rounded(shown.roc[1]), _rounded(shown.roc[2]))
    return Evaluation(metrics, roc, shown.classes, shown.confusion)


def _rounded(line: Sequence[float]) -> list[float]:
    """Round numbers, since Kubeflow would store and show all digits of each point."""
    return [round(number, 4) for number in line]


def slice_columns(frame: "pd.DataFrame", names: Sequence[str]) -> dict[str, Any]:
    """Return the columns by whose slices a model is judged.

    Raises:
        StageError: one of them is not a feature.
    """
    missing = [name for name in names if name not in frame]
    if missing:
        raise StageError(f"gates.slices names {', '.join(missing)}, which the training set does not have")
    return {name: frame[name].to_numpy() for name in names}


def digest(path: Path) -> str:
    """Return the SHA-256 hex digest of a file's content, or of a folder's Python, SQL and YAML files with their names.

    A file's own name does not count, since the pipelines system's name of an artifact does not depend on its data.
    """
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    found = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.suffix in (".py", ".sql", ".yaml", ".parquet")):
        found.update(str(file.relative_to(path)).encode())
        found.update(hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()
