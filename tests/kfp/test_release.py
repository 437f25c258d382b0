"""`kubeloop schedule --release` and `submit --release`: the loop that the chart installed on a real API server."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from kubeloop import errors
from kubeloop.cli.main import app
from kubeloop.config import Loop
from kubeloop.delivery import installed
from kubeloop.errors import KubeloopError
from tests.control_plane.plane import ControlPlane

SECOND = {
    "name": "fraud",
    "source": {"tables": {"events": {"available_at": "at"}}},
    "features": {"service": "fraud_v1"},
    "pipelines": {"recurring": [{"name": "daily", "pipeline": "training", "cron": "0 0 3 * * *"}]},
}


@pytest.fixture(scope="module")
def space(control_plane: ControlPlane) -> Iterator[str]:
    """A namespace shared by the module: a release with one loop, one with two, one without."""
    with control_plane.namespace("release") as name:
        yield name


@pytest.fixture(scope="module")
def put(control_plane: ControlPlane, space: str, assets: Path, project: Path) -> Callable[..., None]:
    """Apply the ConfigMaps of a release with some loops, as `helm upgrade` would."""

    def apply(release: str, *loops: dict[str, Any]) -> None:
        values = {"loops": {loop["name"]: {"config": loop} for loop in loops}}
        command = [assets / "helm", "template", release, project / "charts/kubeloop", "--kube-version", "1.36"]
        command += ["--namespace", space, "--set", "kubeflow.namespace=steps", "--values", "-"]
        command += ["--set", "images.registry=ghcr.io/you,storage.secret=kubeloop-s3,storage.bucket=s3://models"]
        done = subprocess.run(command, input=yaml.safe_dump(values), capture_output=True, text=True, check=True)
        maps = [
            item
            for item in yaml.safe_load_all(done.stdout)
            if item and item["kind"] == "ConfigMap" and item["metadata"]["namespace"] == space
        ]
        control_plane.kubectl("apply", "-f", "-", input=yaml.safe_dump_all(maps))

    return apply


@pytest.fixture(scope="module")
def releases(put: Callable[..., None], demo: Loop) -> None:
    flights = json.loads(demo.dump())
    put("one", flights)
    put("two", flights, SECOND)
    put("empty")


@pytest.fixture
def kubeconfig(control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Set the user of the client and, as in kubectl, the namespace of its context."""

    def become(user: str = "admin", namespace: str = "") -> Path:
        path = control_plane.kubeconfig(user)
        content = yaml.safe_load(path.read_text())
        if namespace:
            content["contexts"][0]["context"]["namespace"] = namespace
        mine = path.with_suffix(".mine")
        mine.write_text(yaml.safe_dump(content))
        monkeypatch.setenv("KUBECONFIG", str(mine))
        # The client reads KUBECONFIG only once, when it is imported.
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(mine))
        return mine

    return become


@pytest.fixture
def kubeloop(server: Any, releases: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("KUBELOOP_KFP_URL", server.url)
    for name in ("KUBELOOP_KFP_TOKEN_FILE", "KUBELOOP_BUCKET", "KUBELOOP_LOOP"):
        monkeypatch.delenv(name, raising=False)
    return lambda *arguments: CliRunner().invoke(app, [*arguments, "-C", str(tmp_path)])


def test_the_demo_is_scheduled_as_it_is_installed(
    server: Any,
    kubeloop: Callable[..., Result],
    kubeconfig: Callable[..., Path],
    space: str,
    demo: Loop,
    tmp_path: Path,
) -> None:
    kubeconfig(namespace=space)
    (tmp_path / "loop.yaml").write_text(demo.dump())
    shown = kubeloop("schedule", "--release", "one", "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert "`kubeloop schedule --release one` applies" in shown.output
    done = kubeloop("schedule", "--release", "one")
    assert done.exit_code == 0, done.output
    assert [run["display_name"] for run in server.store.recurring.values()] == ["flight-delay-hourly"]
    begun = kubeloop("submit", "--release", "one", "--namespace", space, "--name", "by-hand-1", "--no-follow")
    assert begun.exit_code == 0, begun.output
    assert f"`kubeloop submit training --release one --namespace {space} --name by-hand-1` follows it" in begun.output
    assert kubeloop("submit", "--name", "by-hand-1").exit_code != 0, "loop.yaml here serves on one machine"


def test_after_an_upgrade_the_recurring_runs_follow(
    server: Any, put: Callable[..., None], kubeloop: Callable[..., Result], kubeconfig: Callable[..., Path], space: str
) -> None:
    kubeconfig()
    take = ("--release", "later", "--namespace", space)
    put("later", SECOND)
    assert "create fraud-daily: new" in kubeloop("schedule", *take).output
    put("later", SECOND | {"training": {"window": "365d"}})
    assert "create fraud-daily: changed" in kubeloop("schedule", *take).output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--release", "three"), "has no kubeloop release three; it has empty, "),
        (("--release", "one", "--namespace", "nowhere"), "`helm list -A` shows where it is"),
        (("--release", "empty"), "release empty in namespace {space} has no loop yet; add it: helm upgrade empty"),
        (("--release", "two"), "release two has 2 loops; choose with --loop-name: flight-delay, fraud"),
        (("--release", "two", "--loop-name", "x"), "release two has no loop x; choose with --loop-name: "),
        (("--release", "one", "--context", "away"), "no cluster is known"),
        (("--release", "one", "--loop", "loop.yaml"), "give --release or --loop, not both"),
        (("--loop-name", "fraud"), "--loop-name need --release NAME"),
    ],
)
@pytest.mark.parametrize("command", ["schedule", "submit"])
def test_what_is_not_there_is_a_sentence(
    kubeloop: Callable[..., Result],
    kubeconfig: Callable[..., Path],
    space: str,
    command: str,
    arguments: tuple[str, ...],
    says: str,
) -> None:
    kubeconfig(namespace=space)
    done = kubeloop(command, *arguments)
    assert done.exit_code == errors.LASTING
    assert says.format(space=space) in done.output


def test_the_folder_says_which_loop_of_several_is_meant(
    kubeloop: Callable[..., Result], kubeconfig: Callable[..., Path], space: str, tmp_path: Path
) -> None:
    kubeconfig(namespace=space)
    (tmp_path / "loop.yaml").write_text(json.dumps(SECOND))
    assert "create fraud-daily" in kubeloop("schedule", "--release", "two").output
    alone = kubeloop("schedule", "--release", "one")
    assert "release one has no loop fraud; choose with --loop-name: flight-delay" in alone.output
    objects = kubeloop("pipelines", "objects", "--release", "two", "--release-namespace", space)
    assert "fraud-training" in objects.stdout
    assert "ghcr.io/you/kubeloop-core:" in objects.stdout
    assert "secretName: kubeloop-s3" in objects.stdout


def test_a_right_that_is_missing_is_named(kubeconfig: Callable[..., Path], space: str) -> None:
    kubeconfig("nobody-in-particular")
    with pytest.raises(KubeloopError, match=f"may not .* ConfigMaps of namespace {space}: it lacks list on conf"):
        installed.loop("one", space)


def test_an_unreachable_cluster_is_reported_soon(
    kubeconfig: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = kubeconfig()
    content = yaml.safe_load(path.read_text())
    content["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:9"
    path.write_text(yaml.safe_dump(content))
    monkeypatch.setattr(installed, "_PATIENCE_S", 0.2)
    with pytest.raises(KubeloopError, match=r"API server at https://127\.0\.0\.1:9 does not answer"):
        installed.loop("one", "kubeloop")


def test_without_any_cluster_it_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kubeconfig: Callable[..., Path]
) -> None:
    kubeconfig().unlink()
    with pytest.raises(KubeloopError, match=r"no cluster is known .*; set KUBECONFIG"):
        installed.loop("one", "")
