"""Fit a model on a training set: split by time, encode, search, fit."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from kubeloop import config
from kubeloop.errors import KubeloopError
from kubeloop.tasks.port import EvaluationError, Floats, Task
from kubeloop.tasks.tabular import algorithms, encoding
from kubeloop.tasks.tabular.maker import Heads, Maker

EVENT_ID, TIMESTAMP, LABEL = "event_id", "event_timestamp", "label"
INNER_SHARE = 0.25
"""Share of the training rows, the newest ones, on which Optuna's trials are measured."""
_MEETING_MINUTES = 30
"""How long the machines wait for each other, since a pod may have to wait for a node."""

Progress = Callable[[int, float, algorithms.Parameters], None]


class TrainingError(KubeloopError, ValueError):
    """A model cannot be made from these rows and settings; the message says what to change."""

    lasting = True


@dataclass(frozen=True)
class Fitted:
    """A trained model: encoder, estimators, and the settings that made them.

    `importances` has one share per feature and sums to 1. If Optuna chose the parameters, `search` holds the trials,
    the metric and the best value; otherwise it is empty.
    """

    maker: Maker
    algorithm: str
    parameters: algorithms.Parameters
    encoder: encoding.Encoder
    heads: Heads
    importances: dict[str, float]
    search: dict[str, int | float | str]

    def predict(self, frame: pd.DataFrame) -> npt.NDArray[np.float32]:
        """Return the answers [n], or [n, k], to rows with the feature columns.

        Raises:
            EncodingError: a feature is missing or cannot be read as its kind.
        """
        rows = self.encoder.transform(frame).astype(np.float64)
        return np.asarray(self.maker.answer(self.heads, rows), dtype=np.float32)

    def importance(self) -> dict[str, float]:
        """Return each feature's share of the model's decisions, largest first; they sum to 1."""
        return dict(sorted(self.importances.items(), key=lambda item: -item[1]))


def read(source: Path | BinaryIO) -> pd.DataFrame:
    """Read the columns of a training set that training needs: moments, labels and features, with text as categories.

    Args:
        source: Parquet, as the stage `build_features` writes it.
    """
    file = pq.ParquetFile(source)
    names = [name for name in file.schema_arrow.names if name != EVENT_ID]
    texts = [name for name in names if pa.types.is_string(file.schema_arrow.field(name).type)]
    found: pd.DataFrame = pq.ParquetFile(source, read_dictionary=texts).read(names).to_pandas()
    # An index that pandas wrote into the file does not give the position of a row.
    return found.reset_index(drop=True)


def split(task: Task, frame: pd.DataFrame, holdout: timedelta) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split a training set into (train, hold-out) by time.

    With `last` the newest event_timestamp, the hold-out is the half-open span (last - holdout, last]; the rest is for
    training.

    Raises:
        TrainingError: a part is empty or has only one label, a label is not of the task, or a timestamp is missing.
    """
    truths(task, frame, "the training set")
    moments = pd.to_datetime(frame[TIMESTAMP], utc=True)
    _demand_moments(int(moments.isna().sum()))
    late = moments > moments.max() - holdout
    train, test = frame[~late], frame[late]
    for part, name in ((train, "training"), (test, "hold-out")):
        _demand_variety(task, part, name, holdout, moments)
    return train, test


def _demand_moments(missing: int) -> None:
    if missing:
        raise TrainingError(f"{missing} rows have no event_timestamp; leave them out in events.sql")


def _demand_variety(task: Task, part: pd.DataFrame, name: str, holdout: timedelta, moments: "pd.Series[Any]") -> None:
    reason = task.undefined(truths(task, part, f"the {name} part"))
    if reason:
        raise TrainingError(
            f"the {name} part cannot be used: {reason}; change training.window or training.holdout "
            f"({config.duration_text(holdout)}), the rows span {moments.min()} to {moments.max()}"
        )


def features(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the feature columns: all but event_id, event_timestamp and label."""
    return frame.drop(columns=[name for name in (EVENT_ID, TIMESTAMP, LABEL) if name in frame])


@dataclass(frozen=True)
class Network:
    """The machines that train one model together, with LightGBM's own data-parallel learner.

    Attributes:
        machines: address and port of each, in the order of their ranks.
        rank: this machine's position among them.
    """

    machines: Sequence[str]
    rank: int

    def parameters(self, turn: int = 0) -> algorithms.Parameters:
        """Return LightGBM's parameters for the network.

        Args:
            turn: how many estimators were fitted together before this one. Each uses the next port: otherwise a faster
                machine would connect to the socket on which another one still listens for the previous estimator.
        """
        places = [(host, int(port) + turn) for host, _, port in (each.rpartition(":") for each in self.machines)]
        return {
            "machines": ",".join(f"{host}:{port}" for host, port in places),
            "num_machines": len(places),
            "local_listen_port": places[self.rank][1],
            "tree_learner": "data",
            "pre_partition": True,
            "time_out": _MEETING_MINUTES,
        }


def fit(
    maker: Maker,
    train: pd.DataFrame,
    training: config.Training,
    *,
    progress: Progress | None = None,
    network: Network | None = None,
) -> Fitted:
    """Train a model; the same rows, settings and machine give the same model, bit for bit.

    With `training.trials` > 0, Optuna's seeded TPE sampler (Bergstra et al. 2011) searches the parameters that
    `training.parameters` leaves open: each trial is trained on the older rows and measured on the newest quarter; the
    best is then trained on all rows.

    Args:
        maker: the task's maker; its headline metric measures a trial.
        train: a training set ordered by time: event_id, event_timestamp, label, features.
        training: the settings.
        progress: called after each trial with its number, its value of the metric and its parameters.
        network: the machines that train together, each on its share of the rows; all get the same model.

    Raises:
        TrainingError: all labels are the same, or a label is not of the task.
        EncodingError: a feature is neither text nor a number.
        ParameterError: `training.parameters` does not fit the algorithm.
    """
    y = _various(maker.task, train, "the training rows")
    parameters = algorithms.settle(training.algorithm, training.parameters)
    search: dict[str, int | float | str] = {}
    if training.trials:
        best, value = _search(maker, train, training, parameters, progress)
        parameters = {**parameters, **best}
        search = {"trials": training.trials, "metric": maker.task.headline.name, "value": value}
    encoder, matrix = _encode(maker, train, y, training)
    rows = matrix.astype(np.float64)
    heads = _fit(maker, rows, y, training, parameters, network)
    importances = dict.fromkeys(encoder.columns, 0.0)
    shares = maker.importance(training.algorithm, heads, rows.std(axis=0))
    for name, share in zip(encoder.names, shares, strict=True):
        importances[name] += float(share)
    return Fitted(
        maker=maker,
        algorithm=training.algorithm,
        parameters=parameters,
        encoder=encoder,
        heads=heads,
        importances=importances,
        search=search,
    )


def _encode(
    maker: Maker, frame: pd.DataFrame, y: Floats, training: config.Training
) -> tuple[encoding.Encoder, encoding.Matrix]:
    native = training.algorithm in algorithms.TAKES_MISSING
    return encoding.learn(features(frame), maker.targets(y), native=native)


def _search(
    maker: Maker,
    train: pd.DataFrame,
    training: config.Training,
    parameters: algorithms.Parameters,
    progress: Progress | None,
) -> tuple[algorithms.Parameters, float]:
    import optuna

    cut = int(len(train) * (1 - INNER_SHARE))
    older, newer = train.iloc[:cut], train.iloc[cut:]
    y = _various(maker.task, older, "the older three quarters")
    unseen_y = _various(maker.task, newer, "the newest quarter")
    encoder, matrix = _encode(maker, older, y, training)
    rows, unseen = matrix.astype(np.float64), encoder.transform(newer).astype(np.float64)
    metric = maker.task.headline

    def objective(trial: optuna.Trial) -> float:
        drawn = algorithms.suggest(training.algorithm, trial, training.parameters)
        heads = _fit(maker, rows, y, training, {**parameters, **drawn}, draft=True)
        return metric.value(*maker.task.checked(unseen_y, maker.answer(heads, unseen)))

    def report(_: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if progress and trial.value is not None:
            progress(trial.number, trial.value, dict(trial.params))

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize" if metric.better > 0 else "minimize",
        sampler=optuna.samplers.TPESampler(seed=training.seed),
    )
    study.optimize(objective, n_trials=training.trials, callbacks=[report])
    return dict(study.best_params), study.best_value


def _fit(
    maker: Maker,
    rows: algorithms.Rows,
    y: Floats,
    training: config.Training,
    parameters: algorithms.Parameters,
    network: Network | None = None,
    *,
    draft: bool = False,
) -> Heads:
    together = network if network is not None and len(network.machines) > 1 else None
    turns = itertools.count()

    def one(estimator: Any, rows: algorithms.Rows, labels: npt.NDArray[Any]) -> Any:
        share = _share(labels, together) if together else slice(None)
        if together:
            estimator.set_params(**together.parameters(next(turns)))
        with _threads(training.threads):
            estimator.fit(rows[share], labels[share])
        if together:
            # LightGBM has one network per process.
            estimator.booster_.free_network()
        return estimator

    try:
        return maker.fit(rows, y, training, parameters, one, draft=draft)
    except (ValueError, TypeError) as error:
        if isinstance(error, KubeloopError):
            raise
        raise algorithms.ParameterError(f"{training.algorithm} refuses {parameters}: {error}") from error


def _share(labels: npt.NDArray[Any], network: Network) -> npt.NDArray[np.intp]:
    """Return the rows of this machine [n / machines], in their order.

    LightGBM counts the classes of each machine's own rows, so every machine gets rows of every class.

    Raises:
        TrainingError: a class has fewer rows than there are machines.
    """
    machines = len(network.machines)
    if labels.dtype.kind == "f":
        return np.arange(network.rank, len(labels), machines)
    fewest = int(np.unique(labels, return_counts=True)[1].min())
    if fewest < machines:
        raise TrainingError(
            f"a class has only {fewest} training rows, and each of {machines} nodes needs one; lower "
            "pipelines.train_job.nodes, or lengthen training.window"
        )
    return np.sort(np.argsort(labels, kind="stable")[network.rank :: machines])


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Limit the threads of estimators without such a parameter (OpenMP and BLAS)."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=count):
        yield


def truths(task: Task, frame: pd.DataFrame, what: str) -> Floats:
    """Return the truths [n] of a training set.

    Args:
        task: the task of the labels.
        frame: rows with a label.
        what: a name of the rows for the error.

    Raises:
        TrainingError: a column is missing, or a label is not of the task.
    """
    absent = [name for name in (TIMESTAMP, LABEL) if name not in frame]
    if absent:
        raise TrainingError(f"{what} has no column {' and '.join(absent)}; a training set needs both")
    try:
        return task.truths(frame[LABEL])
    except EvaluationError as error:
        raise TrainingError(f"{what} cannot be used: {error}") from error


def _various(task: Task, frame: pd.DataFrame, what: str) -> Floats:
    found = truths(task, frame, what)
    reason = task.undefined(found)
    if reason:
        raise TrainingError(f"{what} cannot train or measure a model: {reason}; lengthen training.window")
    return found
