"""Write and read a model folder: the graph, its card and what it remembers of its training data."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pandas as pd

from kubeloop.errors import KubeloopError
from kubeloop.stores import kept
from kubeloop.tasks import reference
from kubeloop.tasks.intervals import Estimate
from kubeloop.tasks.tabular import algorithms, encoding, evaluation, export, leaks
from kubeloop.tasks.tabular.training import LABEL, TIMESTAMP, Fitted
from kubeloop.tasks.tabular.training import features as feature_columns

_AUC = ("auc", "auc_low", "auc_high")
GRAPH, CARD, REFERENCE = "model.onnx", "model.json", "reference"


class ModelFolderError(KubeloopError, ValueError):
    """A model folder is missing, incomplete or damaged; the message says which file."""

    lasting = True


@dataclass(frozen=True)
class Card:
    """What model.json says.

    `metrics` are of the hold-out; None where one is undefined. `warnings` say what to look at before the model is
    believed; a card of an older kubeloop has none.
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
) -> Card:
    """Check the graph against the trained model on the hold-out, then write the folder; model.json comes last.

    Args:
        folder: made if need be.
        fitted: the trained model.
        model: its graph.
        train: the rows it was trained on; a sample becomes the reference.
        holdout: the rows it is measured on.
        name: of the model.
        max_rows: of the reference.
        seed: of the reference's sample.

    Raises:
        ExportError: the graph does not predict what the model predicts; nothing is written.
    """
    checked = export.parity(model, fitted, holdout)
    content, kinds = model.SerializeToString(deterministic=True), fitted.encoder.kinds
    scores = export.predict(content, kinds, holdout)
    metrics = {
        **evaluation.score(holdout[LABEL], scores),
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
        warnings=doubts(pd.concat([leaks.sample(train), leaks.sample(holdout)]), metrics["auc"], fitted.importance()),
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / GRAPH).write_bytes(content)
    reference.build(
        {key: _column(train, key, kind) for key, kind in kinds.items()},
        kinds,
        scores,
        card.importance,
        None if evaluation.undefined(holdout[LABEL]) else Estimate(*(metrics[key] for key in _AUC)),
        trained_from=card.trained_from,
        trained_to=card.trained_to,
        max_rows=max_rows,
        seed=seed,
    ).save(folder / REFERENCE)
    features = [{"name": key, "kind": kind} for key, kind in kinds.items()]
    (folder / CARD).write_text(kept.dumps({**asdict(card), "features": features}))
    return card


def doubts(frame: pd.DataFrame, auc: float, importance: Mapping[str, float]) -> list[str]:
    """Return what to look at before a model is believed, one sentence each.

    Args:
        frame: the rows that it was trained on and measured on, or a sample of them.
        auc: on the hold-out.
        importance: share by feature, largest first.
    """
    columns = feature_columns(frame)
    known = leaks.find(columns, frame[LABEL].to_numpy(dtype=np.int64))
    found = [
        f"{name!r} alone predicts the label almost perfectly (AUC {area:.3f}); if it is not known when a prediction is "
        "asked for, take it out of the feature service"
        for name, area in known.items()
    ]
    if auc >= leaks.GIVEAWAY and not known:
        first, share = next(iter(importance.items()))
        found.append(
            f"an AUC of {auc:.3f} is too good for most tables; {share:.0%} of it comes from {first!r}: make sure "
            "that this is known when a prediction is asked for"
        )
    found += [
        f"{name!r} holds whole numbers around {middle:,.0f}, and float32 tells neighbours apart only up to "
        f"{encoding.EXACT:,}; have its SQL give the difference to a fixed number, or text where it is a code"
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
        raise ModelFolderError(f"{folder / CARD} is no model card ({error}); train the model again") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != card.sha256:
        raise ModelFolderError(
            f"{folder / GRAPH} has SHA-256 {digest}, but its card says {card.sha256}; train the model again"
        )
    return card


def predict(folder: Path, frame: pd.DataFrame) -> npt.NDArray[np.float32]:
    """Predict rows with the model of a folder; return the probability of class 1 [n].

    This is how a champion is measured on rows that came after it.

    Raises:
        ModelFolderError: the folder cannot be read.
        EncodingError: the frame lacks a feature of the model, or has one of another kind.
    """
    kinds = read(folder).features
    return export.predict((folder / GRAPH).read_bytes(), kinds, frame)


def _column(frame: pd.DataFrame, name: str, kind: encoding.Kind) -> Sequence[Any] | npt.NDArray[Any]:
    if kind == "numeric":
        return encoding.numbers(frame, name)
    return [text or None for text in encoding.texts(frame, name)]
