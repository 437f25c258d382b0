"""Migrate the ledger's and the monitor's database: `kubeloop migrate`, and the chart's Job before an upgrade."""

from collections.abc import Iterator

from kubeloop import config, errors
from kubeloop.config import Settings
from kubeloop.monitoring.schema import MONITOR
from kubeloop.stores import database, migrations
from kubeloop.trigger.store import LEDGER


def upgrade_all(settings: Settings, *, sqlite: bool = True) -> Iterator[str]:
    """Migrate both databases, and yield a sentence for each.

    Args:
        settings: the place.
        sqlite: whether to migrate files as well; the programs that open them also do it.

    Raises:
        SchemaError: a database is newer than this kubeloop, or has lost something.
        AwayError: a database does not answer.
    """
    for url, schema in ((settings.ledger_db, LEDGER), (settings.monitor_db, MONITOR)):
        if url.startswith("sqlite") and not sqlite:
            continue
        with database.answering(f"the {schema.name}'s", schema.variable):
            engine = database.connect(url)
            try:
                yield migrations.upgrade(engine, schema)
            finally:
                engine.dispose()


def main() -> None:
    """Migrate, print what was done, and exit."""
    with errors.program():
        for sentence in upgrade_all(config.settings()):
            print(sentence, flush=True)


if __name__ == "__main__":
    main()
