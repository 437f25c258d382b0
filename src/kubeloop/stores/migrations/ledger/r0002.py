"""A run records whether the error that ended it would occur again."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the column. A trigger of the old release, which still runs, does not know it."""
    op.add_column("runs", sa.Column("lasting", sa.Boolean()))
