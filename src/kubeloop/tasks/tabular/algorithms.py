"""The estimators that a loop can train: their defaults, search spaces for Optuna, and importances."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from kubeloop.errors import KubeloopError

if TYPE_CHECKING:
    import optuna

__all__ = ["Estimator", "regressor"]

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
    "ridge": {"alpha": 1.0},
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
    "ridge": {"alpha": (0.001, 1000.0, True)},
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
"""Estimators that learn from NaN. Scikit-learn's forests do too, but skl2onnx 1.20 does not export that part."""

_FIXED = {"random_state", "n_jobs", "objective", "verbose", "deterministic", "force_row_wise", "loss", "warm_start"}
_LIGHTGBM_EXTRA = {"extra_trees", "feature_fraction_bynode", "max_bin", "max_delta_step", "path_smooth"}


class ParameterError(KubeloopError, ValueError):
    """`training.parameters` names a parameter that the algorithm does not have, or a value that it refuses."""

    lasting = True


class Estimator(Protocol):
    """The methods of every scikit-learn estimator; a classifier also has `predict_proba`."""

    def fit(self, rows: Rows, y: npt.NDArray[Any]) -> Any:
        """Learn from rows [n, F] and labels [n]."""

    def predict(self, rows: Rows) -> npt.NDArray[Any]:
        """Return values or classes [n]."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters by name."""


def build(algorithm: str, parameters: Mapping[str, Any], *, seed: int, threads: int) -> Estimator:
    """Make an unfitted, deterministic classifier.

    Args:
        algorithm: a key of `DEFAULTS`.
        parameters: scikit-learn names; `settle` has checked them.
        seed: seed of everything random in it.
        threads: most threads that it may use.
    """
    if algorithm == "lightgbm":
        import lightgbm

        return lightgbm.LGBMClassifier(**_lightgbm(parameters, seed, threads))
    if algorithm == "random_forest":
        from sklearn.ensemble import RandomForestClassifier

        return RandomForestClassifier(**parameters, random_state=seed, n_jobs=threads)  # type: ignore[no-any-return]
    if algorithm == "hist_gradient_boosting":
        from sklearn.ensemble import HistGradientBoostingClassifier

        return HistGradientBoostingClassifier(**parameters, random_state=seed)  # type: ignore[no-any-return]
    if algorithm == "ridge":
        raise ParameterError("ridge predicts numbers, not classes; use it for `task: regression`")
    from sklearn.linear_model import LogisticRegression

    return _standardised(LogisticRegression(**parameters, random_state=seed))  # type: ignore[no-any-return]


def regressor(
    algorithm: str, parameters: Mapping[str, Any], *, seed: int, threads: int, quantile: float | None = None
) -> Estimator:
    """Make an unfitted, deterministic regressor; arguments as for `build`.

    Args:
        quantile: the quantile of the label that it estimates instead of the mean; only gradient boosting can.
    """
    if algorithm == "lightgbm":
        import lightgbm

        loss = {"objective": "regression"} if quantile is None else {"objective": "quantile", "alpha": quantile}
        return lightgbm.LGBMRegressor(**_lightgbm(parameters, seed, threads), **loss)
    if algorithm == "hist_gradient_boosting":
        from sklearn.ensemble import HistGradientBoostingRegressor

        loss = {} if quantile is None else {"loss": "quantile", "quantile": quantile}
        return HistGradientBoostingRegressor(**parameters, **loss, random_state=seed)  # type: ignore[no-any-return]
    if quantile is not None or algorithm not in DEFAULTS:
        raise ParameterError(f"{algorithm} cannot estimate quantiles; use lightgbm or hist_gradient_boosting")
    if algorithm == "random_forest":
        from sklearn.ensemble import RandomForestRegressor

        return RandomForestRegressor(**parameters, random_state=seed, n_jobs=threads)  # type: ignore[no-any-return]
    from sklearn.linear_model import Ridge

    return _standardised(Ridge(**parameters, random_state=seed))  # type: ignore[no-any-return]


def _lightgbm(parameters: Mapping[str, Any], seed: int, threads: int) -> dict[str, Any]:
    fixed = {"random_state": seed, "n_jobs": threads, "deterministic": True, "force_row_wise": True, "verbose": -1}
    return {**parameters, **fixed}


def _standardised(last: Any) -> Any:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), last)


def settle(algorithm: str, overrides: Mapping[str, int | float | str | bool]) -> Parameters:
    """Return the defaults with the overrides applied.

    Raises:
        ParameterError: an override is not a parameter of the algorithm, or one that kubeloop sets itself.
    """
    bare = (regressor if algorithm == "ridge" else build)(algorithm, {}, seed=0, threads=1)
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
    """Draw one point of the algorithm's search space; the parameters in `fixed` are not searched."""
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

    Boosted trees: the gain of all splits on the column. Forest: mean decrease in impurity. Linear models: the
    coefficient times the column's standard deviation, the mean over the classes. If a model uses no column, all have
    the same share.

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
        weights = np.abs(slopes * spread[:, None]).mean(axis=1)
    total = float(weights.sum())
    return np.asarray(weights / total if total > 0 else np.full(len(spread), 1 / len(spread)), dtype=np.float64)


def linear(estimator: Any) -> tuple[Rows, Rows]:
    """Return slopes [F, C] and intercepts [C] of a fitted linear model on columns that are not standardised.

    C is 1 for two classes and for numbers, and the number of classes otherwise.
    """
    scaler, last = estimator[0], estimator[-1]
    slopes = np.atleast_2d(last.coef_) / scaler.scale_
    intercepts = np.atleast_1d(last.intercept_) - slopes @ scaler.mean_
    return slopes.T, intercepts
