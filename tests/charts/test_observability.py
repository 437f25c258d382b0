"""The dashboard and the alerts use only metrics that the programs have, and every alert has its runbook."""

import asyncio
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import promql_parser
import pytest
from prometheus_client import generate_latest
from pyarrow import fs

from kubeloop.config import Loop
from kubeloop.monitoring import monitor
from kubeloop.monitoring.status import Status
from kubeloop.monitoring.store import Store
from kubeloop.monitoring.windows import MONDAY, Grid
from kubeloop.payloads import collector, mirror
from kubeloop.payloads.journal import Journal, Limits
from kubeloop.serving import http, transformer
from kubeloop.serving.metrics import Metrics
from kubeloop.stores.bucket import Bucket
from kubeloop.trigger.ledger import Ledger
from kubeloop.trigger.server import create_app
from tests.alerts.series import healthy
from tests.charts.conftest import PROJECT, RELEASE, SECOND, VALUES, kinds, named

ALL = VALUES["everything"]
_METRIC = re.compile(r"\b(kubeloop_\w+)")


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The sample names of every program, as Prometheus reads them from /metrics."""
    folder = tmp_path_factory.mktemp("metrics")
    loop = Loop.model_validate(SECOND)
    database = f"sqlite:///{folder}/state.db"
    ledger, store = Ledger(database, loop.drift), Store(database)
    bucket = Bucket(fs.LocalFileSystem, str(folder / "bucket"))
    status = Status(loop.name, store, folder / "payloads", loop.drift, Grid(loop.drift.window, MONDAY))
    journal = Journal(folder / "payloads", Limits())
    carrier = mirror.Mirror(bucket, "push", folder / "payloads", folder / "references", 1)
    apps = (
        collector.Collector(journal, 1024),
        create_app(ledger, loop.name),
        monitor.create_app(status, SimpleNamespace(failure=None)),
        mirror.create_app(carrier),
    )
    text = "".join(asyncio.run(scrape(app)) for app in apps)
    serving = Metrics()
    serving.observe("/v2", 200, 0.1)
    transformer.Transformer(Source(), loop.name, "localhost", http.Limits(), serving)
    text += generate_latest(serving.registry).decode()
    ledger.close()
    store.close()
    found = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        found |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    return found


async def scrape(app: Any) -> str:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
        return (await client.get("/metrics")).raise_for_status().text


class Source:
    """A feature source with one feature."""

    fields = ()
    features = ()


def dashboard() -> dict:
    found: dict = json.loads((PROJECT / "charts" / "kubeloop" / "files" / "dashboard.json").read_text())
    return found


def alerts(render) -> list[dict]:
    return alerts_of(render(ALL))


def alerts_of(objects: list[dict]) -> list[dict]:
    (rule,) = kinds(objects, "PrometheusRule")
    return [alert for group in rule["spec"]["groups"] for alert in group["rules"]]


def test_the_dashboard_is_what_the_config_map_holds(render):
    found = named(render(ALL), "ConfigMap", f"{RELEASE}-dashboard")
    assert json.loads(found["data"]["kubeloop.json"]) == dashboard()
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_the_dashboard_loads():
    found = dashboard()
    panels = found["panels"]
    assert found["uid"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    variables = {variable["name"] for variable in found["templating"]["list"]}
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert (panel["type"] == "row") == ("targets" not in panel)
        for target in panel.get("targets", ()):
            used = set(re.findall(r"\$\{?(\w+)", target["expr"] + target["datasource"]["uid"]))
            assert used <= variables | {"__rate_interval"}


def test_panels_do_not_overlap():
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_dashboard_asks_for_metrics_that_exist(metrics):
    used = {name for panel in dashboard()["panels"] for t in panel.get("targets", ()) for name in used_in(t["expr"])}
    assert used
    assert used - metrics == set()


def test_the_alerts_ask_for_metrics_that_exist(render, metrics):
    used = {name for alert in alerts(render) for name in used_in(alert["expr"])}
    assert used
    assert used - metrics == set()


def test_the_cases_of_the_alerts_are_made_of_metrics_that_exist(metrics):
    assert {name for name, _ in healthy()} - {"up"} <= metrics


def used_in(expression: str) -> set[str]:
    return set(_METRIC.findall(expression))


def test_probes_and_scrapes_are_in_no_alert_and_in_no_panel(render):
    panels = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]
    for expression in [*panels, *(alert["expr"] for alert in alerts(render))]:
        for selector in re.findall(r"kubeloop_request(?:s_total|_seconds\w*)\{[^}]*\}?", expression):
            assert 'path=~".+(/infer|:predict)"' in selector


def test_prometheus_can_read_every_expression(render):
    expressions = [alert["expr"] for alert in alerts(render)]
    expressions += [t["expr"] for panel in dashboard()["panels"] for t in panel.get("targets", ())]
    assert len(expressions) > 20
    for expression in expressions:
        # Grafana fills in a duration and a loop's name.
        promql_parser.parse(expression.replace("$__rate_interval", "5m").replace("$__range", "1h"))
    with pytest.raises(ValueError, match="unexpected"):
        promql_parser.parse(expressions[0] + ")")


def test_every_alert_has_its_runbook(render):
    page = (PROJECT / "docs" / "operations.md").read_text()
    anchors = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", page, re.M)
    }
    for alert in alerts(render):
        url, _, anchor = alert["annotations"]["runbook_url"].partition("#")
        assert url == "https://github.com/kubeloop/kubeloop/blob/main/docs/operations.md"
        assert Path(url).name == "operations.md"
        assert anchor in anchors, alert["alert"]
        assert alert["labels"]["severity"] in ("warning", "critical")


def test_thresholds_are_values(render):
    told = {"alerts": {"enabled": True, "driftOpenFor": "2h", "missingShare": 0.5, "rejections": 2}}
    (rule,) = kinds(render(VALUES["one loop"] | told), "PrometheusRule")
    found = {alert["alert"]: alert for group in rule["spec"]["groups"] for alert in group["rules"]}
    assert found["KubeloopDriftOpen"]["for"] == "2h"
    assert found["KubeloopFeaturesStale"]["expr"].endswith("> 0.5")
    assert "> 1.5" in found["KubeloopGateRejecting"]["expr"]


def test_series_that_nobody_scrapes_are_not_missed(render):
    """Without the chart's monitors, a metric that seems absent may exist under other labels."""
    told = VALUES["one loop"] | {"alerts": {"enabled": True}}
    scraped = {rule["alert"]: rule["expr"] for rule in alerts_of(render(told | {"metrics": {"enabled": True}}))}
    rules = {rule["alert"]: rule["expr"] for rule in alerts_of(render(told))}
    assert scraped.keys() - rules.keys() == {"KubeloopPartMissing"}
    assert scraped["KubeloopServingDown"].count("absent(") == 2
    assert "absent(" not in rules["KubeloopServingDown"]


def test_without_a_loop_the_alerts_are_of_the_collector(render):
    told = {"metrics": {"enabled": True}, "alerts": {"enabled": True}}
    rules = {rule["alert"]: rule["expr"] for rule in alerts_of(render(told))}
    assert "KubeloopServingDown" not in rules
    assert rules["KubeloopPartMissing"] == 'absent(up{namespace="kubeloop", job="kubeloop-collector"})'
    for expression in rules.values():
        promql_parser.parse(expression)


def test_labels_of_the_operator(render):
    objects = render(ALL)
    for kind in ("ServiceMonitor", "PodMonitor", "PrometheusRule"):
        for item in kinds(objects, kind):
            assert item["metadata"]["labels"]["release"] == "prometheus"


def test_a_scrape_keeps_the_loops_label_and_finds_the_services(render):
    objects = render(ALL)
    (scrape,) = kinds(objects, "ServiceMonitor")
    assert all(endpoint["honorLabels"] for endpoint in scrape["spec"]["endpoints"])
    wanted = scrape["spec"]["selector"]
    (expression,) = wanted["matchExpressions"]
    found = [
        item["metadata"]["name"]
        for item in kinds(objects, "Service")
        if wanted["matchLabels"].items() <= item["metadata"]["labels"].items()
        and item["metadata"]["labels"][expression["key"]] in expression["values"]
    ]
    assert len(found) == 5
