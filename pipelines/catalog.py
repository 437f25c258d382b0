"""Every pipeline by name, and its compiled form."""

from collections.abc import Callable, Mapping
from pathlib import Path

from kfp import compiler
from kfp.dsl.base_component import BaseComponent

from kubeloop.config import Loop
from pipelines.backfill import backfill
from pipelines.batch_scoring import batch_scoring
from pipelines.materialize import materialize
from pipelines.training import training

PIPELINES: Mapping[str, Callable[[Loop], BaseComponent]] = {
    "training": training,
    "materialize": materialize,
    "batch-scoring": batch_scoring,
    "backfill": backfill,
}


def write(loop: Loop, name: str, folder: Path) -> Path:
    """Compile a pipeline to KFP IR YAML, its platform spec included; the same use case gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{loop.name}-{name}.yaml"
    compiler.Compiler().compile(PIPELINES[name](loop), str(target))
    return target
