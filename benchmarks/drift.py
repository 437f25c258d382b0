"""Time the drift engines side by side on repeated windows against one reference.

    .venv/bin/python benchmarks/drift.py --json drift.json

Every engine scores every window in turn, so that a busy machine slows all of them equally. `builtin` also computes
effects, PSI and missing shares; `scipy` (a plain loop) and `alibi` (the time in the worker, inside Alibi Detect) do
not. `alibi round trip` is the time that the monitor waits, with all of them.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import chi2_contingency, ks_2samp

from kubeloop import config
from kubeloop.monitoring.detector.alibi import AlibiDetector, WorkerProcess
from kubeloop.monitoring.detector.builtin import BuiltinDetector
from kubeloop.monitoring.detector.port import Window
from kubeloop.tasks.reference import Reference, build

NUMERIC, CATEGORICAL, CATEGORIES = 25, 5, 12
SCENARIOS = {"same": 0.0, "shifted": 0.3}
KEY = "1"


def columns(rng: np.random.Generator, rows: int, shift: float) -> dict[str, Any]:
    """Draw normal numbers and skewed categories, moved by `shift` standard deviations."""
    shares = np.exp(-np.arange(CATEGORIES) / (3 + 3 * shift))
    drawn: dict[str, Any] = {f"n{i}": rng.normal(shift, 1, rows) for i in range(NUMERIC)}
    for i in range(CATEGORICAL):
        drawn[f"c{i}"] = [f"v{code}" for code in rng.choice(CATEGORIES, rows, p=shares / shares.sum())]
    return drawn


def scipy_loop(reference: Reference, window: Window) -> None:
    """Test each feature the plain way."""
    for index in range(reference.numeric.shape[1]):
        ks_2samp(reference.numeric[:, index], window.numeric[:, index], method="asymp")
    for index in range(reference.categorical.shape[1]):
        before, now = reference.categorical[:, index], window.categorical[:, index]
        seen = np.union1d(before, now)
        chi2_contingency([[(side == code).sum() for code in seen] for side in (before, now)], correction=False)
    ks_2samp(reference.score, window.score, method="asymp")


def timed(call: Callable[[], object]) -> float:
    """Return the milliseconds of a call."""
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3


def measure(reference_rows: int, window_rows: int, windows: int, alibi: AlibiDetector) -> list[dict[str, Any]]:
    """Return, for each scenario and engine, the median milliseconds of a window, and its ratio to Alibi's."""
    rng = np.random.default_rng(7)
    reference = build(
        columns(rng, reference_rows, 0.0),
        {f"n{i}": "numeric" for i in range(NUMERIC)} | {f"c{i}": "categorical" for i in range(CATEGORICAL)},
        rng.beta(2, 5, reference_rows),
        {},
        None,
        trained_from="",
        trained_to="",
        max_rows=reference_rows,
    )
    key = f"{reference_rows}"
    builtin = BuiltinDetector()
    fits = {"builtin": timed(lambda: builtin.fit(key, reference)), "alibi": timed(lambda: alibi.fit(key, reference))}
    rows = [{"reference": reference_rows, "scenario": "fit", "engine": engine, "ms": ms} for engine, ms in fits.items()]
    for scenario, shift in SCENARIOS.items():
        times: dict[str, list[float]] = {name: [] for name in ("builtin", "scipy", "alibi", "alibi round trip")}
        for _ in range(windows):
            encoded = reference.encode(columns(rng, window_rows, shift))
            window = Window(*encoded, rng.beta(2 + shift, 5, window_rows).astype(np.float32))
            times["builtin"].append(timed(lambda window=window: builtin.score(key, window)))
            times["scipy"].append(timed(lambda window=window: scipy_loop(reference, window)))
            times["alibi round trip"].append(timed(lambda window=window: alibi.score(key, window)))
            times["alibi"].append(alibi.seconds * 1e3)
        medians = {engine: statistics.median(values) for engine, values in times.items()}
        rows += [
            {
                "reference": reference_rows,
                "scenario": scenario,
                "engine": engine,
                "ms": ms,
                "speed against alibi": medians["alibi"] / ms,
            }
            for engine, ms in medians.items()
        ]
    return rows


def main() -> None:
    """Print the table and, if asked, write it as JSON."""
    parser = argparse.ArgumentParser(description="Drift engines side by side.")
    parser.add_argument("--references", type=int, nargs="+", default=[10_000, 100_000], help="rows of the reference")
    parser.add_argument("--window", type=int, default=2_000, help="rows of a window")
    parser.add_argument("--windows", type=int, default=20, help="windows a scenario")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as logs:
        worker = WorkerProcess(config.settings().detector_python, Path(logs))
        worker.url()
        alibi = AlibiDetector(worker)
        try:
            rows = [
                row
                for reference in options.references
                for row in measure(reference, options.window, options.windows, alibi)
            ]
        finally:
            alibi.close()
    print(f"{NUMERIC} numeric and {CATEGORICAL} categorical features and the score; windows of {options.window} rows")
    print(f"{'reference':>9}  {'scenario':<8}  {'engine':<16}  {'ms':>8}  against alibi")
    for row in rows:
        ratio = row.get("speed against alibi")
        speed = f"{ratio:12.1f}x" if ratio else ""
        print(f"{row['reference']:>9}  {row['scenario']:<8}  {row['engine']:<16}  {row['ms']:8.2f}  {speed}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
