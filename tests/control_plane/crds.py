"""Finds the folder of upstream CustomResourceDefinitions."""

import os
from pathlib import Path

PROJECT = Path(__file__).parents[2]


def folder(project: Path = PROJECT) -> Path:
    """Return the folder that KUBELOOP_CRDS names, else the one that `make crds` fetched, else one next to the clone."""
    if named := os.environ.get("KUBELOOP_CRDS"):
        return Path(named)
    fetched, beside = project / ".control-plane" / "crds", project.parent / "shared" / "crds"
    return beside if beside.is_dir() and not fetched.is_dir() else fetched
