"""A monitor that cannot start names what is missing and the setting for it, since a pod shows no more than that."""

import os
import subprocess
import sys
from pathlib import Path

from kubeloop import errors
from kubeloop.config import Loop


def test_names_the_database_that_does_not_answer(loop: Loop, tmp_path: Path) -> None:
    (tmp_path / "loop.yaml").write_text(loop.dump())
    done = subprocess.run(
        [sys.executable, "-m", "kubeloop.monitoring.monitor", "--loop", str(tmp_path / "loop.yaml"), "--once"],
        env=os.environ | {"KUBELOOP_MONITOR_DB": "postgresql+psycopg://monitor:secret@127.0.0.1:1/monitor"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == errors.PASSING
    assert done.stderr.startswith("the monitor's database does not answer (KUBELOOP_MONITOR_DB): connection")
    assert "secret" not in done.stderr
    assert "sqlalche.me" not in done.stderr
