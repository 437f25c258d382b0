"""What is copied from one patch to another, and the stamps by which a rollout is recognized."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubeloop import names
from kubeloop.delivery import patch, rollout
from tests.cluster.conftest import NAME, build
from tests.unit.delivery.git_server import PATCH, overlay

MANIFESTS = Path(__file__).parents[3] / "manifests"
PARTS = ("predictor", "transformer")


def environment(version: str = "6") -> dict[str, Any]:
    return patch.read(overlay("ml", version)[PATCH], NAME)


def test_a_patch_is_read_as_it_was_written():
    found = patch.stamped(environment(), PARTS)
    assert patch.read(patch.dump(found), NAME) == found
    assert "&id" not in patch.dump(patch.carry(build("ml", "7"), found))


def test_a_stamp_is_of_what_is_written():
    found = patch.stamped(environment(), PARTS)
    assert patch.stamped(found, PARTS) == found
    assert rollout.unstamped(found)["spec"] == environment()["spec"] | {"transformer": {}}
    scaled = environment()
    scaled["spec"]["predictor"]["minReplicas"] = 9
    other = patch.stamped(scaled, PARTS)
    assert rollout.stamp(other) != rollout.stamp(found)
    # A change of scale replaces no pods.
    assert other["spec"]["predictor"]["annotations"] == found["spec"]["predictor"]["annotations"]
    newer = patch.stamped(patch.carry(build("ml", "7"), found), PARTS)
    stamps = [{part: item["spec"][part]["annotations"][names.MANIFEST] for part in PARTS} for item in (found, newer)]
    assert stamps[0]["predictor"] != stamps[1]["predictor"]
    assert stamps[0]["transformer"] == stamps[1]["transformer"], "a promotion does not replace the transformer's pods"


def test_a_stamp_goes_with_the_version_from_one_environment_to_the_next():
    """Without the stamp, the service would seem ready too early."""
    carried = patch.carry(environment("7"), patch.stamped(environment(), PARTS))
    assert carried == patch.stamped(environment("7"), PARTS)
    assert rollout.stamp(patch.carry(environment("7"), environment())) is None


def test_a_server_of_another_kind_has_no_flags_of_ours():
    source, target = build("ml", "7"), environment()
    del source["spec"]["predictor"]["model"]["args"]
    del target["spec"]["predictor"]["model"]["args"]
    carried = patch.carry(source, target)
    assert carried["spec"]["predictor"]["model"] == {"storageUri": "s3://models/7"}
    assert patch.version(carried) == 7


def test_a_patch_that_names_no_version_yet_takes_one():
    target = environment()
    del target["spec"]["predictor"]["annotations"]
    assert patch.version(target) == 0
    carried = patch.carry(build("ml", "7"), target)
    assert patch.version(carried) == 7
    assert carried["spec"]["predictor"]["annotations"] == patch.lineage(carried)


def older(version: str) -> dict[str, Any]:
    """Return a patch of the older releases, which also named the version on the service."""
    found = environment(version)
    found["metadata"]["annotations"] = found["spec"]["predictor"]["annotations"] | {"team.example.org/owner": "ml"}
    return found


def test_a_patch_of_an_older_release_is_read_and_migrated():
    target = older("6")
    assert patch.lineage(target) == patch.lineage(environment("6"))
    del target["spec"]["predictor"]["annotations"]
    assert patch.version(target) == 6
    for source in (build("ml", "7"), older("7")):
        carried = patch.carry(source, older("6"))
        assert carried["metadata"] == {"name": NAME, "annotations": {"team.example.org/owner": "ml"}}
        assert patch.lineage(carried) == patch.lineage(environment("7"))
        assert patch.read(patch.dump(carried), NAME) == carried
    assert "annotations" not in patch.carry(build("ml", "7"), environment("6"))["metadata"]


def test_the_workflow_promotes_with_only_pyyaml(tmp_path):
    """The workflow has a checkout, but no installation of kubeloop."""
    shutil.copytree(MANIFESTS / "overlays", tmp_path / "overlays")
    served = tmp_path / "overlays/staging/models/flight-delay.yaml"
    served.write_text(served.read_text().replace("model-version: '0'", "model-version: '9'"))
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "yaml").symlink_to(Path(yaml.__file__).parent)
    program = [sys.executable, "-S", str(MANIFESTS / "promote.py"), "flight-delay", "staging", "prod"]
    done = subprocess.run(
        [*program, "--overlays", str(tmp_path / "overlays")],
        env={"PATH": os.defpath, "PYTHONPATH": str(tmp_path / "packages")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    staging, prod = (
        yaml.safe_load((tmp_path / "overlays" / name / "models" / "flight-delay.yaml").read_text())
        for name in ("staging", "prod")
    )
    assert patch.lineage(prod) == patch.lineage(staging)
    assert patch.version(prod) == 9


@pytest.mark.parametrize("content", ["", "[]", "kind: Deployment", "kind: InferenceService", "a: ["])
def test_anything_but_a_patch_is_refused(content):
    with pytest.raises(patch.PatchError):
        patch.read(content, NAME)
