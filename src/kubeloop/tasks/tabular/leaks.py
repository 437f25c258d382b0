"""Find features that give away the label: `init` checks a table, and each training checks its rows."""

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import rankdata

from kubeloop.tasks.tabular import encoding

GIVEAWAY = 0.98
"""From this AUC on, a single column seems to know the label, and a model is too good for most tables."""
SAMPLE = 100_000
"""Most rows on which columns are compared with the label."""

_LEAST_OF_A_CLASS = 10


def find(frame: pd.DataFrame, labels: npt.NDArray[np.int64]) -> dict[str, float]:
    """Return the features that seem to know the label, with the AUC that each reaches by itself.

    Args:
        frame: the feature columns; use `sample` to limit the time for many rows.
        labels: labels [n], 0 or 1.

    Raises:
        EncodingError: a feature is neither text nor a number.
    """
    areas = {str(name): ranking(frame, str(name), labels) for name in frame.columns}
    return {name: area for name, area in areas.items() if area >= GIVEAWAY}


def sample(frame: pd.DataFrame) -> pd.DataFrame:
    """Return all rows, or an evenly spaced sample of them."""
    return frame.iloc[:: -(-len(frame) // SAMPLE) or 1]


def ranking(frame: pd.DataFrame, name: str, labels: npt.NDArray[np.int64]) -> float:
    """Return how well a column alone ranks the label (AUC), in either direction; 0.5 if a class has only a few rows.

    A missing value also ranks, separately from the others. A text ranks by its share of class 1 among other rows, so
    that rare values do not seem to know the label only because each occurred with its own.
    """
    if encoding.is_text(frame[name]):
        texts = encoding.texts(frame, name)
        known, values = (texts != "").to_numpy(), encoding.out_of_fold(texts, labels)
    else:
        values = encoding.numbers(frame, name)
        known = np.isfinite(values)
    return max(_area(values[known], labels[known]), _area(known, labels))


def _area(values: npt.NDArray[np.generic], labels: npt.NDArray[np.int64]) -> float:
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if min(positives, negatives) < _LEAST_OF_A_CLASS:
        return 0.5
    ranks = rankdata(values.astype(np.float64))
    area = (ranks[labels == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives)
    return float(max(area, 1 - area))
