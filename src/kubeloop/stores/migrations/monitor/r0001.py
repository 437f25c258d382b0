"""The tables before they had a version. They are recognised, and new databases begin with the newest version."""

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Change nothing."""
