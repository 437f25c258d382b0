"""Prometheus and Alertmanager on loopback, configured from the chart's monitors and rules."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests import outside
from tests.backends import free_port, running
from tests.charts.conftest import Object, kinds

MOST_MINUTES = 24.0
"""Longer durations are cut to this: to a test, half an hour, a day and a week are the same."""

_SECONDS = {"m": 60, "h": 3600, "d": 86400}
_CAPITAL = re.compile(r"[A-Z]")
_DURATION = re.compile(r"(?<=\[)(\d+)([mhd])(?=\])|(?<=offset )(\d+)([mhd])\b")


def short(text: str, factor: float) -> str:
    """Return a duration shortened for a test, in milliseconds.

    Args:
        text: such as `10m`.
        factor: how many times faster time runs.
    """
    seconds = min(int(text[:-1]) * _SECONDS[text[-1]], MOST_MINUTES * 60)
    return f"{1000 * seconds / factor:.0f}ms"


def shortened(rules: dict[str, Any], factor: float) -> dict[str, Any]:
    """Return the rules with the durations in `expr` and `for` shortened by `short`."""
    return {
        "groups": [
            part
            | {
                "rules": [
                    rule
                    | {
                        "for": short(rule["for"], factor),
                        "expr": _DURATION.sub(lambda match: short(match[0], factor), rule["expr"]),
                    }
                    for rule in part["rules"]
                ]
            }
            for part in rules["groups"]
        ]
    }


@dataclass
class Target:
    """A pod to scrape: its part, its name and its address."""

    part: str
    pod: str
    url: str


def scrapes(objects: list[Object], namespace: str, loop: str, targets: list[Target]) -> list[Object]:
    """Return the scrape configurations of one release, as the operator makes them from the chart's monitors.

    Args:
        objects: the rendered chart.
        namespace: the namespace of all objects.
        loop: name of the loop.
        targets: the pods to scrape.
    """
    (services,), (pods,) = kinds(objects, "ServiceMonitor"), kinds(objects, "PodMonitor")
    # All endpoints are scraped in the same way; they differ only in their ports.
    (ours,) = {(end["path"], end["honorLabels"]) for end in services["spec"]["endpoints"]}
    (theirs,) = pods["spec"]["podMetricsEndpoints"]
    found = []
    for target in targets:
        labels = {"namespace": namespace, "pod": target.pod}
        config: Object = {"job_name": f"{namespace}/{target.pod}"}
        if target.part in pods["spec"]["selector"]["matchExpressions"][0]["values"]:
            labels |= {
                "job": f"{namespace}/{pods['metadata']['name']}",
                "__meta_kubernetes_pod_label_app_kubernetes_io_name": loop,
                "__meta_kubernetes_pod_label_app_kubernetes_io_component": target.part,
            }
            config["metrics_path"] = theirs["path"]
            config["relabel_configs"] = [
                {_CAPITAL.sub(lambda found: f"_{found[0].lower()}", key): value for key, value in each.items()}
                for each in theirs["relabelings"]
            ]
        else:
            (service,) = [
                item["metadata"]["name"]
                for item in kinds(objects, "Service")
                if item["metadata"]["labels"]["app.kubernetes.io/component"] == target.part
            ]
            labels |= {"job": service, "service": service}
            config |= {"metrics_path": ours[0], "honor_labels": ours[1]}
        config["static_configs"] = [{"targets": [target.url.removeprefix("http://")], "labels": labels}]
        found.append(config)
    return found


class Prometheus:
    """Prometheus and Alertmanager, while they run."""

    def __init__(self, port: int, alerts_port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._alerts_url = f"http://127.0.0.1:{alerts_port}"

    def alerts(self) -> list[dict[str, dict[str, str]]]:
        """Return the labels and annotations of every alert that Alertmanager holds as firing."""
        answer = httpx.get(f"{self._alerts_url}/api/v2/alerts", trust_env=False).raise_for_status()
        found: list[dict[str, dict[str, str]]] = answer.json()
        return found

    def query(self, expression: str) -> list[Any]:
        """Return the result of an instant query."""
        answer = httpx.get(f"{self._url}/api/v1/query", params={"query": expression}, trust_env=False)
        found: list[Any] = answer.raise_for_status().json()["data"]["result"]
        return found


@contextlib.contextmanager
def serve(
    folder: Path, interval_s: float, rules: dict[str, dict[str, Any]], jobs: list[Object]
) -> Iterator[Prometheus]:
    """Run both programs with the rules of several releases, keyed by release name."""
    prometheus, alertmanager = outside.backend("prometheus"), outside.backend("prometheus-alertmanager")
    port, alerts_port = free_port(), free_port()
    for name, found in rules.items():
        (folder / f"{name}.rules.yaml").write_text(yaml.safe_dump(found))
    interval = f"{1000 * interval_s:.0f}ms"
    config = {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "rule_files": ["*.rules.yaml"],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{alerts_port}"]}]}]},
        "scrape_configs": jobs,
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    nobody = {"route": {"receiver": "none"}, "receivers": [{"name": "none"}]}
    (folder / "alertmanager.yaml").write_text(yaml.safe_dump(nobody))
    flags = {
        prometheus: [
            *("--config.file=prometheus.yaml", "--storage.tsdb.path=series"),
            # Prometheus finds Alertmanager after a few seconds. By default it sends an earlier alert again only after a
            # minute.
            "--rules.alert.resend-delay=1s",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        alertmanager: [
            *("--config.file=alertmanager.yaml", "--storage.path=alerts", "--cluster.listen-address="),
            f"--web.listen-address=127.0.0.1:{alerts_port}",
        ],
    }
    with contextlib.ExitStack() as stack:
        for program, at in ((alertmanager, alerts_port), (prometheus, port)):

            def ready(at: int = at) -> bool:
                with contextlib.suppress(httpx.HTTPError):
                    return httpx.get(f"http://127.0.0.1:{at}/-/ready", timeout=2, trust_env=False).is_success
                return False

            log = folder / f"{Path(program).name}.log"
            stack.enter_context(running([program, *flags[program]], log, ready, cwd=folder))
        yield Prometheus(port, alerts_port)
