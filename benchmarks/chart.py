"""Time the chart on a real API server, against kubectl with the same objects, and the compilation of pipelines.

Needs `make control-plane crds`. Nothing is scheduled on that server, so these are only the times of the requests.

    .venv/bin/python benchmarks/chart.py --rounds 5
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).parents[1]
sys.path.insert(0, str(PROJECT))

from tests.charts.conftest import CHART, RELEASE, VALUES  # noqa: E402
from tests.control_plane import crds as upstream  # noqa: E402
from tests.control_plane.plane import ControlPlane  # noqa: E402


def seconds(step: Callable[[], object]) -> float:
    """Return how long something takes."""
    begun = time.perf_counter()
    step()
    return time.perf_counter() - begun


def chart(plane: ControlPlane, values: dict[str, Any], rounds: int) -> dict[str, float]:
    """Install, upgrade and uninstall, and have kubectl apply the same objects; median seconds and their ratio."""
    taken: dict[str, list[float]] = {"install": [], "kubectl_apply": [], "upgrade": [], "uninstall": []}
    ratios: list[float] = []
    count = 0
    for _ in range(rounds):
        # Loops may be served in other namespaces; here all are in one.
        with plane.namespace("bench") as namespace, tempfile.TemporaryDirectory() as folder:
            told = json.loads(json.dumps(values))
            for loop in told.get("loops", {}).values():
                loop["config"]["delivery"] = {**loop["config"].get("delivery", {}), "namespace": namespace}
            file = Path(folder) / "values.yaml"
            file.write_text(yaml.safe_dump(told))
            release = (RELEASE, str(CHART), "-n", namespace, "-f", str(file))
            text = plane.helm("template", *release, "--kube-version", "1.36", "--no-hooks")
            count = sum(1 for item in yaml.safe_load_all(text) if item)
            with plane.namespace("bench") as other:
                apply = ("apply", "--server-side", "-f", "-")
                applied = seconds(lambda: plane.kubectl(*apply, input=text.replace(namespace, other)))  # noqa: B023
            installed = seconds(lambda: plane.helm("install", *release))  # noqa: B023
            taken["install"].append(installed)
            taken["kubectl_apply"].append(applied)
            taken["upgrade"].append(seconds(lambda: plane.helm("upgrade", *release)))  # noqa: B023
            taken["uninstall"].append(seconds(lambda: plane.helm("uninstall", RELEASE, "-n", namespace)))
            ratios.append(installed / applied)
    row = {f"{name}_s": round(statistics.median(times), 2) for name, times in taken.items()}
    return {"objects": count} | row | {"install_ratio": round(statistics.median(ratios), 2)}


def compiling(rounds: int) -> dict[str, float]:
    """Compile every pipeline in a new process, and compare it with a process that only imports kfp."""
    imports = [sys.executable, "-c", "import kfp.compiler, kfp.kubernetes"]
    with tempfile.TemporaryDirectory() as folder:
        ours = [sys.executable, "-m", "pipelines", "compile", "--out", folder]
        both = [
            tuple(
                seconds(lambda: subprocess.run(command, check=True, cwd=PROJECT, stdout=subprocess.DEVNULL))  # noqa: B023
                for command in (ours, imports)
            )
            for _ in range(rounds)
        ]
    return {
        "compile_s": round(statistics.median(a for a, _ in both), 2),
        "import_kfp_s": round(statistics.median(b for _, b in both), 2),
        "compile_ratio": round(statistics.median(a / b for a, b in both), 2),
    }


def main() -> None:
    """Print a table; write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    assets = Path(os.environ.get("KUBEBUILDER_ASSETS") or PROJECT / ".control-plane" / "bin")
    crds = upstream.folder()
    if not (assets / "kube-apiserver").is_file() or not crds.is_dir():
        sys.exit(f"no API server in {assets}, or no CRDs in {crds}; run `make control-plane crds` once")
    results: dict[str, Any] = {"pipelines": compiling(options.rounds)}
    with tempfile.TemporaryDirectory() as folder:
        plane = ControlPlane(assets, Path(folder))
        try:
            plane.start()
            plane.install(crds)
            for name in ("one loop", "everything"):
                results[name] = chart(plane, VALUES[name], options.rounds)
        finally:
            plane.stop()
    for name, row in results.items():
        print(f"{name:<12}" + "".join(f"{key:>16} {value:<6g}" for key, value in row.items()))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
