"""Counts of a run across its sessions, above all of the answers that its clients got.

Every answer is recorded when it arrives, in a file that is only appended to. A session that ends normally adds up its
records. If a session was killed, the next one does it. A prediction that is in the log but was not recorded counts as
served, since the client was stopped before it could record it. A prediction that was recorded but is not in the log was
lost with the services and counts as dropped. Both count as `uncertain`: for the others, log and clients count
independently.
"""

import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from kubeloop.config import Settings
from kubeloop.stores import kept, whole

_FRESH = {
    "sessions": 0,
    "open": False,
    "replay_s": 0.0,
    "served": 0,
    "errors": 0,
    "dropped": 0,
    "uncertain": 0,
}


@dataclass
class Counts:
    """The counts of `session.json`, and the records of the current session in a file next to it.

    They count predictions: `served` those that the clients got, `errors` those that ended with an error, `dropped`
    those that the payload log is known to lack, `uncertain` those that were counted after a session was killed.
    """

    path: Path
    content: dict[str, Any]

    @classmethod
    def open(cls, settings: Settings, *, fast: bool) -> Self:
        """Read what earlier sessions left, or begin with nothing."""
        path = settings.state / "session.json"
        return cls(path, kept.loads(path) if path.is_file() else {"fast": fast, **_FRESH})

    @property
    def known(self) -> bool:
        """Whether this kubeloop can read the counts; older versions stored other ones."""
        return self.content.keys() >= _FRESH.keys()

    def begin(self, logged: Iterable[str]) -> int:
        """Count what a killed session left, and begin the next; return how many predictions became uncertain.

        Args:
            logged: the replayed events whose prediction is in the payload log, all of it.
        """
        held = frozenset(logged)
        unsettled = self._settle(held) if self.content["open"] else 0
        self.content |= {"open": True, "logged": len(held), "began": time.time()}
        self.content["sessions"] += 1
        self._save()
        self._tidy()
        return unsettled

    def note(self, events: Sequence[str], *, answered: bool) -> None:
        """Record the result of a request, so that it outlives a kill of this process."""
        line = json.dumps({"answered" if answered else "failed": list(events)}) + "\n"
        file = os.open(self._notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)

    def end(self, replay_s: float, dropped: int, latency_ms: dict[str, float] | None) -> None:
        """Add up a session that ended normally.

        Args:
            replay_s: how long it replayed.
            dropped: predictions that the services count as lost for the payload log.
            latency_ms: of `Progress.measured`; None when there were no requests.
        """
        answered, failed = self._read()
        self._add(replay_s, answered, failed, dropped)
        if latency_ms is not None:
            self.content["latency_ms"] = latency_ms
        self._save()
        self._tidy()

    def _settle(self, logged: frozenset[str]) -> int:
        answered, failed = self._read()
        lost = sum(1 for event in answered if event not in logged)
        # An event is requested only if the log lacks it, so new predictions in the log are from that session.
        gained: int = len(logged) - self.content["logged"]
        found = max(0, gained - sum(1 for event in answered + failed if event in logged))
        lasted = self._notes.stat().st_mtime - self.content["began"] if self._notes.is_file() else 0.0
        self._add(max(0.0, lasted), answered, failed, lost)
        self.content["served"] += found
        self.content["uncertain"] += lost + found
        return lost + found

    def _add(self, replay_s: float, answered: list[str], failed: list[str], dropped: int) -> None:
        self.content["open"] = False
        self.content["replay_s"] += replay_s
        self.content["served"] += len(answered)
        self.content["errors"] += len(failed)
        self.content["dropped"] += dropped

    @property
    def _notes(self) -> Path:
        return self.path.with_name(f"answers-{self.content['sessions']}.jsonl")

    def _read(self) -> tuple[list[str], list[str]]:
        """Return the events of this session that were answered, and those that failed."""
        answered: list[str] = []
        failed: list[str] = []
        for line in self._notes.read_text().splitlines() if self._notes.is_file() else ():
            try:
                note = json.loads(line)
            except ValueError:
                # A crash of the machine may cut off the last line.
                continue
            answered += note.get("answered", [])
            failed += note.get("failed", [])
        return answered, failed

    def _tidy(self) -> None:
        """Remove records that are already added up."""
        for path in self.path.parent.glob("answers-*.jsonl"):
            if path != self._notes or not self.content["open"]:
                path.unlink()

    def _save(self) -> None:
        whole.write(self.path, kept.dumps(self.content))
