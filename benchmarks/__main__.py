"""Run every benchmark, one after the other, and store the results: `make bench`."""

import json
import subprocess
import sys
from pathlib import Path

RUNTIME = Path(".venv-runtime/bin/python").absolute()
BENCHMARKS = {
    "serving": Path(sys.executable),
    "path": Path(sys.executable),
    "drift": Path(sys.executable),
    "join": Path(sys.executable),
    "scale": Path(sys.executable),
    "steps": Path(sys.executable),
    "collector": RUNTIME,
    "logger": Path(sys.executable),
    "upstream": Path(sys.executable),
    "ledger": RUNTIME,
    "alarms": Path(sys.executable),
    "judge": Path(sys.executable),
}
CLUSTER = {"chart": Path(sys.executable), "postgres": Path(sys.executable)}
"""Benchmarks that need `make control-plane backends`; they run only if they are named."""


def main() -> int:
    """Run the benchmarks named on the command line, or all; return the number that failed."""
    out = Path("build/bench")
    out.mkdir(parents=True, exist_ok=True)
    wanted = sys.argv[1:] or list(BENCHMARKS)
    failed = 0
    for name in wanted:
        print(f"\n=== {name}", flush=True)
        script = Path(__file__).with_name(f"{name}.py")
        done = subprocess.run([(BENCHMARKS | CLUSTER)[name], script, "--json", out / f"{name}.json"], check=False)
        failed += bool(done.returncode)
    results = {path.stem: json.loads(path.read_text()) for path in sorted(out.glob("*.json"))}
    Path("build/bench.json").write_text(json.dumps(results, indent=2) + "\n")
    print("\nAll results: build/bench.json")
    return failed


if __name__ == "__main__":
    sys.exit(main())
