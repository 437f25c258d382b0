"""What was known when: the rows of the whole history with their features, and a model for each requested moment.

Everything is stored under `backtest/<digest>/` of the state folder. Each file is written completely and then renamed,
so that the next backtest can use what a killed one has made. The digest covers the settings that shape a model, which
a policy's settings do not.
"""

import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import kubeloop
from kubeloop import moments
from kubeloop.backtest import BacktestError
from kubeloop.config import Loop, Settings, duration_text
from kubeloop.data import sources
from kubeloop.errors import KubeloopError
from kubeloop.models.gates import MIN_BLOCKS
from kubeloop.monitoring.windows import micros
from kubeloop.steps import stages
from kubeloop.stores import kept, whole
from kubeloop.tasks import port
from kubeloop.tasks.port import Task

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "backtest"
_ROWS, _ABOUT, _SCORES = "rows.parquet", "about.json", "scores.npy"
_KNOWN = "label_available_at"
_MAKERS = [
    Path(kubeloop.__file__).parent / name for name in ("data/sources.py", "features", "steps/stages.py", "tasks")
]
"""The version of the code that makes rows and models; results of other versions are not used."""
_OWN = ("event_id", "event_timestamp", "label", _KNOWN)


class FailedError(BacktestError):
    """A run at this moment would have failed; the message is that of the run."""


@dataclass(frozen=True)
class Span:
    """The first model learns from what was known at `start`; it is served from then to `until`."""

    start: datetime
    until: datetime

    def ends(self, window: timedelta) -> list[datetime]:
        """Return the moments at which a window ends."""
        return [self.start + (index + 1) * window for index in range((self.until - self.start) // window)]


@dataclass(frozen=True)
class Model:
    """A model of what was known at a moment; its `scores` [n] or [n, k] are NaN for rows that it learned from."""

    version: str
    trained_to: str
    warnings: tuple[str, ...]
    scores: npt.NDArray[np.float32]


class History:
    """Rows with features, labels and the moments they were known at, and the models over them."""

    def __init__(self, loop: Loop, folder: Path, whole: bool, span: Span) -> None:
        self.loop, self.folder, self.whole, self.span = loop, folder, whole, span

    @functools.cached_property
    def task(self) -> Task:
        """The loop's task."""
        return port.of(self.loop)

    @functools.cached_property
    def table(self) -> pa.Table:
        """All rows, oldest first: `_OWN`, then the features."""
        return pq.read_table(self.folder / _ROWS)

    @functools.cached_property
    def moments(self) -> npt.NDArray[np.int64]:
        """When each row was requested, in microseconds [n]."""
        return _micros(self.table["event_timestamp"])

    @functools.cached_property
    def labels(self) -> npt.NDArray[np.float64]:
        """Label of each row [n]; NaN if there is none."""
        column = self.table["label"]
        found, known = np.full(len(column), np.nan), np.asarray(pc.is_valid(column))
        found[known] = self.task.truths(column.filter(pa.array(known)).to_numpy())
        return found

    @functools.cached_property
    def known(self) -> npt.NDArray[np.int64]:
        """When each label became known, in microseconds [n]; the largest integer if there is none."""
        found = _micros(pc.fill_null(self.table[_KNOWN].cast(pa.timestamp("us", tz="UTC")), _never()))
        return np.where(np.isnan(self.labels), np.iinfo(np.int64).max, found)

    def rows(self, start: datetime, end: datetime) -> slice:
        """Return the rows with `start <= event_timestamp < end`."""
        first, last = np.searchsorted(self.moments, [micros(start), micros(end)], side="left")
        return slice(int(first), int(last))

    def training_set(self, settings: Settings, loop: Loop, moment: datetime) -> pa.Table:
        """Return the training set of a run at a moment: rows with a label by then, with features as known then."""
        if not self.whole:
            with scratch(self.folder) as folder:
                stages.extract(loop, settings, moment, folder / "raw")
                stages.build_features(loop, settings, folder / "raw", moment, folder / "rows.parquet")
                found = pq.read_table(folder / "rows.parquet")
                return _whole_labels(found)
        return cut(self, loop, moment)

    def has(self, version: str) -> bool:
        """Return whether a model exists."""
        return (self.models / version).is_dir()

    @property
    def models(self) -> Path:
        """Folder of the models, by version."""
        return self.folder / "models"

    def model(self, version: str) -> Model:
        """Return an existing model."""
        from kubeloop.tasks.tabular import model_folder

        folder = self.models / version
        card = model_folder.read(folder)
        return Model(version, card.trained_to, tuple(card.warnings), np.load(folder / _SCORES, mmap_mode="r"))

    def failure(self, version: str) -> str:
        """Return why a run could not make this model; empty if no failure is known."""
        path = self.folder / "failed" / f"{version}.json"
        return str(kept.loads(path)["reason"]) if path.is_file() else ""

    def train(self, settings: Settings, loop: Loop, moment: datetime) -> None:
        """Make the model of a moment as a run would and predict all later rows, or record why a run would fail.

        Raises:
            KubeloopError: it failed for a reason that may pass.
        """
        name = version(loop, moment)
        if self.has(name) or self.failure(name):
            return
        try:
            self._train(settings, loop, moment, self.models / name)
        except KubeloopError as error:
            if not error.lasting:
                raise
            failed = self.folder / "failed"
            failed.mkdir(exist_ok=True)
            whole.write(failed / f"{name}.json", kept.dumps({"reason": str(error)}))

    def _train(self, settings: Settings, loop: Loop, moment: datetime, target: Path) -> None:
        from kubeloop.tasks.tabular import model_folder

        with scratch(self.folder) as folder:
            part = folder / "model"
            pq.write_table(self.training_set(settings, loop, moment), folder / "rows.parquet")
            card = stages.train(loop, folder / "rows.parquet", part)
            # The model's hold-out comes before the moment, and the gate needs it.
            first = int(np.searchsorted(self.moments, micros(moments.read(card["trained_to"])), side="right"))
            answers = model_folder.predict(self.task, part, self.frame(slice(first, None)))
            scores = np.full((len(self.moments), *answers.shape[1:]), np.nan, dtype=np.float32)
            scores[first:] = answers
            np.save(part / _SCORES, scores)
            target.parent.mkdir(exist_ok=True)
            whole.move(part, target)

    def frame(self, rows: slice) -> "pd.DataFrame":
        """Return rows as pandas."""
        found: pd.DataFrame = self.table[rows].to_pandas()
        return found


def version(loop: Loop, moment: datetime) -> str:
    """Return the name of the model of a moment; each training window has its own models."""
    return f"{moment:%Y%m%dT%H%M%S}-{duration_text(loop.training.window)}"


def moment_of(name: str) -> datetime:
    """Return the moment of a model."""
    return datetime.strptime(name.partition("-")[0], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)


def cut(history: History, loop: Loop, moment: datetime) -> pa.Table:
    """Return the labelled rows of the window that ends at a moment, as they were known at it."""
    start = stages.Window.ending(loop, moment).start
    seen = (history.moments >= micros(start)) & (history.moments < micros(moment)) & (history.known <= micros(moment))
    return _whole_labels(history.table.filter(pa.array(seen)).drop_columns([_KNOWN]))


def _whole_labels(table: pa.Table) -> pa.Table:
    """Return a training set whose integer labels have one type, whichever rows the query returned."""
    kind = table["label"].type
    whole = pa.types.is_integer(kind) or pa.types.is_boolean(kind)
    return table.set_column(2, "label", table["label"].cast(pa.int64())) if whole else table


def open_history(loop: Loop, settings: Settings, span: Span, say: Callable[[str], None]) -> History:
    """Return the history of a span; build it if it does not exist.

    Features are built once for the whole span if that gives the same rows as a run's point-in-time cut, which is
    checked at two moments. If it does not, for example because a query reads all of a table at any moment, each
    training set and each window's rows are built from their own cut.

    Raises:
        BacktestError: the span is too short, or no label is known.
        KubeloopError: the data cannot be read.
    """
    ends = span.ends(loop.drift.window)
    if len(ends) < MIN_BLOCKS:
        raise BacktestError(
            f"from {span.start:%Y-%m-%d} to {span.until:%Y-%m-%d} there are {len(ends)} whole windows of "
            f"{duration_text(loop.drift.window)}, and a backtest needs {MIN_BLOCKS}: give a longer table, an earlier "
            "--from, or a shorter drift.window"
        )
    folder = settings.state / FOLDER / digest(loop, settings, span)[:16]
    if not (folder / _ABOUT).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        say("Building the features of the whole history.")
        history = _build(loop, settings, folder, span, ends, say)
        whole.write(folder / _ABOUT, kept.dumps({"whole": history.whole, "rows": history.table.num_rows}))
    history = History(loop, folder, bool(kept.loads(folder / _ABOUT)["whole"]), span)
    for left in folder.glob(".part-*"):
        shutil.rmtree(left, ignore_errors=True)
    served = history.labels[history.rows(span.start, span.until)]
    known = served[~np.isnan(served)]
    if not len(known):
        raise BacktestError(f"no event since {span.start:%Y-%m-%d} has a label yet, so no policy can be measured")
    if reason := history.task.undefined(known):
        raise BacktestError(
            f"from {span.start:%Y-%m-%d} to {span.until:%Y-%m-%d}, {reason}: models can be told apart only where "
            "labels differ"
        )
    return history


def _build(
    loop: Loop, settings: Settings, folder: Path, span: Span, ends: list[datetime], say: Callable[[str], None]
) -> History:
    oldest = stages.Window.ending(loop, span.start).start
    pq.write_table(_rows(loop, settings, folder, oldest, span.until, span.until), folder / _ROWS)
    whole = History(loop, folder, True, span)
    by_cut = History(loop, folder, False, span)
    probes = (span.start, ends[len(ends) // 2])
    if all(cut(whole, loop, moment).equals(by_cut.training_set(settings, loop, moment)) for moment in probes):
        return whole
    say("A feature holds more than was known at its moment, so every window is built from its own cut.")
    bounds = [oldest, span.start, *ends]
    parts = [_rows(loop, settings, folder, start, end, end) for start, end in pairwise(bounds)]
    labels = _labels(loop, settings, folder, oldest, span.until)
    table = pa.concat_tables([part.drop_columns(["label", _KNOWN]) for part in parts])
    place = pc.index_in(table["event_id"], value_set=labels["event_id"].combine_chunks())
    for index, name in enumerate(("label", _KNOWN), 2):
        table = table.add_column(index, name, labels[name].take(place))
    pq.write_table(table, folder / _ROWS)
    return by_cut


def _rows(loop: Loop, settings: Settings, folder: Path, start: datetime, end: datetime, as_of: datetime) -> pa.Table:
    """Return events of [start, end) with features and labels from what was known at a moment."""
    from kubeloop import features

    repo = settings.home / loop.features.repo
    since = start - loop.features.history
    with scratch(folder) as part, sources.of_run(loop, settings, since=since, as_of=as_of) as raw:
        sources.cut(loop, raw, part / "raw", since=since, as_of=as_of)
        events = features.events(repo, part / "raw", start=start, end=end)
        features.build(repo, part / "raw", part / "features")
        table = features.training_set(part / "features", loop.features.service, events)
    if not events["event_id"].equals(table["event_id"]):
        raise BacktestError("two events have the same event_id; sql/events.sql must return unique ones")
    table = table.set_column(2, "label", events["label"])
    return table.add_column(3, _KNOWN, events[_KNOWN].cast(pa.timestamp("us", tz="UTC")))


def _labels(loop: Loop, settings: Settings, folder: Path, start: datetime, end: datetime) -> pa.Table:
    from kubeloop import features

    since = start - loop.features.history
    with scratch(folder) as part, sources.of_run(loop, settings, since=since, as_of=end) as raw:
        sources.cut(loop, raw, part / "raw", since=since, as_of=end)
        found = features.events(settings.home / loop.features.repo, part / "raw", start=start, end=end)
    return found.select(list(_OWN)).set_column(3, _KNOWN, found[_KNOWN].cast(pa.timestamp("us", tz="UTC")))


def plan(loop: Loop, settings: Settings, start: datetime | None, until: datetime | None) -> Span:
    """Return the span to replay: that of `replay`, or from two fifths of the table to its newest label.

    Raises:
        BacktestError: its beginning or end is unknown.
    """
    if start is None or until is None:
        if loop.replay:
            start, until = start or loop.replay.train_to, until or loop.replay.until
        elif loop.source.live:
            raise BacktestError("source.live has no last row: give --from and --until")
        else:
            first, last = _ends(loop, settings)
            until = until or last
            start = start or first + (until - first) * 2 / 5
            start = (
                start.replace(hour=0, minute=0, second=0, microsecond=0) if until - start > timedelta(days=9) else start
            )
    if start >= until:
        raise BacktestError(f"--from {start.isoformat()} must come before --until {until.isoformat()}")
    return Span(start, until)


def _ends(loop: Loop, settings: Settings) -> tuple[datetime, datetime]:
    from kubeloop import features

    sources.take_in(loop, settings, keep=True)
    repo = settings.home / loop.features.repo
    last = features.newest_label(repo, settings.raw)
    if last is None:
        raise BacktestError("no event has a label yet, so no policy can be measured")
    events = features.events(repo, settings.raw, start=datetime(1970, 1, 1, tzinfo=UTC), end=last)
    if not events.num_rows:
        raise BacktestError("no event is older than the newest label; check sql/events.sql, which lists the events")
    first: datetime = pc.min(events["event_timestamp"]).as_py()
    return first.astimezone(UTC), last


def digest(loop: Loop, settings: Settings, span: Span) -> str:
    """Return the SHA-256 hex digest of what shapes the rows and the models."""
    if loop.source.live is None:
        sources.take_in(loop, settings, keep=True)
    content = loop.model_dump(mode="json", include={"name", "source", "features", "training"})
    content["training"].pop("window")
    content |= {
        "metric": loop.gates.metric,
        "span": [span.start.isoformat(), span.until.isoformat(), duration_text(loop.drift.window)],
        "oldest": stages.Window.ending(loop, span.start).start.isoformat(),
        "raw": stages.digest(settings.raw) if sources.tables(settings.raw) else "",
        "repo": stages.digest(settings.home / loop.features.repo),
        "code": [stages.digest(path) for path in _MAKERS],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def remembered(folder: Path, key: Any, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the stored result for a key, or make and store it."""
    name = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:32]
    path = folder / f"{name}.json"
    if path.is_file():
        try:
            return kept.loads(path)
        except kept.DamagedError:
            path.unlink()
    content = make()
    folder.mkdir(exist_ok=True)
    whole.write(path, kept.dumps(content))
    return content


def content(array: npt.NDArray[Any]) -> str:
    """Return the SHA-256 hex digest of an array's shape and values."""
    return hashlib.sha256(str(array.shape).encode() + np.ascontiguousarray(array).tobytes()).hexdigest()


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder in a folder of the backtest; the next backtest removes one that a kill left."""
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder, ignore_cleanup_errors=True) as name:
        yield Path(name)


def _micros(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    return np.asarray(column.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy(), dtype=np.int64)


def _never() -> pa.Scalar:
    return pa.scalar(datetime(9999, 1, 1, tzinfo=UTC), pa.timestamp("us", tz="UTC"))
