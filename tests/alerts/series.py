"""The alert cases: how each differs from a healthy installation, and exactly which alerts fire.

A case names series by metric and by the labels that matter. It gives one value per step, from the start: `5x10` is 5
ten times, `0+60x10` grows by 60 ten times, and `stale` ends the series. A last value without a count continues to the
end. `{cycle: ..., times: 7, then: ...}` lists the increments of a counter, step by step. `gone` removes a series, and
`also` adds series. A step is one minute, and rules are evaluated every two minutes. `interval` sets both, and
`evaluate` sets the evaluation alone.
"""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Labels = dict[str, str]
Series = dict[tuple[str, tuple[tuple[str, str], ...]], Any]

HERE = Path(__file__).parent
CASES: list[dict[str, Any]] = [
    case for path in sorted((HERE / "cases").glob("*.yaml")) for case in yaml.safe_load(path.read_text())
]

_UNITS = {"m": 1, "h": 60, "d": 24 * 60}
_TOKEN = re.compile(r"(?P<value>-?[\d.]+)(\+(?P<step>[\d.]+))?(x(?P<count>\d+))?|(?P<other>stale|_)(x(?P<times>\d+))?")


def minutes(text: str) -> int:
    """Return the minutes of `90m`, `6h`, `14d`, `1d6h`."""
    return sum(int(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+)([mhd])", text))


def evaluated(case: dict[str, Any]) -> str:
    """Return how often the rules are evaluated in a case; one evaluation takes ten milliseconds."""
    return str(case.get("evaluate", case.get("interval", "2m")))


def split(name: str) -> tuple[str, Labels]:
    """Return the metric and the labels of `metric{label="value",...}`."""
    metric, _, rest = name.partition("{")
    return metric, dict(re.findall(r'(\w+)="([^"]*)"', rest))


def healthy() -> Series:
    """Return the series of a healthy installation."""
    found: Series = {}
    for target in yaml.safe_load((HERE / "healthy.yaml").read_text()):
        for name, values in target["series"].items():
            metric, labels = split(name)
            found[metric, tuple(sorted((target["labels"] | labels).items()))] = values
    return found


def changed(case: dict[str, Any]) -> Series:
    """Return the series of a case."""
    found = healthy()
    for name, values in case.get("series", {}).items():
        metric, wanted = split(name)
        same = [key for key in found if key[0] == metric and wanted.items() <= dict(key[1]).items()]
        if metric == "*":
            same = [key for key in found if wanted.items() <= dict(key[1]).items()]
        assert same, f"{case['case']}: there is no series {name}"
        found |= dict.fromkeys(same, values)
    for name, values in case.get("also", {}).items():
        metric, labels = split(name)
        found[metric, tuple(sorted(labels.items()))] = values
    return {key: values for key, values in found.items() if values != "gone"}


def group(case: dict[str, Any], annotations: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Return a case in promtool's format.

    Args:
        case: the case.
        annotations: severity and runbook of each alert.
    """
    interval = case.get("interval", "1m")
    steps = max(map(minutes, case["fires"])) // minutes(interval) + 1
    firing = 'count by (alertname) (ALERTS{alertstate="firing"})'
    return {
        "name": case["case"],
        "interval": interval,
        "input_series": [
            {"series": _name(*key), "values": " ".join(itertools.islice(_values(values), steps))}
            for key, values in changed(case).items()
        ],
        "promql_expr_test": [
            {
                "expr": firing,
                "eval_time": at,
                "exp_samples": [
                    {"labels": f'{{alertname="{name}"}}', "value": number} for name, number in (alerts or {}).items()
                ],
            }
            for at, alerts in case["fires"].items()
        ],
        "alert_rule_test": [
            {
                "eval_time": said["at"],
                "alertname": name,
                "exp_alerts": [
                    {
                        "exp_labels": said["labels"] | {"severity": annotations[name]["severity"]},
                        "exp_annotations": {
                            "summary": said["summary"],
                            "runbook_url": annotations[name]["runbook_url"],
                        },
                    }
                ],
            }
            for name, said in case.get("says", {}).items()
        ],
    }


def _name(metric: str, labels: tuple[tuple[str, str], ...]) -> str:
    inside = ",".join(f'{name}="{value}"' for name, value in labels)
    return f"{metric}{{{inside}}}"


def _values(values: Any) -> Iterator[str]:
    if isinstance(values, dict):
        total = 0.0
        for _ in range(values["times"]):
            for each in _tokens(values["cycle"]):
                total += float(each)
                yield f"{total:g}"
        for each in _tokens(values["then"]):
            total += float(each)
            yield f"{total:.10g}"
        return
    yield from _tokens(str(values))


def _tokens(text: str) -> Iterator[str]:
    for token in text.split():
        match = _TOKEN.fullmatch(token)
        assert match, f"{token!r} is not a value; see the docstring of {__file__}"
        count = match["count"] or match["times"]
        numbers = range(int(count)) if count else itertools.count()
        if match["other"]:
            # A series ends only once, so the steps after the first have no sample.
            yield match["other"]
            yield from ("_" for _ in itertools.islice(numbers, 1, None))
        else:
            value, step = float(match["value"]), float(match["step"] or 0)
            yield from (f"{value + step * n:.12g}" for n in numbers)
