"""Evidently's defaults on the streams of `alarms.py`: DataDriftPreset over all inputs and the score.

Its default for a reference of more than 1,000 rows is a normed Wasserstein or Jensen-Shannon distance of 0.1 for each
column, and a drifted dataset if half of the columns drifted, which is an alarm.
"""

import importlib
import json
import sys
from pathlib import Path

import numpy as np

# This file has the same name as the package.
sys.path.remove(str(Path(__file__).parent))
pd = importlib.import_module("pandas")
registry = importlib.import_module("evidently.legacy.calculations.stattests.registry")

DRIFT_SHARE = importlib.import_module("evidently.presets").DataDriftPreset().drift_share


def alarms(stream: dict[str, np.ndarray]) -> list[list[bool]]:
    """Return for each window whether the dataset drifted, by the tests that the preset chooses for each column.

    The preset itself takes a second per window, mostly for drawings.
    """
    columns = {f"n{i}": ("num", pd.Series(column)) for i, column in enumerate(stream["numeric"].T)}
    columns["score"] = ("num", pd.Series(stream["score"]))
    for i, column in enumerate(stream["categorical"].T):
        columns[f"c{i}"] = ("cat", pd.Series([f"v{code}" for code in column]))
    weeks = stream["week"]
    found = []
    for week in range(int(weeks.max()) + 1):
        drifted = []
        for kind, column in columns.values():
            before, now = column[weeks < 0], column[weeks == week]
            test = registry.get_stattest(before, now, kind, None)
            drifted.append(test(before, now, kind, None).drifted)
        found.append([bool(np.mean(drifted) >= DRIFT_SHARE)])
    return found


if __name__ == "__main__":
    for path in sys.argv[1:]:
        with np.load(path) as stream:
            print(json.dumps({"stream": path, "alarms": alarms(dict(stream))}), flush=True)
