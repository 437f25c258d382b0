"""Find how a column writes its numbers: decimal sign, thousands separator, currency or percent."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kubeloop.config.reading import Column
from kubeloop.reading import cells

if TYPE_CHECKING:
    import duckdb

_STYLES = ((".", ""), (",", ""), (".", ","), (",", "."), (".", " "), (",", " "), (".", "'"), (",", "'"))
_SIGNS = frozenset("%$€£¥₹₽₩₺₴₫₪฿¢") | {"USD", "EUR", "GBP", "CHF", "JPY", "CNY", "INR", "CAD", "AUD", "US$", "R$"}
_SIGNS |= {"kr", "Kr", "kr.", "Kč", "zł", "Ft", "lei", "SEK", "NOK", "DKK", "PLN", "CZK", "HUF", "RON", "BRL"}

_HEAD = 10_000


@dataclass(frozen=True)
class Found:
    """The readings that fit every value, with the result of each for one value; several only if they disagree."""

    columns: tuple[Column, ...]
    example: str
    values: tuple[str, ...]


def find(db: "duckdb.DuckDBPyConnection", rows: str, text: str, filled: int) -> Found | str | None:
    """Find how the numbers of a column of texts are written.

    Args:
        db: the database.
        rows: relation of the rows with a value.
        text: SQL for a value as text.
        filled: number of these rows.

    Returns:
        The readings that fit all values; or why the values are not numbers, if they nearly are; or None.
    """
    residue = f"trim(regexp_replace({text}, '[-+−0-9.,()''’\\s\\x{{00A0}}\\x{{2009}}\\x{{202F}}]+', '', 'g'))"
    # Columns without any number show that at the beginning, so the rest is not read.
    head = f"(FROM {rows} LIMIT {_HEAD})"
    found = {word for (word,) in db.execute(f"SELECT DISTINCT {residue} FROM {head}").fetchall()}
    if not found <= {"", "e", "E", *_SIGNS} and not _measures(db, head, text):
        return None
    residues = dict(db.execute(f"SELECT {residue}, count(*) FROM {rows} GROUP BY 1 ORDER BY 2 DESC LIMIT 5").fetchall())
    signs = {word for word in residues if word not in ("", "e", "E")}
    if not signs <= _SIGNS and not _measures(db, rows, text):
        return None
    if len(signs) > 1:
        return f"has several units ({', '.join(sorted(signs))})"
    sign = next(iter(signs), "")
    if sign and (sign == "%" or sign not in _SIGNS) and residues[sign] < filled:
        return f"has {sign} in {residues[sign]:,} of {filled:,} values"
    styles = [Column(kind="number", decimal=point, thousands=group, sign=sign) for point, group in _STYLES]
    values = [cells.value(text, style, "UTC") for style in styles]
    (fits,) = db.execute(f"SELECT {', '.join(f'count({value})' for value in values)} FROM {rows}").fetchall()
    fitting = [place for place, count in enumerate(fits) if count == filled]
    if not fitting:
        return None
    first, *others = fitting
    differ = [f"({values[place]}) IS DISTINCT FROM ({values[first]})" for place in others]
    (row,) = db.execute(
        f"SELECT {', '.join([f'count_if({test})' for test in differ] or ['count_if(false)'])} FROM {rows}"
    ).fetchall()
    apart = [(place, test) for place, test, count in zip(others, differ, row, strict=False) if count]
    where = " OR ".join(test for _, test in apart) or "true"
    left = [first, *(place for place, _ in apart)]
    shown = ", ".join(values[place] for place in left)
    example, *made = db.execute(f"SELECT {text}, {shown} FROM {rows} WHERE {where} LIMIT 1").fetchall()[0]
    # If several readings agree, for example because no value has groups, the first is the simplest.
    told: dict[str, int] = {}
    for place, value in zip(left, made, strict=True):
        told.setdefault(f"{value:g}", place)
    return Found(tuple(styles[place] for place in told.values()), example, tuple(told))


def _measures(db: "duckdb.DuckDBPyConnection", rows: str, text: str) -> bool:
    """Return whether each value is a number with a unit, as in 3.5 kg; values like 12A or 1.OG could be codes."""
    shape = rf"regexp_full_match({text}, '[-+−]?[0-9]+([.,][0-9]+)*\s*[\p{{L}}°µ/²³]{{1,8}}')"
    plain = rf"regexp_matches({text}, '[0-9][.,][0-9]|[0-9]\s')"
    ((shaped, measured),) = db.execute(f"SELECT bool_and({shape}), avg(({plain})::INTEGER) FROM {rows}").fetchall()
    return bool(shaped and measured > 0.5)


def words(column: Column) -> list[str]:
    """Say how the numbers are written, unless it is the plain way."""
    found = []
    if column.decimal == ",":
        found.append("decimal comma")
    if column.thousands:
        names = {",": "commas", ".": "points", " ": "spaces", "'": "apostrophes"}
        found.append(f"{names[column.thousands]} between thousands")
    if column.sign:
        found.append(f"without the {column.sign}")
    return found
