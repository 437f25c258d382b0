"""The estimators a loop can train: defaults, what Optuna may search, how importance is read."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from kubeloop.errors import KubeloopError

if TYPE_CHECKING:
    import optuna

Parameters = dict[str, int | float | str | bool]
Rows = npt.NDArray[np.float64]

DEFAULTS: dict[str, Parameters] = {
    "lightgbm": {
        "n_estimators": 300,
        "learning_rate": 0.05,
        "num_leaves": 31,
        "min_child_samples": 50,
        "colsample_bytree": 0.8,
        "subsample": 0.8,
        "subsample_freq": 1,
        "reg_lambda": 1.0,
    },
    "logistic_regression": {"C": 1.0, "max_iter": 1000},
    "random_forest": {"n_estimators": 200, "min_samples_leaf": 20, "max_features": "sqrt"},
    "hist_gradient_boosting": {
        "max_iter": 200,
        "learning_rate": 0.05,
        "max_leaf_nodes": 31,
        "min_samples_leaf": 50,
        "l2_regularization": 1.0,
        "early_stopping": False,
    },
}

SEARCH: dict[str, dict[str, tuple[float, float, bool]]] = {
    "lightgbm": {
        "n_estimators": (50, 600, True),
        "learning_rate": (0.01, 0.2, True),
        "num_leaves": (7, 127, True),
        "min_child_samples": (10, 300, True),
        "colsample_bytree": (0.4, 1.0, False),
        "subsample": (0.5, 1.0, False),
        "reg_lambda": (0.001, 30.0, True),
    },
    "logistic_regression": {"C": (0.0001, 100.0, True)},
    "random_forest": {
        "n_estimators": (50, 400, True),
        "min_samples_leaf": (2, 200, True),
        "max_features": (0.1, 1.0, False),
    },
    "hist_gradient_boosting": {
        "max_iter": (50, 600, True),
        "learning_rate": (0.01, 0.2, True),
        "max_leaf_nodes": (7, 127, True),
        "min_samples_leaf": (10, 300, True),
        "l2_regularization": (0.001, 30.0, True),
    },
}
"""Low, high, and whether to search on a logarithmic scale; whole numbers stay whole."""

TAKES_MISSING = frozenset({"lightgbm", "hist_gradient_boosting"})
"""Estimators that learn from NaN. Scikit-learn's forests do too, but skl2onnx 1.20 does not write what they learned."""

_FIXED = {"random_state", "n_jobs", "objective", "verbose", "deterministic", "force_row_wise", "loss", "warm_start"}
_LIGHTGBM_EXTRA = {"extra_trees", "feature_fraction_bynode", "max_bin", "max_delta_step", "path_smooth"}


class ParameterError(KubeloopError, ValueError):
    """`training.parameters` names something the algorithm does not take, or a value it refuses."""

    lasting = True


class Estimator(Protocol):
    """What every scikit-learn classifier can do."""

    def fit(self, rows: Rows, y: npt.NDArray[np.int64]) -> Any:
        """Learn from rows [n, F] and labels [n]."""

    def predict_proba(self, rows: Rows) -> npt.NDArray[np.float64]:
        """Return probabilities [n, 2]."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters by name."""


def build(algorithm: str, parameters: Mapping[str, Any], *, seed: int, threads: int) -> Estimator:
    """Make an unfitted, deterministic estimator.

    Args:
        algorithm: a key of `DEFAULTS`.
        parameters: scikit-learn names; `settle` has checked them.
        seed: of everything random in it.
        threads: it may use.
    """
    if algorithm == "lightgbm":
        import lightgbm

        return lightgbm.LGBMClassifier(
            **parameters, random_state=seed, n_jobs=threads, deterministic=True, force_row_wise=True, verbose=-1
        )
    if algorithm == "random_forest":
        from sklearn.ensemble import RandomForestClassifier

        return RandomForestClassifier(**parameters, random_state=seed, n_jobs=threads)  # type: ignore[no-any-return]
    if algorithm == "hist_gradient_boosting":
        from sklearn.ensemble import HistGradientBoostingClassifier

        return HistGradientBoostingClassifier(**parameters, random_state=seed)  # type: ignore[no-any-return]
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(  # type: ignore[no-any-return]
        StandardScaler(), LogisticRegression(**parameters, random_state=seed)
    )


def settle(algorithm: str, overrides: Mapping[str, int | float | str | bool]) -> Parameters:
    """Return the defaults with the overrides on top.

    Raises:
        ParameterError: an override is not a parameter of the algorithm, or one that kubeloop sets itself.
    """
    bare = build(algorithm, {}, seed=0, threads=1)
    last = bare[-1] if hasattr(bare, "steps") else bare  # type: ignore[index]
    known = set(last.get_params()) | (_LIGHTGBM_EXTRA if algorithm == "lightgbm" else set())
    wrong = sorted(set(overrides) - (known - _FIXED))
    if wrong:
        raise ParameterError(
            f"training.parameters has {', '.join(wrong)}, which {algorithm} does not take here; "
            f"it takes {', '.join(sorted(known - _FIXED))}"
        )
    return {**DEFAULTS[algorithm], **overrides}


def suggest(algorithm: str, trial: "optuna.Trial", fixed: Mapping[str, Any]) -> Parameters:
    """Draw one point of the algorithm's search space; what `fixed` names is not searched."""
    drawn: Parameters = {}
    for name, (low, high, log) in SEARCH[algorithm].items():
        if name in fixed:
            continue
        if isinstance(low, int) and isinstance(high, int):
            drawn[name] = trial.suggest_int(name, low, high, log=log)
        else:
            drawn[name] = trial.suggest_float(name, low, high, log=log)
    return drawn


def importance(algorithm: str, estimator: Any, spread: Rows) -> Rows:
    """Return each column's share [F] of the model's decisions, summing to 1.

    Boosted trees: the gain of all splits on the column. Forest: mean decrease in impurity. Logistic regression: the
    coefficient times the column's standard deviation. A model that uses no column at all weighs them equally.

    Args:
        algorithm: a key of `DEFAULTS`.
        estimator: fitted.
        spread: standard deviation of each column [F] in the training set.
    """
    if algorithm == "lightgbm":
        weights = estimator.booster_.feature_importance(importance_type="gain")
    elif algorithm == "random_forest":
        weights = estimator.feature_importances_
    elif algorithm == "hist_gradient_boosting":
        nodes = np.concatenate([tree.nodes for stage in estimator._predictors for tree in stage])
        splits = nodes[nodes["is_leaf"] == 0]
        weights = np.bincount(splits["feature_idx"], weights=splits["gain"], minlength=len(spread))
    else:
        slopes, _ = linear(estimator)
        weights = np.abs(slopes * spread)
    total = float(weights.sum())
    return np.asarray(weights / total if total > 0 else np.full(len(spread), 1 / len(spread)), dtype=np.float64)


def linear(estimator: Any) -> tuple[Rows, float]:
    """Return slopes [F] and intercept of a fitted logistic regression on columns that are not standardised."""
    scaler, regression = estimator[0], estimator[-1]
    slopes = regression.coef_[0] / scaler.scale_
    return slopes, float(regression.intercept_[0] - slopes @ scaler.mean_)
