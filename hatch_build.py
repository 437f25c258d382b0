"""Add to a wheel what replaces a clone: the pipelines, the demo, and the locked requirements of the environments.

This is not for editable installs, since a clone has all of it. The images do not use it and disable build hooks.
"""

import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from uv import find_uv_bin

MADE = ("runtime", "detector")
"""The environments that an installation makes at their first use."""


class Hook(BuildHookInterface):
    """Adds files to a wheel that are elsewhere in the source tree."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files to the wheel."""
        if version != "standard":
            return
        root = Path(self.root)
        self._scratch = tempfile.TemporaryDirectory(prefix="kubeloop-wheel-")
        place = build_data["force_include"]
        # Under their own names, by which components and kfp import them; a tool has a separate environment.
        for name in ("components", "pipelines"):
            place[str(root / name)] = name
        for name in ("loop.yaml", "feature_repo"):
            place[str(root / name)] = f"kubeloop/demo/{name}"
        for extra in MADE:
            (requirements := Path(self._scratch.name) / f"{extra}.txt").write_text(self._export(extra))
            place[str(requirements)] = f"kubeloop/locked/{extra}.txt"
        # The wheel's own environment is core, with the locked versions; uv makes the others.
        core = self._export("core", "--no-hashes").splitlines()
        build_data["dependencies"] += [*filter(None, core), "uv>=0.8"]

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002 - a hook's
        """Remove the files that were made for the build."""
        if version == "standard":
            self._scratch.cleanup()

    def _export(self, extra: str, *options: str) -> str:
        """Return the requirements of an extra, pinned as in uv.lock."""
        asked = ["--frozen", "--extra", extra, "--no-emit-project", "--no-header", "--no-annotate", *options]
        done = subprocess.run(
            [find_uv_bin(), "export", "--quiet", *asked], cwd=self.root, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"uv cannot export {extra} from uv.lock: {done.stderr.strip()}")
        return done.stdout
