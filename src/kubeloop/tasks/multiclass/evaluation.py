"""Measure a classifier of several classes; all metrics are those of scikit-learn.

Truths are positions in `training.classes`; answers are one probability per class.
"""

import numpy as np
import numpy.typing as npt

from kubeloop.tasks import forms
from kubeloop.tasks.port import EvaluationError, Floats, Groups, Weighted

_OFF = 1e-3
"""How far the sum of a row's probabilities, which are rounded to float32, may be from 1."""


def checked(y: npt.ArrayLike, p: npt.ArrayLike, classes: int) -> tuple[Floats, Floats]:
    """Return truths [n] and answers [n, K] as float64.

    Raises:
        EvaluationError: shapes differ, a truth is not a class, or an answer is not a distribution.
    """
    truths, answers = np.asarray(y, dtype=np.float64), np.asarray(p, dtype=np.float64)
    if truths.ndim != 1 or answers.shape != (len(truths), classes):
        raise EvaluationError(
            f"truths {truths.shape} and answers {answers.shape} must be [n] and [n, {classes}], as training.classes has"
        )
    if not np.isin(truths, np.arange(classes)).all():
        raise EvaluationError(
            "every label must be one of training.classes; leave rows out whose label is not known yet"
        )
    if not ((answers >= 0) & (answers <= 1 + _OFF)).all() or (np.abs(answers.sum(axis=1) - 1) > _OFF).any():
        raise EvaluationError("the probabilities of every row must lie between 0 and 1 and sum to 1")
    return truths, answers


def log_losses(y: Floats, p: Floats) -> Floats:
    """Return the log loss of each row [n]."""
    eps = np.finfo(np.float64).eps
    return np.asarray(-np.log(np.clip(p[np.arange(len(y)), y.astype(np.intp)], eps, 1 - eps)))


def log_loss(y: Floats, p: Floats, groups: Groups) -> Weighted:
    """Return the weighted form of the log loss."""
    return forms.mean(log_losses(y, p), groups)


def hits(y: Floats, p: Floats, k: int = 1) -> Floats:
    """Return for each row [n] 1 if its class is among the k likeliest; among equal ones, the first ones count."""
    best = np.argsort(-p, axis=1, kind="stable")[:, :k]
    return np.asarray((best == y[:, None]).any(axis=1), dtype=np.float64)


def accuracy(y: Floats, p: Floats, groups: Groups) -> Weighted:
    """Return the weighted form of the share of rows whose likeliest class is the true one."""
    return forms.mean(hits(y, p), groups)


def balanced_accuracy(y: Floats, p: Floats, groups: Groups) -> Weighted:
    """Return the weighted form of the mean recall of the classes that occur."""
    found, _, right = _counts(y, p, groups)

    def measure(weights: npt.ArrayLike) -> Floats:
        shares = np.asarray(weights, dtype=np.float64)
        there = shares @ found
        recall = np.divide(shares @ right, there, out=np.full_like(there, np.nan), where=there > 0)
        with np.errstate(invalid="ignore"):
            return np.asarray(np.nansum(recall, axis=1) / (there > 0).sum(axis=1))

    return measure


def macro_f1(y: Floats, p: Floats, groups: Groups) -> Weighted:
    """Return the weighted form of the mean F1 of the classes that occur or were predicted."""
    found, said, right = _counts(y, p, groups)

    def measure(weights: npt.ArrayLike) -> Floats:
        shares = np.asarray(weights, dtype=np.float64)
        both = shares @ found + shares @ said
        score = np.divide(2 * (shares @ right), both, out=np.full_like(both, np.nan), where=both > 0)
        with np.errstate(invalid="ignore"):
            return np.asarray(np.nansum(score, axis=1) / (both > 0).sum(axis=1))

    return measure


def confusion(y: Floats, p: Floats) -> npt.NDArray[np.int64]:
    """Return counts [K, K]: rows are true classes, columns the likeliest ones."""
    classes = p.shape[1]
    cells = y.astype(np.intp) * classes + np.argmax(p, axis=1)
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def _counts(y: Floats, p: Floats, groups: Groups) -> tuple[Floats, Floats, Floats]:
    """Return by group and class [g, K]: rows of the class, rows predicted to be of it, and rows that are both."""
    classes, count = p.shape[1], int(groups.max(initial=-1)) + 1
    true, said = y.astype(np.intp), np.argmax(p, axis=1)

    def table(cells: npt.NDArray[np.intp], weights: Floats | None = None) -> Floats:
        return np.bincount(cells, weights=weights, minlength=count * classes).reshape(count, classes).astype(np.float64)

    right = (true == said).astype(np.float64)
    return table(groups * classes + true), table(groups * classes + said), table(groups * classes + true, right)
