"""Measure false alarms, delays and wrong gates of kubeloop and of the peers' defaults on the same streams.

    .venv/bin/python benchmarks/alarms.py --years 6 --docs docs/alarms.md

Every stream is a year of 52 windows against one reference (alarms_streams.py), deterministic by its seed. kubeloop is
measured with the monitor's own code in virtual time: detector, policy, votes, episodes. uv makes an environment for
each peer, and a peer's alarm opens an episode with a cooldown, as in kubeloop. The peers' results stay in build/alarms,
so that a stopped run continues where it was.
"""

import argparse
import dataclasses
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from alarms_gates import decisions
from alarms_kinds import table as of_kinds
from alarms_streams import CHANGE, WEEKS, Scenario, scenarios, year

from kubeloop.config import Drift
from kubeloop.monitoring import performance, policy
from kubeloop.monitoring.detector.builtin import BuiltinDetector
from kubeloop.monitoring.detector.port import Window
from kubeloop.monitoring.policy import Episode, Vote
from kubeloop.tasks.binary.maker import BinaryMaker
from kubeloop.tasks.binary.task import BINARY
from kubeloop.tasks.intervals import Estimate
from kubeloop.tasks.reference import Measured, build

HERE = Path(__file__).parent
OUT = HERE.parent / "build" / "alarms"
START = datetime(2024, 1, 1, tzinfo=UTC)
WEEK = timedelta(weeks=1)
KINDS_YEARS = 20
"""Streams of each kind of task except the binary one; they are cheap, since the peers do not judge them."""
COOLDOWN = 3
"""Windows that an episode lasts if nothing is retrained, as `init` sets it."""

PEERS = {
    "alibi": ("Alibi Detect: TabularDrift",),
    "evidently": ("Evidently: DataDriftPreset",),
    "nannyml": ("NannyML: univariate drift, any column", "NannyML: realized ROC AUC"),
}
NEEDS = {"evidently": ("evidently==0.7.23", "pandas<3"), "nannyml": ("nannyml==0.13.1", "statsmodels", "pandas<3")}
OURS = "kubeloop"

Stream = dict[str, Any]


def alarms(stream: Stream, drift: Drift) -> list[int]:
    """Return the windows in which the monitor opens an episode."""
    numeric, categorical = stream["numeric"], stream["categorical"]
    before = stream["week"] < 0
    names = [f"n{i}" for i in range(numeric.shape[1])] + [f"c{i}" for i in range(categorical.shape[1])]
    columns = dict(
        zip(names, [*numeric.T, *[[f"v{code}" for code in column] for column in categorical.T]], strict=True)
    )
    kinds = {name: "numeric" if name[0] == "n" else "categorical" for name in names}
    measured = BINARY.score(stream["y"][before], stream["score"][before])
    holdout = Estimate(measured["auc"], measured["auc_low"], measured["auc_high"])

    def part(rows: Any) -> dict[str, Any]:
        return {name: np.asarray(column)[rows] for name, column in columns.items()}

    reference = build(
        part(before),
        kinds,
        stream["score"][before],
        dict.fromkeys(names, 1.0),
        Measured("auc", holdout),
        trained_from="",
        trained_to="",
    )
    detector = BuiltinDetector()
    detector.fit("1", reference)
    votes: dict[policy.Kind, list[Vote]] = {"drift": [], "performance": []}
    rows: list[dict[str, Any]] = []
    episodes: list[Episode] = []
    opened = []
    for week in range(WEEKS):
        at = stream["week"] == week
        start, end = START + week * WEEK, START + (week + 1) * WEEK
        found = detector.score("1", Window(*reference.encode(part(at)), stream["score"][at]))
        seen = policy.judge(found, reference.importance, drift)
        votes["drift"].append(Vote(start, end, seen.drifted))
        y, p = stream["y"][at].astype(np.int64), stream["score"][at].astype(np.float64)
        status, metrics = performance.measure(BINARY, y, p, 50)
        row: dict[str, Any] = {"status": status} | performance.measured(BINARY, y, metrics)
        auc = Estimate(row["value"], row["low"], row["high"]) if status == "judged" else None
        if status == "few" and (together := performance.together(BINARY, [*rows, row])):
            auc, row["status"] = together[0], "judged"
        rows.append(row)
        if auc is not None:
            votes["performance"].append(
                Vote(start, end, policy.performance(BINARY.headline, auc, holdout, drift).drifted)
            )
        episodes = [_ended(episode, end, drift) for episode in episodes]
        for kind in ("drift", "performance"):
            if not votes[kind] or votes[kind][-1].end != end:
                continue
            episode = policy.propose("s", "1", kind, votes[kind], end, episodes, drift)
            if episode is not None:
                episodes.append(episode)
                opened.append(week)
    return opened


def _ended(episode: Episode, now: datetime, drift: Drift) -> Episode:
    over = policy.end(episode, None, now, drift) if episode.closed_at is None else None
    return dataclasses.replace(episode, closed_at=over[0], outcome=over[1]) if over else episode


def written(stream: Stream, **changes: Any) -> Drift:
    """Return the policy that `init` would write for a stream."""
    before = stream["week"] < 0
    measured = BINARY.score(stream["y"][before], stream["score"][before])
    drafted = BinaryMaker(BINARY).draft(stream["y"][before], measured)
    limits = {**drafted.watch, "min_importance": 0.3}
    chosen = limits | {"cooldown": COOLDOWN * WEEK}
    return Drift(**chosen | changes)


VARIANTS: dict[str, dict[str, Any]] = {
    OURS: {},
    "kubeloop with votes: 1, of: 1": {"votes": 1, "of": 1},
    "kubeloop with min_effect: 0.1": {"min_effect": 0.1},
    "kubeloop with min_importance: 0.1": {"min_importance": 0.1},
    "kubeloop with max_auc_drop: 0.1": {"max_auc_drop": 0.1},
}


def rested(flags: Sequence[bool]) -> list[int]:
    """Return the windows in which alarms open an episode that lasts for the cooldown."""
    opened: list[int] = []
    for week, alarm in enumerate(flags):
        if alarm and (not opened or week >= opened[-1] + COOLDOWN):
            opened.append(week)
    return opened


def peers(name: str, paths: Sequence[Path]) -> Iterator[tuple[str, list[list[bool]]]]:
    """Run a peer on streams, and yield each one's alarms as they arrive."""
    script = HERE / "alarms_peers" / f"{name}.py"
    if name == "alibi":
        command = [str(HERE.parent / ".venv-detector" / "bin" / "python"), "-P"]
    else:
        uv = shutil.which("uv") or str(HERE.parent / ".uv" / "bin" / "uv")
        needs = [argument for package in NEEDS[name] for argument in ("--with", package)]
        command = [uv, "run", "--quiet", "--isolated", "--no-project", "--python", "3.11", *needs, "python"]
    quiet = os.environ | {"DO_NOT_TRACK": "1", "NML_DISABLE_USAGE_LOGGING": "1", "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen([*command, script, *paths], stdout=subprocess.PIPE, text=True, env=quiet) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith('{"stream"'):
                found = json.loads(line)
                yield Path(found["stream"]).stem, found["alarms"]
    if process.returncode:
        print(f"{name} ended with {process.returncode}", file=sys.stderr)


def known(name: str, paths: Sequence[Path]) -> dict[str, list[list[bool]]]:
    """Return a peer's alarms on all streams: those of an earlier run, and the missing ones."""
    kept = OUT / f"{name}.json"
    found: dict[str, list[list[bool]]] = json.loads(kept.read_text()) if kept.exists() else {}
    missing = [path for path in paths if path.stem not in found]
    if missing:
        for stem, flags in peers(name, missing):
            found[stem] = flags
            kept.write_text(json.dumps(found))
            print(f"{name}: stream {stem}", flush=True)
    return found


def summarise(name: str, scenario: Scenario, years: Sequence[list[int]]) -> dict[str, Any]:
    """Return an engine's result for all years of one kind: false episodes per year, or the delay in windows."""
    if scenario.harmful is None:
        counts = [len(opened) for opened in years]
        worst = sum(1 for count in counts if count > 1)
        return {"engine": name, "stream": scenario.name, "false a year": sum(counts) / len(counts), "over one": worst}
    before = [sum(1 for week in opened if week < CHANGE) for opened in years]
    delays = [next((week - CHANGE + 1 for week in opened if week >= CHANGE), None) for opened in years]
    caught = [delay for delay in delays if delay is not None]
    return {
        "engine": name,
        "stream": scenario.name,
        "false a year": 2 * sum(before) / len(before),
        "caught": len(caught) / len(delays),
        "delay": statistics.median(caught) if caught else None,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the results as Markdown: one line per stream, one column per engine."""
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    lines = [f"| stream | {' | '.join(engines)} |", "|---|" + "---|" * len(engines)]
    for stream in dict.fromkeys(row["stream"] for row in rows):
        cells = [_cell(row) for engine in engines for row in rows if (row["engine"], row["stream"]) == (engine, stream)]
        lines.append(f"| {stream} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: dict[str, Any]) -> str:
    if "caught" not in row:
        return f"{row['false a year']:.1f} false"
    after = f"{row['delay']:g} windows, " if row["delay"] is not None else ""
    return f"{after}{row['caught']:.0%} caught, {row['false a year']:.1f} false"


def document(path: Path, **tables: str) -> None:
    """Replace the tables of a page between its marks."""
    text = path.read_text()
    for name, content in tables.items():
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)", lambda m, c=content: f"{m[1]}{c}\n{m[2]}", text, flags=re.S
        )
    path.write_text(text)


def main() -> None:
    """Measure, print the tables, and write them if asked."""
    parser = argparse.ArgumentParser(description="False alarms, delays and wrong gates.")
    parser.add_argument("--years", type=int, default=6, help="streams of each kind")
    parser.add_argument("--trials", type=int, default=40, help="gates of each kind")
    parser.add_argument("--kinds-only", action="store_true", help="only the table of the other kinds of task")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--docs", type=Path, help="also write the tables into this page")
    options = parser.parse_args()
    others = of_kinds(KINDS_YEARS)
    print(others)
    if options.docs:
        document(options.docs, kinds=others)
    if options.kinds_only:
        return
    OUT.mkdir(parents=True, exist_ok=True)
    kinds = scenarios()
    paths = {}
    for place, kind in enumerate(kinds):
        for seed in range(options.years):
            path = OUT / f"{place:02}-{seed}.npz"
            if not path.exists():
                np.savez(path.with_suffix(".part.npz"), **year(kind, 100 * place + seed))
                path.with_suffix(".part.npz").replace(path)
            paths[path.stem] = (path, kind)
        print(f"stream: {kind.name}", flush=True)
    opened: dict[tuple[str, str], list[int]] = {}
    for name, changes in VARIANTS.items():
        for stem, (path, _) in paths.items():
            with np.load(path) as loaded:
                stream = dict(loaded)
            opened[name, stem] = alarms(stream, written(stream, **changes))
        print(f"done: {name}", flush=True)
    with ThreadPoolExecutor() as together:
        found = dict(
            zip(PEERS, together.map(lambda peer: known(peer, [p for p, _ in paths.values()]), PEERS), strict=True)
        )
    for peer, names in PEERS.items():
        for place, name in enumerate(names):
            for stem in paths.keys() & found[peer].keys():
                opened[name, stem] = rested([flags[place] for flags in found[peer][stem]])
    engines = list(dict.fromkeys(name for name, _ in opened))
    rows = [
        summarise(name, kind, years)
        for name in engines
        for kind in kinds
        if (years := [opened[name, stem] for stem, (_, of) in paths.items() if of is kind and (name, stem) in opened])
    ]
    gates = decisions(options.trials)
    print(table(rows), gates, sep="\n\n")
    if options.docs:
        years_told = f"{options.years} years of each kind."
        document(options.docs, years=years_told, alarms=table(rows), gates=gates)
    if options.json:
        options.json.write_text(json.dumps({"alarms": rows, "gates": gates}, indent=2))


if __name__ == "__main__":
    main()
