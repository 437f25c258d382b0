"""Features: tables from raw data, Feast's store over them, the point-in-time join, and online values."""

from kubeloop.features.events import EVENT_COLUMNS, FeatureError, events, moments, newest_label
from kubeloop.features.store import (
    OFFLINE_STORE,
    STORE_FILE,
    Field,
    build,
    definitions,
    entities,
    features,
    on_demand,
    open_store,
    register,
    requests,
    store_errors,
    training_set,
    views,
)

__all__ = [
    "EVENT_COLUMNS",
    "OFFLINE_STORE",
    "STORE_FILE",
    "FeatureError",
    "Field",
    "build",
    "definitions",
    "entities",
    "events",
    "features",
    "moments",
    "newest_label",
    "on_demand",
    "open_store",
    "register",
    "requests",
    "store_errors",
    "training_set",
    "views",
]
