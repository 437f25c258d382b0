"""Measure `kubeloop init` and the first run on generated tables of a million rows or more: time and memory."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from kubeloop.data import sources

COLUMNS = {
    "bought_at": "TIMESTAMP '2024-01-01' + to_seconds((i * {step})::BIGINT)",
    "customer": "'c' || (hash(i) % {customers})",
    "shop": "'s' || (hash(i, 1) % 500)",
    "amount": "round(exp(random() * 5), 2)",
    "items": "(1 + random() * 9)::INTEGER",
    "channel": "['web', 'app', 'phone', 'desk'][1 + (hash(i, 2) % 4)::INTEGER]",
    "discount": "CASE WHEN random() < 0.3 THEN round(random(), 2) END",
    "age": "(18 + random() * 60)::INTEGER",
    "returned": "(random() < 0.05 + 0.2 * (hash(i, 2) % 4 = 0)::INTEGER)::INTEGER",
}
SECONDS = 366 * 86400


def make(path: Path, rows: int) -> None:
    """Write a year of purchases; the channel influences which ones are returned."""
    numbers = {"step": SECONDS / rows, "customers": max(10, rows // 20)}
    columns = ", ".join(f"{sql.format(**numbers)} AS {name}" for name, sql in COLUMNS.items())
    with sources.connect() as db:
        db.execute("SELECT setseed(0.5)")
        db.execute(f"COPY (SELECT {columns} FROM range({rows}) r(i)) TO '{path}' (FORMAT parquet)")


def descendants(of: int) -> list[int]:
    """Return the processes that a process has started, and those that these have started."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [of]
    while todo:
        found.append(todo.pop())
        todo += parents.get(found[-1], [])
    return found


def highest(of: int, seen: dict[int, int]) -> None:
    """Record the peak memory of each process in KiB."""
    for process in descendants(of):
        try:
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
        except OSError:
            continue
        seen[process] = max(
            [seen.get(process, 0), *(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))]
        )


def timed(command: list[str | Path], folder: Path) -> tuple[float, float]:
    """Return a command's seconds, and the peak memory in GiB of its largest process."""
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    seen: dict[int, int] = {}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            highest(process.pid, seen)

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, said = process.communicate()
    over.set()
    watcher.join()
    if process.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{said[-2000:]}")
    return time.perf_counter() - started, max(seen.values(), default=0) / 2**20


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, action="append", help="default: 1 and 10 million")
    parser.add_argument("--only-init", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    program = Path(sys.executable).with_name("kubeloop")
    figures = []
    for rows in options.rows or [1_000_000, 10_000_000]:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            make(folder / "purchases.parquet", rows)
            init: list[str | Path] = [
                program, "init", "purchases.parquet", "--label", "returned", "--timestamp", "bought_at",
                "--key", "customer", "--key", "shop", "--label-delay", "7d", "--into", "case",
            ]  # fmt: skip
            steps = {"init": (init, folder)}
            if not options.only_init:
                steps["first run"] = ([program, "run", "--fast"], folder / "case")
            for name, (command, place) in steps.items():
                seconds, gib = timed(command, place)
                figures.append({"rows": rows, "step": name, "seconds": seconds, "gib": gib})
                print(f"{rows:>12,} rows  {name:10} {seconds / 60:6.1f} min  {gib:5.1f} GiB at most", flush=True)
    print(f"{os.cpu_count()} cores, {shutil.disk_usage('/').free / 2**30:.0f} GiB of disk free")
    if options.json:
        options.json.write_text(json.dumps({"results": figures}, indent=2))


if __name__ == "__main__":
    main()
