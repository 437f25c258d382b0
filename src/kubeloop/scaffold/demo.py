"""Write the demo's use case into a folder of the user: `kubeloop demo`."""

import shutil
from pathlib import Path

import kubeloop
from kubeloop.scaffold.table import ScaffoldError

_PACKAGE = Path(kubeloop.__file__).parent
_PARTS = ("loop.yaml", "feature_repo")


def write(into: Path) -> None:
    """Write loop.yaml and the feature repo of the flights.

    Raises:
        ScaffoldError: one of them already exists.
    """
    if there := [name for name in _PARTS if (into / name).exists()]:
        raise ScaffoldError(f"{into} has {' and '.join(there)} already; name another folder with --into")
    # A wheel carries the demo (hatch_build.py); a clone has it at its root.
    carried = _PACKAGE / "demo"
    source = carried if carried.is_dir() else _PACKAGE.parents[1]
    into.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source / "feature_repo", into / "feature_repo", ignore=shutil.ignore_patterns("__pycache__"))
    # The first line refers editors to a schema that only a clone has.
    lines = (source / "loop.yaml").read_text().splitlines(keepends=True)
    (into / "loop.yaml").write_text("".join(line for line in lines if "$schema=" not in line))
