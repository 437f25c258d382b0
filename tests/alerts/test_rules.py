"""The rendered alerts, judged by promtool: each fires in its case, and no other alert fires."""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from tests.alerts.series import CASES, evaluated, group, healthy, minutes, split


def test_prometheus_takes_the_rules(promtool: str, rules_file: Path) -> None:
    done = subprocess.run([promtool, "check", "rules", rules_file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_case(promtool: str, rules: dict[str, Any], rules_file: Path) -> None:
    known = {
        rule["alert"]: {"severity": rule["labels"]["severity"], "runbook_url": rule["annotations"]["runbook_url"]}
        for part in rules["groups"]
        for rule in part["rules"]
    }
    # One file per case: promtool does not say which group of a file failed, and it runs a file's cases one after the
    # other.
    files = []
    for number, case in enumerate(CASES):
        test = {
            "rule_files": [str(rules_file)],
            "evaluation_interval": evaluated(case),
            "tests": [group(case, known)],
        }
        files.append(rules_file.with_name(f"case-{number}.yaml"))
        files[-1].write_text(yaml.safe_dump(test))

    def judge(path: Path) -> str:
        done = subprocess.run([promtool, "test", "rules", path], capture_output=True, text=True, check=False)
        return "" if done.returncode == 0 else done.stdout + done.stderr

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        wrong = [f"{case['case']}: {text}" for case, text in zip(CASES, pool.map(judge, files), strict=True) if text]
    assert not wrong, "\n".join(wrong)


def test_every_alert_has_a_case_in_which_it_fires_and_one_with_its_summary(rules: dict[str, Any]) -> None:
    alerts = {rule["alert"] for part in rules["groups"] for rule in part["rules"]}
    assert {name for case in CASES for found in case["fires"].values() for name in found or {}} == alerts
    assert {name for case in CASES for name in case.get("says", {})} == alerts


def test_every_alert_is_silent_while_its_series_move(rules: dict[str, Any]) -> None:
    """Not only in a healthy installation: some case sets a metric of the alert, and does not fire it all the time."""
    for rule in (rule for part in rules["groups"] for rule in part["rules"]):
        near = [
            case
            for case in CASES
            if any(split(name)[0] in rule["expr"] for name in [*case.get("series", {}), *case.get("also", {})])
            and any(rule["alert"] not in (found or {}) for found in case["fires"].values())
        ]
        assert near, rule["alert"]


def test_times_are_in_order_and_names_are_unique() -> None:
    assert len({case["case"] for case in CASES}) == len(CASES)
    for case in CASES:
        times = [minutes(at) for at in case["fires"]]
        assert times == sorted(times), case["case"]
        assert all(at % minutes(evaluated(case)) == 0 for at in times), case["case"]
    assert healthy()
