"""Images built with buildah on a small Debian that stands in for the Python base, pushed to a registry on loopback."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import outside

PROGRAMS = ("buildah", "debootstrap", "docker-registry")
BUILT = ("core", "runtime", "detector")
BASE = "localhost/python:3.11-bookworm"
_PACKAGES = "ca-certificates,libgomp1,make,python3,python3-pip,python3-venv"

# A container as the kubelet runs it: its own mounts, a read-only root, /tmp, no way to gain privileges.
_RUN = """
set -eu
root=$1 mnt=$2; shift 2
mount --bind "$root" "$mnt"
mount -o remount,bind,ro "$mnt"
mount -t tmpfs -o mode=1777 tmpfs "$mnt/tmp"
mount -t proc proc "$mnt/proc"
mount -t tmpfs tmpfs "$mnt/dev"
for device in null zero random urandom; do
    touch "$mnt/dev/$device"
    mount --bind "/dev/$device" "$mnt/dev/$device"
done
mkdir -m 1777 "$mnt/dev/shm"
exec setpriv --no-new-privs chroot --userspec=65532:65532 --groups= "$mnt" "$@"
"""


class Builder:
    """buildah with its own store, and the build script on top of it."""

    def __init__(self, checkout: Path, store: Path, scratch: Path) -> None:
        self.checkout = checkout
        config = store / "storage.conf"
        store.mkdir(parents=True, exist_ok=True)
        config.write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{store / "layers"}"\nrunroot = "{store / "run"}"\n'
        )
        self.environ = {
            **os.environ,
            "BUILDAH_ISOLATION": "chroot",
            "CONTAINERS_STORAGE_CONF": str(config),
            # Buildah keeps the caches of `RUN --mount=type=cache` in TMPDIR, among them uv's.
            "TMPDIR": str(scratch),
        }

    def buildah(self, *arguments: str) -> str:
        done = subprocess.run(["buildah", *arguments], env=self.environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"buildah {' '.join(arguments)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        return done.stdout.strip()

    def build(self, *arguments: str, out: Path) -> list[dict[str, Any]]:
        """Run images/build.py and return images.json."""
        command = [sys.executable, "images/build.py", "--engine", "buildah", "--build-arg", f"IMAGE_BASE={BASE}"]
        log = out / "build.log"
        out.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as stream:
            done = subprocess.run(
                [*command, *arguments, "--out", str(out)],
                cwd=self.checkout,
                env=self.environ,
                stdout=stream,
                stderr=subprocess.STDOUT,
                check=False,
            )
        assert done.returncode == 0, log.read_text()[-6000:]
        found: list[dict[str, Any]] = json.loads((out / "images.json").read_text())
        return found


@dataclass(frozen=True)
class Image:
    """An image as a registry and a kubelet see it."""

    listing: dict[str, Any]
    manifest: dict[str, Any]
    config: dict[str, Any]
    root: Path
    out: Path

    @property
    def environ(self) -> dict[str, str]:
        return dict(entry.split("=", 1) for entry in self.config["config"]["Env"])

    def run(self, *command: str, script: Path | None = None, mount: Path) -> "subprocess.CompletedProcess[str]":
        """Run a command as a pod would; `mount` is an empty folder at which the root file system is mounted."""
        place = ["env", "-i", "-C", self.config["config"]["WorkingDir"], *self.config["config"]["Env"]]
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _RUN, "sh"]
        return subprocess.run(
            [*unshare, str(self.root), str(mount), *place, *command],
            input=script.read_text() if script else "",
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )


def _key(checkout: Path) -> str:
    """Return a key of the inputs of the big layers; another lock gets another store, and the old store is deleted."""
    files = ("uv.lock", "images/Dockerfile", "images/system.sh", "images/venv.sh")
    return hashlib.sha256(b"".join((checkout / name).read_bytes() for name in files)).hexdigest()[:16]


def _unmount(folder: Path) -> None:
    """Unmount what a killed session left mounted."""
    places = [Path(line.split()[1]) for line in Path("/proc/self/mounts").read_text().splitlines()]
    for place in sorted((place for place in places if place.is_relative_to(folder)), reverse=True):
        subprocess.run(["umount", str(place)], check=True)


def _make_base(archive: Path, scratch: Path) -> None:
    """Make a Debian with Python and pip as in the real base: some packages from dpkg, some not."""
    root = scratch / "base"
    shutil.rmtree(root, ignore_errors=True)
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", "bookworm", str(root)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (root / "usr/bin/python").symlink_to("python3")
    shutil.copytree(root / "usr/lib/python3/dist-packages/pip", root / "usr/local/lib/python3.11/dist-packages/pip")
    shutil.copy(root / "usr/bin/pip3", root / "usr/local/bin/pip3.11")
    for name in ("resolv.conf", "hostname"):
        (root / "etc" / name).unlink(missing_ok=True)
    part = archive.with_suffix(".part")
    subprocess.run(["tar", "-C", str(root), "-cf", str(part), "."], check=True)
    part.rename(archive)
    shutil.rmtree(root)


@pytest.fixture(scope="session")
def checkout(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A committed copy of the project for the build, so that no edit of the project comes between two builds."""
    folder = tmp_path_factory.mktemp("checkout")
    kept = [line[1:] for line in (project / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for name in (".dockerignore", "images", *kept):
        source = project / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / name, ignore=ignore, dirs_exist_ok=True)
        elif source.exists():
            shutil.copy(source, folder / name)
    git = ["git", "-C", str(folder), "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "all"]):
        subprocess.run([*git, *command], check=True)
    return folder


@pytest.fixture(scope="session")
def builder(checkout: Path) -> Iterator[Builder]:
    """buildah and the base.

    The base, uv's cache and the layers outlive the session, since each takes minutes to make.
    """
    outside.image_tools(PROGRAMS)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "kubeloop-images"
    scratch = cache / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        archive = cache / "base.tar"
        if not archive.exists():
            _make_base(archive, scratch)
        store = cache / f"store-{_key(checkout)}"
        for old in set(cache.glob("store-*")) - {store}:
            _unmount(old)
            shutil.rmtree(old)
        made = Builder(checkout, store, scratch)
        # A killed session may have left it.
        made.buildah("rm", "--all")
        if not made.buildah("images", "--quiet", "--filter", f"reference={BASE}"):
            container = made.buildah("from", "scratch")
            made.buildah("add", "--quiet", container, str(archive), "/")
            made.buildah("commit", "--quiet", container, BASE)
            made.buildah("rm", container)
        yield made
        made.buildah("rm", "--all")


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an empty registry on loopback."""
    folder = tmp_path_factory.mktemp("registry")
    settings = folder / "config.yml"
    storage = {"filesystem": {"rootdirectory": str(folder / "blobs")}}
    settings.write_text(json.dumps({"version": "0.1", "storage": storage, "http": {"addr": "127.0.0.1:0"}}))
    with subprocess.Popen(
        ["docker-registry", "serve", str(settings)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        found = next(match for line in process.stderr if (match := re.search(r"listening on (127[\d.]+:\d+)", line)))
        yield found[1]
        process.terminate()
        process.communicate(timeout=20)
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def built(builder: Builder, registry: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Image]:
    """Every image that can be built without NVIDIA's base, pushed and pulled back, by the name of its target."""
    out = tmp_path_factory.mktemp("images")
    listed = builder.build(*BUILT, "--registry", registry, "--push", "--plain-http", "--zstd", out=out)
    images = {}
    for name, listing in zip(BUILT, listed, strict=True):
        url = f"http://{registry}/v2/kubeloop-{name}"
        accept = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
        manifest = httpx.get(f"{url}/manifests/{listing['tag']}", headers=accept).raise_for_status().json()
        config = httpx.get(f"{url}/blobs/{manifest['config']['digest']}").raise_for_status().json()
        reference = f"docker://{listing['name']}@{listing['digest']}"
        container = builder.buildah("from", "--pull-always", "--tls-verify=false", reference)
        images[name] = Image(listing, manifest, config, Path(builder.buildah("mount", container)), out)
    return images
