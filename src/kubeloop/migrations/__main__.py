"""Migrate both databases: what the chart's Job runs before an upgrade."""

from kubeloop import config, errors, migrations


def main() -> None:
    """Migrate, say so, and leave."""
    with errors.program():
        for sentence in migrations.upgrade_all(config.settings()):
            print(sentence, flush=True)


if __name__ == "__main__":
    main()
