"""The judge of rollouts: how often it is wrong, how soon it finds harm, and how long it takes.

    python benchmarks/judge.py --rollouts 400

The z-test that is repeated on the same requests is what most delivery tools do; it is valid for one look only.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from kubeloop import config
from kubeloop.config.rollout import Rollout
from kubeloop.judge import Exposures, Judge, forecast
from kubeloop.judge.arms import Arms
from kubeloop.tasks import port

PROJECT = Path(__file__).parents[1]
STEPS = ((0.05, 20_000), (0.25, 20_000), (0.5, 20_000))
EVERY = 100
ALPHA = 0.05
SIZES = (1_000_000, 10_000_000)


def main() -> None:
    """Print the tables; write JSON where asked."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rollouts", type=int, default=400, help="simulated rollouts of a rate of errors")
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="events of the largest judgement")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    wrong = {f"{rate:.1%}": wrongly(rate, args.rollouts) for rate in (0.01, 0.001)}
    print(
        f"\nrollbacks of a version that is like the champion, alpha {ALPHA}, looked at every {EVERY} requests of 60,000"
    )
    for rate, shares in wrong.items():
        print(f"  errors {rate}: judge {shares['judge']:.1%}, z-test {shares['z_test']:.1%}")
    delays = {f"{rate:.1%}": forecast.delays(Rollout(), rate, STEPS) for rate in (0.01, 0.001)}
    print("\nrequests until harm is found, median, steps of 5, 25 and 50 %, 20,000 requests each, one criterion")
    for rate, found in delays.items():
        told = ", ".join(f"times {one.factor:g}: {one.requests or 'not found'}" for one in found)
        print(f"  errors {rate}: {told}")
    seconds = {}
    print("\nseconds of a judgement of all events at once, and of a look after one percent more")
    for size in (size for size in SIZES if size <= args.largest):
        seconds[str(size)] = timed(size)
        print(f"  {size:,} events: {seconds[str(size)]['all']:.1f} s, {seconds[str(size)]['look']:.2f} s")
    if args.json:
        found_by_rate = {rate: {str(d.factor): d.requests for d in found} for rate, found in delays.items()}
        args.json.write_text(json.dumps({"wrong": wrong, "delays": found_by_rate, "seconds": seconds}, indent=2) + "\n")


def wrongly(rate: float, rollouts: int) -> dict[str, float]:
    """Return the share of rollouts without a difference that each method rolls back."""
    rng = np.random.default_rng(1)
    share = np.concatenate([np.full(length, value) for value, length in STEPS])
    found = {"judge": 0, "z_test": 0}
    for _ in range(rollouts):
        canary, bad = rng.random(len(share)) < share, rng.random(len(share)) < rate
        found["judge"] += _judged(canary, share, bad)
        found["z_test"] += _tested(canary, bad)
    return {name: count / rollouts for name, count in found.items()}


def _judged(canary: npt.NDArray[Any], share: npt.NDArray[Any], bad: npt.NDArray[Any]) -> bool:
    arms = Arms()
    for start in range(0, len(share), EVERY):
        part = slice(start, start + EVERY)
        arms.add(canary[part], share[part], bad[part])
        if arms.above(1.0) >= math.log(1 / ALPHA):
            return True
    return False


def _tested(canary: npt.NDArray[Any], bad: npt.NDArray[Any]) -> bool:
    at = np.arange(2 * EVERY, len(bad) + 1, EVERY) - 1
    n, m = np.cumsum(canary)[at], np.cumsum(~canary)[at]
    x, y = np.cumsum(canary & bad)[at], np.cumsum(~canary & bad)[at]
    pooled = (x + y) / (n + m)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (x / n - y / m) / np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    return bool((z > norm.ppf(1 - ALPHA)).any())


def timed(size: int) -> dict[str, float]:
    """Return the seconds of judging all events at once, and of a further look."""
    rng = np.random.default_rng(1)
    rows = _events(rng, size)
    loop = config.load(PROJECT / "loop.yaml")
    judge = Judge(loop.rollout, loop.gates, port.of(loop))
    begin = time.perf_counter()
    judge.serve(rows)
    judge.learn(rows)
    judge.verdict(0.25)
    whole = time.perf_counter() - begin
    more = _events(rng, size // 100)
    begin = time.perf_counter()
    judge.serve(more)
    judge.learn(more)
    judge.verdict(0.25)
    return {"all": round(whole, 2), "look": round(time.perf_counter() - begin, 3)}


def _events(rng: np.random.Generator, size: int) -> Exposures:
    """Return a month of events of a service of that many requests, a quarter of them the canary's."""
    signal = rng.normal(size=size)
    return Exposures(
        at=np.datetime64("2013-04-01", "us")
        + (np.arange(size) * (30 * 86_400_000_000 // size)).astype("timedelta64[us]"),
        canary=rng.random(size) < 0.25,
        share=np.full(size, 0.25),
        unit=np.zeros(size, dtype=object),
        failed=rng.random(size) < 0.001,
        seconds=rng.lognormal(-4, 0.5, size),
        answers=1 / (1 + np.exp(-signal)),
        truths=(rng.random(size) < 1 / (1 + np.exp(-signal))).astype(float),
    )


if __name__ == "__main__":
    main()
