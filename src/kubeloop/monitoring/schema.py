"""The tables of the monitor's state, for SQLite and PostgreSQL."""

from typing import Any

import sqlalchemy as sa

from kubeloop.stores.database import Schema, Utc

metadata = sa.MetaData()


def _key(name: str, kind: Any = sa.String) -> sa.Column[Any]:
    return sa.Column(name, kind, primary_key=True)


progress = sa.Table(
    "progress",
    metadata,
    _key("service"),
    sa.Column("cursor", sa.BigInteger, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("watermark", Utc),
    sa.Column("late_rows", sa.BigInteger, nullable=False),
    sa.Column("early_rows", sa.BigInteger, nullable=False),
    sa.Column("malformed", sa.BigInteger, nullable=False),
)
versions = sa.Table(
    "versions",
    metadata,
    _key("service"),
    _key("version"),
    sa.Column("uri", sa.String),
    sa.Column("live_since", Utc),
)
held = sa.Table(
    "held",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("service", sa.String, nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("version", sa.String, nullable=False),
    sa.Column("start", Utc, nullable=False),
    sa.Column("end", Utc, nullable=False),
    sa.Column("level", sa.Integer, nullable=False),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("newest", Utc),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Index("held_by_part", "service", "kind", "start", "version"),
)
windows = sa.Table(
    "windows",
    metadata,
    _key("service"),
    _key("start", Utc),
    _key("version"),
    sa.Column("end", Utc, nullable=False),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("live", sa.Boolean, nullable=False),
    sa.Column("drifted", sa.Boolean),
    sa.Column("importance", sa.Float),
    sa.Column("prediction_drifted", sa.Boolean),
    sa.Column("note", sa.String),
)
window_scores = sa.Table(
    "window_scores",
    metadata,
    _key("service"),
    _key("start", Utc),
    _key("version"),
    _key("feature"),
    _key("kind"),
    sa.Column("end", Utc, nullable=False),
    sa.Column("statistic", sa.Float),
    sa.Column("p_value", sa.Float),
    sa.Column("p_adjusted", sa.Float),
    sa.Column("effect", sa.Float),
    sa.Column("effect_low", sa.Float),
    sa.Column("effect_high", sa.Float),
    sa.Column("psi", sa.Float),
    sa.Column("rows", sa.Integer),
    sa.Column("missing_share", sa.Float),
    sa.Column("importance", sa.Float, nullable=False),
    sa.Column("drifted", sa.Boolean, nullable=False),
)
performance = sa.Table(
    "performance",
    metadata,
    _key("service"),
    _key("start", Utc),
    _key("version"),
    sa.Column("end", Utc, nullable=False),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("labelled", sa.Integer, nullable=False),
    sa.Column("positives", sa.Integer),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("live", sa.Boolean, nullable=False),
    sa.Column("drifted", sa.Boolean),
    sa.Column("scarce", sa.Integer),
    sa.Column("metric", sa.String),
    sa.Column("value", sa.Float),
    sa.Column("low", sa.Float),
    sa.Column("high", sa.Float),
    sa.Column("windows", sa.Integer),
    sa.Column("reference", sa.Float),
    sa.Column("metrics", sa.JSON),
    sa.Column("note", sa.String),
)
episodes = sa.Table(
    "episodes",
    metadata,
    _key("id"),
    sa.Column("service", sa.String, nullable=False),
    sa.Column("version", sa.String, nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("window_end", Utc, nullable=False),
    sa.Column("opened_at", Utc, nullable=False),
    sa.Column("as_of", Utc, nullable=False),
    sa.Column("features", sa.JSON, nullable=False),
    sa.Column("reason", sa.String, nullable=False),
    sa.Column("emitted_at", Utc),
    sa.Column("accepted", sa.Boolean),
    sa.Column("run_name", sa.String),
    sa.Column("decision", sa.String),
    sa.Column("closed_at", Utc),
    sa.Column("outcome", sa.String),
)
MONITOR = Schema("monitor", "KUBELOOP_MONITOR_DB", metadata, "0003")
