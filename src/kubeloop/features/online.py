"""The online store: read features for entity keys at the moment of a prediction, and keep the store up to date."""

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kubeloop import features, moments
from kubeloop.config import Settings
from kubeloop.data import sources
from kubeloop.stores import kept, whole

if TYPE_CHECKING:
    import pandas as pd
    from feast import FeatureStore

log = logging.getLogger("kubeloop.serving")

_MARK = "materialized-to"
_AT = "event_timestamp"
_ASKED = "asked"
_WRITTEN = 100_000
"""Rows that are written to the online store at a time."""


class OnlineFeatures:
    """Get the features of a service for entity keys and request-time fields.

    Stored values are read through Feast without the on-demand views. These are computed here, also through Feast,
    because Feast alone would derive them from values that are older than their TTL.
    """

    def __init__(self, store: "FeatureStore", service: str) -> None:
        self._store = store
        self._errors = features.store_errors()
        self.fields = features.requests(store, service)
        self.features = features.features(store, service)
        # Feast's SQLite store shares one connection, and two threads that run the same statement on it may get each
        # other's rows, as of Python 3.12. The clients of Redis and PostgreSQL take turns themselves.
        embedded = store.config.online_store.type == "sqlite"
        self._turn: contextlib.AbstractContextManager[Any] = threading.Lock() if embedded else contextlib.nullcontext()
        self._keys = {key for _, key in features.entities(store, service)}
        self._derived = features.on_demand(store, service)
        needed: dict[str, dict[str, None]] = {view.name: {} for view in features.views(store, service)}
        for projection in (
            *store.get_feature_service(service).feature_view_projections,
            *(item for view in self._derived for item in view.source_feature_view_projections.values()),
        ):
            if projection.name in needed:
                needed[projection.name].update(dict.fromkeys(feature.name for feature in projection.features))
        self._stored = [f"{view}:{name}" for view, names in needed.items() for name in names]
        self._ttl = {
            name: view.ttl.total_seconds()
            for view in features.views(store, service)
            for name in needed[view.name]
            if view.ttl
        }

    @classmethod
    def open(cls, folder: Path, service: str, shared: Settings | None = None) -> "OnlineFeatures":
        """Open the online store of a folder of feature tables, or the one that the settings name.

        Raises:
            features.FeatureError: no tables were built there yet, or a shared registry does not know the service.
        """
        from feast.errors import FeatureServiceNotFoundException

        try:
            return cls(features.open_store(folder, shared, once=True), service)
        except FeatureServiceNotFoundException as error:
            raise features.FeatureError(
                f"the feature registry has no {service} yet; `kubeloop submit materialize` writes it"
            ) from error

    def read(self, columns: Mapping[str, Sequence[Any]], at: datetime) -> dict[str, list[Any]]:
        """Return one list per feature, in the order of the requested rows.

        Args:
            columns: a list of n values for each of `fields`; times as ISO 8601 strings, numbers None where missing.
            at: the moment of prediction; a value that is older than its view's TTL at that moment is None. So is a
                value that became known later, since the store holds only the newest value.

        Raises:
            ValueError: a value does not have its field's type, or a view cannot derive its features from it.
            ConnectionError: the store does not answer.
        """
        known = {field.name: _checked(field, columns[field.name]) for field in self.fields}
        rows = len(next(iter(known.values())))
        if self._stored:
            known |= self._read({name: known[name] for name in self._keys}, int(at.timestamp()))
        found = dict(known)
        for view in self._derived:
            found |= _derive(view, known)
        answer = {
            feature.name: [None if value is None or value != value else value for value in found[feature.name]]
            for feature in self.features
        }
        if any(len(values) != rows for values in answer.values()):
            raise features.FeatureError(f"Feast did not answer with the {rows} requested rows")
        return answer

    def _read(self, keys: dict[str, list[Any]], now: int) -> dict[str, list[Any]]:
        """Return the stored values at `now`, in seconds since the epoch like Feast's times; others are None."""
        try:
            with self._turn:
                response = self._store.get_online_features(self._stored, keys)
        except self._errors as error:
            log.warning("the online store cannot be read: %s: %s", type(error).__name__, error)
            # Feast keeps a broken connection to PostgreSQL and would never open another.
            self._store._provider = None
            raise ConnectionError("the online store cannot be read; try again later") from error
        values = response.to_dict()
        for name, column in zip(response.proto.metadata.feature_names.val, response.proto.results, strict=True):
            if name not in self._keys:
                ttl = self._ttl.get(name, float("inf"))
                values[name] = [
                    value if 0 <= now - stamp.seconds <= ttl else None
                    for value, stamp in zip(values[name], column.event_timestamps, strict=True)
                ]
        return values


def _derive(view: Any, known: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Run an on-demand view on one request.

    The function has run on the rows that the model learned from, so an error here comes from the client's values. The
    log holds the traceback, in case it does not.

    Raises:
        ValueError: the function raised; the message names the view.
    """
    try:
        if view.mode == "python":
            answer: dict[str, list[Any]] = view.transform_dict(known)
        else:
            answer = view.transform_arrow(pa.table(known)).to_pydict()
    except Exception as error:
        log.warning("view %s failed on a request", view.name, exc_info=True)
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"view {view.name} cannot derive its features from these values: {reason:.200}") from error
    return answer


def _checked(field: features.Field, values: Sequence[Any]) -> list[Any]:
    """Read a field's values; see `OnlineFeatures.read`."""
    if field.kind == "UNIX_TIMESTAMP":
        return [moments.read(value, field.zone) for value in values]
    text = field.datatype == "BYTES"
    for value in values:
        if not isinstance(value, str) if text else isinstance(value, str | list | dict):
            raise ValueError(f"{field.name} takes {'text' if text else 'numbers'}, not {value!r:.80}")
    return list(values)


def stands(folder: Path) -> datetime | None:
    """Return the moment up to which the online store of a folder of feature tables was written; None if never."""
    mark = folder / _MARK
    return moments.read(kept.unseal(mark)) if mark.is_file() else None


class Materializer:
    """Writes rows to the online store up to a moment, in the order in which they became known.

    Feast's own `materialize` reads each table from the start. A replay of months advances thousands of times, so the
    moments are kept in memory, and the next rows are read ahead.

    Args:
        folder: of feature tables.
        service: the feature service whose views are written.
        shared: settings that name the stores that many pods share.
        asked: rows with the keys that will be requested; other keys are left out. A sample of a large table has few
            of its keys, and Feast writes only about ten thousand rows per second.
    """

    def __init__(
        self, folder: Path, service: str, shared: Settings | None = None, asked: pa.Table | None = None
    ) -> None:
        self._mark = folder / _MARK
        self._store = features.open_store(folder, shared)
        self._tables = []
        for view in features.views(self._store, service):
            path, keys = folder / f"{view.name}.parquet", list(view.join_keys)
            if asked is not None and set(keys) <= set(asked.column_names):
                path = _only(path, keys, asked)
            self._tables.append(_Table(view.name, keys, path))
        self._position: datetime | None = None

    def advance(self, to: datetime) -> int:
        """Write the rows that became known since the last call, up to and including `to`; return their number.

        The first call writes the newest row of every key, so that a restart needs no stored position.
        """
        written = 0
        for table in self._tables:
            for rows in table.news(self._position, to):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    self._store.write_to_online_store(table.name, rows)
                written += len(rows)
        self._position = to.astimezone(UTC)
        whole.write(self._mark, kept.seal(self._position.isoformat()))
        return written


class _Table:
    """The feature table of a view, ordered by moment; only the next rows are in memory."""

    def __init__(self, name: str, keys: list[str], path: Path) -> None:
        self.name = name
        self._keys = keys
        self._path = path
        stamps = pq.read_table(path, columns=[_AT])[_AT].drop_null().to_numpy()
        self._stamps = np.sort(stamps.astype("datetime64[us]"))
        self._ahead: pd.DataFrame | None = None
        self._begin = 0
        """Position of the first row in `_ahead`."""

    def news(self, since: datetime | None, to: datetime) -> "Iterator[pd.DataFrame]":
        """Yield the newest row of each key that became known after one moment and up to another, some at a time."""
        first = 0 if since is None else _known(self._stamps, since)
        last = _known(self._stamps, to)
        if first == last:
            return
        if since is None or last - first > _WRITTEN:
            yield from _newest(self._path, self._keys, since, to)
            return
        rows = self._between(first, last)
        yield rows.drop_duplicates(self._keys, keep="last") if self._keys else rows.tail(1)

    def _between(self, first: int, last: int) -> "pd.DataFrame":
        if self._ahead is None or not self._begin <= first <= last <= self._begin + len(self._ahead):
            end = self._stamps[min(first + _WRITTEN, len(self._stamps)) - 1]
            limits = (self._stamps[first], max(end, self._stamps[last - 1]))
            between = " AND ".join(sources.literal(str(each)) + "::TIMESTAMP AT TIME ZONE 'UTC'" for each in limits)
            with sources.connect() as db:
                self._ahead = (
                    db.sql(
                        f"SELECT * EXCLUDE file_row_number FROM read_parquet({sources.literal(self._path)}, "
                        f"file_row_number = true) WHERE {_AT} BETWEEN {between} ORDER BY {_AT}, file_row_number"
                    )
                    .to_arrow_table()
                    .to_pandas()
                )
            self._begin = first
        return self._ahead.iloc[first - self._begin : last - self._begin]


def _only(path: Path, keys: list[str], asked: pa.Table) -> Path:
    """Write the rows of a feature table with the requested keys to a separate folder; return the file."""
    target = path.parent / _ASKED / path.name
    target.parent.mkdir(exist_ok=True)
    names = ", ".join(map(sources.identifier, keys))
    rows = f"read_parquet({sources.literal(path)}, file_row_number = true) SEMI JOIN asked USING ({names})"
    query = f"SELECT * EXCLUDE file_row_number FROM {rows} ORDER BY {_AT}, file_row_number"
    with whole.file(target) as part, sources.connect() as db:
        db.register("asked", asked.select(keys))
        db.execute(f"COPY ({query}) TO {sources.literal(part)} (FORMAT parquet)")
    return target


def _known(stamps: np.ndarray, moment: datetime) -> int:
    """Return how many rows were known at a moment."""
    limit = np.datetime64(moment.astimezone(UTC).replace(tzinfo=None), "us")
    return int(np.searchsorted(stamps, limit, "right"))


def _newest(path: Path, keys: list[str], since: datetime | None, to: datetime) -> Iterator["pd.DataFrame"]:
    """Yield the newest row of each key that became known after one moment and up to another, some at a time."""
    at = _AT
    limits = ((">", since), ("<=", to))
    span = [f"{at} {sign} {sources.literal(each.isoformat())}::{sources.MOMENT}" for sign, each in limits if each]
    of_key = f"PARTITION BY {', '.join(map(sources.identifier, keys))}" if keys else ""
    with sources.connect() as db:
        rows = db.sql(
            f"SELECT * EXCLUDE file_row_number FROM read_parquet({sources.literal(path)}, file_row_number = true) "
            f"WHERE {' AND '.join(span)} "
            f"QUALIFY row_number() OVER ({of_key} ORDER BY {at} DESC, file_row_number DESC) = 1 "
            f"ORDER BY {at}, file_row_number"
        )
        for batch in rows.to_arrow_reader(_WRITTEN):
            if batch.num_rows:
                yield batch.to_pandas()
