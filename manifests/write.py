"""Write the InferenceService of every environment, as base and patches, when the loop or its builder changed.

    .venv/bin/python manifests/write.py --helm <helm> [<loop>]

The versions that the environments serve stay as they are: they are read from the patches. A loop that has none yet gets
its files with version 0, which stands for none; its first promotion writes the first.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from kubeloop import names
from kubeloop.config import Loop
from kubeloop.delivery import patch, pods, rollout
from kubeloop.delivery.manifest import ModelRef, inference_service

HERE = Path(__file__).parent
ENVIRONMENTS = ("dev", "staging", "prod")
HEAD = "# What the InferenceServices of all environments have in common; manifests/write.py writes it.\n"
OWN = {
    ("metadata", "namespace"),
    ("spec", "predictor", "model", "args"),
    ("spec", "predictor", "model", "storageUri"),
    ("spec", "predictor", "annotations"),
}
"""What names the version or the environment: never in the base, even where all environments agree."""

NONE = ModelRef("0", "s3://nothing/was/promoted/yet", "0" * 64, "none")

Object = dict[str, Any]


def installed(helm: str, environment: str, name: str) -> tuple[Loop, str]:
    """Return the loop as the chart configures it for an environment, and the collector's address."""
    values = ("base/loops.yaml", "base/values.yaml", f"overlays/{environment}/values.yaml")
    command = [helm, "template", "kubeloop", str(HERE.parent / "charts" / "kubeloop"), "--kube-version", "1.36"]
    command += ["-n", f"kubeloop-{environment}", *(part for value in values for part in ("-f", str(HERE / value)))]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    maps = {item["metadata"]["name"]: item["data"] for item in yaml.safe_load_all(text) if item["kind"] == "ConfigMap"}
    if f"kubeloop-loop-{name}" not in maps:
        sys.exit(f"manifests/base/loops.yaml has no loop {name}; write it with `python -m kubeloop.chart loop <files>`")
    return Loop.parse(maps[f"kubeloop-loop-{name}"]["loop.yaml"]), maps["kubeloop-env"]["KUBELOOP_COLLECTOR_URL"]


def patch_file(environment: str, name: str) -> Path:
    """Return where an environment says which version of a loop it serves."""
    return HERE / "overlays" / environment / "models" / f"{name}.yaml"


def build(helm: str, environment: str, name: str) -> Object:
    """Return the whole InferenceService of an environment."""
    loop, collector = installed(helm, environment, name)
    path = patch_file(environment, name)
    version = NONE
    if path.is_file():
        old = yaml.safe_load(path.read_text())
        lineage, uri = patch.lineage(old), old["spec"]["predictor"]["model"]["storageUri"]
        version = ModelRef(lineage[names.VERSION], uri, lineage[names.DIGEST], lineage[names.RUN])
    repo = f"/project/{loop.features.repo}"
    return pods.place(loop, inference_service(loop, version, logger_url=collector, feature_dir=repo))


def common(items: list[Any], path: tuple[str, ...] = ()) -> Any:
    """Return what all have in common; None where they differ."""
    if not all(isinstance(item, dict) for item in items):
        return items[0] if all(item == items[0] for item in items) else None
    keys = [key for key in items[0] if (*path, key) not in OWN and all(key in item for item in items)]
    found = {key: common([item[key] for item in items], (*path, key)) for key in keys}
    return {key: value for key, value in found.items() if value not in (None, {})}


def difference(whole: Object, base: Object) -> Object:
    """Return the merge patch that makes the whole of the base."""
    found = {}
    for key, value in whole.items():
        below = base.get(key)
        if value != below:
            found[key] = difference(value, below) if isinstance(value, dict) and isinstance(below, dict) else value
    return found


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, _data: Any) -> bool:
        return True


def dump(content: Object) -> str:
    """Write YAML without anchors."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=120)


def enlist(folder: Path, section: str, entry: Any) -> None:
    """Name something in a folder's kustomization, which is made if it is not there."""
    path = folder / "kustomization.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    text = path.read_text() if path.is_file() else "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
    listed = (yaml.safe_load(text) or {}).get(section, [])
    if entry not in listed:
        item = f"{section}:\n  - " + (entry if isinstance(entry, str) else f"path: {entry['path']}") + "\n"
        # Change only these lines, so that comments stay.
        text = text.replace(f"{section}:\n", item, 1) if listed else text + item
        path.write_text(text)


def main() -> None:
    """Write base and patches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="flight-delay", help="name of the loop")
    parser.add_argument("--helm", default="helm")
    args = parser.parse_args()
    whole = {environment: build(args.helm, environment, args.name) for environment in ENVIRONMENTS}
    base = common(list(whole.values()))
    enlist(HERE / "models" / args.name, "resources", "inferenceservice.yaml")
    (HERE / "models" / args.name / "inferenceservice.yaml").write_text(HEAD + dump(base))
    for environment, item in whole.items():
        own = difference(item, base)
        del own["metadata"]["namespace"]  # the overlay sets it
        named = {"name": base["metadata"]["name"]} | own.pop("metadata")
        path = patch_file(environment, args.name)
        enlist(path.parent, "resources", f"../../../models/{args.name}")
        enlist(path.parent, "patches", {"path": path.name})
        found = {"apiVersion": base["apiVersion"], "kind": base["kind"], "metadata": named} | own
        if path.is_file() and rollout.stamp(yaml.safe_load(path.read_text())):
            found = patch.stamped(found, [part for part in ("predictor", "transformer") if part in item["spec"]])
        path.write_text(dump(found))


if __name__ == "__main__":
    main()
