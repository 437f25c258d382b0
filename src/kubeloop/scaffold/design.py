"""`kubeloop init`: from any table with a label, a timestamp and keys to a use case that runs."""
# ruff: noqa: S608 - DuckDB binds no column names; they are quoted by sources.identifier.

import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kubeloop import config
from kubeloop.data import sources
from kubeloop.scaffold import giveaways, growth, labels, render, suites, timing
from kubeloop.scaffold import roles as scaffold_columns
from kubeloop.scaffold.advice import option
from kubeloop.scaffold.labels import Label
from kubeloop.scaffold.names import dns
from kubeloop.scaffold.render import Case
from kubeloop.scaffold.roles import Moment
from kubeloop.scaffold.table import ScaffoldError, Table, quote
from kubeloop.scaffold.timing import Activity, Quality, Scale, Timeline

if TYPE_CHECKING:
    import pandas as pd

REHEARSED = 200_000
"""Most rows whose features are built to draft expectations and to fit a first model."""


@dataclass(frozen=True)
class Wish:
    """The user's choices; `label`, `label_known_at`, `timestamp` and `keys` name columns."""

    label: str
    timestamp: str
    keys: tuple[str, ...]
    into: Path
    name: str = ""
    label_delay: timedelta | None = None
    label_known_at: str | None = None
    exclude: tuple[str, ...] = ()
    positive: str | None = None
    task: str | None = None
    event_id: str | None = None
    force: bool = False


@dataclass(frozen=True)
class Result:
    """The files, the choices, the warnings and the next commands."""

    folder: Path
    files: tuple[str, ...]
    chosen: dict[str, str]
    read: tuple[str, ...]
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    next: tuple[str, ...]


def write(table: Table, wish: Wish, scratch: Path, say: Callable[[str], None]) -> Result:
    """Write the use case of a table.

    Features are built and a first model is fitted, so that floors and expectations are based on measurements, and a
    table that cannot work fails here.

    Args:
        table: the table, taken in.
        wish: what the user asked for.
        scratch: an empty folder on a disk with room for the table.
        say: called with a sentence about each step that takes time.

    Raises:
        ScaffoldError: the table cannot become a use case, or files would be overwritten; nothing was written.
    """
    case, activity, leaks = design(table, wish)
    advised = _tried(table, wish, [column for column, _ in leaks])
    growing = growth.find(table, case.moment, case.keys, case.inputs)
    advice = _tried(table, wish, [item.column for item in growing])
    files = {f"feature_repo/{path}": content for path, content in render.feature_repo(case).items()}
    targets = [
        *files,
        "loop.yaml",
        "README.md",
        *(f"feature_repo/expectations/{n}.yaml" for n in (case.table, "training")),
    ]
    _refuse_overwriting(wish, targets)
    repo = scratch / "home" / "feature_repo"
    _put(scratch / "home", files)
    say(f"{table.rows:,} rows: building features and fitting a first model ...")
    trained = _rehearse(case, repo, table, scratch / "features")
    quality = _measure(case, trained)
    warnings = [*table.look, *_warnings(case, quality, leaks, advised)]
    warnings += [str(item) for item in growing]
    if growing and advice:
        warnings[-1] += f", or init again with {advice}"
    for name, content in _suites(case, table, activity, trained).items():
        files[f"feature_repo/expectations/{name}.yaml"] = content
    files["loop.yaml"] = render.loop_file(case, quality)
    config.Loop.parse(files["loop.yaml"])
    files["README.md"] = render.readme(case, quality, warnings, _example(case, table, repo))
    _put(wish.into, files)
    return Result(
        folder=wish.into,
        files=tuple(sorted(files)),
        chosen=_chosen(case, quality, [] if case.keys else table.possible_keys()),
        read=tuple(table.said),
        assumptions=case.assumptions,
        warnings=tuple(warnings),
        notes=tuple(f"{item.column!r} {item.why}" for item in case.left),
        next=(f"cd {_folder(wish.into)}", "kubeloop doctor", "kubeloop run --fast"),
    )


def design(table: Table, wish: Wish, *, look: bool = True) -> tuple[Case, Activity, list[tuple[str, str]]]:
    """Decide the use case from the table only; return it with its rows over time and the likely leaks.

    Args:
        table: the table, taken in.
        wish: what the user asked for.
        look: whether to look for leaks.

    Raises:
        ScaffoldError: the table cannot become a use case.
    """
    excluded = {table.column(name, "--exclude").name for name in wish.exclude}
    if wish.name and wish.name != dns(wish.name):
        raise ScaffoldError(f"--name {wish.name!r} is used for Kubernetes objects: write it as {dns(wish.name)!r}")
    if wish.label_delay is not None and wish.label_known_at is not None:
        raise ScaffoldError("--label-delay and --label-known-at exclude each other: give one of them")
    if wish.task is not None and wish.task not in config.kinds.names():
        raise ScaffoldError(f"--task {wish.task!r} is unknown; write one of {', '.join(config.kinds.names())}")
    taken = {table.name}
    label = labels.label(table, wish.label, wish.positive, wish.task)
    keys = scaffold_columns.keys(table, wish.keys, taken)
    moment = scaffold_columns.moment(table, wish.timestamp, taken)
    known = scaffold_columns.known(table, wish.label_known_at, label, moment) if wish.label_known_at else None
    roles = [label.column, moment.column, *(key.column for key in keys), *([known.column] if known else [])]
    if len(set(roles)) < len(roles) or set(roles) & excluded:
        raise ScaffoldError("label, timestamp and keys must be different columns, and none of them excluded")
    scale = timing.scale(moment.start, moment.end, table.path)
    activity = _activity(table, label, moment, scale.unit)
    delay, assumptions = _delay(wish, known, scale)
    timeline = timing.timeline(
        activity, moment.start, moment.end, scale, delay, longest=known.longest if known else delay
    )
    id_column = scaffold_columns.id_column(table, roles, wish.event_id)
    others = [*roles, *table.parts, *([id_column.name] if id_column else [])]
    inputs, left = scaffold_columns.inputs(table, moment, others, excluded, taken, known=known is not None)
    calendar = _calendar(table, moment, timeline)
    if not (inputs or calendar or keys):
        raise ScaffoldError(
            f"{table.path} has nothing to predict {label.column!r} from: {_because(left)}. Add columns that were known "
            "at the row's moment"
        )
    case = Case(
        name=wish.name or dns(table.name),
        table=table.name,
        path=os.path.relpath(table.path.resolve(), wish.into.resolve()),
        source=table.source,
        where=table.where,
        rows=table.rows,
        label=label,
        known=known,
        moment=moment,
        event_id=scaffold_columns.named(id_column)
        if id_column
        else scaffold_columns.event_id(table, moment, keys, inputs),
        keys=tuple(keys),
        inputs=tuple(inputs),
        left=tuple(left),
        calendar=calendar,
        timeline=timeline,
        assumptions=assumptions,
    )
    return case, activity, giveaways.find(table, label, case.maker, inputs) if look else []


def likely_delay(table: Table, timestamp: str) -> timedelta:
    """Return an estimate of how long a label takes, from the span of the table.

    Raises:
        ScaffoldError: the column cannot be a timestamp.
    """
    moment = scaffold_columns.moment(table, timestamp, set())
    return timing.default_delay(timing.scale(moment.start, moment.end, table.path))


def _delay(wish: Wish, known: scaffold_columns.Known | None, scale: Scale) -> tuple[timedelta, tuple[str, ...]]:
    """Return how long labels take, and what was assumed."""
    if known:
        return timing.whole_steps(known.usual, scale), ()
    if wish.label_delay is not None:
        return wish.label_delay, ()
    delay = timing.default_delay(scale)
    assumed = (
        f"A label is assumed to be known {timing.text(delay)} after its row's moment. If it takes longer, every "
        "number here is too good: set it with --label-delay, or name the column that holds the time with "
        "--label-known-at"
    )
    return delay, (assumed,)


def _because(left: Sequence[scaffold_columns.LeftOut]) -> str:
    return "; ".join(f"{item.column!r} {item.why}" for item in left[:10]) or "it has no other column"


def _folder(path: Path) -> str:
    """Write a folder for a shell's `cd`."""
    return f"{'./' if str(path).startswith('-') else ''}{shlex.quote(str(path))}"


def _tried(table: Table, wish: Wish, columns: Sequence[str]) -> str:
    """Return the options that leave columns out, or nothing if no use case would remain."""
    if not columns:
        return ""
    try:
        design(table, replace(wish, exclude=(*wish.exclude, *columns)), look=False)
    except ScaffoldError:
        return ""
    return " ".join([*(option("exclude", column) for column in columns), "--force"])


def _activity(table: Table, label: Label, moment: Moment, unit: str) -> Activity:
    at = quote(moment.column)
    query = f"""
        WITH moments AS (
            SELECT {at} AT TIME ZONE 'UTC' AS moment, count(*) AS rows,
                   coalesce(count_if({label.side} = 1), 0) AS positives,
                   coalesce(count_if({label.side} = 0), 0) AS negatives
            FROM {table.name} GROUP BY 1
        )
        SELECT date_trunc('{unit}', moment)::TIMESTAMP AS starts, sum(rows)::BIGINT AS rows,
               sum(positives)::BIGINT AS positives, sum(negatives)::BIGINT AS negatives,
               count(*)::BIGINT AS moments, max(rows)::BIGINT AS largest
        FROM moments GROUP BY 1 ORDER BY 1"""
    with sources.connect({table.name: table.parquet}) as db:
        found: dict[str, Any] = db.execute(query).fetchnumpy()
    return Activity(**found, classed=label.task != "regression")


def _calendar(table: Table, moment: Moment, plan: Timeline) -> tuple[str, ...]:
    """Return which of hour and weekday become features; a window with only some of their values would always drift."""
    at = f"{quote(moment.column)} AT TIME ZONE {sources.literal(table.source.read.timezone)}"
    ((hours, weekdays),) = table.query(
        f"SELECT count(DISTINCT (hour({at}), minute({at}))), count(DISTINCT isodow({at})) FROM {table.name}"
    )
    found = [("hour", hours, timedelta(days=1)), ("weekday", weekdays, timedelta(days=7))]
    return tuple(name for name, values, cycle in found if values > 1 and not plan.window % cycle)


def _refuse_overwriting(wish: Wish, targets: Sequence[str]) -> None:
    if wish.into.exists() and not wish.into.is_dir():
        raise ScaffoldError(f"{wish.into} is a file; name another folder with --into")
    there = [path for path in targets if (wish.into / path).exists()]
    if there and not wish.force:
        raise ScaffoldError(
            f"{wish.into} has {', '.join(there[:3])}{' and more' if len(there) > 3 else ''} already; name another "
            "folder with --into, or replace these files with --force"
        )


def _put(folder: Path, files: dict[str, str]) -> None:
    for path, content in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, encoding="utf-8")


def _rehearse(case: Case, repo: Path, table: Table, out: Path) -> "pd.DataFrame":
    """Build the features of all labelled rows, or of an even sample, as a run would."""
    from kubeloop import features

    plan = case.timeline
    features.build(repo, table.parquet.parent, out)
    rows = features.events(repo, table.parquet.parent, start=case.moment.start, end=plan.until, most=REHEARSED)
    frame: pd.DataFrame = features.training_set(out, case.service, rows).to_pandas()
    shutil.rmtree(out)
    return frame


def _measure(case: Case, frame: "pd.DataFrame") -> Quality:
    """Fit the first model and measure it on its hold-out."""
    from kubeloop.tasks.tabular import training

    maker = case.maker

    plan = case.timeline
    when = frame["event_timestamp"]
    window = frame[(when >= plan.train_from) & (when < plan.train_to - plan.label_delay)].reset_index(drop=True)
    try:
        learn, holdout = training.split(maker.task, window, plan.holdout)
        fitted = training.fit(maker, learn, case.settings(window=plan.training_window, holdout=plan.holdout))
    except training.TrainingError as error:
        raise ScaffoldError(f"no first model can be trained on the oldest part of the table: {error}") from error
    y = training.truths(maker.task, holdout, "the hold-out")
    metrics = maker.task.score(y, fitted.predict(holdout))
    headline = maker.task.headline
    return Quality(headline.title, metrics[headline.name], maker.too_good(metrics), maker.draft(y, metrics))


def _suites(case: Case, table: Table, activity: Activity, trained: "pd.DataFrame") -> dict[str, str]:
    keys = [key.column for key in case.keys]
    unique = case.event_id.column
    left = {item.column for item in case.left}
    used = [name for name in table.columns if name not in left]
    columns = ", ".join(sources.identifier(name) for name in used)
    with sources.connect({table.name: table.parquet}) as db:
        sample = f"FROM {table.name} USING SAMPLE reservoir({REHEARSED} ROWS) REPEATABLE (7)"
        # Read as validation reads a table, so that types and nulls look the same.
        raw = db.sql(f"SELECT {columns} FROM ({sample})").to_arrow_table().to_pandas()
    runs = suites.Runs.of(activity, case.timeline)
    steps = [start.item() for start in activity.starts.astype("datetime64[us]")]
    return {
        case.table: suites.raw(
            raw,
            case.moment.column,
            case.label.column if case.label.is_zero_one else None,
            keys,
            unique,
            runs,
            suites.gap(steps),
            waiting=[case.label.column, *([case.known.column] if case.known else [])],
        ),
        "training": suites.training(
            trained,
            runs,
            suites.gap(steps, case.timeline.label_delay),
            case.timeline.train_to,
            label="label" if case.label.task == "binary" else None,
        ),
    }


def _example(case: Case, table: Table, repo: Path) -> dict[str, Any]:
    """Return the request that a client would have sent for the newest row."""
    from kubeloop import features

    rows = features.events(repo, table.parquet.parent, start=case.moment.end, end=case.timeline.until)
    row = rows.slice(rows.num_rows - 1).to_pylist()[0]
    return {name: row[name].isoformat() if name == case.moment.name else row[name] for name, _ in case.columns}


def _warnings(case: Case, quality: Quality, leaks: Sequence[tuple[str, str]], advised: str) -> list[str]:
    found = [f"{column!r} {why}" for column, why in leaks]
    if found:
        found[-1] += ". Remove columns that are not known at the time of a prediction: "
        found[-1] += f"init again with {advised}" if advised else "without it nothing is left to predict from"
    if case.event_id.doubles:
        found.append(
            f"{case.event_id.doubles:,} {'rows have' if case.event_id.doubles > 1 else 'row has'} the timestamp, keys "
            "and inputs of another row; each counts as a separate prediction. If the table was loaded twice, remove "
            "the second copy"
        )
    if case.known and case.known.early:
        found.append(
            f"{case.known.early:,} labels were known before their row's moment, by {case.known.column!r}; they count "
            "as known at that moment. Is it the right column?"
        )
    if quality.praise and not leaks:
        found.append(
            f"{quality.praise[0].upper()}{quality.praise[1:]} is too good for most tables: does a column know the "
            "label?"
        )
    if quality.draft.poor:
        found.append(f"{quality.draft.poor}. Add columns or features that say more about the label")
    for key in case.keys:
        if case.rows < 3 * key.distinct:
            found.append(f"The key {key.column!r} hardly repeats, so its history says little")
    return found


def _limits(quality: Quality) -> str:
    draft = quality.draft
    floors = [f"{name} ≥ {value:g}" for name, value in draft.floors.items()]
    return ", ".join([*floors, *(f"{name} ≤ {value:g}" for name, value in draft.ceilings.items())])


def _no_key(case: Case, candidates: Sequence[str]) -> str:
    possible = [name for name in candidates if name not in (case.label.column, case.moment.column)]
    return f"none, though one of {', '.join(map(repr, possible[:5]))} could be one" if possible else "none"


def _chosen(case: Case, quality: Quality, candidates: Sequence[str]) -> dict[str, str]:
    plan, text, at = case.timeline, timing.text, render.moment
    known = case.label.positives + case.label.negatives
    what = {
        "multiclass": f"most often {case.label.classes[0]}, {case.label.negatives / known:.1%}"
        if case.label.classes
        else "",
        "regression": "",
    }.get(case.label.task, f"{case.label.positives / known:.1%}")
    unknown = f", {case.label.unknown:,} unknown" if case.label.unknown else ""
    words = {"number": "numeric", "category": "categorical"}
    counted = [f"{sum(item.kind == kind for item in case.inputs)} {word}" for kind, word in words.items()]
    return {
        "task": case.label.task,
        "label": f"{case.label.meaning}: {f'{what} of ' if what else ''}{case.rows:,} rows{unknown}; "
        + (f"known at {case.known.column!r}, most within " if case.known else "known after ")
        + text(plan.label_delay)
        + (" (assumed)" if case.assumptions else ""),
        "timestamp": f"{case.moment.column}, {case.moment.start:%Y-%m-%d %H:%M} to {case.moment.end:%Y-%m-%d %H:%M} UTC"
        + (f", clocks of {case.zone}" if case.zone else ""),
        "keys": ", ".join(f"{key.column} ({key.distinct:,})" for key in case.keys) or _no_key(case, candidates),
        "features": ", ".join([*counted, *case.calendar, *(f"history of each {key.column}" for key in case.keys)]),
        "training": f"{at(plan.train_from)} to {at(plan.train_to)}, newest {text(plan.holdout)} held out",
        "first model": f"{quality.title} {quality.value:.4g}; limits {_limits(quality)}",
        "replay": f"to {at(plan.until)}, {plan.sample:.2%} of the moments; "
        f"fast: to {at(plan.fast_until)}, {plan.fast_sample:.2%}",
        "drift": f"windows of {text(plan.window)} with at least {plan.min_rows} rows",
    }
