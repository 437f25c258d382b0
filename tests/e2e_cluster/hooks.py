"""Commands that the cluster's owner provides for what the tests must not stop themselves."""

import os
import subprocess

import pytest

from tests.e2e_cluster.page import PREFIX


def hook(name: str) -> None:
    """Run the owner's command, such as KUBELOOP_E2E_STOP_S3; skip the test if it is not set."""
    command = os.environ.get(PREFIX + name)
    if not command:
        pytest.skip(f"{PREFIX}{name} is not set: this cluster has no command for it")
    subprocess.run(["bash", "-euo", "pipefail", "-c", command], check=True, timeout=300)
