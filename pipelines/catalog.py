"""Every pipeline by name, and its compiled form."""

from collections.abc import Callable, Mapping
from pathlib import Path

import yaml
from kfp import compiler
from kfp.dsl.base_component import BaseComponent

from kubeloop.config import Loop
from kubeloop.names import Pipeline
from pipelines import grouping
from pipelines.backfill import backfill
from pipelines.batch_scoring import batch_scoring
from pipelines.materialize import materialize
from pipelines.training import training

PIPELINES: Mapping[Pipeline, Callable[[Loop], BaseComponent]] = {
    "training": training,
    "materialize": materialize,
    "batch-scoring": batch_scoring,
    "backfill": backfill,
}


def write(loop: Loop, name: Pipeline, folder: Path) -> Path:
    """Compile a pipeline to KFP IR YAML, its platform spec included; the same use case gives the same bytes.

    Raises:
        ConfigError: the steps cannot be grouped as `pipelines.grouping` says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{loop.name}-{name}.yaml"
    compiler.Compiler().compile(PIPELINES[name](loop), str(target))
    spec, platform = yaml.load_all(target.read_text(), Loader=yaml.CSafeLoader)
    grouped = grouping.group(spec, platform, loop.pipelines.grouping, name)
    target.write_text(yaml.dump_all(grouped, Dumper=yaml.CSafeDumper, width=120))
    return target
