"""Every step, run once in pipeline order on real artifacts and against real services."""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl

from kubeloop.config import Loop, Settings
from kubeloop.session.services import Services


@dataclass
class Bench:
    """An installation with the outputs of the steps.

    Attributes:
        loop: the use case, as JSON.
        as_of: the moment of the run, ISO 8601.
        settings: the settings, which the environment variables repeat.
        folder: folder of the artifacts.
        made: artifacts by name.
        returned: return values of the steps, by name.
        services: the services that run.
    """

    loop: str
    as_of: str
    settings: Settings
    folder: Path
    made: dict[str, Any] = field(default_factory=dict)
    returned: dict[str, Any] = field(default_factory=dict)
    services: Services | None = None

    def call(self, step: Any, *arguments: Any) -> Any:
        """Call a component's function with the environment variables from which a step reads its settings."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.settings.environ().items():
                patch.setenv(name, value)
            return step.python_func(*arguments)

    def new(self, kind: type[Any], name: str) -> Any:
        """Make an empty output artifact."""
        self.made[name] = artifact(kind, self.folder / name)
        return self.made[name]


def artifact(kind: type[Any], path: Path) -> Any:
    """Make an artifact at a path, as kfp hands it to a step."""
    return kind(name=path.name, uri=str(path), metadata={})


@pytest.fixture(scope="session")
def bench(install: Any, loop: Loop, as_of: datetime, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """An installation whose services are up."""
    place = install("bench")
    folder = tmp_path_factory.mktemp("artifacts")
    return Bench(loop.dump(), as_of.isoformat(), place.settings, folder, services=place.services)


@pytest.fixture(scope="session")
def extracted(bench: Bench) -> Bench:
    from components.extract_data import extract_data

    bench.call(extract_data, bench.loop, bench.as_of, "the snapshot", bench.new(dsl.Dataset, "raw"))
    return bench


@pytest.fixture(scope="session")
def validated(extracted: Bench) -> Bench:
    from components.validate_data import validate_data

    bench = extracted
    bench.call(
        validate_data,
        bench.loop,
        bench.as_of,
        "r1",
        bench.made["raw"],
        bench.new(dsl.Dataset, "clean"),
        bench.new(dsl.HTML, "raw.html"),
    )
    return bench


@pytest.fixture(scope="session")
def joined(validated: Bench) -> Bench:
    from components.build_features import build_features

    bench = validated
    bench.call(build_features, bench.loop, bench.as_of, bench.made["clean"], bench.new(dsl.Dataset, "joined"))
    return bench


@pytest.fixture(scope="session")
def checked(joined: Bench) -> Bench:
    from components.validate_features import validate_features

    bench = joined
    bench.call(
        validate_features,
        bench.loop,
        bench.as_of,
        "r1",
        bench.made["joined"],
        bench.new(dsl.Dataset, "training_set"),
        bench.new(dsl.HTML, "training.html"),
    )
    return bench


@pytest.fixture(scope="session")
def trained(checked: Bench) -> Bench:
    from components.train_model import train_model

    bench = checked
    bench.call(
        train_model,
        bench.loop,
        bench.made["training_set"],
        bench.new(dsl.Model, "model"),
        bench.new(dsl.Dataset, "holdout"),
    )
    return bench


@pytest.fixture(scope="session")
def evaluated(trained: Bench) -> Bench:
    from components.evaluate_model import evaluate_model

    bench = trained
    bench.call(
        evaluate_model,
        bench.loop,
        bench.made["model"],
        bench.made["holdout"],
        bench.new(dsl.Artifact, "evaluation"),
        bench.new(dsl.Metrics, "metrics"),
        bench.new(dsl.ClassificationMetrics, "curves"),
        bench.new(dsl.HTML, "evaluation.html"),
    )
    return bench


@pytest.fixture(scope="session")
def judged(trained: Bench) -> Bench:
    from components.gate_model import gate_model

    bench = trained
    bench.returned["promote"] = bench.call(
        gate_model,
        bench.loop,
        "r1",
        bench.made["model"],
        bench.made["holdout"],
        bench.new(dsl.Metrics, "gate"),
        str(bench.folder / "reason"),
        bench.new(dsl.Artifact, "verdict"),
        bench.new(dsl.HTML, "gate.html"),
    )
    return bench


@pytest.fixture(scope="session")
def registered(judged: Bench, evaluated: Bench) -> Bench:
    from components.register_model import register_model

    bench = judged
    (bench.returned["version"],) = bench.call(
        register_model,
        bench.loop,
        bench.as_of,
        "r1",
        "a test",
        "the snapshot",
        bench.made["model"],
        bench.made["training_set"],
        bench.made["evaluation"],
        bench.made["verdict"],
    )
    return bench


@pytest.fixture(scope="session")
def deployed(registered: Bench) -> Bench:
    from components.deploy_model import deploy_model

    bench = registered
    (bench.returned["url"],) = bench.call(deploy_model, bench.loop, bench.returned["version"])
    return bench
