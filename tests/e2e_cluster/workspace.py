"""The folder in which the page's commands run: a copy of the checkout with the tests' loop."""

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.e2e_cluster.cluster import KUBEFLOW, forwarded
from tests.e2e_cluster.page import INSTALL, PREFIX, PROJECT, Block, blocks, fill
from tests.e2e_cluster.shell import Shell

FOLDER = PROJECT / "build" / "e2e"
RELEASE = ("--release", "kubeloop", "--namespace", "kubeloop")
_CHANGES = Path(__file__).with_name("loop.yaml")
_ENVIRONMENTS = (".venv", ".venv-runtime", ".venv-detector", ".uv")


class Workspace:
    """The copy, its shell, and a record of finished work that lets a later session continue.

    Attributes:
        folder: the copy of the checkout.
        record: what later tests need from earlier ones; `keep` writes it.
    """

    def __init__(self) -> None:
        self.folder = FOLDER / "checkout"
        self._path = FOLDER / "state.json"
        self.record: dict[str, Any] = json.loads(self._path.read_text()) if self._path.exists() else {}
        if not self.record:
            self._copy()
        self._shell: Shell | None = None

    def done(self, block: Block) -> bool:
        """Return whether a block was run in an earlier session."""
        return block.text in self.record.get("done", ())

    def run(self, block: Block, limit_s: float) -> str:
        """Run a block of the page and return what it printed."""
        printed = self.shell.run(fill(block.text, os.environ), limit_s)
        self.keep(done=[*self.record.get("done", ()), block.text])
        return printed

    def keep(self, **items: Any) -> None:
        """Record something for later tests and sessions."""
        self.record |= items
        FOLDER.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self.record, indent=2))

    @property
    def shell(self) -> Shell:
        """The shell; if there is none or a command failed, a new one with the earlier variables and ports."""
        if self._shell is None or self._shell.ended:
            path = f"{PROJECT / '.venv' / 'bin'}:{os.environ['PATH']}"
            self._shell = Shell(self.folder, {**os.environ, "PATH": path}, FOLDER / "commands")
            for block in blocks(INSTALL.read_text()):
                if self.done(block) and block.keeps:
                    self._shell.run(fill(block.keeps, os.environ))
        return self._shell

    def number(self) -> int:
        """Return a unique number for names."""
        self.keep(number=self.record.get("number", 0) + 1)
        return int(self.record["number"])

    def upgrade(self, changes: Mapping[str, Any]) -> None:
        """Change loop.yaml and upgrade as docs/operations.md says, then upload the pipelines."""
        self.change("loop.yaml", changes)
        page = (PROJECT / "docs" / "operations.md").read_text()
        command = re.search(r"^ *(helm upgrade kubeloop .*?--timeout \S+)$", page, re.MULTILINE | re.DOTALL)
        assert command, "docs/operations.md has a command that upgrades"
        self.shell.run(command[1], 1000)
        self.kubeloop("schedule")

    def kubeloop(self, *args: str, limit_s: float = 600.0) -> str:
        """Run kubeloop with the pipelines API on its own port: the page's may have closed with the API server."""
        with forwarded("ml-pipeline", 8888, KUBEFLOW) as client:
            address = shlex.quote(str(client.base_url))
            return self.shell.run(f"KUBELOOP_KFP_URL={address} kubeloop {shlex.join([*args, *RELEASE])}", limit_s)

    def submit(self, pipeline: str, name: str, *args: str, limit_s: float = 1800.0) -> dict[str, Any]:
        """Run a pipeline to its end and return the JSON of `kubeloop submit --json`."""
        printed = self.kubeloop("submit", pipeline, "--name", name, "--json", *args, limit_s=limit_s)
        # The run's progress comes first, on the same terminal.
        found, _ = json.JSONDecoder().raw_decode("{" + f"\n{printed}".partition("\n{")[2])
        return dict(found)

    def change(self, name: str, changes: Mapping[str, Any]) -> None:
        """Merge settings into a YAML file of the folder."""
        path = self.folder / name
        path.write_text(yaml.safe_dump(_merged(yaml.safe_load(path.read_text()), changes), sort_keys=False))

    def close(self) -> None:
        """End the shell."""
        if self._shell:
            self._shell.close()

    def forget(self) -> None:
        """Make the next session start with a new copy."""
        self._path.unlink(missing_ok=True)
        self.record = {}

    def _copy(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True, check=True)
        for name in filter(None, listed.stdout.split("\0")):
            if (PROJECT / name).is_file():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(PROJECT / name, self.folder / name)
        for name in (name for name in _ENVIRONMENTS if (PROJECT / name).exists()):
            (self.folder / name).symlink_to(PROJECT / name)
        self.change("loop.yaml", yaml.safe_load(_CHANGES.read_text()))
        if further := os.environ.get(f"{PREFIX}LOOP_FILE"):
            self.change("loop.yaml", yaml.safe_load(Path(further).read_text()))

    def values_written(self) -> None:
        """Merge the values of KUBELOOP_E2E_VALUES_FILE into the page's values, as any user does with their own."""
        if further := os.environ.get(f"{PREFIX}VALUES_FILE"):
            self.change("values.yaml", yaml.safe_load(Path(further).read_text()))


def _merged(below: Any, above: Any) -> Any:
    if not isinstance(below, dict) or not isinstance(above, Mapping):
        return above
    return {**below, **{key: _merged(below.get(key), value) for key, value in above.items()}}
