"""The payload log over time: traffic by version, and the loop beside its frozen first model on the same rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kubeloop.config import Loop
from kubeloop.models import gates
from kubeloop.models.registry import Version
from kubeloop.monitoring.windows import Grid, micros, moment
from kubeloop.payloads.table import Log
from kubeloop.tasks.tabular import evaluation, model_folder
from kubeloop.tasks.tabular.encoding import EncodingError
from kubeloop.tasks.tabular.model_folder import ModelFolderError

MOST_BINS = 120
_DAY = timedelta(days=1)
_MOST_DAYS = 420

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bin:
    """What was served and became known of one stretch of time.

    Attributes:
        rows: predictions by version.
        labelled: how many of them have a label; under `drift.min_rows` nothing more is said.
        share: of label 1 among them.
        score: mean prediction among them.
        positives: labels 1 among them.
        loop: AUC as served.
        loop_interval: its 95 % interval.
        frozen: AUC of the first model on the same rows.
        difference: loop minus frozen; None while the first model itself serves all rows.
        interval: of the difference, from whole days; None with too few days.
    """

    start: datetime
    end: datetime
    rows: dict[str, int]
    labelled: int = 0
    share: float | None = None
    score: float | None = None
    positives: int = 0
    loop: float | None = None
    loop_interval: tuple[float, float] | None = None
    frozen: float | None = None
    difference: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Live:
    """The payload log over time.

    Attributes:
        bins: stretches of the monitor's window length (or whole multiples of it, when there are many).
        days: start and predictions by version of each `day`-long step that has any.
        day: length of those steps.
        served: first and last event time of each version, in the order in which they came.
        note: why the frozen model could not be scored; empty when it was.
    """

    bins: list[Bin] = field(default_factory=list)
    days: list[tuple[datetime, dict[str, int]]] = field(default_factory=list)
    day: timedelta = _DAY
    served: dict[str, tuple[datetime, datetime]] = field(default_factory=dict)
    note: str = ""


def read(loop: Loop, known: Log, first: Version | None, origin: datetime | None, until: datetime | None) -> Live:
    """Cut the log into stretches and measure them.

    Args:
        loop: the use case.
        known: its payload log.
        first: the frozen first model.
        origin: where one of the monitor's windows starts.
        until: only what ends by then is measured; a stretch that is still filling says little.
    """
    table = known.predictions
    if not table.num_rows:
        return Live()
    times, versions = _times(table), _versions(table)
    begin, end = moment(int(times.min())), moment(int(times.max()))
    served = {name: (times[versions == name].min(), times[versions == name].max()) for name in np.unique(versions)}
    days = end - begin <= _MOST_DAYS * _DAY
    grid = _grid(loop.drift.window, origin, begin, end)
    labelled = known.labelled_predictions()
    frozen, note = _frozen(labelled, first)
    day = _DAY if days else grid.length
    return Live(
        bins=_bins(loop, grid, times, versions, labelled, frozen, until),
        days=_counts(Grid(day, grid.origin), times, versions),
        day=day,
        served={
            name: (moment(int(low)), moment(int(high)))
            for name, (low, high) in sorted(served.items(), key=lambda item: item[1])
        },
        note=note,
    )


def _grid(length: timedelta, origin: datetime | None, begin: datetime, end: datetime) -> Grid:
    many = -(-(end - begin + length) // (MOST_BINS * length))
    return Grid(length * max(1, many), origin or datetime(begin.year, begin.month, begin.day, tzinfo=UTC))


def _frozen(rows: pa.Table, first: Version | None) -> tuple[Floats | None, str]:
    """Return what the first model says on each row [n], or why it says nothing."""
    if first is None or not rows.num_rows:
        return None, ""
    scores = rows["score"].to_numpy().astype(np.float64)
    others = np.flatnonzero(_versions(rows) != first.version)
    if len(others):
        try:
            scores[others] = model_folder.predict(first.folder, rows.take(pa.array(others)).to_pandas())
        except (ModelFolderError, EncodingError) as error:
            return None, f"Version {first.version} could not be scored on the log: {error}"
    return scores, ""


def _bins(
    loop: Loop,
    grid: Grid,
    times: npt.NDArray[np.int64],
    versions: npt.NDArray[np.object_],
    labelled: pa.Table,
    frozen: Floats | None,
    until: datetime | None,
) -> list[Bin]:
    starts = grid.starts(_times(labelled))
    found = []
    for start, rows in _counts(grid, times, versions):
        empty = Bin(start, start + grid.length, rows)
        if until is not None and empty.end > until:
            found.append(empty)
            continue
        chosen = np.flatnonzero(starts == micros(start))
        part = labelled.take(pa.array(chosen))
        first = None if frozen is None else frozen[chosen]
        found.append(_measure(loop, empty, part, first))
    return found


def _measure(loop: Loop, empty: Bin, rows: pa.Table, frozen: Floats | None) -> Bin:
    labels = rows["label"].to_numpy().astype(np.int64)
    served = rows["score"].to_numpy().astype(np.float64)
    if len(labels) < loop.drift.min_rows:
        return Bin(empty.start, empty.end, empty.rows, len(labels))
    means = float(labels.mean()), float(served.mean())
    basics = (empty.start, empty.end, empty.rows, len(labels), *means, int(labels.sum()))
    if evaluation.undefined(labels) is not None:
        return Bin(*basics)
    measured = evaluation.score(labels, served)
    auc, sure = measured["auc"], (measured["auc_low"], measured["auc_high"])
    if frozen is None:
        return Bin(*basics, auc, sure)
    before = evaluation.score(labels, frozen)["auc"]
    if np.array_equal(served, frozen):
        return Bin(*basics, auc, sure, frozen=before)
    return Bin(
        *basics,
        auc,
        sure,
        frozen=before,
        difference=auc - before,
        interval=_interval(loop, rows, labels, frozen, served),
    )


def _interval(
    loop: Loop, rows: pa.Table, labels: npt.NDArray[np.int64], frozen: Floats, served: Floats
) -> tuple[float, float] | None:
    blocks = gates.time_blocks(rows["event_time"].cast(pa.timestamp("us")).to_numpy(), loop.gates.block)
    if len(np.unique(blocks)) < gates.MIN_BLOCKS:
        return None
    try:
        _, low, high = gates.difference_interval(
            labels, frozen, served, "auc", blocks, resamples=400, confidence=0.95, seed=loop.training.seed
        )
    except gates.GateError:
        return None
    return low, high


def _counts(
    grid: Grid, times: npt.NDArray[np.int64], versions: npt.NDArray[np.object_]
) -> list[tuple[datetime, dict[str, int]]]:
    found: dict[int, dict[str, int]] = {}
    starts = grid.starts(times)
    for name in np.unique(versions):
        for start, count in zip(*np.unique(starts[versions == name], return_counts=True), strict=True):
            found.setdefault(int(start), {})[str(name)] = int(count)
    return [(moment(start), rows) for start, rows in sorted(found.items())]


def _times(table: pa.Table) -> npt.NDArray[np.int64]:
    values: npt.NDArray[np.int64] = table["event_time"].cast(pa.int64()).to_numpy()
    return values


def _versions(table: pa.Table) -> npt.NDArray[np.object_]:
    names: Sequence[str] = pc.fill_null(table["model_version"], "?").to_pylist()
    return np.array(names, dtype=object)
