"""The environments: a real API server accepts them, only stated differences exist, and our builder writes the same."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubeloop.chart.values import Values
from kubeloop.config import Loop
from kubeloop.delivery import pods as serving_pods
from kubeloop.delivery import rollout
from kubeloop.delivery.manifest import ModelRef, inference_service
from tests.charts.conftest import Object, kinds, merged, named, pods, render  # noqa: F401 - render is a fixture
from tests.control_plane.plane import ControlPlane

MANIFESTS = Path(__file__).parents[2] / "manifests"
ENVIRONMENTS = ("dev", "staging", "prod")
EVERY = pytest.mark.parametrize("environment", ENVIRONMENTS)
LOOP = "flight-delay"


def build(assets: Path, path: str) -> list[Object]:
    command = [assets / "kustomize", "build", str(MANIFESTS / path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [item for item in yaml.safe_load_all(done.stdout) if item]


def files(environment: str) -> list[Path]:
    base = [MANIFESTS / "base" / name for name in ("loops.yaml", "values.yaml")]
    return [*base, MANIFESTS / "overlays" / environment / "values.yaml"]


@pytest.fixture
def chart(render):  # noqa: F811 - the fixture
    """Render the chart as an environment installs it."""

    def chart(environment: str) -> list[Object]:
        args = [part for path in files(environment) for part in ("-f", str(path))]
        found: list[Object] = render({}, *args, namespace=f"kubeloop-{environment}")
        return found

    return chart


def dry_run(plane: ControlPlane, objects: list[Object]) -> None:
    args = ("apply", "--server-side", "--validate=strict", "--dry-run=server", "-f", "-")
    plane.kubectl(*args, input=yaml.safe_dump_all(objects))


@EVERY
def test_every_object_is_accepted(control_plane, assets, chart, environment):
    objects = [*build(assets, f"overlays/{environment}"), *build(assets, f"overlays/{environment}/models")]
    objects += chart(environment)
    (namespace,) = kinds(objects, "Namespace")
    own = control_plane.namespace(f"kubeloop-{environment}", restricted=True)
    with own as name, control_plane.namespace("kubeflow") as steps:
        text = json.dumps(objects).replace(f'"namespace": "kubeloop-{environment}"', f'"namespace": "{name}"')
        moved = json.loads(text.replace('"namespace": "kubeflow"', f'"namespace": "{steps}"'))
        rest = [item for item in moved if item["kind"] not in ("Namespace", "Pod")]
        dry_run(control_plane, rest)
        dry_run(control_plane, [namespace])


def argo(assets: Path) -> list[Object]:
    models = yaml.safe_load((MANIFESTS / "argocd" / "models.yaml").read_text())
    return [*build(assets, "argocd"), models]


def test_argo_cd_accepts_its_own(control_plane, assets):
    objects = argo(assets)
    with control_plane.namespace("argocd") as name:
        for item in objects:
            item["metadata"]["namespace"] = name
        dry_run(control_plane, objects)


@EVERY
def test_the_namespace_enforces_restricted_and_denies(assets, environment):
    objects = build(assets, f"overlays/{environment}")
    (namespace,) = kinds(objects, "Namespace")
    for mode in ("enforce", "audit", "warn"):
        assert namespace["metadata"]["labels"][f"pod-security.kubernetes.io/{mode}"] == "restricted"
    assert namespace["metadata"]["name"] == f"kubeloop-{environment}"
    (policy,) = kinds(objects, "NetworkPolicy")
    assert policy["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert {item["metadata"]["namespace"] for item in objects if item["kind"] != "Namespace"} == {
        f"kubeloop-{environment}"
    }


_SIZES = {"": 1.0, "m": 1e-3, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}


def size(text: Any) -> float:
    digits = str(text).rstrip("mMGTi")
    return float(digits) * _SIZES[str(text)[len(digits) :]]


@EVERY
def test_the_chart_fits_the_quota_with_room_for_models_and_runs(assets, chart, environment):
    (quota,) = kinds(build(assets, f"overlays/{environment}"), "ResourceQuota")
    hard = quota["spec"]["hard"]
    objects = chart(environment)
    replicas = {
        item["metadata"]["name"]: item["spec"].get("replicas", 1)
        for item in objects
        if "replicas" in item.get("spec", {})
    }
    for resource in ("cpu", "memory"):
        asked = sum(
            size(container["resources"]["requests"][resource]) * replicas.get(name, 1)
            for name, pod in pods(objects).items()
            for container in [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]
        )
        assert asked < size(hard[f"requests.{resource}"]) / 2
    (claim,) = named(objects, "StatefulSet", "kubeloop-collector")["spec"]["volumeClaimTemplates"]
    assert size(claim["spec"]["resources"]["requests"]["storage"]) <= size(hard["requests.storage"])


@EVERY
def test_overlays_hold_only_differences(environment):
    base, shared, own = (yaml.safe_load(path.read_text()) for path in files(environment))
    under = merged(base, shared)
    assert repeated(under, own) == []
    Values.model_validate(
        merged(yaml.safe_load((MANIFESTS.parent / "charts/kubeloop/values.yaml").read_text()), merged(under, own))
    )


def repeated(under: Object, over: Object, path: str = "") -> list[str]:
    found = []
    for name, value in over.items():
        if isinstance(value, dict):
            found += repeated(under.get(name, {}), value, f"{path}.{name}")
        elif under.get(name) == value:
            found.append(f"{path}.{name}")
    return found


@EVERY
def test_a_model_is_what_our_builder_writes(assets, chart, environment):
    """Base and patch together equal what the builder makes of the environment's loop and the version in the patch."""
    (found,) = build(assets, f"overlays/{environment}/models")
    objects = chart(environment)
    namespace = f"kubeloop-{environment}"
    loop = Loop.parse(named(objects, "ConfigMap", f"kubeloop-loop-{LOOP}")["data"]["loop.yaml"])
    lineage = found["spec"]["predictor"]["annotations"]
    version, digest, run = (lineage[f"kubeloop.io/{name}"] for name in ("model-version", "model-sha256", "run"))
    model = ModelRef(version, found["spec"]["predictor"]["model"]["storageUri"], digest, run)
    environ = named(objects, "ConfigMap", "kubeloop-env", namespace)["data"]
    plain = inference_service(
        loop, model, logger_url=environ["KUBELOOP_COLLECTOR_URL"], feature_dir=f"/project/{loop.features.repo}"
    )
    expected = serving_pods.place(loop, plain)
    # A promotion by GitOps has stamped its patch.
    assert rollout.unstamped(found) == expected, "write it again with `python manifests/write.py --helm <helm>`"


@EVERY
def test_patches_hold_only_differences(environment):
    base = yaml.safe_load((MANIFESTS / "models" / LOOP / "inferenceservice.yaml").read_text())
    patch = yaml.safe_load((MANIFESTS / "overlays" / environment / "models" / f"{LOOP}.yaml").read_text())
    assert set(repeated(base, patch)) == {".apiVersion", ".kind", ".metadata.name"}


def test_promotion_carries_the_version_and_nothing_else(tmp_path):
    shutil.copytree(MANIFESTS / "overlays", tmp_path / "overlays")
    staging, prod = (tmp_path / "overlays" / name / "models" / f"{LOOP}.yaml" for name in ("staging", "prod"))
    newer = yaml.safe_load(staging.read_text())
    newer["spec"]["predictor"]["model"]["storageUri"] = "s3://kubeloop-staging/mlflow/9/artifacts"
    newer["spec"]["predictor"]["annotations"]["kubeloop.io/model-version"] = "9"
    args = newer["spec"]["predictor"]["model"]["args"]
    newer["spec"]["predictor"]["model"]["args"] = [arg.replace("--version=0", "--version=9") for arg in args]
    staging.write_text(yaml.safe_dump(newer))
    before = yaml.safe_load(prod.read_text())
    before["spec"]["canary"] = [{"trafficPercent": 10}]
    prod.write_text(yaml.safe_dump(before))
    promote("staging", "prod", tmp_path)
    after = yaml.safe_load(prod.read_text())
    predictor = after["spec"]["predictor"]
    assert predictor["annotations"]["kubeloop.io/model-version"] == "9"
    assert predictor["model"]["storageUri"].startswith("s3://kubeloop-staging/mlflow/9/")
    assert predictor["model"]["args"] == newer["spec"]["predictor"]["model"]["args"]
    assert "canary" not in after["spec"]
    assert predictor["logger"] == before["spec"]["predictor"]["logger"]
    assert predictor["minReplicas"] == before["spec"]["predictor"]["minReplicas"]


def promote(source: str, target: str, folder: Path, model: str = LOOP) -> "subprocess.CompletedProcess[str]":
    command = [
        sys.executable,
        str(MANIFESTS / "promote.py"),
        model,
        source,
        target,
        "--overlays",
        str(folder / "overlays"),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_promotion_of_a_model_that_is_not_there_says_so(tmp_path):
    done = promote("dev", "staging", tmp_path, "nobody")
    assert done.returncode == 1
    assert "does not exist; promote" in done.stderr


def test_what_was_never_promoted_is_not_carried_on(tmp_path):
    shutil.copytree(MANIFESTS / "overlays", tmp_path / "overlays")
    staging = tmp_path / "overlays/staging/models" / f"{LOOP}.yaml"
    before = staging.read_text()
    done = promote("dev", "staging", tmp_path)
    assert done.returncode == 1
    assert "dev serves no version of flight-delay yet" in done.stderr
    assert staging.read_text() == before


def test_a_new_loop_gets_its_files(assets, tmp_path):
    """Both loops are written, then the second again: nothing changes, and every environment can be built."""
    shutil.copytree(MANIFESTS.parent / "charts", tmp_path / "charts")
    shutil.copytree(MANIFESTS, tmp_path / "manifests", ignore=shutil.ignore_patterns("__pycache__"))
    second = {
        "name": "fraud",
        "source": {"tables": {"events": {"available_at": "at"}}},
        "features": {"service": "f_v1"},
    }
    (tmp_path / "fraud.yaml").write_text(yaml.safe_dump(second))
    loops = [sys.executable, "-m", "kubeloop.chart", "loop", str(MANIFESTS.parent / "loop.yaml"), "fraud.yaml"]
    written = subprocess.run(loops, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    (tmp_path / "manifests/base/loops.yaml").write_text(written)
    write = [sys.executable, "manifests/write.py", "--helm", str(assets / "helm")]
    for name in ("fraud", "fraud", LOOP):
        done = subprocess.run([*write, name], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    for environment in ENVIRONMENTS:
        found = build(assets, str(tmp_path / f"manifests/overlays/{environment}/models"))
        assert {item["metadata"]["name"] for item in found} == {LOOP, "fraud"}
        assert {item["metadata"]["namespace"] for item in found} == {f"kubeloop-{environment}"}
    own = MANIFESTS / "overlays/prod/models" / f"{LOOP}.yaml"
    assert (tmp_path / own.relative_to(MANIFESTS.parent)).read_text() == own.read_text(), "the other loop stays"
    done = subprocess.run([*write, "nobody"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "has no loop nobody" in done.stderr


def test_containers_that_say_nothing_are_limited(control_plane, assets):
    (limits,) = kinds(build(assets, "overlays/dev"), "LimitRange")
    with control_plane.namespace("limits") as name:
        limits["metadata"]["namespace"] = name
        control_plane.kubectl("apply", "--validate=strict", "-f", "-", input=yaml.safe_dump(limits))
        pod = {"metadata": {"name": "silent"}, "spec": {"containers": [{"name": "it", "image": "it:1"}]}}
        found = control_plane.request("POST", f"/api/v1/namespaces/{name}/pods?dryRun=All", pod)
    (container,) = found["spec"]["containers"]
    assert container["resources"] == {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}}


@EVERY
def test_argo_cd_and_flux_install_the_same(assets, environment):
    platform, models = sorted(kinds(argo(assets), "ApplicationSet"), key=lambda item: len(item["metadata"]["name"]))
    elements = [item["environment"] for item in platform["spec"]["generators"][0]["list"]["elements"]]
    assert elements == list(ENVIRONMENTS)
    overlay, chart_source = platform["spec"]["template"]["spec"]["sources"]
    values = [path.replace("{{ .environment }}", environment) for path in chart_source["helm"]["valueFiles"]]
    wanted = [path.relative_to(MANIFESTS.parent) for path in files(environment)]
    chart_folder = MANIFESTS.parent / chart_source["path"]
    assert [(chart_folder / path).resolve().relative_to(MANIFESTS.parent) for path in values] == wanted

    flux = build(assets, f"flux/{environment}")
    (release,) = kinds(flux, "HelmRelease")
    assert [Path(path) for path in release["spec"]["chart"]["spec"]["valuesFiles"][1:]] == wanted
    assert release["spec"]["targetNamespace"] == f"kubeloop-{environment}"
    paths = {item["metadata"]["name"]: item["spec"]["path"] for item in kinds(flux, "Kustomization")}
    assert paths["kubeloop-platform"] == "./" + overlay["path"].replace("{{ .environment }}", environment)
    model = models["spec"]["template"]["spec"]["source"]["path"].replace("{{ .environment }}", environment)
    assert paths["kubeloop-models"] == "./" + model
    for path in paths.values():
        assert (MANIFESTS.parent / path / "kustomization.yaml").is_file()


def test_argo_cd_may_install_all_that_an_environment_renders(assets, chart):
    (project,) = kinds(build(assets, "argocd"), "AppProject")
    allowed = {item["namespace"] for item in project["spec"]["destinations"]}
    for environment in ENVIRONMENTS:
        objects = [*chart(environment), *build(assets, f"overlays/{environment}")]
        assert {item["metadata"].get("namespace") for item in objects} - {None} <= allowed
        cluster_wide = {item["kind"] for item in objects if "namespace" not in item["metadata"]}
        assert cluster_wide <= {item["kind"] for item in project["spec"]["clusterResourceWhitelist"]}
        assert not kinds(objects, "Secret")


@EVERY
def test_models_are_deployed_only_through_git_and_once_one_exists(assets, chart, environment):
    """A new endpoint without a model would only fail; and Git must not undo what a pipeline applies."""
    assert "kubeloop-models" not in {item["metadata"]["name"] for item in build(assets, "argocd")}
    assert named(build(assets, f"flux/{environment}"), "Kustomization", "kubeloop-models")["spec"]["suspend"] is True
    loop = Loop.parse(named(chart(environment), "ConfigMap", f"kubeloop-loop-{LOOP}")["data"]["loop.yaml"])
    assert loop.delivery.applier == "gitops"
    assert loop.delivery.git is not None
    followed = f"manifests/overlays/{environment}/models/{LOOP}.yaml"
    assert loop.delivery.git.path.replace("{loop}", LOOP) == followed
    assert (MANIFESTS.parent / followed).is_file()


def test_a_pruned_application_takes_no_endpoint_down(assets):
    models = named(argo(assets), "ApplicationSet", "kubeloop-models")
    assert models["spec"]["template"]["spec"]["syncPolicy"]["automated"]["prune"] is False
    flux = named(build(assets, "flux/prod"), "Kustomization", "kubeloop-models")
    assert flux["spec"]["prune"] is False
