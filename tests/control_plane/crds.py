"""Finds the folder of upstream CustomResourceDefinitions."""

import os
from pathlib import Path

PROJECT = Path(__file__).parents[2]


def folder(project: Path = PROJECT) -> Path:
    """Return what KUBELOOP_CRDS names, else what `make crds` fetched, else the folder that lies beside the project."""
    if named := os.environ.get("KUBELOOP_CRDS"):
        return Path(named)
    fetched, beside = project / ".control-plane" / "crds", project.parent / "shared" / "crds"
    return beside if beside.is_dir() and not fetched.is_dir() else fetched
