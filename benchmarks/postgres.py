"""The ledger's benchmark on a separate PostgreSQL server on loopback; it needs `make backends`."""

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import ledger  # noqa: E402

from tests.backends import Postgres  # noqa: E402


def main() -> None:
    """Print a table; write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500, help="events of each kind")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kubeloop-postgres-") as folder:
        server = Postgres(Path(folder))
        server.start(durable=True)
        try:
            results = ledger.measure(server.database("ledger"), options.count)
        finally:
            server.stop()
    for name, value in results.items():
        print(f"{name:<16}{value:>10}/s  {value / results['bare_insert']:.2f} of bare inserts")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
