"""Commands of whoever made the cluster, for what is not ours to stop."""

import os
import subprocess

import pytest

from tests.e2e_cluster.page import PREFIX


def hook(name: str) -> None:
    """Run a command of whoever made the cluster, such as KUBELOOP_E2E_STOP_S3; skip where none is given."""
    command = os.environ.get(PREFIX + name)
    if not command:
        pytest.skip(f"{PREFIX}{name} names no command that does it in this cluster")
    subprocess.run(["bash", "-euo", "pipefail", "-c", command], check=True, timeout=300)
