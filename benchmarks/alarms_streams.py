"""The streams of `alarms.py`: a year of windows each, generated or resampled, with a model's score for every row."""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kubeloop.tasks.binary import settings as binary
from kubeloop.tasks.binary.maker import BinaryMaker
from kubeloop.tasks.binary.task import BINARY

WEEKS, CHANGE, SLOW = 52, 26, 12
"""Windows in a year, the window at whose start a change begins, and the windows that a slow change takes."""

REFERENCE, ROWS = 2000, 300

Floats = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, int, float], "Rows"]
"""Rows of a generator, of which a share is changed."""


MAKER = BinaryMaker(BINARY)


@dataclass(frozen=True)
class Rows:
    """What was served: numeric [n, Fn], categorical codes [n, Fc], the model's score [n] and the label [n]."""

    numeric: Floats
    categorical: npt.NDArray[np.int64]
    score: Floats
    y: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Scenario:
    """A kind of year. `harmful` is None if there is nothing to find, else how many windows the change takes."""

    name: str
    draw: Draw
    harmful: int | None = None
    rows: int = ROWS
    most: float = 1.0

    def share(self, week: int) -> float:
        """Return the share of a week's rows that is changed; a harmless change applies to all weeks or to none."""
        if self.harmful is None:
            return float(week >= CHANGE)
        return self.most * float(np.clip((week - CHANGE + 1) / self.harmful, 0, 1))


def year(scenario: Scenario, seed: int) -> dict[str, npt.NDArray[np.generic]]:
    """Return a reference and the windows of a year as arrays; `week` is -1 in the reference."""
    rng = np.random.default_rng(seed)
    parts = [scenario.draw(rng, REFERENCE, 0.0)]
    parts += [scenario.draw(rng, scenario.rows, scenario.share(week)) for week in range(WEEKS)]
    sizes = [REFERENCE, *[scenario.rows] * WEEKS]
    return {
        "week": np.repeat(np.arange(-1, WEEKS), sizes),
        "numeric": np.concatenate([part.numeric for part in parts]).astype(np.float32),
        "categorical": np.concatenate([part.categorical for part in parts]).astype(np.int32),
        "score": np.concatenate([part.score for part in parts]).astype(np.float32),
        "y": np.concatenate([part.y for part in parts]).astype(np.int8),
    }


def scenarios() -> list[Scenario]:
    """Return every kind of year."""
    flown = flights()
    return [
        Scenario("nothing changes", made("none")),
        Scenario("harmless: inputs move, the model holds", made("inputs")),
        Scenario("few positives (1 %), nothing changes", made("none", base=-5.4)),
        Scenario("48 categories, 150 rows, nothing changes", made("none", categories=48), rows=150),
        Scenario("flights, nothing changes", flown("none")),
        Scenario("flights, harmless: more long flights", flown("inputs")),
        Scenario("harmful, sudden: an input in another unit", made("unit"), 1),
        Scenario("harmful, sudden: an input of other rows", made("joined"), 1, most=0.5),
        Scenario("harmful, slow: an input of other rows", made("joined"), SLOW, most=0.5),
        Scenario("few positives (1 %), harmful, sudden", made("joined", base=-5.4), 1, most=0.8),
        Scenario("flights, harmful, sudden: delays of others", flown("joined"), 1, most=0.5),
        Scenario("flights, harmful, slow: delays of others", flown("joined"), SLOW, most=0.5),
    ]


def made(kind: str, base: float = -1.6, categories: int = 6) -> Draw:
    """Draw five numbers and a category; the model knows the distribution of the label."""
    shares = 1 / np.arange(1, categories + 1)
    shares /= shares.sum()
    weights = np.array([1.2, 0.8, 0.5, 0.2, 0.0])

    def logit(numeric: Floats, codes: npt.NDArray[np.int64]) -> Floats:
        return np.asarray(base + numeric @ weights + 0.4 * np.cos(codes))

    def draw(rng: np.random.Generator, rows: int, share: float) -> Rows:
        numeric, codes = rng.normal(size=(rows, 5)), rng.choice(categories, rows, p=shares)
        changed = rng.random(rows) < share
        if kind == "inputs":
            numeric[changed, 2] += 0.5
        y = rng.random(rows) < 1 / (1 + np.exp(-logit(numeric, codes)))
        if kind == "unit":
            numeric[changed, 1] = numeric[changed, 1] * 10 + 20
        if kind == "joined":
            numeric[changed, :2] = rng.normal(size=(int(changed.sum()), 2))
        return Rows(numeric, codes[:, None], 1 / (1 + np.exp(-logit(numeric, codes))), y.astype(np.int64))

    return draw


def flights() -> Callable[[str], Draw]:
    """Return draws from the flights of the first half of 2013, with the model that our training fits to other flights.

    Rows are drawn regardless of their day, so that only the scenario causes a change.
    """
    import duckdb

    from kubeloop.tasks.tabular import training

    sys.path.insert(0, str(Path(__file__).parents[1] / "feature_repo"))
    import flights as source  # type: ignore[import-not-found]

    with tempfile.TemporaryDirectory() as scratch, duckdb.connect() as db:
        source.write(Path(scratch))
        frame = db.execute(
            f"""
            SELECT flight_id AS event_id, sched_dep AS event_timestamp, late::INT AS label, carrier, s.origin,
                   coalesce(dep_delay, 60) AS dep_delay, distance, s.sched_minutes AS hour
            FROM '{scratch}/schedule.parquet' s JOIN '{scratch}/departures.parquet' USING (flight_id)
            JOIN '{scratch}/arrivals.parquet' USING (flight_id)
            WHERE sched_dep < '2013-07-01' ORDER BY hash(flight_id) LIMIT 60000"""
        ).df()
    frame["event_timestamp"] = frame["event_timestamp"].dt.tz_convert("UTC")
    spans = binary.Training(window=timedelta(days=180), holdout=timedelta(days=14))
    fitted = training.fit(MAKER, frame.iloc[:20_000].sort_values("event_timestamp").reset_index(drop=True), spans)
    pool = frame.iloc[20_000:].reset_index(drop=True)
    far = np.flatnonzero(pool["distance"] > pool["distance"].quantile(0.7))
    codes = np.stack([pool[name].astype("category").cat.codes for name in ("carrier", "origin")], axis=1)

    def of(kind: str) -> Draw:
        other = pool.assign(dep_delay=np.random.default_rng(1).permutation(pool["dep_delay"]))
        kept = other if kind == "joined" else pool
        scores = {0: fitted.predict(pool), 1: fitted.predict(kept)}
        numbers = {at: part[["dep_delay", "distance", "hour"]].to_numpy() for at, part in enumerate((pool, kept))}

        def draw(rng: np.random.Generator, rows: int, share: float) -> Rows:
            chosen = rng.integers(0, len(pool), rows)
            changed = rng.random(rows) < share
            if kind == "inputs":
                moved = changed & (rng.random(rows) < 0.3)
                chosen[moved] = rng.choice(far, int(moved.sum()))
            numeric = np.where(changed[:, None], numbers[1][chosen], numbers[0][chosen])
            score = np.where(changed, scores[1][chosen], scores[0][chosen])
            return Rows(numeric, codes[chosen].astype(np.int64), score, pool["label"].to_numpy()[chosen])

        return draw

    return of
