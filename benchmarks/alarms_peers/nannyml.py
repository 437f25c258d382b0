"""NannyML's defaults on the streams of `alarms.py`: univariate drift of any column, and the realized ROC AUC.

Both have chunks of a window's rows. Drift is a Jensen-Shannon distance above the constant threshold of 0.1, and an
alert for any column is an alarm. The AUC alerts beyond three standard deviations of the reference's chunks.
"""

import importlib
import json
import sys
from pathlib import Path

import numpy as np

# This file has the same name as the package.
sys.path.remove(str(Path(__file__).parent))
pd = importlib.import_module("pandas")
nannyml = importlib.import_module("nannyml")


def alarms(stream: dict[str, np.ndarray]) -> list[list[bool]]:
    """Return for each window whether an input drifted, and whether the AUC alerts."""
    numeric = [f"n{i}" for i in range(stream["numeric"].shape[1])]
    categorical = [f"c{i}" for i in range(stream["categorical"].shape[1])]
    frame = pd.DataFrame(stream["numeric"], columns=numeric)
    for index, name in enumerate(categorical):
        frame[name] = pd.Categorical([f"v{code}" for code in stream["categorical"][:, index]])
    frame["score"], frame["y"] = stream["score"].astype(float), stream["y"].astype(int)
    frame["predicted"] = (frame["score"] >= 0.5).astype(int)
    weeks = stream["week"]
    before, now = frame[weeks < 0].reset_index(drop=True), frame[weeks >= 0].reset_index(drop=True)
    size = int((weeks == 0).sum())
    drift = nannyml.UnivariateDriftCalculator(
        column_names=[*numeric, *categorical, "score"], treat_as_categorical=categorical, chunk_size=size
    )
    moved = drift.fit(before).calculate(now).to_df()
    any_column = moved.loc[:, [name for name in moved.columns if name[-1] == "alert"]].any(axis=1)
    performance = nannyml.PerformanceCalculator(
        metrics=["roc_auc"],
        y_true="y",
        y_pred="predicted",
        y_pred_proba="score",
        problem_type="classification_binary",
        chunk_size=size,
    )
    measured = performance.fit(before).calculate(now).to_df()
    short = measured["roc_auc"]["alert"].fillna(False)
    return [[bool(a), bool(b)] for a, b in zip(any_column, short, strict=True)]


if __name__ == "__main__":
    for path in sys.argv[1:]:
        with np.load(path) as stream:
            print(json.dumps({"stream": path, "alarms": alarms(dict(stream))}), flush=True)
