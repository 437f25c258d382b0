"""Only one module looks for what is outside the clone, and says in one line how to get it."""

import os
import re
from pathlib import Path

import pytest

from tests import outside

TESTS = Path(__file__).parent
CLUSTER = TESTS / "e2e_cluster"
"""These run only where `make e2e` asks for them, and a skip names what that cluster lacks."""
ASKING = re.compile(r"pytest\.skip\(|importorskip|KUBEBUILDER_ASSETS|KUBELOOP_REQUIRE_|pytest\.mark\.skip")
BRINGS = re.compile(r"`make [a-z0-9-]+`")


def test_nothing_else_skips_or_looks_outside() -> None:
    asking = {
        str(path.relative_to(TESTS))
        for path in TESTS.rglob("*.py")
        if path != Path(__file__) and path.parent != CLUSTER and ASKING.search(path.read_text())
    }
    assert asking == {"outside.py"}


def test_every_reason_names_what_brings_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CONTROL_PLANE", "BACKENDS", "IMAGES", "INSTALL", "NODE", "SPARK"):
        monkeypatch.delenv(f"KUBELOOP_REQUIRE_{name}", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(outside, "PROJECT", tmp_path)
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    monkeypatch.delenv("KUBELOOP_NODE", raising=False)
    for ask in (
        lambda: outside.assets(["etcd"]),
        lambda: outside.crds(tmp_path),
        lambda: outside.flux_crds(tmp_path / "flux"),
        lambda: outside.backend("no-such-server"),
        lambda: outside.image_tools(["no-such-tool"]),
        outside.browser,
        outside.stranger,
        outside.node,
        outside.spark,
        outside.uv,
    ):
        with pytest.raises(pytest.skip.Exception) as skipped:
            ask()
        assert BRINGS.search(str(skipped.value))
        assert "\n" not in str(skipped.value)


def test_what_is_demanded_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBELOOP_REQUIRE_CONTROL_PLANE", "1")
    with pytest.raises(pytest.fail.Exception, match="make crds"):
        outside.crds(tmp_path)


def test_a_test_wants_something_through_a_fixture_or_a_parameter_that_names_one() -> None:
    assert outside.wants(["tmp_path", "crds"], [])
    assert outside.wants(["request"], ["postgres"])
    assert not outside.wants(["tmp_path", "s3"], ["sqlite", 3])
