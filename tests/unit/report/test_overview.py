"""The command line's overview, with the services down, up and never started."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from rich.text import Text

from kubeloop.cli import main
from kubeloop.report import overview


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/status" else 404)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def up() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def _plain(lines: list[str]) -> str:
    return "\n".join(Text.from_markup(line).plain for line in lines)


def test_nothing_ran_yet(place: Any) -> None:
    loop, settings = place
    found = overview.read(loop, settings)
    assert _plain(overview.lines(found)) == "parcels: nothing has run here yet; start with `kubeloop run`."
    assert overview.windows(loop, settings) == {"windows": [], "episodes": []}
    assert not settings.state.exists()


def test_a_finished_run(world: Any) -> None:
    found = overview.read(world.loop, world.settings)
    said = _plain(overview.lines(found))
    gate = world.summary["versions"]
    for sentence in (
        "parcels: version 2 is champion since 2026-05-06 07:08 UTC",
        "trained   2023-11-01 to 2023-12-06, with what was known on 2024-01-22",
        f"gate      {gate[1]['reason']}",
        f"version 3 of 2024-02-05 rejected: {gate[2]['reason'].removeprefix('Rejected: ')}",
        "open since 2024-02-05: <script>alert('x')</script> drifted",
        "cooldown until 2024-02-19 00:00 (event time)",
        "1,050 predictions up to 2024-02-12 00:00, 5 windows, 3 drifted",
        "0.740 (0.68 to 0.79, 44 positives) in the window from 2024-01-29, 0.800 on its hold-out",
        "none is running; `kubeloop serve` starts them",
    ):
        assert sentence in said, said
    assert len(overview.lines(found)) <= 12
    json.dumps(found, default=str)


def test_services_are_asked(world: Any, up: str) -> None:
    gone = {"url": "http://127.0.0.1:1", "pid": 1}
    world.settings.services_file.write_text(json.dumps({"node": {"url": up, "pid": 2}, "monitor": gone}))
    try:
        found = overview.read(world.loop, world.settings)
    finally:
        world.settings.services_file.unlink()
    assert found["services"] == {"node": {"url": up, "pid": 2, "up": True}, "monitor": gone | {"up": False}}
    said = _plain(overview.lines(found))
    assert f"node       up    {up}" in said
    assert "monitor    down  http://127.0.0.1:1" in said


def test_windows_as_a_table(world: Any) -> None:
    found = overview.windows(world.loop, world.settings)
    cells = [tuple(Text.from_markup(cell).plain for cell in overview.window_cells(row)) for row in found["windows"]]
    assert cells[0] == ("2024-01-01 1w", "1", "210", "0.700 (0.64 to 0.75, 40 positives)", "steady", "")
    assert cells[4][3:] == (
        "0.740 (0.68 to 0.79, 44 positives)",
        "drifted (25%)",
        "<script>alert('x')</script> 0.62 (0.52 to 0.72)",
    )
    assert [row["id"] for row in found["episodes"]] == ["parcels-2", "parcels-4", "parcels-3"]
    assert [row["metric_drifted"] for row in found["windows"]] == [False, False, True, False, False]
    assert overview.window_cells(found["windows"][2])[3] == "[yellow]0.720 (0.66 to 0.77, 42 positives)[/]"
    few = found["windows"][0] | {"metric_status": "few"}
    assert overview.window_cells(few)[3] == "0.700 (0.64 to 0.75, 40 positives, too few to judge)"


def test_what_a_run_prints_at_its_end(world: Any, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, third = world.summary["versions"]
    waits = second | {"promoted": False, "reason": "the predictor did not start"}
    counts = world.summary["predictions"] | {"logged": 1259}
    main._tell(world.summary | {"versions": [first, waits, third], "predictions": counts})
    said = " ".join(capsys.readouterr().out.split())
    assert "1,263 predictions served, 1,259 logged, 3 dropped, 2 failed" in said
    assert "Warning: the payload log lacks 1 prediction that clients got, and the loss was not counted." in said
    assert "2 2023-11-01 to 2023-12-06 not served the predictor did not start" in said
    assert "3 2023-11-01 to 2023-12-06 rejected" in said
