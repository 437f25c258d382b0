"""Write and read a model folder: the graph, its card and its reference of the training data."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import pandas as pd

from kubeloop.errors import KubeloopError
from kubeloop.stores import kept
from kubeloop.tasks import reference
from kubeloop.tasks.intervals import Estimate
from kubeloop.tasks.port import Floats, Task
from kubeloop.tasks.tabular import algorithms, encoding, export, leaks
from kubeloop.tasks.tabular.maker import Maker
from kubeloop.tasks.tabular.training import LABEL, TIMESTAMP, Fitted, truths
from kubeloop.tasks.tabular.training import features as feature_columns

GRAPH, CARD, REFERENCE = "model.onnx", "model.json", "reference"


class ModelFolderError(KubeloopError, ValueError):
    """A model folder is missing, incomplete or damaged; the message says which file."""

    lasting = True


@dataclass(frozen=True)
class Card:
    """The content of model.json.

    `metrics` are those of the hold-out; an undefined one is None. `warnings` say what to check before trusting the
    model; a card of an older kubeloop has none.
    """

    name: str
    features: dict[str, encoding.Kind]
    sha256: str
    trained_from: str
    trained_to: str
    rows: int
    algorithm: str
    parameters: algorithms.Parameters
    search: dict[str, int | float | str]
    importance: dict[str, float]
    metrics: dict[str, float | None]
    warnings: list[str] = field(default_factory=list)
    task: str = "binary"

    def known_metrics(self) -> dict[str, float]:
        """Return the metrics that are defined."""
        return {name: value for name, value in self.metrics.items() if value is not None}

    def facts(self) -> dict[str, object]:
        """Return the facts about the model for a page, other than its metrics."""
        return {"algorithm": self.algorithm, "trained from": self.trained_from, "trained to": self.trained_to}


def write(
    folder: Path,
    fitted: Fitted,
    model: onnx.ModelProto,
    train: pd.DataFrame,
    holdout: pd.DataFrame,
    *,
    name: str,
    max_rows: int = 10_000,
    seed: int = 7,
) -> tuple[Card, Floats]:
    """Compare the graph with the trained model on the hold-out, then write the folder; model.json is written last.

    Returns its card, and its answers to the hold-out [n], or [n, k].

    Args:
        folder: the folder; it is made if necessary.
        fitted: the trained model.
        model: its graph.
        train: the rows that it was trained on; a sample of them becomes the reference.
        holdout: the rows that it is measured on.
        name: of the model.
        max_rows: most rows of the reference.
        seed: seed of the reference's sample.

    Raises:
        ExportError: the graph does not predict what the model predicts; nothing is written.
    """
    checked = export.parity(model, fitted, holdout)
    content, kinds, task = model.SerializeToString(deterministic=True), fitted.encoder.kinds, fitted.maker.task
    answers = checked.answers
    y = truths(task, holdout, "the hold-out")
    metrics = {
        **task.score(y, answers),
        **export.latency(content, kinds, holdout),
        "parity_max_abs_difference": checked.max_abs_difference,
    }
    moments = pd.to_datetime(train[TIMESTAMP], utc=True)
    card = Card(
        name=name,
        features=kinds,
        sha256=hashlib.sha256(content).hexdigest(),
        trained_from=moments.min().isoformat(),
        trained_to=moments.max().isoformat(),
        rows=len(train),
        algorithm=fitted.algorithm,
        parameters=fitted.parameters,
        search=fitted.search,
        importance=fitted.importance(),
        metrics={key: None if math.isnan(value) else value for key, value in metrics.items()},
        warnings=doubts(
            fitted.maker, pd.concat([leaks.sample(train), leaks.sample(holdout)]), metrics, fitted.importance()
        ),
        task=task.kind,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / GRAPH).write_bytes(content)
    name = task.headline.name
    known = Estimate(*(metrics[key] for key in (name, f"{name}_low", f"{name}_high")))
    reference.build(
        {key: _column(train, key, kind) for key, kind in kinds.items()},
        kinds,
        answers,
        card.importance,
        None if task.undefined(y) else reference.Measured(name, known),
        titles=task.titles,
        trained_from=card.trained_from,
        trained_to=card.trained_to,
        max_rows=max_rows,
        seed=seed,
    ).save(folder / REFERENCE)
    features = [{"name": key, "kind": kind} for key, kind in kinds.items()]
    (folder / CARD).write_text(kept.dumps({**asdict(card), "features": features}))
    return card, answers


def doubts(
    maker: Maker, frame: pd.DataFrame, metrics: Mapping[str, float], importance: Mapping[str, float]
) -> list[str]:
    """Return what to check before trusting a model, one sentence each.

    Args:
        maker: the task's maker.
        frame: the rows that it was trained on and measured on, or a sample of them.
        metrics: the metrics on the hold-out.
        importance: share by feature, largest first.
    """
    columns = feature_columns(frame)
    known = maker.giveaways(columns, maker.task.truths(frame[LABEL]))
    found = [
        f"{name!r} {how}; if it is not known at the time of a prediction, remove it from the feature service"
        for name, how in known.items()
    ]
    praise = maker.too_good(metrics)
    if praise and not found:
        first, share = next(iter(importance.items()))
        found.append(
            f"{praise} is too good for most tables; {share:.0%} of it comes from {first!r}: make sure "
            "that it is known at the time of a prediction"
        )
    found += [
        f"{name!r} holds whole numbers around {middle:,.0f}, and float32 tells neighbours apart only up to "
        f"{encoding.EXACT:,}; let its SQL return the difference to a fixed number, or text if it is a code"
        for name, middle in encoding.blurred(columns).items()
    ]
    return found


def read(folder: Path) -> Card:
    """Read model.json, and check model.onnx against its digest.

    Raises:
        ModelFolderError: a file is missing, damaged or not what model.json describes.
    """
    try:
        content = (folder / GRAPH).read_bytes()
        data = kept.loads(folder / CARD)
        card = Card(**{**data, "features": {item["name"]: item["kind"] for item in data["features"]}})
    except OSError as error:
        raise ModelFolderError(f"{error.filename} cannot be read ({error.strerror}); train the model again") from error
    except kept.DamagedError as error:
        raise ModelFolderError(f"{error}; restore it, or train the model again") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFolderError(f"{folder / CARD} is not a model card ({error}); train the model again") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != card.sha256:
        raise ModelFolderError(
            f"{folder / GRAPH} has SHA-256 {digest}, but its card says {card.sha256}; train the model again"
        )
    return card


def predict(task: Task, folder: Path, frame: pd.DataFrame) -> Floats:
    """Predict rows with the model of a folder; return the answers [n], or [n, k].

    The gate measures a champion in this way on rows that are newer than it.

    Raises:
        ModelFolderError: the folder cannot be read, or holds a model of another kind of task.
        EncodingError: the frame lacks a feature of the model, or has one of another kind.
    """
    card = read(folder)
    if card.task != task.kind:
        raise ModelFolderError(f"{folder} holds a {card.task} model, and the loop's task is {task.kind}; train again")
    return export.predict(task, (folder / GRAPH).read_bytes(), card.features, frame)


def _column(frame: pd.DataFrame, name: str, kind: encoding.Kind) -> Sequence[Any] | npt.NDArray[Any]:
    if kind == "numeric":
        return encoding.numbers(frame, name)
    return [text or None for text in encoding.texts(frame, name)]
