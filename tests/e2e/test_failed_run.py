"""A failing run says why, leaves nothing half done, and succeeds once the cause is fixed."""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from kubeloop import errors
from kubeloop.config import Loop, Replay, Settings
from kubeloop.models import registry

# Settings of this process must not reach the program, which must find its own.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("KUBELOOP_")}

pytestmark = pytest.mark.timeout(600)

IMPOSSIBLE = "\n- expect_column_values_to_be_between: {column: temp, min_value: 500, max_value: 600}\n"


def run(settings: Settings) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kubeloop.cli", "run", "--json", "-C", str(settings.home)],
        env={**ENVIRONMENT, "KUBELOOP_STATE": str(settings.state)},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def test_a_broken_expectation_stops_the_loop_until_it_is_fixed(
    tmp_path: Path, loop: Loop, as_of: Any, make_home: Any
) -> None:
    replay = Replay(
        train_from=as_of - timedelta(days=12),
        train_to=as_of,
        until=as_of + timedelta(days=8),
        sample=0.2,
        group_by="origin",
    )
    settings = make_home(tmp_path, loop.model_copy(update={"replay": replay}))
    suite = settings.home / "feature_repo" / "expectations" / "weather.yaml"
    right = suite.read_text()
    suite.write_text(right + IMPOSSIBLE)

    broken = run(settings)
    assert broken.returncode == errors.LASTING
    assert "weather.temp" in broken.stderr
    assert "expect_column_values_to_be_between" in broken.stderr
    assert registry.versions(settings, loop.name) == []
    assert not (settings.state / "services.json").exists()

    suite.write_text(right)
    corrected = run(settings)
    assert corrected.returncode == 0, corrected.stderr
    summary = json.loads(corrected.stdout)
    assert summary["predictions"]["served"] == summary["predictions"]["logged"] > 500
    assert [version["champion"] for version in summary["versions"]][:1] == [True]
