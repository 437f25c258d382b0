"""Features: SQL tables from raw data, the Feast registry over them, and reads offline and online.

The only importer of Feast. A folder of feature tables is also Feast's repository path: it holds one
Parquet file a view, the registry and the online store, so that a pipeline run has its own and the
serving side has its own, from the same definitions.
"""

import contextlib
import importlib
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kubeloop import sources

if TYPE_CHECKING:
    import pandas as pd
    from feast import FeatureStore

EVENT_COLUMNS = ("event_id", "event_timestamp", "label", "label_available_at")
STORE_FILE = "feature_store.yaml"
_DATATYPES = {"STRING": "BYTES", "UNIX_TIMESTAMP": "BYTES", "BOOL": "BOOL", "INT32": "INT64", "INT64": "INT64"}


class FeatureError(RuntimeError):
    """The feature repo or a feature table does not fit; the message says what to change."""


@dataclass(frozen=True)
class Field:
    """A named column with its Open Inference Protocol datatype; times are ISO 8601 strings."""

    name: str
    datatype: str
    kind: str = ""


def definitions(repo: Path) -> list[Any]:
    """Import the Python files of a feature repo and return the Feast objects they define.

    Raises:
        FeatureError: the folder has no `feature_store.yaml`.
    """
    from feast import Entity, FeatureService, FeatureView
    from feast.on_demand_feature_view import OnDemandFeatureView

    if not (repo / STORE_FILE).is_file():
        raise FeatureError(f"{repo} is not a feature repo: it has no {STORE_FILE}")
    kinds = (Entity, FeatureView, OnDemandFeatureView, FeatureService)
    found: dict[int, Any] = {}
    with _importing(repo) as modules:
        for name in modules:
            for value in vars(importlib.import_module(name)).values():
                if isinstance(value, kinds):
                    found[id(value)] = value
    return list(found.values())


@contextlib.contextmanager
def _importing(repo: Path) -> Iterator[list[str]]:
    """Put a repo on the import path for a moment; its modules do not stay, so that two repos can follow."""
    modules = [path.stem for path in sorted(repo.glob("*.py")) if path.stem != "__init__"]
    hidden = {name: sys.modules.pop(name) for name in modules if name in sys.modules}
    sys.path.insert(0, str(repo))
    try:
        yield modules
    finally:
        sys.path.remove(str(repo))
        for name in modules:
            sys.modules.pop(name, None)
        sys.modules.update(hidden)


def build(repo: Path, raw: Path, out: Path) -> dict[str, int]:
    """Compute every view's table from the raw tables and register the definitions.

    Args:
        repo: feature repo; `sql/<view>.sql` computes the table of each feature view.
        raw: folder of raw tables.
        out: folder of feature tables; tables in it are replaced, the online store is kept.

    Returns:
        Rows by view.

    Raises:
        FeatureError: a query is missing, fails, or does not return the view's columns.
    """
    import duckdb
    from feast import Entity, FeatureView, FileSource

    objects = definitions(repo)
    keys = {item.name: item.join_key for item in objects if isinstance(item, Entity)}
    out.mkdir(parents=True, exist_ok=True)
    rows = {}
    with sources.connect(sources.tables(raw)) as db:
        for view in (item for item in objects if isinstance(item, FeatureView)):
            query = repo / "sql" / f"{view.name}.sql"
            if not query.is_file():
                raise FeatureError(f"feature view {view.name} has no query: write {query}")
            columns = [
                *(keys[name] for name in view.entities),
                "event_timestamp",
                *(field.name for field in view.features),
            ]
            part = out / f"{view.name}.part"
            try:
                db.execute(
                    f"COPY (SELECT {', '.join(map(sources.identifier, columns))} FROM ({_body(query)}) "
                    f"ORDER BY event_timestamp) TO {sources.literal(part)} (FORMAT parquet, COMPRESSION zstd)"
                )
            except duckdb.Error as error:
                raise FeatureError(
                    f"{query} does not give the columns of its view ({', '.join(columns)}): {error}"
                ) from error
            part.replace(out / f"{view.name}.parquet")
            # Feast's DuckDB store reads a relative path from the process's folder, not from the repository's.
            if isinstance(view.batch_source, FileSource):
                view.batch_source.file_options.uri = str(out.resolve() / f"{view.name}.parquet")
            rows[view.name] = pq.read_metadata(out / f"{view.name}.parquet").num_rows
    shutil.copyfile(repo / STORE_FILE, out / STORE_FILE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        open_store(out).apply(objects)
    return rows


def open_store(folder: Path) -> "FeatureStore":
    """Open the Feast store of a folder of feature tables.

    Raises:
        FeatureError: nothing was built there yet.
    """
    import yaml

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from feast import FeatureStore, RepoConfig

        if not (folder / STORE_FILE).is_file():
            raise FeatureError(f"{folder} holds no feature tables yet; `kubeloop run` builds them")
        config = yaml.safe_load((folder / STORE_FILE).read_text())
        if config["registry"].get("registry_type") == "file":
            # Feast resolves this one path against the process's folder.
            config["registry"]["path"] = str(folder.resolve() / config["registry"]["path"])
        return FeatureStore(config=RepoConfig(**config, repo_path=folder))


def _body(query: Path) -> str:
    return query.read_text().strip().rstrip(";")


def events(repo: Path, raw: Path, *, start: datetime, end: datetime, labelled_by: datetime | None = None) -> pa.Table:
    """Return the events (one row a prediction) with `start <= event_timestamp < end`, oldest first.

    Args:
        repo: feature repo with `sql/events.sql`.
        raw: folder of raw tables.
        start: first moment, inclusive.
        end: last moment, exclusive.
        labelled_by: keep only rows whose label was known at that moment.

    Raises:
        FeatureError: the query is missing, fails or lacks a column that every event has.
    """
    import duckdb

    query = repo / "sql" / "events.sql"
    if not query.is_file():
        raise FeatureError(f"{query} is missing: it lists the moments to predict, with their labels")
    condition = (
        f"event_timestamp >= {sources.literal(start.isoformat())}::TIMESTAMPTZ "
        f"AND event_timestamp < {sources.literal(end.isoformat())}::TIMESTAMPTZ"
    )
    if labelled_by is not None:
        moment = sources.literal(labelled_by.isoformat())
        condition += f" AND label IS NOT NULL AND label_available_at <= {moment}::TIMESTAMPTZ"
    with sources.connect(sources.tables(raw)) as db:
        try:
            names = [row[0] for row in db.execute(f"DESCRIBE {_body(query)}").fetchall()]
            missing = [name for name in EVENT_COLUMNS if name not in names]
            if missing:
                raise FeatureError(f"{query} must also return {', '.join(missing)}")
            return db.sql(
                f"FROM ({_body(query)}) WHERE {condition} ORDER BY event_timestamp, event_id"
            ).to_arrow_table()
        except duckdb.Error as error:
            raise FeatureError(f"{query} fails: {error}") from error


def newest_label(repo: Path, raw: Path) -> datetime | None:
    """Return the moment at which the newest label was known, or None when there is none."""
    with sources.connect(sources.tables(raw)) as db:
        query = f"SELECT max(label_available_at) FROM ({_body(repo / 'sql' / 'events.sql')}) WHERE label IS NOT NULL"
        row = db.execute(query).fetchone()
    found: datetime | None = row[0] if row else None
    return found.astimezone(UTC) if found else None


def training_set(folder: Path, service: str, rows: pa.Table) -> pa.Table:
    """Join each event with its features as they were known at the event's moment.

    The point-in-time join is Feast's over DuckDB; a value older than its view's TTL is null.

    Args:
        folder: folder of feature tables, as `build` leaves it.
        service: name of the feature service.
        rows: events, as `events` returns them.

    Returns:
        event_id, event_timestamp, label, then the features; as many rows as came in, ordered by
        (event_timestamp, event_id); numeric features float32, categorical ones strings.

    Raises:
        FeatureError: the join lost or doubled a row.
    """
    store = open_store(folder)
    fields = features(store, service)
    frame = rows.drop_columns(["label_available_at"]).to_pandas()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        joined = store.get_historical_features(frame, store.get_feature_service(service)).to_arrow()
    if joined.num_rows != rows.num_rows:
        raise FeatureError(f"the point-in-time join made {joined.num_rows} rows of {rows.num_rows}")
    columns = {name: joined[name] for name in ("event_id", "event_timestamp", "label")}
    for field in fields:
        kind = pa.string() if field.kind == "categorical" else pa.float32()
        columns[field.name] = joined[field.name].cast(kind)
    return pa.table(columns).sort_by([("event_timestamp", "ascending"), ("event_id", "ascending")])


def features(store: "FeatureStore", service: str) -> list[Field]:
    """Return the features of a service in their order: categorical join keys first, then the views' fields."""
    found = [
        Field(key, "BYTES", "categorical")
        for entity, key in _entities(store, service)
        if entity.tags.get("feature") == "categorical"
    ]
    for projection in store.get_feature_service(service).feature_view_projections:
        found += [
            _field(feature.name, feature.dtype.to_value_type().name, feature=True) for feature in projection.features
        ]
    return found


def requests(store: "FeatureStore", service: str) -> list[Field]:
    """Return what a client sends: the join keys and the request-time fields."""
    found = [Field(key, "BYTES") for _, key in _entities(store, service)]
    known = {field.name for field in found}
    for view in _on_demand(store, service):
        for source in view.source_request_sources.values():
            for field in source.schema:
                if field.name not in known:
                    known.add(field.name)
                    found.append(_field(field.name, field.dtype.to_value_type().name))
    return found


def _field(name: str, value_type: str, feature: bool = False) -> Field:
    datatype = _DATATYPES.get(value_type, "FP64")
    if not feature:
        return Field(name, datatype, value_type)
    return Field(name, "BYTES", "categorical") if datatype == "BYTES" else Field(name, "FP32", "numeric")


def _on_demand(store: "FeatureStore", service: str) -> list[Any]:
    wanted = {projection.name for projection in store.get_feature_service(service).feature_view_projections}
    return [view for view in store.list_on_demand_feature_views() if view.name in wanted]


def _views(store: "FeatureStore", service: str) -> list[Any]:
    """Return the stored views a service reads, those behind its on-demand views included."""
    wanted = {projection.name for projection in store.get_feature_service(service).feature_view_projections}
    for view in _on_demand(store, service):
        wanted |= {projection.name for projection in view.source_feature_view_projections.values()}
    return sorted((view for view in store.list_feature_views() if view.name in wanted), key=lambda view: str(view.name))


def _entities(store: "FeatureStore", service: str) -> list[tuple[Any, str]]:
    names: dict[str, None] = {}
    for view in _views(store, service):
        names.update(dict.fromkeys(view.entities))
    entities = [store.get_entity(name) for name in sorted(names)]
    return [(entity, entity.join_key) for entity in entities]


class OnlineFeatures:
    """The online side: from entity keys and request-time fields to the features of a service.

    Stored values are read through Feast without the views that are derived on demand, and those are computed here,
    through Feast too: it would derive them from values that are older than their TTL.
    """

    def __init__(self, store: "FeatureStore", service: str) -> None:
        self._store = store
        self.fields = requests(store, service)
        self.features = features(store, service)
        self._keys = {key for _, key in _entities(store, service)}
        self._derived = _on_demand(store, service)
        needed: dict[str, dict[str, None]] = {view.name: {} for view in _views(store, service)}
        for projection in (
            *store.get_feature_service(service).feature_view_projections,
            *(item for view in self._derived for item in view.source_feature_view_projections.values()),
        ):
            if projection.name in needed:
                needed[projection.name].update(dict.fromkeys(feature.name for feature in projection.features))
        self._stored = [f"{view}:{name}" for view, names in needed.items() for name in names]
        self._ttl = {
            name: view.ttl.total_seconds() for view in _views(store, service) for name in needed[view.name] if view.ttl
        }

    @classmethod
    def open(cls, folder: Path, service: str) -> "OnlineFeatures":
        """Open the online store of a folder of feature tables.

        Raises:
            FeatureError: nothing was built there yet.
        """
        return cls(open_store(folder), service)

    def read(self, columns: Mapping[str, Sequence[Any]], at: datetime) -> dict[str, list[Any]]:
        """Return one list a feature, in the order of the rows asked for.

        Args:
            columns: a list of n values for each of `fields`; times as ISO 8601 strings, numbers None where missing.
            at: the moment of prediction; a value older than its view's TTL at that moment is None.

        Raises:
            ValueError: a value is not of its field's type.
        """
        known = {field.name: _checked(field, columns[field.name]) for field in self.fields}
        rows = len(next(iter(known.values())))
        if self._stored:
            known |= self._read({name: known[name] for name in self._keys}, int(at.timestamp()))
        found = dict(known)
        for view in self._derived:
            if view.mode == "python":
                found |= view.transform_dict(known)
            else:
                found |= view.transform_arrow(pa.table(known)).to_pydict()
        answer = {
            feature.name: [None if value is None or value != value else value for value in found[feature.name]]
            for feature in self.features
        }
        if any(len(values) != rows for values in answer.values()):
            raise FeatureError(f"Feast answered another number of rows than the {rows} asked for")
        return answer

    def _read(self, keys: dict[str, list[Any]], now: int) -> dict[str, list[Any]]:
        """Return the stored values that are not too old `now`, in seconds since the epoch, as Feast tells times."""
        response = self._store.get_online_features(self._stored, keys)
        values = response.to_dict()
        for name, column in zip(response.proto.metadata.feature_names.val, response.proto.results, strict=True):
            if ttl := self._ttl.get(name):
                values[name] = [
                    None if now - stamp.seconds > ttl else value
                    for value, stamp in zip(values[name], column.event_timestamps, strict=True)
                ]
        return values


def _checked(field: Field, values: Sequence[Any]) -> list[Any]:
    """Read a field's values; see `OnlineFeatures.read`."""
    if field.kind == "UNIX_TIMESTAMP":
        return [moment(value) for value in values]
    text = field.datatype == "BYTES"
    for value in values:
        if not isinstance(value, str) if text else isinstance(value, str | list | dict):
            raise ValueError(f"{field.name} takes {'text' if text else 'numbers'}, not {value!r:.80}")
    return list(values)


def moment(text: Any) -> datetime:
    """Read an ISO 8601 time; one without an offset is UTC.

    Raises:
        ValueError: the text is not a time.
    """
    if not isinstance(text, str):
        raise ValueError(f"{text!r} is not an ISO 8601 time such as 2013-04-01T12:00:00Z")
    try:
        value = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not an ISO 8601 time such as 2013-04-01T12:00:00Z") from error
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Materializer:
    """Brings the online store up to a moment, row by row as they became known.

    Feast's own `materialize` reads each table anew; a replay of months advances thousands of times,
    so the tables are read once and the newest row of each key is written through Feast.
    """

    def __init__(self, folder: Path, service: str) -> None:
        self._store = open_store(folder)
        self._tables: list[tuple[str, list[str], pd.DataFrame, np.ndarray]] = []
        for view in _views(self._store, service):
            frame = pq.read_table(folder / f"{view.name}.parquet").to_pandas().sort_values("event_timestamp")
            stamps = frame["event_timestamp"].dt.tz_localize(None).to_numpy().astype("datetime64[us]")
            self._tables.append((view.name, list(view.join_keys), frame, stamps))
        self._position: datetime | None = None

    def advance(self, to: datetime) -> int:
        """Write what became known since the last call, up to and including `to`; return the rows written.

        The first call writes the newest row of every key, so that a restart needs no memory of the last.
        """
        written = 0
        limit = np.datetime64(to.astimezone(UTC).replace(tzinfo=None), "us")
        for name, keys, frame, stamps in self._tables:
            first = 0
            if self._position is not None:
                first = int(np.searchsorted(stamps, np.datetime64(self._position.replace(tzinfo=None), "us"), "right"))
            last = int(np.searchsorted(stamps, limit, "right"))
            rows = frame.iloc[first:last].drop_duplicates(keys, keep="last")
            if len(rows):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    self._store.write_to_online_store(name, rows)
                written += len(rows)
        self._position = to.astimezone(UTC)
        return written
