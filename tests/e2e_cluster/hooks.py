"""Commands that the cluster's owner names, for what the tests must not stop themselves."""

import os
import subprocess

import pytest

from tests.e2e_cluster.page import PREFIX


def hook(name: str) -> None:
    """Run a command of the cluster's owner, such as KUBELOOP_E2E_STOP_S3; skip where none is given."""
    command = os.environ.get(PREFIX + name)
    if not command:
        pytest.skip(f"{PREFIX}{name} names no command that does it in this cluster")
    subprocess.run(["bash", "-euo", "pipefail", "-c", command], check=True, timeout=300)
