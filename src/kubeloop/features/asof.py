"""A point-in-time join for Feast that DuckDB runs as ASOF joins: an offline store, which Feast imports by its name.

`feature_store.yaml` chooses it with `offline_store: {type: kubeloop.features.asof.AsofOfflineStore}`. Feast's own store
on DuckDB joins every event with every earlier value of its key and then drops all but one. An ASOF join finds that one
by sorting. This store joins local Parquet files. It is a subclass of Feast's own store, which handles every other
source and all writing.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import ibis
import pandas as pd
import pyarrow as pa
from feast import FeatureView, FileSource, RepoConfig
from feast.data_format import ParquetFormat
from feast.errors import FeastEntityDFMissingColumnsError
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.infra.offline_stores import offline_utils
from feast.infra.offline_stores.duckdb import DuckDBOfflineStore, DuckDBOfflineStoreConfig, _write_data_source
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.utils import compute_non_entity_date_range

from kubeloop.data.sources import MOMENT, connect, identifier, literal

_AT, _ROW = "__at", "__row"
_PIECE = 100_000
"""Rows that an on-demand view gets at a time: Feast passes them to Python functions as lists."""
_LONGEST = timedelta(days=100_000_000)
"""A longer TTL has the same effect as none: 64 bits hold the microseconds of 292,000 years."""


class AsofOfflineStoreConfig(DuckDBOfflineStoreConfig):
    """The settings of `offline_store` in `feature_store.yaml`.

    Attributes:
        type: the name by which Feast imports the store.
        memory_limit: memory for DuckDB's own work, such as `4GB` or `50%`; what does not fit is written to disk. The
            events and the result are Arrow tables, which do not count.
        temp_directory: folder for that; the system's folder for temporary files if left out.
    """

    type: str = "kubeloop.features.asof.AsofOfflineStore"
    memory_limit: str = "50%"
    temp_directory: str | None = None


@dataclass(frozen=True)
class _Query:
    """SQL and the Arrow tables that it names."""

    sql: str
    config: RepoConfig
    tables: dict[str, pa.Table] = field(default_factory=dict)

    @contextlib.contextmanager
    def run(self) -> Iterator[duckdb.DuckDBPyRelation]:
        """Yield the query, ready to run."""
        store = self.config.offline_store
        with tempfile.TemporaryDirectory(prefix="asof-", dir=store.temp_directory) as scratch, connect() as db:
            db.execute(f"SET memory_limit = {literal(store.memory_limit)}")
            db.execute(f"SET temp_directory = {literal(scratch)}")
            for name, table in self.tables.items():
                db.register(name, table)
            yield db.sql(self.sql)

    def over(self, sql: str) -> "_Query":
        """Return a query that reads this one under the name of `this`."""
        return _Query(f"WITH this AS ({self.sql}) {sql}", self.config, self.tables)

    def table(self) -> pa.Table:
        with self.run() as found:
            return found.to_arrow_table()


class AsofRetrievalJob(RetrievalJob):
    """A query that runs when its result is requested."""

    def __init__(
        self,
        query: _Query,
        full_feature_names: bool = False,
        on_demand: Sequence[OnDemandFeatureView] = (),
        metadata: RetrievalMetadata | None = None,
    ) -> None:
        self._query, self._full, self._on_demand, self._metadata = query, full_feature_names, list(on_demand), metadata

    def to_arrow(self, validation_reference: Any = None, timeout: int | None = None) -> pa.Table:
        """Return the result; on-demand views compute it in pieces, as they compute online per request."""
        if not self._on_demand or validation_reference is not None:
            return super().to_arrow(validation_reference, timeout)
        with self._query.run() as rows:
            reader = rows.to_arrow_reader(_PIECE)
            pieces = (pa.Table.from_batches([batch]) for batch in reader if batch.num_rows)
            found = [_Piece(self, piece).to_arrow() for piece in pieces]
            found = found or [_Piece(self, reader.schema.empty_table()).to_arrow()]
        # A piece without values has no type, and a piece of whole numbers has another type than the rest.
        return pa.concat_tables(found, promote_options="permissive")

    def to_sql(self) -> str:
        """Return the query; `entities` in it are the requested rows."""
        return self._query.sql

    def persist(self, storage: Any, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Write the result to the storage of a saved dataset."""
        table, repo = ibis.memtable(self.to_arrow(timeout=timeout)), str(self._query.config.repo_path)
        _write_data_source(table, storage.to_data_source(), repo, "overwrite", allow_overwrite)

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:  # noqa: ARG002
        return self._query.table()

    @property
    def full_feature_names(self) -> bool:
        """Whether a feature's name begins with its view's."""
        return self._full

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        """The views that Feast computes from the result."""
        return self._on_demand

    @property
    def metadata(self) -> RetrievalMetadata | None:
        """The request; None if Feast only reads a table."""
        return self._metadata


class _Piece(AsofRetrievalJob):
    """Some rows of a result, to which Feast adds the columns of on-demand views."""

    def __init__(self, whole: AsofRetrievalJob, rows: pa.Table) -> None:
        super().__init__(whole._query, whole._full, whole._on_demand, whole._metadata)
        self._rows = rows

    def to_arrow(self, validation_reference: Any = None, timeout: int | None = None) -> pa.Table:
        """Return the rows with the columns of on-demand views."""
        return RetrievalJob.to_arrow(self, validation_reference, timeout)

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:  # noqa: ARG002
        return self._rows


class AsofOfflineStore(DuckDBOfflineStore):
    """Reads Parquet files; see the module."""

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | pa.Table | str | None,
        registry: Any,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Join every row with the newest value of its keys that was known at its moment and is not older than the TTL.

        Args:
            config: of the feature store.
            feature_views: the views to join.
            feature_refs: `view:feature`, in the order of the result.
            entity_df: keys and moments as a frame, an Arrow table or DuckDB's SQL; a moment without a zone is in UTC.
                None for every key that has a value between the dates, as it was known at the end.
            registry: of the feature store.
            project: of the feature store.
            full_feature_names: names the features `view__feature`.
            filter_by_created_timestamp: leaves out values that were created after the row's moment.
            start_date: only without rows; if left out, the longest TTL before the end.
            end_date: only without rows; if left out, now.

        Returns:
            All rows in their order.

        Raises:
            FeastEntityDFMissingColumnsError: a key is missing.
            ValueError: two views have a feature of the same name, or a feature has that of a column.
        """
        sources = [_Source.of(view.batch_source, config) for view in feature_views]
        if not all(sources):
            frame: Any = entity_df.to_pandas() if isinstance(entity_df, pa.Table) else entity_df
            return DuckDBOfflineStore.get_historical_features(
                config, feature_views, feature_refs, frame, registry, project, full_feature_names,
                filter_by_created_timestamp,
            )  # fmt: skip
        views = [
            _View.of(view, source, feature_refs, full_feature_names)
            for view, source in zip(feature_views, sources, strict=True)
            if source
        ]
        views = [view for view in views if view.features]
        if entity_df is None:
            start, end = compute_non_entity_date_range(feature_views, start_date=start_date, end_date=end_date)
            entities = _Query(_keys(views, start, end), config)
        elif isinstance(entity_df, str):
            entities = _Query(entity_df.strip().rstrip(";"), config)
        else:
            table = (
                entity_df if isinstance(entity_df, pa.Table) else pa.Table.from_pandas(entity_df, preserve_index=False)
            )
            entities = _Query("FROM entities", config, {"entities": table})
        schema = entities.over("FROM this LIMIT 0").table().schema
        at = offline_utils.infer_event_timestamp_from_entity_df(
            {column.name: column.type.to_pandas_dtype() for column in schema}
        )
        wanted = {key for view in views for key in view.keys.values()}
        if not wanted <= set(schema.names):
            raise FeastEntityDFMissingColumnsError(wanted, wanted - set(schema.names))  # type: ignore[no-untyped-call]
        names = [*schema.names, *(name for view in views for name in view.features.values())]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} would occur twice; set full_feature_names=True")
        moment = _moment(at)
        first, last = entities.over(f"SELECT min({moment}), max({moment}) FROM this").table().to_pydict().values()
        return AsofRetrievalJob(
            entities.over(_join(schema, at, views, filter_by_created_timestamp)),
            full_feature_names,
            OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
            RetrievalMetadata(feature_refs, [name for name in schema.names if name != at], first[0], last[0]),
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: Any,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """Return the newest row of every key between two moments, both included."""
        source = _Source.of(data_source, config)
        if source is None:
            return DuckDBOfflineStore.pull_latest_from_table_or_query(
                config, data_source, join_key_columns, feature_name_columns, timestamp_field, created_timestamp_column,
                start_date, end_date,
            )  # fmt: skip
        times = [name for name in (timestamp_field, created_timestamp_column) if name]
        rows = _rows(source, join_key_columns, feature_name_columns, times, start_date, end_date)
        keys = ", ".join(map(identifier, join_key_columns))
        newest = f"row_number() OVER ({'PARTITION BY ' * bool(keys)}{keys} ORDER BY {_newest(times)}) = 1"
        return AsofRetrievalJob(_Query(f"{rows} QUALIFY {newest}", config))

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: Any,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Return all rows between two moments, both included; one that is not given does not limit them."""
        source = _Source.of(data_source, config)
        if source is None:
            return DuckDBOfflineStore.pull_all_from_table_or_query(
                config, data_source, join_key_columns, feature_name_columns, timestamp_field, created_timestamp_column,
                start_date, end_date,
            )  # fmt: skip
        times = [name for name in (timestamp_field, created_timestamp_column) if name]
        return AsofRetrievalJob(
            _Query(_rows(source, join_key_columns, feature_name_columns, times, start_date, end_date), config)
        )


@dataclass(frozen=True)
class _Source:
    """A FileSource of local Parquet: the SQL that reads it, and its columns by their names in the views."""

    sql: str
    mapping: dict[str, str]
    columns: frozenset[str]

    @classmethod
    def of(cls, source: Any, config: RepoConfig) -> "_Source | None":
        """Return None for a source that Feast's own store has to read."""
        if not isinstance(source, FileSource) or not isinstance(source.file_format, ParquetFormat | None):
            return None
        path = FileSource.get_uri_for_file_path(config.repo_path, source.path)
        if "://" in path:
            return None
        pattern = path if not Path(path).is_dir() else f"{path}/**/*.parquet"
        sql = f"read_parquet({literal(pattern)})"
        with connect() as db:
            columns = frozenset(row[0] for row in db.execute(f"DESCRIBE FROM {sql}").fetchall())
        mapping = {new: old for old, new in source.field_mapping.items() if old in columns}
        return cls(sql, mapping, columns)

    def column(self, name: str) -> str:
        """Return, quoted, the column with this name in a view."""
        return identifier(self.mapping.get(name, name))


@dataclass(frozen=True)
class _View:
    """A feature view for the join.

    Attributes:
        source: its table.
        keys: the events' column by the table's.
        features: the result's name by the table's.
        at: the table's column of moments.
        created: the table's column of the moments at which rows were created.
        ttl: how old a value may be; None for any age.
    """

    source: _Source
    keys: dict[str, str]
    features: dict[str, str]
    at: str
    created: str | None
    ttl: timedelta | None

    @classmethod
    def of(cls, view: FeatureView, source: _Source, refs: Sequence[str], full: bool) -> "_View":
        projection: Any = view.projection
        batch: Any = view.batch_source
        prefix = f"{projection.name_alias or view.name}__" if full else ""
        chosen = [ref.split(":", 1)[1] for ref in refs if ref.startswith(f"{projection.name_to_use()}:")]
        keys = [column.name for column in view.entity_columns if column.name != DUMMY_ENTITY_ID]
        return cls(
            source,
            {key: projection.join_key_map.get(key, key) for key in keys},
            {name: f"{prefix}{name}" for name in chosen},
            batch.timestamp_field,
            batch.created_timestamp_column or None,
            view.ttl if view.ttl and view.ttl < _LONGEST else None,
        )

    def rows(self, filter_created: bool) -> str:
        """Return the query of the table's rows with the columns k0.., f0.., stamp, and known, which the events are
        compared with; no two rows have the same keys and `known` where a column of creation moments says which counts.
        """
        keys = [f"{self.source.column(key)} AS k{number}" for number, key in enumerate(self.keys)]
        features = [f"{self.source.column(name)} AS f{number}" for number, name in enumerate(self.features)]
        at = _moment(self.source.mapping.get(self.at, self.at))
        if not self.created:
            columns = ", ".join([*keys, *features, f"{at} AS stamp", f"{at} AS known"])
            return f"SELECT {columns} FROM {self.source.sql} WHERE {at} IS NOT NULL"
        created = _moment(self.source.mapping.get(self.created, self.created))
        known = f"greatest({at}, {created})" if filter_created else at
        columns = ", ".join([*keys, *features, f"{at} AS stamp", f"{created} AS made", f"{known} AS known"])
        conditions = f"{at} IS NOT NULL" + f" AND {created} IS NOT NULL" * filter_created
        same = ", ".join([*(f"k{number}" for number in range(len(keys))), "known"])
        rows = (
            f"FROM (SELECT {columns} FROM {self.source.sql} WHERE {conditions}) "
            f"QUALIFY row_number() OVER (PARTITION BY {same} ORDER BY stamp DESC, made DESC NULLS LAST) = 1"
        )
        if not filter_created:
            return rows
        # A value that was created late, and is older than what was known by then, never counts.
        of_key = f"PARTITION BY {same.rpartition(', ')[0]} " if keys else ""
        return f"FROM ({rows}) QUALIFY stamp >= max(stamp) OVER ({of_key}ORDER BY known)"


def _join(schema: pa.Schema, at: str, views: Sequence[_View], filter_created: bool) -> str:
    """Return the query over the events, which it calls `this`."""
    # Feast parses text.
    text = pa.types.is_string(schema.field(at).type) or pa.types.is_large_string(schema.field(at).type)
    columns = [
        f"{_moment(name)} AS {identifier(name)}" if text and name == at else identifier(name) for name in schema.names
    ]
    joins = []
    for number, view in enumerate(views):
        v = f"v{number}"
        on = [f"e.{identifier(key)} = {v}.k{place}" for place, key in enumerate(view.keys.values())]
        on.append(f"e.{_AT} >= {v}.known")
        joins.append(f"ASOF LEFT JOIN ({view.rows(filter_created)}) {v} ON {' AND '.join(on)}")
        for place, name in enumerate(view.features.values()):
            value = f"{v}.f{place}"
            if view.ttl:
                age = f"epoch_us(e.{_AT}) - epoch_us({v}.stamp)"
                value = f"CASE WHEN {age} <= {view.ttl // timedelta(microseconds=1)} THEN {value} END"
            columns.append(f"{value} AS {identifier(name)}")
    events = f"SELECT *, {_moment(at)} AS {_AT}, row_number() OVER () AS {_ROW} FROM this"
    return f"SELECT {', '.join(columns)} FROM ({events}) e {' '.join(joins)} ORDER BY {_ROW}"


def _keys(views: Sequence[_View], start: datetime, end: datetime) -> str:
    """Return the query of all keys with a value between two moments, both included, at the end."""
    names = dict.fromkeys(key for view in views for key in view.keys.values())
    parts = []
    for view in views:
        own = {new: view.source.column(key) for key, new in view.keys.items()}
        columns = ", ".join(f"{own.get(name, 'NULL')} AS {identifier(name)}" for name in names)
        where = _between(_moment(view.source.mapping.get(view.at, view.at)), start, end)
        parts.append(f"SELECT DISTINCT {columns or '1'} FROM {view.source.sql} WHERE {where}")
    moment = f"{_literal(end)} AS {identifier(offline_utils.DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL)}"
    if not names:
        return f"SELECT {moment}"
    return f"SELECT *, {moment} FROM ({' UNION '.join(parts)}) ORDER BY ALL"


def _rows(
    source: _Source,
    keys: Sequence[str],
    features: Sequence[str],
    times: Sequence[str],
    start: datetime | None,
    end: datetime | None,
) -> str:
    columns = [identifier(name) for name in dict.fromkeys([*keys, *features, *times])]
    if not keys:
        columns.append(f"{literal(DUMMY_ENTITY_VAL)} AS {DUMMY_ENTITY_ID}")
    return f"SELECT {', '.join(columns)} FROM {source.sql} WHERE {_between(_moment(times[0]), start, end)}"


def _between(moment: str, start: datetime | None, end: datetime | None) -> str:
    limits = [f"{moment} {sign} {_literal(each)}" for sign, each in ((">=", start), ("<=", end)) if each]
    return " AND ".join(limits) or "true"


def _newest(times: Sequence[str]) -> str:
    return ", ".join(f"{_moment(name)} DESC NULLS LAST" for name in times)


def _moment(name: str) -> str:
    return f"{identifier(name)}::{MOMENT}"


def _literal(moment: datetime) -> str:
    return f"{literal(moment.astimezone(UTC).isoformat())}::{MOMENT}"
