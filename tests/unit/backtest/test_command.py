import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from kubeloop import report
from kubeloop.backtest import policies, run
from kubeloop.backtest.policies import Policy
from kubeloop.stores import kept
from tests.unit.backtest.conftest import LOOP, Home, write


def kubeloop(home: Home, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "kubeloop.cli", "backtest", "-C", str(home.settings.home), *arguments]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A shop whose backtest was killed after it had made a model."""
    home = write(tmp_path_factory.mktemp("killed"))
    program = subprocess.Popen(kubeloop(home, "--workers", "1"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    there: set[str] = set()
    deadline = time.monotonic() + 240
    while not there and program.poll() is None and time.monotonic() < deadline:
        there = {path.name for path in home.settings.state.glob("backtest/*/models/*")}
        time.sleep(0.05)
    others = psutil.Process(program.pid).children(recursive=True)
    program.send_signal(signal.SIGKILL)
    program.wait()
    assert there
    # No worker is left that would continue, or wait forever.
    assert not psutil.wait_procs(others, timeout=60)[1]
    return home


def test_a_killed_backtest_goes_on_where_it_was(killed: Home) -> None:
    home = killed
    stamps = {path: path.stat().st_mtime_ns for path in home.settings.state.glob("backtest/*/models/*/model.onnx")}
    names = ["every week", policies.MONTHLY, policies.EITHER]
    asked = [part for name in names for part in ("--policy", name)]
    done = subprocess.run(
        [*kubeloop(home, "--workers", "2", "--apply", "every week", "--json"), *asked],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    assert not list(home.settings.state.glob("backtest/*/.part-*"))
    found = json.loads(done.stdout)
    rows = {row["policy"]: row for row in found["policies"]}
    assert list(rows) == [policies.FROZEN, *names]
    assert rows["every week"]["retrainings"] == 5
    assert found["drift_against_monthly"]
    # The changes of loop.yaml that it reports are those that it wrote.
    assert found["applied"] == ["drift.retrain_on: [drift, performance] → []", "drift.retrain_every: None → 1w"]
    text = home.settings.loop_file.read_text()
    assert "# kubeloop backtest: every week: auc 0." in text
    assert "drift:   # as small as the shop" in text
    page = report.write(home.loop, home.settings, None).read_text()
    assert "When to retrain" in page
    for path in home.settings.state.glob("backtest/**/*"):
        assert not path.is_file() or kept.kind(path, home.settings.state)


def test_two_backtests_do_not_run_at_once(home: Home, tmp_path: Path) -> None:
    with (
        run._alone(tmp_path),
        pytest.raises(run.BacktestError, match="another backtest "),
        run._alone(tmp_path),
    ):
        pass


def test_the_calendars_models_are_foreseen(home: Home, past: object) -> None:
    """The workers can then train all of them in parallel before the first policy is walked."""
    quarter = Policy("12 days", {"drift": {"retrain_on": [], "retrain_every": "12d"}})
    days = [(need.moment - home.span.start).days for need in run._foreseen(past, quarter)]  # type: ignore[arg-type]
    assert days == [0, 15, 25]
    assert len(list(run._foreseen(past, Policy("oracle", oracle=True)))) == 8  # type: ignore[arg-type]


def test_an_unknown_policy_names_those_that_there_are(home: Home) -> None:
    done = subprocess.run(
        kubeloop(home, "--policy", "always"),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": "300"},
    )
    assert done.returncode == 65
    assert "there is no policy 'always'; there are 'frozen'" in done.stderr
    assert home.settings.loop_file.read_text() == LOOP
