"""Decide once how to read each column of texts, from all of its values, and report the decisions."""

import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from kubeloop.config.reading import EXACT, WORDS, Column, Read
from kubeloop.config.types import ConfigError
from kubeloop.reading import cells, dates, numbers

if TYPE_CHECKING:
    import duckdb

    from kubeloop.reading.files import Opened

_TESTS = 7
_HEAD = 10_000
_AT_ONCE = 40
"""Most columns that are measured in one query."""
_MOSTLY = 0.95
"""From this share of numbers or times, the few other words are read as missing values, which is reported."""
_FEW_WORDS = 3
_NEARLY = 0.8
"""From this share, a column that stays text is reported."""


class ReadingError(ConfigError):
    """A file or a column can be read in several ways or in none; the message names them and the deciding option."""


@dataclass(frozen=True)
class Asked:
    """The user's options. Mappings are by column; "" stands for every column or, for formats, for the timestamp.

    Attributes:
        read: how to open the file.
        formats: formats of times.
        decimals: decimal signs.
        missing: words for missing values.
        exclude: columns that may stay as they are.
        timestamp: the column of the moment, if it is known.
    """

    read: Read = field(default_factory=Read)
    formats: Mapping[str, str] = field(default_factory=dict)
    decimals: Mapping[str, Literal[".", ","]] = field(default_factory=dict)
    missing: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    exclude: Collection[str] = ()
    timestamp: str | None = None

    def format(self, name: str) -> str | None:
        """Return the format that the user gave for a column's times, if any."""
        return self.formats.get(name) or (self.formats.get("") if name == self.timestamp else None)

    def words(self, name: str) -> tuple[str, ...]:
        """Return the words that the user gave as missing values of a column."""
        return self.missing.get(name, self.missing.get("", ()))


@dataclass
class Decided:
    """What was decided: how the columns are read, what to report, and which columns can be read in two ways."""

    columns: dict[str, Column] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    look: list[str] = field(default_factory=list)
    unclear: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Text:
    """A column of texts: SQL for a value, the rows that have one, and how many fit each plain kind."""

    name: str
    sql: str
    relation: str
    rows: str
    filled: int
    integers: int
    numbers: int
    truths: int
    times: int
    codes: int
    phones: int


def columns(db: "duckdb.DuckDBPyConnection", opened: "Opened", asked: Asked) -> Decided:
    """Decide how the columns of an open file are read.

    In a file without types, every column that is not text gets a reading. In a file with types, only texts that are
    times or local numbers get one, because whole numbers in texts are codes there.

    Raises:
        ReadingError: an option of the user does not fit.
    """
    decided = Decided()
    options = {"--date-format": asked.formats, "--decimal": asked.decimals, "--missing": asked.missing}
    for option, named in options.items():
        for name in set(named) - {"", *opened.columns}:
            raise ReadingError(f"{option} names the column {name!r}, but the file has {_listed(opened)}")
    unsure: list[tuple[_Text, numbers.Found, tuple[str, ...]]] = []
    points: set[str] = set()
    stated_ones = {name for name in opened.columns if asked.format(name)}
    names = [name for name, kind in opened.columns.items() if kind == "VARCHAR" and name not in stated_ones]
    for column in _measured(db, opened, names, asked):
        found = _one(db, column, asked, opened.texts, decided) if column.filled else None
        if isinstance(found, tuple):
            unsure.append(found)
        elif found is None:
            if column.name not in decided.unclear:
                _text(db, column, asked, decided)
        elif (
            found.kind == "number"
            and db.execute(f"FROM {column.rows} WHERE {column.sql} SIMILAR TO '.*[.,].*' LIMIT 1").fetchall()
        ):
            points.add(found.decimal)
    for column, either_way, words in unsure:
        said = asked.decimals.get(column.name) or asked.decimals.get("") or (min(points) if len(points) == 1 else None)
        chosen = [style for style in either_way.columns if style.decimal == said]
        if chosen:
            _keep(db, column, chosen[0].model_copy(update={"missing": words}), decided)
        else:
            option = " or ".join(f"--decimal {shlex.quote(f'{column.name}={style}')}" for style in ("comma", "point"))
            decided.unclear[column.name] = (
                f"{either_way.example!r} in {column.name!r} could be {' or '.join(either_way.values[:2])}: say which "
                f"one, such as {option}"
            )
    for name in stated_ones:
        stated(db, opened, name, asked.format(name) or "", asked, decided)
    return decided


def stated(
    db: "duckdb.DuckDBPyConnection", opened: "Opened", name: str, form: str, asked: Asked, decided: Decided
) -> None:
    """Note a column of times in the format that the user named.

    Raises:
        ReadingError: too few of the values have this format.
    """
    reading = Column(kind="time", format=form, missing=asked.words(name))
    column = of(opened, name, reading)
    moment = cells.value(column.sql, reading, asked.read.timezone)
    counted = f"SELECT count(*), count({moment}), min({column.sql}) FILTER (({moment}) IS NULL) FROM {column.rows}"
    ((filled, fits, stray),) = _run(db, form, counted)
    if fits < dates.FITS * filled or not filled:
        raise ReadingError(
            f"--date-format {form} does not fit {filled - fits:,} of {filled:,} values of {name!r}, such as {stray!r}"
        )
    _time(db, replace(column, filled=filled), reading, asked.read.timezone, decided)


def of(opened: "Opened", name: str, reading: Column) -> _Text:
    """Return a column of any type as texts."""
    sql = cells.text(name, opened.columns[name])
    rows = f"(FROM {opened.relation} WHERE NOT {cells.missing(sql, reading)})"
    return _Text(name, sql, opened.relation, rows, 0, 0, 0, 0, 0, 0, 0)


def timestamp(db: "duckdb.DuckDBPyConnection", opened: "Opened", name: str, asked: Asked, decided: Decided) -> None:
    """Record how to read the named timestamp as a time if it is not text or does not look like a time.

    Raises:
        ReadingError: it can be read in two ways, or in none.
    """
    form = asked.format(name) or asked.formats.get("")
    if form:
        stated(db, opened, name, form, asked, decided)
        return
    # Until now it was read as a number.
    decided.said = [text for text in decided.said if not text.startswith(f"read {name!r} as ")]
    column = of(opened, name, Column(kind="time", missing=asked.words(name)))
    ((filled, example),) = db.execute(f"SELECT count(*), min({column.sql}) FROM {column.rows}").fetchall()
    found = dates.find_number(db, column.rows, column.sql, asked.read.timezone, filled)
    if found is None:
        raise ReadingError(
            f"the timestamp {name!r} has an unknown format, such as {str(example)[:40]!r}; give it with "
            "--date-format, such as '%d.%m.%Y %H:%M', epoch_s or excel"
        )
    if len(found.formats) > 1:
        raise ReadingError(either(found, name))
    reading = Column(kind="time", format=found.formats[0], missing=asked.words(name))
    _time(db, replace(column, filled=filled), reading, asked.read.timezone, decided)


CLOCK = r"\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?( ?[AaPp]([Mm]|\.[Mm]\.))?"
_DAY_WORD, _CLOCK_WORD = re.compile(r"date|day|dt", re.I), re.compile(r"time|hour|clock|tm", re.I)


def halves(db: "duckdb.DuckDBPyConnection", opened: "Opened", decided: Decided, name: str | None) -> list[str]:
    """Return a column of dates and the column of times of day that belongs to it by name; empty if there is none.

    Args:
        db: the database.
        opened: the file.
        decided: what was decided of its columns.
        name: the only column of dates to look at, if there is one.
    """
    for day, kind in opened.columns.items():
        dated = kind.startswith(("DATE", "TIMESTAMP")) or day in decided.unclear
        dated |= day in decided.columns and decided.columns[day].kind == "time"
        if not dated or name not in (None, day):
            continue
        for clock, other in opened.columns.items():
            alike = _DAY_WORD.sub("", day).lower() == _CLOCK_WORD.sub("", clock).lower()
            if day != clock and alike and other in ("VARCHAR", "TIME") and _holds_clocks(db, opened, clock):
                text = cells.text(day, kind)
                midnight = f"NOT regexp_matches({text}, ':') OR regexp_matches({text}, '[T ]00:00(:00)?$')"
                ((whole,),) = db.execute(f"SELECT bool_and({midnight}) FROM {opened.relation}").fetchall()
                if whole:
                    return [day, clock]
    return []


_UNITS = {"year": "%Y", "month": "%m", "day": "%d", "hour": "%H", "minute": "%M", "second": "%S"}


def units(names: Collection[str]) -> dict[str, str]:
    """Return the columns that are named year, month and so on, by unit, up to the first missing unit."""
    found: dict[str, str] = {}
    for unit in _UNITS:
        alike = [name for name in names if name.lower() == unit]
        if not alike:
            break
        found[unit] = alike[0]
    return found if len(found) > 1 else {}


def pieces(opened: "Opened", decided: Decided, name: str | None) -> list[str]:
    """Return the columns with year, month, day and so on, if the table has no other time.

    Args:
        opened: the file.
        decided: what was decided of its columns.
        name: the timestamp, if it is known.
    """
    found = list(units(opened.columns).values())
    if name is not None:
        return found if found and name == found[0] else []
    timed = any(kind.startswith(("DATE", "TIMESTAMP")) for kind in opened.columns.values()) or decided.unclear
    return [] if timed or any(column.kind == "time" for column in decided.columns.values()) else found


def _holds_clocks(db: "duckdb.DuckDBPyConnection", opened: "Opened", name: str) -> bool:
    text = cells.text(name, opened.columns[name])
    test = f"bool_and(regexp_full_match({text}, {cells.literal(CLOCK)}))"
    return bool(db.execute(f"SELECT {test} FROM {opened.relation}").fetchall()[0][0])


def together(
    db: "duckdb.DuckDBPyConnection", opened: "Opened", parts: Sequence[str], asked: Asked, decided: Decided
) -> str:
    """Make one time of a column of dates and one of times of day; return its name.

    Raises:
        ReadingError: it can be read in two ways, or in none.
    """
    from kubeloop.reading import rows

    whole = list(units(parts).values())
    named = sorted(whole) == sorted(parts)
    parts = whole if named else parts
    name = " ".join(parts)
    reading = Column(kind="time", of=tuple(parts))
    if named:
        reading = reading.model_copy(update={"format": " ".join(list(_UNITS.values())[: len(parts)])})
    text = rows.joined(opened, reading)
    relation = f"(SELECT {text} AS {cells.identifier(name)} FROM {opened.relation})"
    sql = cells.identifier(name)
    given = f"(FROM {relation} WHERE {sql} IS NOT NULL)"
    moment = cells.time(sql, reading.format, asked.read.timezone)
    ((filled, fits, example),) = db.execute(f"SELECT count(*), count({moment}), min({sql}) FROM {given}").fetchall()
    if fits < dates.FITS * filled or not filled:
        found = None if named else dates.find(db, given, sql, asked.read.timezone, filled)
        if found is None:
            raise ReadingError(
                f"{' and '.join(map(repr, parts))} are not a date and a time of day, such as {example!r}"
            )
        day = asked.format(parts[0]) or asked.formats.get("") or ""
        if not day and parts[0] in decided.columns:
            day = decided.columns[parts[0]].format
        forms = [form for form in found.formats if form.startswith(day)] or found.formats
        if len(forms) > 1:
            raise ReadingError(either(found, parts[0], [form.rpartition(" ")[0] for form in found.formats]))
        reading = reading.model_copy(update={"format": forms[0]})
    decided.unclear.pop(parts[0], None)
    _time(db, _Text(name, sql, relation, given, filled, 0, 0, 0, 0, 0, 0), reading, asked.read.timezone, decided)
    return name


def _run(db: "duckdb.DuckDBPyConnection", form: str, query: str) -> list[Any]:
    import duckdb

    try:
        return db.execute(query).fetchall()
    except duckdb.InvalidInputException as error:
        raise ReadingError(f"--date-format {form!r} is not a time format; write one such as %d/%m/%Y") from error


def _measured(db: "duckdb.DuckDBPyConnection", opened: "Opened", names: list[str], asked: Asked) -> list[_Text]:
    """Count the values that fit each plain kind; a kind that fits no value of the beginning is not tried further."""
    found = []
    for start in range(0, len(names), _AT_ONCE):
        some = names[start : start + _AT_ONCE]
        tests = [test for name in some for test in _tests(name, asked)]
        (head,) = _counts(db, f"(FROM {opened.relation} LIMIT {_HEAD})", tests)
        counts = iter(_counts(db, opened.relation, [test for test, count in zip(tests, head, strict=True) if count])[0])
        every = [next(counts) if count else 0 for count in head]
        for place, name in enumerate(some):
            text = cells.text(name, "VARCHAR")
            rows = f"(SELECT {cells.identifier(name)} FROM {opened.relation} WHERE {_has(name, asked)})"
            found.append(_Text(name, text, opened.relation, rows, *every[_TESTS * place : _TESTS * (place + 1)]))
    return found


def _counts(db: "duckdb.DuckDBPyConnection", relation: str, tests: list[str]) -> list[Any]:
    counted = ", ".join(f"count_if({test})" for test in tests) or "0"
    return db.execute(f"SELECT {counted} FROM {relation}").fetchall()


def _has(name: str, asked: Asked) -> str:
    return f"NOT {cells.missing(cells.text(name, 'VARCHAR'), Column(kind='time', missing=asked.words(name)))}"


def _tests(name: str, asked: Asked) -> list[str]:
    text, has = cells.text(name, "VARCHAR"), _has(name, asked)
    kinds: tuple[Literal["integer", "number", "boolean", "time"], ...] = ("integer", "number", "boolean", "time")
    # The known words are never values of these kinds; one that the user named may be.
    named = f"{has} AND " if asked.words(name) else ""
    fits = [f"{named}({cells.value(text, Column(kind=kind), 'UTC')}) IS NOT NULL" for kind in kinds]
    return [has, *fits, rf"regexp_full_match({text}, '[+-]?0\d+')", rf"regexp_full_match({text}, '\+\d+')"]


def _one(
    db: "duckdb.DuckDBPyConnection", column: _Text, asked: Asked, texts: bool, decided: Decided
) -> Column | tuple[_Text, numbers.Found, tuple[str, ...]] | None:
    """Decide on one column, or return its readings if there are two."""
    name, words = column.name, asked.words(column.name)
    coded = column.codes or column.phones == column.filled
    if not coded:
        column, words = _without_words(db, column, words)
    filled = column.filled
    if column.truths == filled and texts:
        return _keep(db, column, Column(kind="boolean", missing=words), decided)
    if column.numbers == filled and not coded:
        if column.integers < filled and _whole(db, column):
            # More digits than a number can hold.
            return None
        if column.integers == filled:
            # In a file with types, whole numbers in texts are codes.
            return _keep(db, column, Column(kind="integer", missing=words), decided) if texts else None
        found = numbers.find(db, column.rows, column.sql, filled) if _like_thousands(db, column) else None
        if isinstance(found, numbers.Found) and len(found.columns) > 1:
            return column, found, words
        return _keep(db, column, Column(kind="number", missing=words), decided)
    if column.times >= dates.FITS * filled:
        return _time(db, column, Column(kind="time", missing=words), asked.read.timezone, decided)
    if not coded:
        found = numbers.find(db, column.rows, column.sql, filled)
        if isinstance(found, numbers.Found):
            if len(found.columns) > 1:
                return column, found, words
            return _keep(db, column, found.columns[0].model_copy(update={"missing": words}), decided)
        if found is not None:
            decided.look.append(f"{name!r} {found}, so it stays text")
    when = dates.find(db, column.rows, column.sql, asked.read.timezone, filled)
    if when is not None:
        said = asked.formats.get("")
        form = when.formats[0] if len(when.formats) == 1 else said if said in when.formats else None
        if form is None:
            decided.unclear[name] = either(when, name)
            return None
        return _time(db, column, Column(kind="time", format=form, missing=words), asked.read.timezone, decided)
    if hung := dates.which_zone(db, column.rows, column.sql, filled):
        example, zones = hung
        options = " or ".join(f"--timezone {zone}" for zone in zones)
        decided.unclear[name] = f"the zone of {example!r} in {name!r} has a word of several: say which one, {options}"
        return None
    if texts and not coded and filled > column.numbers >= _NEARLY * filled:
        decided.look.append(_stays_text(db, column))
    return None


def _stays_text(db: "duckdb.DuckDBPyConnection", column: _Text) -> str:
    """Say which values prevent reading a column as numbers, and how to declare them missing if they are few."""
    odd = f"({cells.value(column.sql, Column(kind='number'), 'UTC')}) IS NULL"
    strays = db.execute(
        f"SELECT DISTINCT {column.sql} FROM {column.rows} WHERE {odd} ORDER BY 1 LIMIT {_FEW_WORDS + 1}"
    ).fetchall()
    said = (
        f"{column.name!r} stays text, since {column.filled - column.numbers:,} of its {column.filled:,} values are not "
        f"numbers, such as {strays[0][0]!r}"
    )
    if len(strays) > _FEW_WORDS or "=" in column.name:
        return said
    options = " ".join(f"--missing {shlex.quote(f'{column.name}={word}')}" for (word,) in strays)
    return f"{said}; if that means a missing value, give {options}"


def _without_words(
    db: "duckdb.DuckDBPyConnection", column: _Text, words: tuple[str, ...]
) -> tuple[_Text, tuple[str, ...]]:
    """Read a few words among numbers or times as missing values, whatever the words are."""
    best = max(column.numbers, column.times)
    if best == column.filled or best < _MOSTLY * column.filled:
        return column, words
    listed = db.execute(
        f"SELECT {column.sql}, count(*) FROM {column.rows} WHERE NOT regexp_matches({column.sql}, '[0-9]') "
        f"AND lower({column.sql}) NOT IN ('inf', '-inf', '+inf', 'infinity', '-infinity') "
        f"GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {_FEW_WORDS + 1}"
    ).fetchall()
    gone = sum(count for _, count in listed)
    if not listed or len(listed) > _FEW_WORDS or best + gone < dates.FITS * column.filled:
        return column, words
    found = tuple(word for word, _ in listed)
    rows = f"(FROM {column.rows} WHERE {column.sql} NOT IN ({', '.join(map(cells.literal, found))}))"
    return replace(column, rows=rows, filled=column.filled - gone), (*words, *found)


def _whole(db: "duckdb.DuckDBPyConnection", column: _Text) -> bool:
    return _all(db, column, f"regexp_full_match({column.sql}, '{cells.INTEGER}')")


def _like_thousands(db: "duckdb.DuckDBPyConnection", column: _Text) -> bool:
    """Return whether the point in every number could separate thousands, as in 1.234."""
    return _all(db, column, rf"regexp_full_match({column.sql}, '[+-]?\d+|[+-]?[1-9]\d{{0,2}}(\.\d{{3}})+')")


def _all(db: "duckdb.DuckDBPyConnection", column: _Text, test: str) -> bool:
    """Return whether all values pass a test; reading ends with the first that does not."""
    return not db.execute(f"SELECT 1 FROM {column.rows} WHERE NOT {test} LIMIT 1").fetchall()


def either(found: dates.Found, name: str, formats: Sequence[str] = ()) -> str:
    """Name the readings of a column of times, and the option that decides; `formats` are of a part of its texts."""
    readings = " or ".join(
        f"{moment} ({form})" for moment, form in zip(found.moments[:3], found.formats[:3], strict=True)
    )
    options = " or ".join(f"--date-format {shlex.quote(f'{name}={form}')}" for form in (formats or found.formats)[:2])
    return f"{found.example!r} in {name!r} could be {readings}: say which one, {options}"


def _time(db: "duckdb.DuckDBPyConnection", column: _Text, reading: Column, zone: str, decided: Decided) -> Column:
    """Record the reading of a column of times, with an example if it is not ISO 8601."""
    moment = cells.value(column.sql, reading, zone)
    ((fits, stray, example),) = db.execute(
        f"SELECT count({moment}), min({column.sql}) FILTER (({moment}) IS NULL), "
        f"max({column.sql}) FILTER (({moment}) IS NOT NULL) FROM {column.rows}"
    ).fetchall()
    notes = []
    if reading.format != "iso":
        ((made,),) = db.execute(
            f"SELECT any_value(strftime(({moment}) AT TIME ZONE {cells.literal(zone)}, '%Y-%m-%d %H:%M:%S')) "
            f"FROM {column.rows} WHERE {column.sql} = {cells.literal(example)}"
        ).fetchall()
        notes.append(f"{reading.format}: {example} is {dates.brief(made)}")
    if fits < column.filled:
        many = column.filled - fits
        rows, are = (f"{many:,} rows do", "are") if many > 1 else ("1 row does", "is")
        decided.look.append(f"{rows} not fit {column.name!r} as a time, such as {stray[:40]!r}, and {are} left out")
    return _keep(db, column, reading, decided, notes)


def _keep(
    db: "duckdb.DuckDBPyConnection", column: _Text, reading: Column, decided: Decided, notes: Sequence[str] = ()
) -> Column:
    decided.columns[column.name] = reading
    known = f"lower({column.sql}) IN ({', '.join(map(cells.literal, WORDS))})"
    counts = _words(db, column, reading.missing, known=known)
    notes = [*notes, *numbers.words(reading)]
    if counts:
        notes.append(f"{sum(counts.values()):,} missing: {', '.join(counts)}")
    if notes:
        decided.said.append(f"read {column.name!r} as {cells.WHAT[reading.kind]} ({'; '.join(notes)})")
    return reading


def _text(db: "duckdb.DuckDBPyConnection", column: _Text, asked: Asked, decided: Decided) -> None:
    """Record the words for a missing value among texts; if all values are codes of two letters, NA is not one."""
    name = column.name
    exact = ", ".join(map(cells.literal, EXACT))
    counts = _words(
        db, column, asked.words(name), known=f"{column.sql} IN ({exact})" if name not in asked.missing else ""
    )
    if "NA" in counts and name not in asked.missing:
        alike = f"SELECT bool_and(regexp_full_match({column.sql}, '[A-Z]{{2}}')) FROM {column.rows}"
        if db.execute(alike).fetchall()[0][0]:
            del counts["NA"]
            decided.said.append(f"NA is kept as a value of {name!r}, where every other has two letters too")
    if counts:
        decided.columns[name] = Column(kind="text", missing=tuple(counts))
        shown = ", ".join(counts)
        decided.said.append(f"read {name!r} as text ({sum(counts.values()):,} missing: {shown})")


def _words(db: "duckdb.DuckDBPyConnection", column: _Text, more: tuple[str, ...], *, known: str = "") -> dict[str, int]:
    """Count the words for a missing value."""
    listed = [known] if known else []
    if more:
        listed.append(f"{column.sql} IN ({', '.join(map(cells.literal, more))})")
    query = f"SELECT {column.sql}, count(*) FROM {column.relation} WHERE {' OR '.join(listed) or 'false'} GROUP BY 1"
    return dict(db.execute(f"{query} ORDER BY 2 DESC, 1 LIMIT 50").fetchall())


def _listed(opened: "Opened") -> str:
    return ", ".join(map(repr, list(opened.columns)[:30]))
