"""A window's metric has an interval and the number of its positives."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the columns; they stay empty in closed windows."""
    for name in ("effect_low", "effect_high"):
        op.add_column("window_scores", sa.Column(name, sa.Float()))
    for name in ("auc_low", "auc_high"):
        op.add_column("performance", sa.Column(name, sa.Float()))
    for name in ("positives", "windows"):
        op.add_column("performance", sa.Column(name, sa.Integer()))
