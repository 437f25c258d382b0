"""The page: its content, its escaping, and that it also works when there is nothing to report."""

import inspect
import re
from dataclasses import replace
from typing import Any
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from kubeloop import report
from kubeloop.cli import extras
from kubeloop.models import registry
from kubeloop.monitoring.store import Store
from kubeloop.payloads import table
from kubeloop.report import facts, view
from kubeloop.tasks import intervals
from kubeloop.tasks.binary.task import BINARY
from kubeloop.tasks.tabular import model_folder

HOSTILE = "<script>alert('x')</script>"
ADDRESS = re.compile(r"""(?:https?:)?//[\w.-]+|url\(|@import""")
LOADS = {"src", "href", "srcset", "data", "poster", "action", "xlink:href"}


def test_nothing_is_loaded_from_elsewhere(page: Any) -> None:
    for tag, attributes in page.tags:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base"}
        # Links that a reader may click are not loaded.
        for name in (LOADS - {"href"} if tag == "a" else LOADS) & attributes.keys():
            assert not ADDRESS.search(attributes[name]), (tag, attributes)
        assert not ADDRESS.search(attributes.get("style") or "")
    assert not any(ADDRESS.search(content) for content in page.scripts)


def test_names_from_the_data_are_text(page: Any) -> None:
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not any("alert" in script for script in page.scripts)
    assert HOSTILE in page.text
    assert 'Parcels & "late" <ones>.' in page.text
    assert "Assumed: A label is <b>taken</b> to be known 1d after its row's moment." in page.text


def test_it_stays_small(world: Any, page: Any) -> None:
    assert (world.settings.state / "report.html").stat().st_size < 150_000
    assert not (world.settings.state / "report.part").exists()


def test_the_head_says_what_came_of_the_loop(world: Any, page: Any) -> None:
    auc, counts = world.summary["quality"], world.summary["predictions"]
    low, high = auc["ci95"]
    assert low > 0
    assert (
        f"3 episodes, 2 retrained models, 1 promoted; the loop's AUC is {auc['loop']:.3f} against {auc['frozen']:.3f} "
        f"of the frozen first model ({auc['difference']:+.3f}, 95% interval {low:+.3f} to {high:+.3f})." in page.text
    )
    assert counts["logged"] == 42 * 30
    assert "Predictions served 1,263 3 dropped, 2 failed Logged 1,260 1,260 labels" in page.text
    assert "Windows 5 3 drifted Episodes 3 2 started a run Versions 3 2 promoted" in page.text
    assert "Run time 65 s fast replay" in page.text
    assert page.having("is-good")


def test_latency_is_shown_where_it_was_measured(world: Any, parse: Any) -> None:
    assert "Request p50" not in parse(report.write(world.loop, world.settings, world.summary).read_text()).text
    measured = world.summary | {"latency_ms": {"p50": 1.23, "p99": 45.6, "requests": 2000}}
    said = "Request p50 1.2 ms p99 45.6 ms; newest 2,000"
    assert said in parse(report.write(world.loop, world.settings, measured).read_text()).text


def test_predictions_that_do_not_add_up_are_reported(world: Any, page: Any, parse: Any) -> None:
    assert "Warning" not in page.text
    wrong = world.summary | {"predictions": world.summary["predictions"] | {"served": 1265}}
    text = parse(report.write(world.loop, world.settings, wrong).read_text()).text
    assert "Warning: the payload log lacks 2 predictions that clients got, and the loss was not counted." in text


def test_every_change_of_the_model_has_its_reason(world: Any, page: Any) -> None:
    second = registry.versions(world.settings, "parcels")[1]
    assert f"v1 → v2 2024-01-23 {second.tags['kubeloop.reason']}" in page.text
    assert world.summary["versions"][1]["reason"] in page.text


def test_the_weekly_auc_is_that_of_the_log(world: Any, page: Any) -> None:
    rows = table.read(BINARY, world.settings, "parcels").labelled_predictions().to_pandas()
    weeks = (rows["event_time"] - pd.Timestamp("2024-01-01", tz="UTC")).dt.days // 7
    first = registry.versions(world.settings, "parcels")[0]
    for week in range(6):
        part = rows[weeks == week]
        auc = roc_auc_score(part["label"], part["score"])
        sure = intervals.auc(part["label"].to_numpy(), part["score"].to_numpy())
        said = f"AUC {auc:.3f} ({sure.low:.3f} to {sure.high:.3f}), {part['label'].sum():.0f} of 210 rows positive"
        assert said in page.text
        frozen = roc_auc_score(part["label"], model_folder.predict(BINARY, first.folder, part))
        said = f"frozen first model {frozen:.3f}, difference {auc - frozen:+.3f}"
        assert (said in page.text) == (week >= 3), week


def test_traffic_is_shown_by_version(page: Any) -> None:
    assert "210 predictions: v1 30, v2 180" in page.text
    assert "Version 1 served from 2024-01-01 12:00 to 2024-01-23 12:00" in page.text


def test_the_heat_map_shows_each_score_of_the_store(world: Any, page: Any) -> None:
    scores = Store(world.settings.monitor_db).scores("parcels")
    legend = 2
    assert len(page.having("cell")) == len(scores) + legend
    assert len([cell for cell in page.having("cell") if "drifted" in (cell["class"] or "")]) == 3 + legend - 1
    assert "effect 0.620 (0.52 to 0.72), adjusted p 0.002, PSI 0.310 counted as drifted" in page.text
    assert (
        "effect 0.050 (0.00 to 0.15), adjusted p 0.002, PSI 0.310 not drifted (needs effect 0.2 and p < 0.01)"
        in page.text
    )
    assert page.text.index("weight 75%") < page.text.index(f"{HOSTILE[:17]}… 25%")


def test_episodes_say_what_the_trigger_did(page: Any) -> None:
    assert "The trigger did not start a run: parcels is in its cooldown until 2024-02-05." in page.text
    assert "It ended at once, since no run was started." in page.text
    assert page.text.count("The trigger started one run.") >= 2
    assert "It is still open." in page.text
    assert len(page.having("number")) == 3
    assert len(page.having("hollow")) >= 1


def test_the_gate_names_the_checks_that_failed(world: Any, page: Any) -> None:
    rejected = world.summary["versions"][2]["gate"]
    wrong = [check for check in rejected["checks"] if not check["passed"]]
    assert wrong
    for check in wrong:
        assert f"{check['name']} {check['value']:.4g} (limit {check['limit']:.4g})" in page.text
    low, high = rejected["interval"]
    assert f"{rejected['difference']:+.4f} ({low:+.4f} to {high:+.4f})" in page.text
    assert len(page.having("estimate")) == 2


def test_versions_carry_their_lineage(world: Any, page: Any) -> None:
    digests = {attributes["title"] for attributes in page.having("digest")}
    for version in registry.versions(world.settings, "parcels"):
        for tag in ("kubeloop.raw_sha256", "kubeloop.training_set_sha256"):
            assert f"SHA-256 {version.tags[tag]}" in digests
        assert f"SHA-256 {version.sha256}" in digests
        assert version.run in page.text
    assert "asked for by episode 1" in page.text
    assert page.text.count("endpoint http://127.0.0.1:2") == 1
    assert "http://127.0.0.1:1" not in page.text, "version 1 served in a finished session"
    assert "promoted by the gate, 2026-05-06 07:08 UTC" in page.text
    assert "served 660 predictions, 2024-01-01 12:00 to 2024-01-22 12:00" in page.text


@pytest.mark.parametrize(
    ("tags", "outcome", "said"),
    [
        ({}, "failed", "Version 4 failed"),
        ({}, None, "Version 4 under way"),
        ({"kubeloop.proposal": "abc"}, "promoted", "Version 4 proposed"),
        ({"kubeloop.promoted_at": "2026-05-06T07:08:09+00:00"}, "promoted", "Version 4 replaced"),
    ],
)
def test_a_version_that_passed_the_gate_says_what_became_of_it(
    world: Any, tags: dict[str, str], outcome: str | None, said: str
) -> None:
    known = facts.read(world.loop, world.settings)
    second, run = known.versions[1], known.runs[1]
    gate = {"kubeloop.gate": second.tags["kubeloop.gate"]}
    fourth = replace(second, version="4", run="r4", aliases=(), tags=gate | tags)
    more = replace(
        known, versions=[*known.versions, fourth], runs=[*known.runs, replace(run, name="r4", outcome=outcome)]
    )
    content = view.build(world.loop, world.settings, more, table.read(BINARY, world.settings, "parcels"), None)
    newest = content["versions"][0]
    assert f"Version {newest['version']} {newest['status']}" == said


def test_links_lead_to_files_next_to_the_page(world: Any, page: Any) -> None:
    *links, _ = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert len(links) == 2 + 3
    for link in links:
        assert (world.settings.state / unquote(link)).is_file(), link


def test_the_last_link_leads_to_the_registry(world: Any, page: Any, parse: Any) -> None:
    (link,) = [known["href"] for tag, known in page.tags if tag == "a" and known["href"].startswith("http")]
    assert "the MLflow UI , which kubeloop mlflow starts" in page.text
    assert inspect.signature(extras.mlflow).parameters["port"].default == urlsplit(link).port
    assert urlsplit(link).hostname == "127.0.0.1"
    shared = world.settings.model_copy(update={"mlflow_uri": "http://registry.example"})
    content = view.build(
        world.loop, shared, facts.read(world.loop, world.settings), table.read(BINARY, world.settings, "x"), None
    )
    assert content["mlflow"] == "http://registry.example" != content["mlflow_here"]


def test_quarantined_rows_are_counted_by_reason(page: Any) -> None:
    assert "2 of orders: too_old(orders)" in page.text
    assert f"1 of orders: {HOSTILE}" in page.text


def test_an_unfinished_run_says_so(world: Any, parse: Any) -> None:
    page = parse(report.write(world.loop, world.settings, None).read_text())
    assert (
        "The run has not finished. So far: 3 episodes, 2 retrained models, 1 promoted, 1,260 predictions" in page.text
    )
    assert "Loop − frozen" in page.text


def test_an_empty_state_makes_a_page_and_no_stores(place: Any, parse: Any) -> None:
    loop, settings = place
    page = parse(report.write(loop, settings, None).read_text())
    for sentence in (
        "The run has not finished: no model has been trained yet.",
        "No predictions yet.",
        "No window has been judged yet. A window of 7 days closes",
        "No episode yet",
        "No run has reached the gate yet.",
        "No model is registered yet.",
        "Nothing has been validated yet.",
    ):
        assert sentence in page.text
    assert [path.name for path in settings.state.iterdir()] == ["report.html"]


def test_a_first_model_that_cannot_be_read_is_named(world: Any, parse: Any) -> None:
    folder = registry.versions(world.settings, "parcels")[0].folder
    graph = folder / "model.onnx"
    content = graph.read_bytes()
    graph.write_bytes(content[:-1])
    try:
        page = parse(report.write(world.loop, world.settings, world.summary).read_text())
    finally:
        graph.write_bytes(content)
    assert "Version 1 could not be scored on the log:" in page.text
    assert "Loop − frozen" not in page.text


def test_reading_facts_changes_nothing(world: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in world.settings.state.glob("*.db")}
    known = facts.read(world.loop, world.settings)
    assert [version.version for version in known.versions] == ["1", "2", "3"]
    assert known.champion is known.versions[1]
    assert {path: path.stat().st_mtime_ns for path in world.settings.state.glob("*.db")} == before
