"""Make a candidate from a training set: separate the hold-out, fit, export, verify, and write the model folder."""

import logging
from pathlib import Path
from typing import BinaryIO

import pyarrow.parquet as pq

from kubeloop.config import Loop
from kubeloop.tasks.tabular import export, holdout, maker, model_folder, training

_log = logging.getLogger(__name__)


def build(
    loop: Loop,
    training_set: Path | BinaryIO,
    folder: Path,
    held_out: Path | None = None,
    network: training.Network | None = None,
) -> model_folder.Card | None:
    """Train a model and write its folder; return its card.

    Args:
        loop: the use case.
        training_set: Parquet, as the stage `build_features` writes it.
        folder: of the model.
        held_out: file of the hold-out with the model's answers, see `holdout`; not written if left out.
        network: the machines that train together; only the first one writes, the others return None.

    Raises:
        TrainingError: the rows and settings do not make a model.
        ExportError: the graph does not predict what the model predicts; nothing is written.
    """
    kind = maker.of(loop)
    learn, rows = training.split(kind.task, training.read(training_set), loop.training.holdout)
    if network is not None:
        _log.info("node %d of %d trains its share of %d rows", network.rank, len(network.machines), len(learn))
    fitted = training.fit(kind, learn, loop.training, network=network)
    if network is not None and network.rank:
        return None
    card, answers = model_folder.write(folder, fitted, export.to_onnx(fitted), learn, rows, name=loop.name)
    if held_out is not None:
        # Training does not need the ids, which are one text per row.
        ids = pq.read_table(training_set, columns=[training.EVENT_ID])[training.EVENT_ID].take(rows.index.to_numpy())
        named = rows.reset_index(drop=True)
        named.insert(0, training.EVENT_ID, ids.to_pandas())
        holdout.write(held_out, kind.task, named, answers)
    return card
