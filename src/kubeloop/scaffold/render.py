"""Write the files of a use case from templates/init; this module decides only their form."""

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, get_args

import yaml

from kubeloop.config import Table, Training, kinds
from kubeloop.scaffold.labels import Label
from kubeloop.scaffold.roles import EventId, Input, Key, Known, LeftOut, Moment
from kubeloop.scaffold.table import quote
from kubeloop.scaffold.timing import Quality, Timeline, text
from kubeloop.tasks.tabular import maker
from kubeloop.tasks.tabular.maker import Maker

_LINE = 88
_UNITS = (
    ("DAY", timedelta(days=1)),
    ("HOUR", timedelta(hours=1)),
    ("MINUTE", timedelta(minutes=1)),
    ("SECOND", timedelta(seconds=1)),
)


@dataclass(frozen=True)
class Case:
    """A use case as its feature repo needs it.

    Attributes:
        name: name of the loop.
        table: name of the raw table, in SQL and in file names.
        path: the table's file, relative to the use case's folder.
        source: how that file is read.
        where: the condition in SQL for the rows that are used, or empty.
        rows: number of rows of the table.
        label: what is predicted.
        known: the column that says when a label became known, if there is one.
        moment: when it is predicted.
        event_id: the id of a prediction.
        keys: columns for whose values histories are kept; may be empty.
        inputs: fields that a client sends besides the keys.
        left: the columns that are not used.
        calendar: `hour` and `weekday`, if they are features.
        timeline: the result of `timing.timeline`.
        assumptions: what the user did not say, one sentence each.
    """

    name: str
    table: str
    path: str
    source: Table
    where: str
    rows: int
    label: Label
    known: Known | None
    moment: Moment
    event_id: EventId
    keys: tuple[Key, ...]
    inputs: tuple[Input, ...]
    left: tuple[LeftOut, ...]
    calendar: tuple[str, ...]
    timeline: Timeline
    assumptions: tuple[str, ...]

    @property
    def maker(self) -> Maker:
        """The maker of models for the label's kind of task."""
        return maker.make(self.label.task, self.settings(), self.metric)

    @property
    def metric(self) -> str:
        """The kind's default of `gates.metric`."""
        return str(kinds.settings(self.label.task).Gates.model_fields["metric"].default)

    @property
    def algorithms(self) -> str:
        """The algorithms to choose from, except the default."""
        known = get_args(kinds.settings(self.label.task).Algorithm)
        return ", ".join(name for name in known if name != "lightgbm")

    def settings(self, **more: Any) -> Training:
        """Return the section `training` with the kind's defaults and the given settings."""
        classes = {"classes": self.label.classes} if self.label.classes else {}
        found: Training = kinds.settings(self.label.task).Training(**classes, **more)
        return found

    @property
    def zone(self) -> str:
        """The zone of times without an offset; empty for UTC."""
        return "" if self.source.read.timezone == "UTC" else self.source.read.timezone

    @property
    def read(self) -> dict[str, Any]:
        """The settings of loop.yaml for opening the file."""
        return self.source.read.model_dump(mode="json", exclude_defaults=True)

    @property
    def readings(self) -> dict[str, Any]:
        """The settings of loop.yaml for reading columns."""
        return {name: column.brief() for name, column in self.source.columns.items()}

    @property
    def service(self) -> str:
        """Name of the feature service."""
        return f"{self.table}_v1"

    @property
    def asks(self) -> bool:
        """Whether a client sends more than the keys."""
        return bool(self.inputs or self.calendar)

    @property
    def rated(self) -> list[str]:
        """Names of the history views whose average label is a feature."""
        return [f"{key.name}_history" for key in self.keys if key.many]

    @property
    def types(self) -> list[str]:
        """Feast types in use."""
        texts = any(item.kind == "category" for item in self.inputs)
        numbers = self.keys or self.calendar or any(item.kind == "number" for item in self.inputs)
        return ["Float64"] * bool(numbers) + ["String"] * texts + ["UnixTimestamp"] * bool(self.calendar)

    @property
    def at(self) -> str:
        """SQL for the moment of a row."""
        return quote(self.moment.column)

    @property
    def known_at(self) -> str:
        """SQL for the moment at which a row's label was known."""
        return self.known.sql if self.known else f"{self.at} + {interval(self.timeline.label_delay)}"

    @property
    def columns(self) -> list[tuple[str, str]]:
        """Name and SQL of each field of a request, keys first."""
        when = [(self.moment.name, self.at)] if self.calendar else []
        return [*((key.name, key.sql) for key in self.keys), *when, *((item.name, item.sql) for item in self.inputs)]

    @property
    def slices(self) -> list[str]:
        """The one or two categorical features with the fewest values: groups that a gate can protect."""
        few = [(key.distinct, key.name) for key in self.keys if key.categorical]
        few += [(item.distinct, item.feature) for item in self.inputs if item.kind == "category"]
        return [name for distinct, name in sorted(few) if distinct <= 12][:2]

    @property
    def spans(self) -> dict[str, str]:
        """The spans of the histories, as written in names and in SQL."""
        scale, delay = self.timeline.scale, self.timeline.label_delay
        ttl = self.timeline.history
        return {
            "unit": scale.unit,
            "short": text(scale.short),
            "long": text(scale.long),
            "delay": text(delay),
            "step_sql": interval(scale.step),
            "short_sql": interval(scale.short),
            "long_sql": interval(scale.long),
            "ttl": next(f"{unit.lower()}s={ttl // size}" for unit, size in _UNITS if not ttl % size),
        }


def feature_repo(case: Case) -> dict[str, str]:
    """Return the files of the feature repo except its expectations, by path within it."""
    names = ["feature_store.yaml", *(["entities.py"] if case.keys else []), "views.py", "services.py"]
    files = {name: _render(name, case) for name in names}
    files["sql/events.sql"] = _render("events.sql", case)
    for key in case.keys:
        files[f"sql/{key.name}_history.sql"] = _render("history.sql", case, key=key)
    return files


def loop_file(case: Case, quality: Quality) -> str:
    """Return loop.yaml."""
    return _render("loop.yaml", case, quality=quality)


def readme(case: Case, quality: Quality, warnings: Iterable[str], row: Mapping[str, Any]) -> str:
    """Return the README of the use case.

    Args:
        case: the use case.
        quality: quality of the first model.
        warnings: what the reader should know first.
        row: keys and request-time fields of a real row, times as ISO 8601 strings.
    """
    example = shlex.quote(json.dumps(row, ensure_ascii=False))
    return _render("README.md", case, quality=quality, warnings=list(warnings), example=example)


def interval(span: timedelta) -> str:
    """Write a duration for SQL."""
    return next(f"INTERVAL {span // size} {unit}" for unit, size in _UNITS if not span % size)


def _render(name: str, case: Case, **more: Any) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    pages = Environment(  # noqa: S701 - no HTML
        loader=PackageLoader("kubeloop", "templates/init"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    pages.filters |= {
        "yaml": _scalar,
        "span": text,
        "moment": moment,
        "share": _share,
        "comment": _comment,
        "flow": _flow,
    }
    pages.globals["imports"] = _imports
    return pages.get_template(f"{name}.j2").render(case=case, plan=case.timeline, **case.spans, **more)


def _scalar(value: str) -> str:
    """Write a string for YAML; quoted if a parser could read it as something else."""
    if re.fullmatch(r"[A-Za-z./_][\w./-]*", value, re.ASCII) and yaml.safe_load(value) == value:
        return value
    return yaml.safe_dump(value, default_style='"', width=2**31).strip()


def _flow(value: Any) -> str:
    """Write a value for YAML on one line."""
    if isinstance(value, str):
        return _scalar(value)
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=2**31).strip()


def moment(value: datetime) -> str:
    """Write a moment in UTC as loop.yaml reads it: a date at midnight, else ISO 8601."""
    return f"{value:%Y-%m-%d}" if value.time() == datetime.min.time() else f"{value:%Y-%m-%dT%H:%M:%SZ}"


def _share(value: float) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".")


def _comment(value: str) -> str:
    """Keep a comment on one line."""
    return " ".join(value.split())


def _imports(module: str, names: Iterable[str]) -> str:
    """Write an import as ruff formats it."""
    ordered = sorted(names)
    line = f"from {module} import {', '.join(ordered)}"
    if len(line) <= _LINE:
        return line
    return "\n".join([f"from {module} import (", *(f"    {name}," for name in ordered), ")"])
