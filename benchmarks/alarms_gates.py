"""Measure how often the gate promotes or refuses wrongly, on generated hold-outs of 21 days."""

import numpy as np

from kubeloop.models import gates
from kubeloop.tasks.binary import settings as binary
from kubeloop.tasks.binary.task import BINARY

_ROWS, _DAYS, _VALUES = 6_000, 21, 12


def decisions(trials: int) -> str:
    """Return the shares as a Markdown table."""
    lines = ["| challenger | positives | promoted | a slice failed |", "|---|---|---|---|"]
    for share in (0.3, 0.03):
        for name, old, new, harmed in (
            ("equally good", 1.0, 1.0, False),
            ("better", 2.0, 0.7, False),
            ("better, but for one slice that it ruins", 2.0, 0.7, True),
        ):
            verdicts = [_judge(seed, share, old, new, harmed=harmed) for seed in range(trials)]
            promoted = sum(verdict.promote for verdict in verdicts) / trials
            failed = sum(_failed(verdict) for verdict in verdicts) / trials
            lines.append(f"| {name} | {share:.0%} | {promoted:.0%} | {failed:.0%} |")
    return "\n".join(lines)


def _failed(verdict: gates.Verdict) -> bool:
    return any(not check.passed for check in verdict.checks if check.name.startswith("slice"))


def _judge(seed: int, share: float, old: float, new: float, *, harmed: bool) -> gates.Verdict:
    rng = np.random.default_rng(seed)
    logit = rng.normal(size=_ROWS) * 1.2 + np.log(share / (1 - share))
    y = (rng.random(_ROWS) < 1 / (1 + np.exp(-logit))).astype(int)
    shop = rng.integers(0, _VALUES, _ROWS)
    first, second = (logit + noise * rng.normal(size=_ROWS) for noise in (old, new))
    if harmed:
        second = np.where(shop == 0, rng.normal(size=_ROWS), second)
    policy = binary.Gates(slices=("shop",), slice_min_rows=200, ceilings={}, resamples=300)
    p, q = (1 / (1 + np.exp(-part)) for part in (first, second))
    blocks = np.arange(_ROWS) * _DAYS // _ROWS
    return gates.compare(BINARY, y, p, q, policy, blocks=blocks, slices={"shop": shop.astype(str)}, seed=seed)
