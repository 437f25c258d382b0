"""The chart's alerts for two loops, as files for Prometheus's own programs."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import outside
from tests.charts.conftest import LOOP, SECOND, Render, kinds, render

__all__ = ["render"]

NAMESPACE = "kubeloop"
SERVING = "models"
VALUES: dict[str, Any] = {
    "loops": {
        "flight-delay": {"config": LOOP | {"delivery": {"namespace": SERVING}}},
        # Prometheus has no series from this loop's predictor.
        "fraud": {"config": SECOND | {"delivery": {"namespace": SERVING, "runtime": "kubeloop-triton"}}},
    },
    "runtimes": {"triton": {"enabled": True}},
    "metrics": {"enabled": True},
    "alerts": {"enabled": True},
}


@pytest.fixture(scope="session")
def promtool() -> str:
    """The path of promtool."""
    return outside.backend("promtool")


@pytest.fixture(scope="session")
def rules(render: Render) -> dict[str, Any]:
    """The rules in the format of a Prometheus rules file."""
    (found,) = kinds(render(VALUES), "PrometheusRule")
    spec: dict[str, Any] = found["spec"]
    return spec


@pytest.fixture(scope="session")
def rules_file(rules: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the rules."""
    path = tmp_path_factory.mktemp("rules") / "rules.yaml"
    path.write_text(yaml.safe_dump(rules))
    return path
