"""Every page that kubeloop makes, with hostile values in each place that text from the data can reach.

PAGES is the registry: it maps a name under `kubeloop.pages` to a function that makes its pages. test_published.py goes
through it, and fails if the sources have a producer that is not in it.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from markupsafe import Markup

from kubeloop import config, pages
from kubeloop.config import Loop
from kubeloop.data import validation, validation_page
from kubeloop.data.validation_report import Failure, Report, TableReport
from kubeloop.models import gates_page, registry
from kubeloop.models.gates import Check, Verdict
from kubeloop.models.registry import Version
from kubeloop.payloads.table import Log
from kubeloop.report import view
from kubeloop.report.facts import Facts
from kubeloop.tasks.binary import page as evaluation_page
from kubeloop.tasks.binary.curves import Confusion, Curve, Curves
from kubeloop.tasks.binary.task import BINARY
from kubeloop.tasks.intervals import Estimate
from kubeloop.tasks.slices import Slice
from kubeloop.trigger.store import Run

START = datetime(2024, 1, 1, tzinfo=UTC)
WEEK = timedelta(days=7)
ELSEWHERE = "http://attack.example"
RUN = "document.title=`ran`;top.postMessage(`ran`,`*`)"
SCRIPTS = (
    f"<img src=x onerror={RUN}>",
    f"</script><script>{RUN}</script>",
    f"</style></title></textarea><svg onload={RUN}>",
    f'"><svg onload={RUN}>',
    f"'><svg onload={RUN}>",
    f'" tabindex=0 autofocus onfocus={RUN} x="',
    f"' tabindex=0 autofocus onfocus={RUN} x='",
    f"<svg><animate onbegin={RUN} attributeName=x dur=1s>",
    f"<svg><a href=javascript:{RUN}><text>here</text></a></svg>",
    f"<math><mtext><table><mglyph><style><!--</style><img title='--><img src=x onerror={RUN}>'>",
    f"<noscript><p title='</noscript><img src=x onerror={RUN}>'>",
    f"javascript:{RUN}",
    f"[a link](javascript:{RUN})",
    f"<iframe srcdoc='<script>{RUN}</script>'></iframe>",
)
VALUES = (
    *SCRIPTS,
    "{{7*7}}{% for x in (1, 2) %}{{ cycler.__init__.__globals__ }}{% endfor %}",
    f"red; background: url({ELSEWHERE}/style) /* {'}'} body {{ display: none }}",
    f"</style><style>@import url({ELSEWHERE}/import); * {{ display: none }}</style>",
    f"<link rel=stylesheet href={ELSEWHERE}/link><base href={ELSEWHERE}/base>",
    f"<meta http-equiv=refresh content='0; url={ELSEWHERE}/refresh'>",
    f"<form action={ELSEWHERE}/form><button autofocus>here</button></form><object data={ELSEWHERE}/object></object>",
    "&lt;b&gt;&#60;i&#62;",
    "<!-- <![CDATA[ <plaintext>",
)
ALL = " ".join(VALUES)


@dataclass(frozen=True)
class Page:
    """A page, and the values that a reader must see in it."""

    html: str
    shown: Sequence[str] = VALUES


Make = Callable[[Path], Iterator[Page]]


def _validation(folder: Path) -> Iterator[Page]:
    failures = tuple(Failure(each, each, each, each, each, None, (each,), each) for each in VALUES)
    tables = {each: TableReport(1, 1, 1, {each: 1}) for each in VALUES}
    found = Report(False, START, tables, failures, ALL, ALL)
    yield Page(validation_page.html(ALL, found), (*VALUES, ALL))


def _gate(folder: Path) -> Iterator[Page]:
    yield Page(gates_page.html(ALL, _verdict()), (*VALUES, ALL))


def _verdict() -> Verdict:
    checks = tuple(Check(f"slice {each}", False, 0.1, 0.2) for each in VALUES)
    return Verdict(False, ALL, ALL, 0.7, 0.6, -0.1, (-0.2, 0.1), 0.95, checks)


def _evaluation(folder: Path) -> Iterator[Page]:
    line = Curve([0.0, 1.0], [0.0, 1.0], [1.0, 0.0])
    drawn = Curves(line, line, line, Confusion(0.5, [[8, 2], [1, 9]]), 0.5)
    metrics = dict.fromkeys(("auc", "pr_auc", "log_loss", "brier", "ece"), 0.5)
    slices = [
        Slice(each, each, 9, 3, dict.fromkeys(BINARY.metrics, 0.5), Estimate(0.5, 0.4, 0.6), each) for each in VALUES
    ]
    shares = {name: dict.fromkeys(part, 0.05) for name, part in {"a": VALUES[:11], "b": VALUES[11:]}.items()}
    for importance in shares.values():
        page = evaluation_page.html(
            BINARY,
            ALL,
            {**metrics, "rows": 20.0, "positives": 10.0},
            drawn,
            slices,
            importance=importance,
            facts=dict(zip(VALUES, VALUES, strict=True)),
        )
        yield Page(page, (*VALUES, ALL))


def _report(folder: Path) -> Iterator[Page]:
    """First the values that the stores may hold, then every text that the template gets."""
    loop = Loop.parse(
        "name: parcels\nsource: {tables: {orders: {available_at: known_at, path: orders.csv}}}\n"
        "features: {service: parcels_v1}\ntraining: {window: 60d, holdout: 14d}\ndrift: {min_rows: 50}\n"
    ).model_copy(update={"name": ALL, "description": ALL})
    settings = config.settings(folder, folder / "state").model_copy(update={"mlflow_uri": f"http://{VALUES[3]}"})
    facts, log = _stores()
    for run in facts.runs[:1]:
        quarantine = settings.state / "quarantine" / run.name
        quarantine.mkdir(parents=True)
        pq.write_table(pa.table({"reasons": pa.array([[each] for each in VALUES])}), quarantine / "orders.parquet")
    content = view.build(loop, settings, facts, log, None)
    yield Page(pages.render("report", **content), (*VALUES, ALL))
    yield Page(pages.render("report", **_replaced(content, itertools.cycle(VALUES))))
    nothing = view.build(loop, settings, Facts(), Log(_NOTHING, _NO_LABELS), None)
    yield Page(pages.render("report", **nothing), (ALL,))


_NOTHING = pa.table({name: pa.array([], pa.string()) for name in ("event_id", "event_time", "model_version")})
_NO_LABELS = pa.table({"event_id": pa.array([], pa.string()), "label": pa.array([], pa.int64())})


def _stores() -> tuple[Facts, Log]:
    verdict = json.dumps(_verdict().to_dict())
    tags = {f"kubeloop.{name}": ALL for name in ("code", "feature_service", "served_at", "trained_from", "trained_to")}
    digests = ("raw_sha256", "training_set_sha256", "feature_repo_sha256", "config_sha256", "sha256")
    tags |= {f"kubeloop.{name}": ALL for name in digests} | {"kubeloop.gate": verdict}
    versions, runs, windows, scores, performance, episodes = [], [], [], [], [], []
    for number, each in enumerate(VALUES):
        start, name = START + number * WEEK, "run" if number == 0 else each
        row = {"start": start, "end": start + WEEK, "version": each, "rows": 70, "status": "judged", "live": True}
        judged = {"drifted": True, "importance": 0.5, "prediction_drifted": True, "note": each}
        windows.append(row | judged)
        performance.append(row | judged | {"metric": "auc", "value": 0.7})
        scores += [
            row | {"kind": "numeric", "feature": feature, "effect": 0.5, "p_adjusted": 0.001, "psi": 0.2}
            | {"importance": 0.05, "drifted": True, "missing_share": 0.1}
            for feature in VALUES[::5]
        ]  # fmt: skip
        episodes.append(
            {
                "id": each,
                "version": each,
                "kind": each,
                "reason": each,
                "features": list(VALUES[number:]),
                "run_name": name,
            }
            | {"window_end": start, "opened_at": start, "accepted": number % 2 == 0, "decision": each, "outcome": each}
            | {"closed_at": start}
        )
        outcome = (None, "promoted", "rejected", "failed")[number % 4]
        texts = dict.fromkeys(("service", "episode", "status", "detail", "holder", "kind", "reason"), each)
        moments = dict.fromkeys(("created_at", "started_at", "finished_at", "as_of"), start)
        others = dict.fromkeys(("result", "not_before", "lease_until", "lasting"))
        counts = {"attempts": 2, "failures": 1, "revision": 1}
        runs.append(Run(name=name, outcome=outcome, features=[each], **texts, **moments, **others, **counts))  # type: ignore[arg-type]
        aliases = (registry.CHAMPION,) if each == VALUES[-1] else ()
        versions.append(Version(ALL, each, f"file:///{number}", each, name, each, 0, aliases, tags))
    ids = [f"{number}-{row}" for number in range(len(VALUES)) for row in range(3)]
    predictions = pa.table(
        {
            "event_id": ids,
            "event_time": pa.array([START + int(key.split("-")[0]) * WEEK for key in ids], pa.timestamp("us", "UTC")),
            "model_version": [VALUES[int(key.split("-")[0])] for key in ids],
            "score": [0.5] * len(ids),
        }
    )
    known = {"versions": versions, "runs": runs, "windows": windows, "scores": scores, "performance": performance}
    return Facts(**known, episodes=episodes, watermark=START), Log(predictions, _NO_LABELS)


def _replaced(value: Any, by: Iterator[str]) -> Any:
    """Put a hostile value in every place where a template gets a text; drawings stay unchanged."""
    if isinstance(value, Markup) or not isinstance(value, (str, Mapping, list, tuple)):
        return value
    if isinstance(value, str):
        return next(by)
    if isinstance(value, Mapping):
        # Addresses from the settings and of existing files.
        links = ("evaluation", "mlflow", "mlflow_here")
        return {key: item if key in links else _replaced(item, by) for key, item in value.items()}
    return type(value)(_replaced(item, by) for item in value)


def _data_docs(folder: Path) -> Iterator[Page]:
    # Each place has different texts, so that a text which the library escapes in one place does not hide a leak in
    # another.
    columns, cells, members, parts = ([f"{place} {each}" for each in VALUES] for place in ("in", "cell", "set", "part"))
    # The library shows 20 values of a column.
    halves = cells[:11], cells[11:]
    table = {name: [*halves[number % 2], None] for number, name in enumerate(columns)} | {"number": list(range(12))}
    pq.write_table(pa.table(table), folder / "t.parquet")
    error = f"{VALUES[0]} not there"
    entries: list[dict[str, Any]] = [
        {"expect_column_values_to_be_in_set": {"column": each, "value_set": members, "notes": f"note {ALL}"}}
        for each in columns
    ]
    entries += [
        {"expect_column_values_to_match_regex": {"column": columns[0], "regex": "<img src=x onerror=alert()>"}},
        {"expect_column_values_to_not_be_null": {"column": columns[1], "description": f"about {ALL}"}},
        {"expect_column_values_to_not_be_null": {"column": "number"}},
        {"expect_column_most_common_value_to_be_in_set": {"column": columns[2], "value_set": cells}},
        {"expect_column_max_to_be_between": {"column": error, "max_value": 1}},
        {"expect_table_columns_to_match_set": {"column_set": columns}},
        {
            "expect_column_kl_divergence_to_be_less_than": {
                "column": columns[3],
                "partition_object": {"values": parts, "weights": [1 / len(parts)] * len(parts)},
                "threshold": 0.1,
            }
        },
    ]
    (folder / "suites").mkdir()
    (folder / "suites" / "t.yaml").write_text(yaml.safe_dump(entries))
    places = {name: folder / name for name in ("docs", "quarantine", "clean")}
    validation.validate({"t": folder / "t.parquet"}, folder / "suites", as_of=START, **places)
    told = [*columns, *members, *parts, error]
    shown = {"index": [], "expectations": [*told, f"about {ALL}"], "validations": [*told, *cells]}
    for path in sorted((folder / "docs").rglob("*.html")):
        yield Page(path.read_text(), shown.pop(path.relative_to(folder / "docs").parts[0].removesuffix(".html")))
    assert not shown


PAGES: dict[str, Make] = {
    "data_docs": _data_docs,
    "evaluation": _evaluation,
    "gate": _gate,
    "report": _report,
    "validation": _validation,
}
KUBEFLOW = {
    ("validate_data", "report"): "validation",
    ("validate_features", "report"): "validation",
    ("evaluate_model", "report"): "evaluation",
    ("gate_model", "report"): "gate",
}
"""The outputs of steps that Kubeflow's UI shows as HTML, and their pages."""
