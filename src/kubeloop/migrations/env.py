"""What Alembic runs for every migration; `kubeloop.migrations` gives it the connection, whose transaction is its own."""

from alembic import context

_given = context.config.attributes
context.configure(connection=_given["connection"], version_table=_given["version_table"])
with context.begin_transaction():
    context.run_migrations()
