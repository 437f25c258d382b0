"""What init makes of a table: proposals, roles, ids, leaks, and one sentence for every table that cannot work."""

import json
import unicodedata
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from kubeloop import config, errors
from kubeloop.cli.main import app
from kubeloop.data import sources
from kubeloop.features import store
from kubeloop.scaffold import design as scaffold
from kubeloop.scaffold import labels, render
from kubeloop.scaffold.design import Wish
from kubeloop.scaffold.render import Case
from kubeloop.scaffold.table import ScaffoldError, Table

ROLES = ["--label", "failed", "--timestamp", "read_at", "--key", "machine"]


def table(frame: pd.DataFrame, folder: Path, name: str = "readings.parquet") -> Table:
    frame.to_parquet(folder / name)
    (folder / "raw").mkdir(exist_ok=True)
    return Table(folder / name, folder / "raw")


def design(frame: pd.DataFrame, folder: Path, **wish: Any) -> tuple[Case, list[tuple[str, str]]]:
    asked: dict[str, Any] = {"label": "failed", "timestamp": "read_at", "keys": ("machine",), "into": folder / "out"}
    case, _, leaks = scaffold.design(table(frame, folder), Wish(**asked | wish))
    return case, leaks


def test_a_clear_table_is_understood_without_a_word(readings: pd.DataFrame, folder: Path) -> None:
    found = table(readings.assign(hot=readings["heat"] > 70, is_old=1), folder)
    assert found.likely_label() == "failed"
    assert found.likely_moment() == "read_at"
    assert found.possible_keys() == ["machine", "line"]
    assert found.likely_key(("failed", "read_at")) == "machine"
    assert found.likely_key(("failed", "read_at", "machine")) is None, "`line` has only three values"


@pytest.mark.parametrize(
    ("yes", "no"),
    [
        ("ja", "nein"),
        ("Ja", "Nein"),
        ("WAHR", "FALSCH"),
        ("oui", "non"),
        ("VRAI", "FAUX"),
        ("sim", "não"),
        ("Sim", unicodedata.normalize("NFD", "Não")),
        ("verdadeiro", "falso"),
        ("Sí", "No"),
        ("sì", "no"),
        ("waar", "onwaar"),
        ("Y", "N"),
        ("yes", "no"),
        ("TRUE", "FALSE"),
    ],
)
def test_yes_and_no_are_known_in_several_languages(readings: pd.DataFrame, folder: Path, yes: str, no: str) -> None:
    words = readings["failed"].map({1: yes, 0: no})
    words = words.where(readings.index % 50 != 0)
    readings.assign(failed=words).to_csv(folder / "t.csv", index=False)
    (folder / "raw").mkdir()
    found = Table(folder / "t.csv", folder / "raw")
    label = labels.label(found, "failed", None)
    expected = readings["failed"].where(readings.index % 50 != 0)
    counts = (label.positives, label.negatives, label.unknown)
    assert counts == ((expected == 1).sum(), (expected == 0).sum(), expected.isna().sum())
    read = dict(found.query(f"SELECT {label.sql}, count(*) FROM {found.name} GROUP BY 1"))  # noqa: S608
    assert (read[1], read[0], read[None]) == counts


@pytest.mark.parametrize("pair", [("ja", "yes"), ("nein", "non"), ("ja", "vielleicht")])
def test_two_words_that_are_not_yes_and_no_are_asked_about(
    readings: pd.DataFrame, folder: Path, pair: tuple[str, str]
) -> None:
    """Neither `ja` nor `yes` is the negative of the other."""
    words = readings["failed"].map(dict(enumerate(pair)))
    with pytest.raises(ScaffoldError, match=r"choose the one to predict, such as --positive (\w+)$"):
        labels.label(table(readings.assign(failed=words), folder), "failed", None)


def test_where_there_is_nobody_to_ask_the_candidates_are_named(readings: pd.DataFrame, folder: Path) -> None:
    readings.assign(night=readings["read_at"].dt.hour < 6).to_csv("readings.csv", index=False)
    answer = CliRunner().invoke(app, ["init", "readings.csv"])
    assert answer.exit_code == errors.LASTING
    assert "name the label with --label (candidates: 'failed', 'night')" in answer.output
    answer = CliRunner().invoke(app, ["init", "readings.csv", "--label", "failed", "--timestamp", "read_at"])
    assert "name the key with --key (candidates: 'machine', 'line')" in answer.output


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda f: f.drop(columns="failed"), [], "has no column 'failed' (the label); it has 'machine', 'read_at'"),
        (
            lambda f: f.assign(failed=np.arange(len(f)) % 3),
            ["--task", "binary"],
            "must have two values, but has '0' (1,000 rows)",
        ),
        (
            lambda f: f,
            ["--task", "ranking"],
            "--task 'ranking' is unknown; write one of binary, multiclass, regression",
        ),
        (lambda f: f.assign(failed="x"), ["--task", "regression"], "a regression task needs numbers"),
        (lambda f: f.assign(failed=np.arange(len(f)) % 60), ["--task", "multiclass"], "needs 2 to 50 classes"),
        (lambda f: f, ["--task", "regression", "--positive", "1"], "leave it out with --task regression"),
        (
            lambda f: f.assign(failed=np.where(f["failed"] == 1, np.where(f.index % 2, "Yes", "yes "), "No")),
            [],
            "has 'Yes' and 'yes ', which differ only in case or spaces",
        ),
        (lambda f: f.assign(failed=0), [], "must have two values, but has '0' (3,000 rows)"),
        (lambda f: f.head(300), [], "too few to train, test and replay on"),
        (lambda f: f.assign(failed=np.where(f["failed"] == 1, "bad", "good")), [], "--positive bad"),
        (lambda f: f, ["--positive", "2"], "--positive '2' is not a value of the label"),
        (lambda f: f.assign(machine=f["machine"].where(f.index != 7)), [], "1 row has no 'machine'"),
        (
            lambda f: f.assign(read_at=f["read_at"].where(f.index > 300)),
            [],
            "301 of 3,000 rows cannot be used, such as missing(read_at)",
        ),
        (lambda f: f.assign(read_at=f["read_at"].iloc[0]), [], "every row has the same 'read_at'"),
        (lambda f: f.assign(read_at=f.index), [], "'read_at' has an unknown format, such as '0'; give it"),
        (lambda f: f.assign(read_at=f["read_at"].dt.strftime("%d.%m.%Y um %H")), [], "give it with --date-format"),
        (lambda f: f.assign(read_at=f["read_at"].where(f.index != 9, pd.Timestamp(0))), [], "99 % of the rows"),
        (lambda f: f, ["--exclude", "heet"], "has no column 'heet' (--exclude)"),
        (lambda f: f, ["--key", "read_at"], "must be different columns"),
        (lambda f: f, ["--id", "line"], "--id 'line' is not unique"),
        (lambda f: f, ["--label-delay", "soon"], "'soon' is not a duration"),
        (lambda f: f, ["--name", "My Loop"], "write it as 'my-loop'"),
        (lambda f: f.rename(columns={"line": "Reasons"}), [], "has a name that the quarantine needs; rename it"),
        (lambda f: f[["failed", "read_at"]], [], "has only the columns 'failed', 'read_at'"),
        (lambda f: f.head(0), [], "has columns but no rows"),
    ],
)
def test_a_table_that_cannot_work_gets_a_sentence_with_the_way_out(
    readings: pd.DataFrame, folder: Path, change: Any, options: list[str], message: str
) -> None:
    change(readings).to_csv("readings.csv", index=False)
    answer = CliRunner().invoke(app, ["init", "readings.csv", *ROLES, *options])
    assert answer.exit_code == errors.LASTING
    assert message in answer.output
    assert not (folder / "readings").exists(), "no file is written"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.csv", None, "gone.csv does not exist; name a Parquet, CSV, JSON or Excel file"),
        ("empty.csv", b"", "empty.csv is empty"),
        ("junk.parquet", b"not a table", "junk.parquet cannot be read"),
        ("named.csv", b"PAR1....", "named.csv cannot be read: it is damaged, or cut off"),
    ],
)
def test_a_file_that_is_not_a_table_is_refused(folder: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        Path(name).write_bytes(content)
    answer = CliRunner().invoke(app, ["init", name, *ROLES])
    assert answer.exit_code == errors.LASTING
    assert message in answer.output
    assert "LINE 1" not in answer.output


def test_two_loops_of_one_table_keep_their_features_in_one_registry(readings: pd.DataFrame, folder: Path) -> None:
    """Loops of one cluster share registry and online store, where the project alone tells views of one name apart."""
    shared = config.settings(folder, folder / "state").model_copy(
        update={"feature_registry": f"sqlite:///{folder / 'registry.db'}"}
    )
    found = table(readings, folder)
    loops = {}
    for name, label in (("cold-line", "failed"), ("warm-line", "heat")):
        scratch = folder / f"{name}-scratch"
        scratch.mkdir()
        scaffold.write(found, Wish(label, "read_at", ("machine",), folder / name, name=name), scratch, print)
        loops[name] = folder / name / "feature_repo"
        store.register(loops[name], shared)
    fields = {
        name: {field.name for field in store.features(store.open_store(repo, shared), "readings_v1")}
        for name, repo in loops.items()
    }
    assert "heat_now" in fields["cold-line"] - fields["warm-line"]
    assert "failed_now" in fields["warm-line"] - fields["cold-line"]


def test_files_are_replaced_only_by_force(readings: pd.DataFrame, folder: Path) -> None:
    found = table(readings, folder)
    (folder / "out").mkdir()
    (folder / "out" / "loop.yaml").write_text("mine")
    wish = Wish("failed", "read_at", ("machine",), folder / "out")
    (folder / "scratch").mkdir()
    with pytest.raises(ScaffoldError, match=r"has loop.yaml already; .*--force"):
        scaffold.write(found, wish, folder / "scratch", print)
    assert (folder / "out" / "loop.yaml").read_text() == "mine"
    assert [path.name for path in (folder / "out").iterdir()] == ["loop.yaml"]


def test_columns_become_numbers_categories_ages_or_nothing(readings: pd.DataFrame, folder: Path) -> None:
    random = np.random.default_rng(3)
    rows = len(readings)
    frame = readings.assign(
        built=readings["read_at"] - pd.to_timedelta(random.integers(10, 900, rows), unit="D"),
        repaired=readings["read_at"] + pd.Timedelta(days=1),
        ok=pd.array(random.integers(0, 2, rows), dtype="boolean"),
        site_id=random.integers(0, 9, rows),
        order_no=random.integers(0, 2000, rows),
        note=[f"n{number}" for number in range(rows)],
        same="x",
        nothing=None,
        steps=random.integers(0, 9, rows),
        cents=random.integers(0, 10**6, rows),
        line_of_file=7 * np.arange(rows) + 100,
    )
    case, leaks = design(frame, folder, exclude=("LINE",))
    assert {item.name: item.kind for item in case.inputs} == {
        "heat": "number",
        "built_age": "number",
        "ok": "number",
        "site_id": "category",
        "steps": "number",
        "cents": "number",
    }
    reasons = {item.column: item.why for item in case.left}
    expected = {
        "line": "left out with --exclude",
        "repaired": "is later than the row's own moment in 3,000 rows",
        "order_no": "looks like an identifier",
        "line_of_file": "looks like an identifier",
        "note": "different texts, most of them in fewer than 10 rows",
        "same": "has one value",
        "nothing": "is empty",
    }
    assert reasons.keys() == expected.keys()
    for column, why in expected.items():
        assert why in reasons[column]
    assert case.calendar == ("hour", "weekday")
    assert leaks == []


def test_a_text_with_many_values_is_a_category_as_long_as_they_repeat(readings: pd.DataFrame, folder: Path) -> None:
    random, rows = np.random.default_rng(3), len(readings)
    frame = readings.assign(
        dealer=[f"d{number}" for number in np.arange(rows) % 250],
        merchant=[f"m{number}" for number in np.minimum(random.zipf(1.5, rows), 10**6)],
        merchant_id=np.arange(rows) % 250,
        comment=[f"n{number}" for number in random.permutation(rows) // 9],
        mostly=[f"n{number}" if number % 5 else "fine" for number in range(rows)],
    )
    case, _ = design(frame, folder)
    kinds = {item.name: item.kind for item in case.inputs}
    assert frame["merchant"].nunique() > 200
    assert {name for name, kind in kinds.items() if kind == "category"} == {"line", "dealer", "merchant", "merchant_id"}
    assert {item.column for item in case.left} == {"comment", "mostly"}


@pytest.mark.parametrize(("values", "often"), [(250, True), (1000, False)])
def test_a_key_is_a_feature_as_long_as_its_values_repeat(
    readings: pd.DataFrame, folder: Path, values: int, often: bool
) -> None:
    case, _ = design(readings.assign(dealer=np.arange(len(readings)) % values), folder, keys=("dealer",))
    assert [(key.name, key.categorical) for key in case.keys] == [("dealer", often)]


def test_numbers_that_float32_would_blur_keep_their_meaning(readings: pd.DataFrame, folder: Path) -> None:
    random, rows = np.random.default_rng(4), len(readings)
    days = 20_240_101 + random.integers(0, 28, rows)
    codes = 4 * 10**15 + random.integers(0, 100, rows)
    frame = readings.assign(
        coded=days,
        gone=np.where(random.random(rows) < 0.1, np.nan, days),
        below=-days,
        instant=1.7e9 + random.integers(0, 10**6, rows) / 8,
        crate=codes + random.integers(0, 2, rows) * 4 * 10**15,
        revenue=np.exp(random.normal(8, 3, rows)).astype(np.int64) * 10_000,
        exact=random.integers(0, 2**24, rows) // 100,
    )
    case, _ = design(frame, folder)
    found = {item.name: (item.kind, item.offset) for item in case.inputs}
    assert found["coded"] == found["gone"] == ("number", 20_240_101)
    assert found["below"] == ("number", -20_240_128)
    assert found["instant"] == ("number", int(frame["instant"].min()))
    assert found["crate"] == ("category", 0), "two groups far from each other: a category, since the values repeat"
    assert found["revenue"] == found["exact"] == ("number", 0)
    for name in ("coded", "gone", "below", "instant"):
        relative = (frame[name] - found[name][1]).dropna()
        assert (
            relative.astype(np.float32).nunique() == relative.nunique() > frame[name].astype(np.float32).nunique() - 1
        )


def test_what_knows_the_label_is_named(readings: pd.DataFrame, folder: Path) -> None:
    failed = readings["failed"]
    frame = readings.assign(
        temperature_then=failed * 5 + np.random.default_rng(1).normal(size=len(failed)) * 0.1,
        ticket=np.where(failed == 1, readings["heat"].sample(frac=1, random_state=1), np.nan),
        heat_after=0.1 * readings["heat"] + np.random.default_rng(2).normal(size=len(failed)),
        cause=np.where(failed == 1, "wear", "none"),
    )
    case, leaks = design(frame, folder)
    assert [column for column, _ in leaks] == ["temperature_then", "ticket", "heat_after", "cause"]
    assert len(case.inputs) == 6, "they are named, but stay inputs"


@pytest.mark.parametrize(
    ("change", "wish", "column"),
    [
        (lambda f: f.assign(reading_id=[f"r{n}" for n in range(len(f))]), {}, "reading_id"),
        (lambda f: f.assign(serial=range(len(f))), {"event_id": "serial"}, "serial"),
        (lambda f: f, {}, None),
        (lambda f: pd.concat([f, f.head(500), f.head(200)]).sort_values("read_at"), {}, None),
        (lambda f: f.assign(read_at=f["read_at"].dt.floor("D")), {}, None),
    ],
)
def test_every_row_has_an_id_that_is_its_own(
    readings: pd.DataFrame, folder: Path, change: Any, wish: dict[str, Any], column: str | None
) -> None:
    frame = change(readings)
    case, _ = design(frame, folder, **wish)
    query = render.feature_repo(case)["sql/events.sql"]
    with sources.connect({case.table: folder / "raw" / f"{case.table}.parquet"}) as db:
        ids = db.execute(f"SELECT event_id FROM ({query})").fetchall()  # noqa: S608
    assert len({row[0] for row in ids}) == len(frame)
    if column:
        assert {row[0] for row in ids} == set(frame[column].astype(str))


def test_texts_and_widths_of_time_are_all_moments_in_utc(readings: pd.DataFrame, folder: Path) -> None:
    starts = []
    for number, moments in enumerate(
        [
            readings["read_at"].astype("datetime64[ns]"),
            readings["read_at"].dt.tz_localize("UTC").dt.tz_convert("Europe/Berlin"),
            readings["read_at"].dt.strftime("%Y-%m-%dT%H:%M:%S+00:00"),
            readings["read_at"].dt.strftime("%Y-%m-%d %H:%M:%S"),
        ]
    ):
        case, _ = design(readings.assign(read_at=moments), folder, into=folder / str(number))
        starts.append(case.moment.start)
    assert len(set(starts)) == 1
    assert starts[0].utcoffset() == timedelta(0)


def test_the_shape_of_time_decides_the_calendar(readings: pd.DataFrame, folder: Path) -> None:
    daily, _ = design(readings.assign(read_at=readings["read_at"].dt.floor("D")), folder)
    assert daily.calendar == ("weekday",)
    assert "UnixTimestamp" in daily.types
    begin = readings["read_at"].min()
    short = readings.assign(read_at=begin + (readings["read_at"] - begin) / 100)
    minutes, _ = design(short, folder)
    assert minutes.calendar == ()
    assert [name for name, _ in minutes.columns] == ["machine", "heat", "line"]


def test_json_says_what_was_chosen(readings: pd.DataFrame, folder: Path) -> None:
    readings.to_parquet("readings.parquet")
    answer = CliRunner().invoke(app, ["init", "readings.parquet", "--yes", "--into", "mine", "--json"])
    assert answer.exit_code == 0, answer.output
    content = json.loads(answer.stdout)
    assert content["folder"] == "mine"
    assert all((folder / "mine" / path).is_file() for path in content["files"])
    assert content["next"] == ["cd mine", "kubeloop doctor", "kubeloop run --fast"]


def test_days_without_any_label_are_days_without_positives(readings: pd.DataFrame, folder: Path) -> None:
    later = readings["read_at"] >= "2024-04-01"
    case, _ = design(readings.assign(failed=readings["failed"].astype("Int64").where(later)), folder)
    assert case.timeline.train_to > pd.Timestamp("2024-04-01", tz="UTC")


@pytest.mark.parametrize(("values", "hint"), [(3000, False), (700, True)])
def test_a_key_is_proposed_where_its_values_repeat(
    readings: pd.DataFrame, folder: Path, values: int, hint: bool
) -> None:
    case, _ = design(readings.assign(visitor_id=np.arange(3000) % values * 7, row_no=np.arange(3000)), folder)
    why = {item.column: item.why for item in case.left}["visitor_id"] if values < 3000 else case.left[-1].why
    assert ("gives it a history" in why) == hint
