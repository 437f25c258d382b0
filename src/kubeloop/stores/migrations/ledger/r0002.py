"""A run says whether the error that ended it would come again."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the column; a trigger of the old release, which runs on meanwhile, does not know it."""
    op.add_column("runs", sa.Column("lasting", sa.Boolean()))
