"""Alibi Detect's defaults on the streams of `alarms.py`: TabularDrift over all inputs and the score.

Its default is p_val=0.05 with Bonferroni's correction; a window with drift is an alarm.
"""

import json
import sys

import numpy as np
from alibi_detect.cd import TabularDrift  # type: ignore[import-not-found]


def alarms(stream: dict[str, np.ndarray]) -> list[list[bool]]:
    """Return for each window whether it drifted."""
    table = np.column_stack([stream["numeric"], stream["score"], stream["categorical"]]).astype(np.float32)
    first = stream["numeric"].shape[1] + 1
    categories = dict.fromkeys(range(first, table.shape[1]))
    detector = TabularDrift(table[stream["week"] < 0], categories_per_feature=categories)
    weeks = range(int(stream["week"].max()) + 1)
    return [[bool(detector.predict(table[stream["week"] == week])["data"]["is_drift"])] for week in weeks]


if __name__ == "__main__":
    for path in sys.argv[1:]:
        with np.load(path) as stream:
            print(json.dumps({"stream": path, "alarms": alarms(dict(stream))}), flush=True)
