"""Features: SQL tables from raw data, the Feast registry over them, and the point-in-time join.

The package is the only importer of Feast; `online` reads and writes through the stores that are opened here. A folder
of feature tables is also Feast's repository path: it holds one Parquet file per view, the registry and the online
store, so that a pipeline run has its own and the serving side has its own, from the same definitions.
"""

import contextlib
import importlib
import shutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from kubeloop.config import Settings
from kubeloop.data import sources
from kubeloop.features import online_url
from kubeloop.features.events import FeatureError, body
from kubeloop.stores import kept, whole

if TYPE_CHECKING:
    from feast import FeatureStore

STORE_FILE = "feature_store.yaml"
OFFLINE_STORE = "kubeloop.features.asof.AsofOfflineStore"
"""This store takes Arrow tables; Feast's own stores take frames."""
_DATATYPES = {"STRING": "BYTES", "UNIX_TIMESTAMP": "BYTES", "BOOL": "BOOL", "INT32": "INT64", "INT64": "INT64"}


@dataclass(frozen=True)
class Field:
    """A named column with its Open Inference Protocol datatype; times are ISO 8601 strings.

    Times without an offset are in `zone`, from the field's tag `timezone` in the feature repo.
    """

    name: str
    datatype: str
    kind: str = ""
    zone: str = "UTC"


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
    """Put a repo on the import path for a moment, and then unload its modules, so that another repo can follow."""
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


def build(repo: Path, raw: Path, out: Path, shared: Settings | None = None) -> dict[str, int]:
    """Compute every view's table from the raw tables and register the definitions.

    Args:
        repo: feature repo; `sql/<view>.sql` computes the table of each feature view.
        raw: folder of raw tables.
        out: folder of feature tables; tables in it are replaced, the online store is kept.
        shared: settings that name the registry for the definitions, if it is not the folder's own.

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
            if lost := [name for name in view.entities if name not in keys]:
                raise FeatureError(
                    f"feature view {view.name} has {f'the entity {lost[0]}' if lost[0] != '__dummy' else 'no entity'}: "
                    "give it one that the repo defines; for a table about a single entity, let events.sql return a "
                    "constant as its key"
                )
            query = repo / "sql" / f"{view.name}.sql"
            if not query.is_file():
                raise FeatureError(f"feature view {view.name} has no query: write {query}")
            columns = [
                *(keys[name] for name in view.entities),
                "event_timestamp",
                *(field.name for field in view.features),
            ]
            try:
                with whole.file(out / f"{view.name}.parquet") as part:
                    db.execute(
                        f"COPY (SELECT {', '.join(map(sources.identifier, columns))} FROM ({body(query)}) "
                        f"ORDER BY event_timestamp) TO {sources.literal(part)} (FORMAT parquet, COMPRESSION zstd)"
                    )
            except duckdb.OutOfMemoryException:
                raise
            except duckdb.Error as error:
                raise FeatureError(
                    f"{query} does not return the columns of its view ({', '.join(columns)}): {error}"
                ) from error
            # Feast's own stores resolve a relative path against the process's folder, not the repository's.
            table = str(out.resolve() / f"{view.name}.parquet")
            if isinstance(view.batch_source, FileSource):
                view.batch_source.file_options.uri = table
            elif spark := getattr(view.batch_source, "spark_options", None):
                spark.path = table
            rows[view.name] = pq.read_metadata(out / f"{view.name}.parquet").num_rows
    shutil.copyfile(repo / STORE_FILE, out / STORE_FILE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        open_store(out, shared).apply(objects)
    kept.remember(out, [path for path in out.iterdir() if path.suffix in (".parquet", ".db", ".yaml")])
    return rows


def register(repo: Path, shared: Settings) -> None:
    """Put a repo's definitions into the shared registry; materialization writes the tables and values.

    Args:
        repo: feature repo.
        shared: names the registry and the online store.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        open_store(repo, shared).apply(definitions(repo))


def open_store(folder: Path, shared: Settings | None = None, *, once: bool = False) -> "FeatureStore":
    """Open the Feast store of a folder of feature tables.

    Args:
        folder: where the tables and `feature_store.yaml` are.
        shared: settings that name the registry and online store that many pods share, instead of the folder's own.
        once: for a server: read a shared registry only now, and do not wait long for either store.

    Raises:
        FeatureError: no tables were built there yet, or a setting names an unknown store.
    """
    import yaml

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from feast import FeatureStore, RepoConfig

        if not (folder / STORE_FILE).is_file():
            raise FeatureError(f"{folder} holds no feature tables yet; `kubeloop run` builds them")
        config = yaml.safe_load((folder / STORE_FILE).read_text())
        if shared is not None:
            config |= _shared(shared, once)
        if once:
            # Feast imports the offline store with its configuration, and DuckDB's with Ibis takes 15 MiB. A server
            # never reads it.
            config["offline_store"] = {"type": "remote", "host": "unused.invalid"}
        if config["registry"].get("registry_type") == "file":
            # Feast resolves this one path against the process's folder.
            config["registry"]["path"] = str(folder.resolve() / config["registry"]["path"])
        return FeatureStore(config=RepoConfig(**config, repo_path=folder))


def _shared(settings: Settings, once: bool) -> dict[str, Any]:
    """Return the parts of Feast's configuration that come from the settings' URLs."""
    found: dict[str, Any] = {}
    if settings.feature_registry:
        # Feast takes 0 for "never expires".
        lasts = 0 if once else 60
        found["registry"] = {"registry_type": "sql", "path": settings.feature_registry, "cache_ttl_seconds": lasts}
    if not settings.online_store:
        return found
    try:
        found["online_store"] = online_url.config(settings.online_store, answering=once)
    except ValueError as error:
        raise FeatureError(f"KUBELOOP_ONLINE_STORE cannot be used: {error}") from None
    return found


def store_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of Feast for a shared online store that does not answer or answers with an error."""
    import psycopg
    import redis

    return redis.RedisError, psycopg.Error


def training_set(folder: Path, service: str, rows: pa.Table) -> pa.Table:
    """Join each event with its features as they were known at the event's moment.

    `feature_store.yaml` names the store that joins; a value older than its view's TTL is null.

    Args:
        folder: folder of feature tables, as `build` leaves it.
        service: name of the feature service.
        rows: events, as `events` returns them.

    Returns:
        event_id, event_timestamp, label, then the features; as many rows as came in, ordered by
        (event_timestamp, event_id); numeric features float32, categorical ones strings.

    Raises:
        FeatureError: the join lost or doubled a row, or the chosen store cannot read a TTL.
    """
    store = open_store(folder)
    fields = features(store, service)
    if store.config.offline_store.type == "duckdb":
        _check_ttls(views(store, service))
    asked = rows.drop_columns(["label_available_at"])
    if store.config.offline_store.type != OFFLINE_STORE:
        asked = asked.to_pandas()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        joined = store.get_historical_features(asked, store.get_feature_service(service)).to_arrow()
    if joined.num_rows != rows.num_rows:
        raise FeatureError(f"the point-in-time join turned {rows.num_rows} rows into {joined.num_rows}")
    columns = {name: joined[name] for name in ("event_id", "event_timestamp", "label")}
    # Spark's store returns it without a zone.
    columns["event_timestamp"] = joined["event_timestamp"].cast(rows["event_timestamp"].type)
    for field in fields:
        kind = pa.string() if field.kind == "categorical" else pa.float32()
        # A whole number beyond 2^24 loses digits; training warns of that, so it is not an error here.
        columns[field.name] = joined[field.name].cast(kind, safe=False)
    return pa.table(columns).sort_by([("event_timestamp", "ascending"), ("event_id", "ascending")])


def _check_ttls(found: list[Any]) -> None:
    """Refuse a TTL that Feast 0.67's DuckDB store passes to Ibis as an interval of two units, which is a TypeError."""
    for view in found:
        if view.ttl and view.ttl.days and view.ttl.seconds:
            raise FeatureError(
                f"Feast's duckdb store cannot read the TTL of {view.name}, {view.ttl}: write whole days, or in "
                f"{STORE_FILE} offline_store: {{type: {OFFLINE_STORE}}}, which takes any"
            )


def features(store: "FeatureStore", service: str) -> list[Field]:
    """Return the features of a service in their order: categorical join keys first, then the views' fields."""
    found = [
        Field(key, "BYTES", "categorical")
        for entity, key in entities(store, service)
        if entity.tags.get("feature") == "categorical"
    ]
    for projection in store.get_feature_service(service).feature_view_projections:
        found += [
            _field(feature.name, feature.dtype.to_value_type().name, feature=True) for feature in projection.features
        ]
    return found


def requests(store: "FeatureStore", service: str) -> list[Field]:
    """Return what a client sends: the join keys and the request-time fields."""
    found = [Field(key, "BYTES") for _, key in entities(store, service)]
    known = {field.name for field in found}
    for view in on_demand(store, service):
        for source in view.source_request_sources.values():
            for field in source.schema:
                if field.name not in known:
                    known.add(field.name)
                    asked = _field(field.name, field.dtype.to_value_type().name)
                    found.append(replace(asked, zone=field.tags.get("timezone", "UTC")))
    return found


def _field(name: str, value_type: str, feature: bool = False) -> Field:
    datatype = _DATATYPES.get(value_type, "FP64")
    if not feature:
        return Field(name, datatype, value_type)
    return Field(name, "BYTES", "categorical") if datatype == "BYTES" else Field(name, "FP32", "numeric")


def on_demand(store: "FeatureStore", service: str) -> list[Any]:
    """Return the on-demand views that a service reads."""
    wanted = {projection.name for projection in store.get_feature_service(service).feature_view_projections}
    return [view for view in store.list_on_demand_feature_views() if view.name in wanted]


def views(store: "FeatureStore", service: str) -> list[Any]:
    """Return the stored views that a service reads, those behind its on-demand views included."""
    wanted = {projection.name for projection in store.get_feature_service(service).feature_view_projections}
    for view in on_demand(store, service):
        wanted |= {projection.name for projection in view.source_feature_view_projections.values()}
    return sorted((view for view in store.list_feature_views() if view.name in wanted), key=lambda view: str(view.name))


def entities(store: "FeatureStore", service: str) -> list[tuple[Any, str]]:
    """Return the entities that a service reads, with their join keys."""
    names: dict[str, None] = {}
    for view in views(store, service):
        names.update(dict.fromkeys(view.entities))
    entities = [store.get_entity(name) for name in sorted(names)]
    return [(entity, entity.join_key) for entity in entities]
