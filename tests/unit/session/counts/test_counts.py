"""Counts that are kept over sessions: a kill does not lose them, and they reveal what the log has lost."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kubeloop import config
from kubeloop.config import Settings
from kubeloop.session.counts import Counts

WORKER = """
import sys, time
from pathlib import Path
from kubeloop import config
from kubeloop.session.counts import Counts
counts = Counts.open(config.settings(Path(sys.argv[1]), Path(sys.argv[1])), fast=False)
counts.begin(sys.argv[2].split())
counts.note(["c", "d"], answered=True)
counts.note(["e"], answered=False)
counts.note(["f", "g"], answered=True)
print("noted", flush=True)
time.sleep(60)
"""
COUNTS = ("served", "errors", "dropped", "uncertain")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return config.settings(tmp_path, tmp_path)


def noted(settings: Settings) -> tuple[int, ...]:
    content = json.loads((settings.state / "session.json").read_text())
    return tuple(content[name] for name in COUNTS)


def killed(settings: Settings, logged: str) -> None:
    """Let another process record its clients' answers, and kill it."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(settings.state), logged], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "noted\n"
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_sessions_that_end_add_up(settings: Settings) -> None:
    counts = Counts.open(settings, fast=True)
    assert counts.begin([]) == 0
    counts.note(["a", "b"], answered=True)
    counts.note(["c"], answered=False)
    counts.end(1.5, 1, {"p50": 2.0, "p99": 3.0})
    assert noted(settings) == (2, 1, 1, 0)
    again = Counts.open(settings, fast=True)
    assert again.begin(["a"]) == 0
    again.note(["b", "c"], answered=True)
    again.end(0.5, 0, None)
    # The log held one of the first two answers and had dropped the other, which was requested again.
    assert noted(settings) == (4, 1, 1, 0)
    content = Counts.open(settings, fast=True).content
    assert (content["sessions"], content["replay_s"], content["latency_ms"]) == (2, 2.0, {"p50": 2.0, "p99": 3.0})
    assert [path.name for path in settings.state.iterdir()] == ["session.json"]


@pytest.mark.parametrize(
    ("logged", "expected"),
    [
        # The log holds what was recorded.
        ("a b c d f g", (4, 1, 0, 0)),
        # h was answered and logged, but the client was killed before it recorded that.
        ("a b c d f g h", (5, 1, 0, 1)),
        # g was answered, but its event was lost in the node's queue.
        ("a b c d f", (4, 1, 1, 1)),
        # Both errors at once; they must not hide each other.
        ("a b c d f h", (5, 1, 1, 2)),
        # The client got an error for e, but the predictor had answered: there is nothing to settle, and the count shows
        # it.
        ("a b c d e f g", (4, 1, 0, 0)),
    ],
)
def test_a_kill_leaves_what_was_noted(settings: Settings, logged: str, expected: tuple[int, ...]) -> None:
    killed(settings, "a b")
    counts = Counts.open(settings, fast=False)
    assert counts.begin(logged.split()) == expected[3]
    assert noted(settings) == expected
    assert counts.content["sessions"] == 2
    assert 0 <= counts.content["replay_s"] < 60
    # It is settled once: the session that continues ends by itself and adds only its own counts.
    counts.note(["z"], answered=True)
    counts.end(1.0, 0, None)
    assert noted(settings) == (expected[0] + 1, *expected[1:])


def test_what_a_log_loses_after_a_session_ended_is_not_settled_away(settings: Settings) -> None:
    counts = Counts.open(settings, fast=False)
    counts.begin([])
    counts.note(["a", "b", "c"], answered=True)
    counts.end(1.0, 0, None)
    killed(settings, "a")
    assert Counts.open(settings, fast=False).begin(["a", "c", "d", "f", "g"]) == 0
    served, _, dropped, uncertain = noted(settings)
    # 3 + 4 were served, and the log has 5: it has lost b, and had lost c until that was requested again.
    assert (served, dropped, uncertain) == (7, 0, 0)


def test_a_log_that_shrinks_makes_nothing_unserved(settings: Settings) -> None:
    killed(settings, "a b h i")
    assert Counts.open(settings, fast=False).begin(["c", "d", "f", "g"]) == 0
    assert noted(settings) == (4, 1, 0, 0)


def test_a_note_that_was_cut_off_counts_as_uncertain(settings: Settings) -> None:
    killed(settings, "")
    notes = settings.state / "answers-1.jsonl"
    notes.write_bytes(notes.read_bytes()[:-4])
    assert Counts.open(settings, fast=False).begin(["c", "d", "f", "g"]) == 2
    assert noted(settings) == (4, 1, 0, 2)


def test_counts_of_an_older_kind_are_not_read(settings: Settings) -> None:
    assert Counts.open(settings, fast=False).known
    (settings.state / "session.json").write_text('{"fast": false, "replay_s": 1.0, "errors": 0, "dropped": 0}')
    assert not Counts.open(settings, fast=False).known
