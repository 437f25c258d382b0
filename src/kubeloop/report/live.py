"""The payload log over time: traffic by version, and the loop against its frozen first model on the same rows."""

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
from kubeloop.tasks import port
from kubeloop.tasks.port import Task
from kubeloop.tasks.tabular import model_folder
from kubeloop.tasks.tabular.encoding import EncodingError
from kubeloop.tasks.tabular.model_folder import ModelFolderError

MOST_BINS = 120
_DAY = timedelta(days=1)
_MOST_DAYS = 420

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bin:
    """What was served in one stretch of time, and what became known about it.

    Attributes:
        rows: predictions by version.
        labelled: how many of them have a label; below `drift.min_rows`, the other fields are empty.
        share: what came true of them, and
        score: what was predicted, on average; see `Task.levels`.
        support: the labels in words.
        few: why they are too few to judge by themselves; empty if they are not.
        loop: the headline metric as served.
        loop_interval: its 95 % interval.
        frozen: the metric of the first model on the same rows.
        difference: by how much the loop is better than the first model; None while the first model serves all rows.
        interval: of the difference, from whole days; None with too few days.
    """

    start: datetime
    end: datetime
    rows: dict[str, int]
    labelled: int = 0
    share: float | None = None
    score: float | None = None
    support: str = ""
    few: str = ""
    loop: float | None = None
    loop_interval: tuple[float, float] | None = None
    frozen: float | None = None
    difference: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Live:
    """The payload log over time.

    Attributes:
        bins: stretches of the monitor's window length (or whole multiples of it, if there are many).
        days: start and predictions by version of each step of length `day` with predictions.
        day: length of those steps.
        served: first and last event time of each version, in the order in which they came.
        note: why the first model could not be scored; empty if it was.
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
        known: the content of its payload log.
        first: the frozen first model.
        origin: where one of the monitor's windows starts.
        until: only stretches that end by then are measured, since one that is still filling says little.
    """
    task = port.of(loop)
    table = known.predictions
    if not table.num_rows:
        return Live()
    times, versions = _times(table), _versions(table)
    begin, end = moment(int(times.min())), moment(int(times.max()))
    served = {name: (times[versions == name].min(), times[versions == name].max()) for name in np.unique(versions)}
    days = end - begin <= _MOST_DAYS * _DAY
    grid = _grid(loop.drift.window, origin, begin, end)
    labelled = known.labelled_predictions()
    frozen, note = _frozen(task, labelled, first)
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


def _frozen(task: Task, rows: pa.Table, first: Version | None) -> tuple[Floats | None, str]:
    """Return what the first model predicts for each row [n], or why it cannot."""
    if first is None or not rows.num_rows:
        return None, ""
    scores = task.answers(rows)
    others = np.flatnonzero(_versions(rows) != first.version)
    if len(others):
        try:
            scores[others] = model_folder.predict(task, first.folder, rows.take(pa.array(others)).to_pandas())
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
    if len(rows) < loop.drift.min_rows:
        return Bin(empty.start, empty.end, empty.rows, len(rows))
    task = port.of(loop)
    y, served = task.checked(rows["label"].to_numpy(), task.answers(rows))
    levels = task.levels(y, served)
    basics = (empty.start, empty.end, empty.rows, len(y), *levels, task.support(y), task.few(y) or "")
    if task.undefined(y) is not None:
        return Bin(*basics)
    metric = task.headline
    sure = metric.interval(y, served)
    within = None if np.isnan(sure.low) else (sure.low, sure.high)
    if frozen is None:
        return Bin(*basics, sure.value, within)
    before = metric.value(*task.checked(y, frozen))
    if np.array_equal(served, frozen):
        return Bin(*basics, sure.value, within, frozen=before)
    return Bin(
        *basics,
        sure.value,
        within,
        frozen=before,
        difference=metric.better * (sure.value - before),
        interval=_interval(loop, task, rows, y, frozen, served),
    )


def _interval(
    loop: Loop, task: Task, rows: pa.Table, y: Floats, frozen: Floats, served: Floats
) -> tuple[float, float] | None:
    blocks = gates.time_blocks(rows["event_time"].cast(pa.timestamp("us")).to_numpy(), loop.gates.block)
    if len(np.unique(blocks)) < gates.MIN_BLOCKS:
        return None
    try:
        _, low, high = gates.difference_interval(
            task, y, frozen, served, task.headline.name, blocks, resamples=400, confidence=0.95, seed=loop.training.seed
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
