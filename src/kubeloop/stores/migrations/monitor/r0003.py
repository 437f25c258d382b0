"""Store performance by the loop's own metric, with the other measured metrics next to it."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_BEFORE = sa.table(
    "performance",
    *(
        sa.column(name)
        for name in (
            *("service", "start", "version", "positives", "labelled", "auc", "auc_low", "auc_high", "reference_auc"),
            *("log_loss", "brier", "ece", "scarce", "metric", "value", "low", "high", "reference"),
        )
    ),
    sa.column("metrics", sa.JSON),
)
_OTHERS = ("auc", "log_loss", "brier", "ece")


def upgrade() -> None:
    """Move the AUC, which was the only one until now, to the columns of any metric."""
    for name in ("value", "low", "high", "reference"):
        op.add_column("performance", sa.Column(name, sa.Float()))
    op.add_column("performance", sa.Column("metric", sa.String()))
    op.add_column("performance", sa.Column("scarce", sa.Integer()))
    op.add_column("performance", sa.Column("metrics", sa.JSON()))
    c = _BEFORE.c
    negatives = c.labelled - c.positives
    moved = {
        "metric": "auc",
        "value": c.auc,
        "low": c.auc_low,
        "high": c.auc_high,
        "reference": c.reference_auc,
        "scarce": sa.case((c.positives < negatives, c.positives), else_=negatives),
    }
    connection = op.get_bind()
    connection.execute(sa.update(_BEFORE).values(moved))
    for row in connection.execute(sa.select(_BEFORE).where(c.auc.is_not(None))).mappings().all():
        known = {name: row[name] for name in _OTHERS if row[name] is not None}
        key = [c[name] == row[name] for name in ("service", "start", "version")]
        connection.execute(sa.update(_BEFORE).where(*key).values(metrics=known))
    for name in (*_OTHERS, "auc_low", "auc_high", "reference_auc"):
        op.drop_column("performance", name)
