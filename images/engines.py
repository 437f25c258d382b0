"""The three programs that build images, behind one interface: docker, podman and buildah."""

import json
import shutil
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar


class EngineError(Exception):
    """An engine failed or is missing."""


class Engine(ABC):
    """A program that builds, reads and pushes images."""

    program: ClassVar[str]

    @classmethod
    def answers(cls) -> bool:
        """Return whether the program is installed and its daemon, if it has one, is running."""
        if not shutil.which(cls.program):
            return False
        return subprocess.run([cls.program, "info"], capture_output=True, check=False).returncode == 0

    def build(
        self,
        reference: str,
        *,
        target: str,
        context: Path,
        epoch: int,
        arguments: Mapping[str, str],
        platform: str | None,
        ca: str,
        fresh: bool,
    ) -> None:
        """Build one target of images/Dockerfile under a name and tag.

        Args:
            epoch: time of every file in the image, seconds since 1970.
            ca: file with the certificate authorities of this network, only for the build; may be empty.
            fresh: do not use layers of an earlier build.
        """
        given = [part for name, value in arguments.items() for part in ("--build-arg", f"{name}={value}")]
        given += ["--secret", f"id=ca,src={ca}"] if ca else []
        given += ["--platform", platform] if platform else []
        given += ["--no-cache"] if fresh else []
        given += self._own(epoch)
        file = str(context / "images" / "Dockerfile")
        self._run(*self.verb, "--file", file, "--target", target, "--tag", reference, *given, str(context), show=True)

    verb: ClassVar[tuple[str, ...]] = ("build",)

    @abstractmethod
    def _own(self, epoch: int) -> list[str]:
        """Return the arguments of a build that are specific to this program."""

    @abstractmethod
    def inspect(self, reference: str) -> tuple[str, int]:
        """Return the digest of an image's configuration and its size, unpacked, in bytes."""

    @abstractmethod
    def read(self, reference: str, path: str) -> bytes:
        """Return a file of an image."""

    @abstractmethod
    def push(self, reference: str, *, tls: bool, zstd: bool) -> str:
        """Push an image and return its digest in the registry.

        Args:
            tls: whether the registry uses TLS.
            zstd: compress with zstd, which packs and unpacks several times faster than gzip.
        """

    def _run(self, *arguments: str, show: bool = False) -> bytes:
        done = subprocess.run([self.program, *arguments], stdout=None if show else subprocess.PIPE, check=False)
        if done.returncode:
            raise EngineError(f"`{self.program} {arguments[0]}` failed with {done.returncode}; its message is above")
        return done.stdout or b""


class Docker(Engine):
    """Docker with BuildKit, 0.13 or newer for the files' times."""

    program = "docker"
    verb = ("buildx", "build")

    def _own(self, epoch: int) -> list[str]:
        # Attestations name the builder and the moment, so the same inputs would give another digest.
        return [
            *("--build-arg", f"SOURCE_DATE_EPOCH={epoch}"),
            *("--output", "type=docker,rewrite-timestamp=true", "--provenance=false"),
        ]

    def inspect(self, reference: str) -> tuple[str, int]:
        """Return the ID, which Docker derives from the configuration, and the size."""
        found = json.loads(self._run("image", "inspect", reference))[0]
        return found["Id"], found["Size"]

    def read(self, reference: str, path: str) -> bytes:
        """Run `cat` without a network, since not all versions can read an image without running it."""
        return self._run("run", "--rm", "--network", "none", reference, "cat", path)

    def push(self, reference: str, *, tls: bool, zstd: bool) -> str:
        """Read the digest from the image, in which Docker records it."""
        if zstd or not tls:
            raise EngineError("`docker push` takes neither --zstd nor --plain-http; its daemon's settings decide that")
        self._run("push", reference, show=True)
        found = json.loads(self._run("image", "inspect", reference))[0]
        name = reference.rpartition(":")[0]
        digests: list[str] = [entry for entry in found["RepoDigests"] if entry.startswith(f"{name}@")]
        return digests[0].partition("@")[2]


class Podman(Engine):
    """Podman 4 or newer."""

    program = "podman"

    def _own(self, epoch: int) -> list[str]:
        return ["--layers", "--timestamp", str(epoch)]

    def inspect(self, reference: str) -> tuple[str, int]:
        """Return ID and size; Podman leaves out the ID's algorithm."""
        found = json.loads(self._run("image", "inspect", reference))[0]
        return f"sha256:{found['Id']}", found["Size"]

    def read(self, reference: str, path: str) -> bytes:
        """Run `cat` without a network."""
        return self._run("run", "--rm", "--network", "none", reference, "cat", path)

    def push(self, reference: str, *, tls: bool, zstd: bool) -> str:
        """Read the digest from the file that Podman writes."""
        with tempfile.NamedTemporaryFile() as digest:
            given = ["--digestfile", digest.name, f"--tls-verify={str(tls).lower()}"]
            given += ["--compression-format", "zstd"] if zstd else []
            self._run("push", *given, reference, show=True)
            return Path(digest.name).read_text().strip()


class Buildah(Podman):
    """Buildah 1.28 or newer."""

    program = "buildah"

    def inspect(self, reference: str) -> tuple[str, int]:
        """Return ID and size; Buildah rounds sizes to three digits."""
        found = json.loads(self._run("inspect", "--type", "image", reference))
        images = json.loads(self._run("images", "--json", reference))
        return f"sha256:{found['FromImageID']}", _bytes(images[0]["size"])

    def read(self, reference: str, path: str) -> bytes:
        """Run `cat` in a working container."""
        container = self._run("from", "--pull-never", reference).decode().strip()
        try:
            return self._run("run", container, "--", "cat", path)
        finally:
            self._run("rm", container)


def _bytes(text: str) -> int:
    number, unit = text.split()
    return round(float(number) * {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}[unit.upper()])


ENGINES: dict[str, type[Engine]] = {engine.program: engine for engine in (Docker, Podman, Buildah)}
