"""Open a table's file, whatever its format, compression, encoding and layout, as a relation of DuckDB."""

import codecs
import contextlib
import csv
import fcntl
import io
import json
import os
import re
import shlex
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from kubeloop.config.reading import Read
from kubeloop.config.types import ConfigError
from kubeloop.reading.cells import identifier, literal

if TYPE_CHECKING:
    import duckdb

_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}
_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_DELIMITERS = ",;\t|"
_CHUNK = 1 << 20
_WORDS = 500
"""Words with non-ASCII letters, which show the encoding of a file."""
_HEAD_LINES = 500
RAGGED = 0.01
"""If more than this share of the lines has another number of fields than the header, the file is not read at all."""


class FileError(ConfigError):
    """A file cannot be opened; the message names the place in the file and the option that helps."""


@dataclass(frozen=True)
class Opened:
    """An open file.

    Attributes:
        relation: SQL to read from.
        columns: DuckDB type by name, in order.
        texts: whether the file has no types, so that every column is text.
        read: how it was opened, with what was found in it.
        said: sentences about what was found.
        ragged: line number, reason and text of each line that has another number of fields than the header.
    """

    relation: str
    columns: dict[str, str]
    texts: bool = False
    read: Read = field(default_factory=Read)
    said: tuple[str, ...] = ()
    ragged: tuple[tuple[int, str, str], ...] = ()


def open_file(db: "duckdb.DuckDBPyConnection", path: Path, read: Read, scratch: Path, *, first: bool) -> Opened:
    """Open a file.

    Args:
        db: the database that will read it.
        path: the file.
        read: what is known about it.
        scratch: an empty folder on a disk with room for the table; it must exist as long as the relation is used.
        first: nothing was decided yet, so a doubtful value is an error; later it loses a row at most.

    Raises:
        FileError: it cannot be read.
    """
    import duckdb

    origin, path = path, _unpacked(path, scratch)
    with path.open("rb") as file:
        head = file.read(8)
    try:
        if head[:4] == b"PAR1":
            return _typed(db, f"read_parquet({literal(path)})", read)
        if head[:6] == b"ARROW1" or head[:4] == b"FEA1":
            return _feather(db, path, read)
        if path.suffix in (".parquet", ".feather", ".arrow"):
            raise FileError(
                f"{origin} cannot be read: its content is not that of a {path.suffix[1:].capitalize()} file"
            )
        if head[:4] in (b"PK\x03\x04", b"\xd0\xcf\x11\xe0"):
            path, read, said = _workbook(origin, path, read, scratch)
        else:
            path, read, said = _text(origin, path, read, scratch, first=first)
            with path.open(encoding="utf-8-sig") as lines:
                begin = lines.read(4096).lstrip()[:1]
            if begin == "<":
                raise FileError(
                    f"{origin} holds HTML or XML, which some programs save as Excel files; open it in a spreadsheet "
                    "and save it as CSV or xlsx"
                )
            if begin in ("{", "["):
                return _json(db, origin, path, read, first=first)
        return _csv(db, origin, path, read, scratch, said, first=first)
    except duckdb.OutOfMemoryException:
        raise
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise FileError(f"{origin} cannot be read: it is damaged, or cut off") from error


def _unpacked(path: Path, scratch: Path) -> Path:
    """Return the file without its compression."""
    with path.open("rb") as file:
        head = file.read(4)
    packed = next((name for mark, name in _COMPRESSED.items() if head.startswith(mark)), None)
    try:
        if packed:
            target = scratch / (path.stem or "data")
            with pa.input_stream(str(path), compression=packed) as source, target.open("wb") as out:
                while chunk := source.read(_CHUNK):
                    out.write(chunk)
            return target
        if head == b"PK\x03\x04":
            with zipfile.ZipFile(path) as archive:
                names = [
                    name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")
                ]
                if "[Content_Types].xml" in names:
                    return path
                if len(names) != 1:
                    raise FileError(f"{path} holds {len(names)} files; unpack it and name one of them")
                target = scratch / Path(names[0]).name
                with archive.open(names[0]) as source, target.open("wb") as out:
                    while chunk := source.read(_CHUNK):
                        out.write(chunk)
            return target
    except (OSError, EOFError, pa.ArrowException, zipfile.BadZipFile) as error:
        raise FileError(f"{path} cannot be read: its compression is damaged, or cut off") from error
    return path


def _typed(db: "duckdb.DuckDBPyConnection", relation: str, read: Read) -> Opened:
    return Opened(relation, {row[0]: row[1] for row in db.execute(f"DESCRIBE FROM {relation}").fetchall()}, read=read)


def _feather(db: "duckdb.DuckDBPyConnection", path: Path, read: Read) -> Opened:
    import pyarrow.dataset
    import pyarrow.feather

    with path.open("rb") as file:
        old = file.read(4) == b"FEA1"
    source = pyarrow.feather.read_table(path) if old else pyarrow.dataset.dataset(path, format="feather")
    db.register("feather", source)
    return _typed(db, "feather", read)


def _workbook(origin: Path, path: Path, read: Read, scratch: Path) -> tuple[Path, Read, tuple[str, ...]]:
    """Write a sheet as CSV; its first row is the first with as many names as the sheet has columns."""
    import python_calamine as calamine

    try:
        book = calamine.CalamineWorkbook.from_path(path)
        sheets = {name: book.get_sheet_by_name(name).to_python(skip_empty_area=True) for name in book.sheet_names}
    except (calamine.CalamineError, ValueError) as error:
        raise FileError(f"{origin} cannot be read: it is not a workbook, or it is protected by a password") from error
    full = [name for name, rows in sheets.items() if len(rows) > 1]
    if read.sheet is not None and read.sheet not in sheets:
        raise FileError(f"{origin} has no sheet {read.sheet!r}; name one of its sheets: {_sheets(list(sheets))}")
    if read.sheet is None and len(full) > 1:
        raise FileError(f"{origin} has several sheets with data; choose one: {_sheets(full)}")
    if read.sheet is None and not full:
        raise FileError(f"{origin} has no sheet with data")
    name = read.sheet or full[0]
    rows = [[_cell(value) for value in row] for row in sheets[name]]
    width = max((sum(value != "" for value in row) for row in rows), default=0)
    skip = read.skip
    if skip is None:
        skip = next((place for place, row in enumerate(rows) if sum(value != "" for value in row) == width), 0)
    target = scratch / "sheet.csv"
    with target.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows(row for row in rows[skip:] if any(row))
    said = [f"sheet {name!r}"] if len(sheets) > 1 else []
    said += [f"{skip} rows before the names of the columns left out"] if skip else []
    return target, read.model_copy(update={"sheet": name, "skip": skip, "delimiter": ","}), tuple(said)


def _names(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:20]))


def _sheets(names: Sequence[str]) -> str:
    return " or ".join(f"--sheet {shlex.quote(name)}" for name in names[:20])


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, datetime):
        return value.isoformat(" ")
    return value.isoformat() if isinstance(value, date | time) else str(value)


def _text(origin: Path, path: Path, read: Read, scratch: Path, *, first: bool) -> tuple[Path, Read, tuple[str, ...]]:
    """Return a text file in UTF-8."""
    with path.open("rb") as file:
        head = file.read(4096)
    mark = next((name for start, name in _MARKS.items() if head.startswith(start)), None)
    encoding = read.encoding or mark or "utf-8"
    if read.encoding is None and mark is None and head.count(b"\0") > len(head) // 4:
        side = "utf-16-le" if head[1:2] == b"\0" else "utf-16-be"
        raise FileError(f"{origin} has a null in every other byte; it is probably {side}: give --encoding {side}")
    plain = encoding.lower().replace("_", "-") in ("utf-8", "utf8", "ascii")
    line = _not_in(path, encoding)
    if line is not None and first:
        said = read.encoding or "UTF-8"
        raise FileError(f"line {line} of {origin} is not {said}; {_encodings(path)}")
    if plain and line is None:
        return path, read, ()
    target = scratch / f"utf-8{path.suffix}"
    with (
        path.open(encoding=encoding, errors="replace", newline="") as source,
        target.open("w", encoding="utf-8", newline="") as out,
    ):
        while text := source.read(_CHUNK):
            out.write(text)
    return target, read.model_copy(update={"encoding": encoding}), () if encoding == "utf-8-sig" else (encoding,)


def _encodings(path: Path) -> str:
    """Say how non-ASCII words read in each encoding that fits the whole file, with the option for it."""
    words: dict[bytes, None] = {}
    with path.open("rb") as file:
        for line in file:
            words.update(dict.fromkeys(re.findall(rb"[^\s,;|\"]*[\x80-\xff][^\s,;|\"]*", line)))
            if len(words) > _WORDS:
                break
    if not words:
        return "give its encoding with --encoding"
    readings: dict[tuple[str, ...], str] = {}
    for name in ("cp1252", "cp1250", "cp1251", "latin-1"):
        if _not_in(path, name) is None:
            readings.setdefault(tuple(word.decode(name) for word in words), name)
    # The first word that tells most of them apart.
    telling = max(range(len(words)), key=lambda place: len({texts[place] for texts in readings}))
    shown = " or ".join(f"{texts[telling]!r} (--encoding {name})" for texts, name in readings.items())
    return f"choose one: {shown}"


def _not_in(path: Path, encoding: str) -> int | None:
    """Return the first line that does not fit an encoding."""
    try:
        decoder = codecs.getincrementaldecoder(encoding)("strict")
    except LookupError:
        raise FileError(f"--encoding {encoding!r} is unknown; write one such as utf-8, cp1252 or latin-1") from None
    line = 1
    with path.open("rb") as file:
        while True:
            chunk = file.read(_CHUNK)
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                # The decoder has kept the first bytes of a character that began in the previous chunk.
                return line + error.object.count(b"\n", 0, error.start)
            if not chunk:
                return None
            line += chunk.count(b"\n")


def _json(db: "duckdb.DuckDBPyConnection", origin: Path, path: Path, read: Read, *, first: bool) -> Opened:
    """Read one JSON object per line, or a list of objects; every value as its text."""
    import duckdb

    source = f"read_json({literal(path)}, format='auto', sample_size=-1, maximum_depth=1"
    try:
        found = db.execute(f"DESCRIBE FROM {source})").fetchall()
    except duckdb.Error as error:
        if first:
            raise FileError(f"{origin} cannot be read: {_broken_json(path)}") from error
        found = db.execute(f"DESCRIBE FROM {source}, ignore_errors=true)").fetchall()
    if [row[0] for row in found] == ["json"]:
        raise FileError(f"{origin} cannot be read: it must hold one JSON object per line, or a list of them")
    if first and len(db.execute(f"FROM {source}) LIMIT 2").fetchall()) < 2 and _nested(found):
        raise FileError(
            f"{origin} is one JSON object with {_names([row[0] for row in found])} in it, not one per line or a list "
            "of them; pandas writes that with to_json(orient='records', lines=True)"
        )
    listed = ", ".join(f"{literal(row[0])}: 'VARCHAR'" for row in found)
    skips = "" if first else ", ignore_errors=true"
    relation = f"read_json({literal(path)}, format='auto', columns={{{listed}}}{skips})"
    return Opened(relation, {row[0]: "VARCHAR" for row in found}, texts=True, read=read)


def _nested(found: Sequence[Sequence[Any]]) -> bool:
    """Return whether columns hold whole tables, in lists or objects."""
    return any(row[1].endswith("[]") or row[1].startswith(("STRUCT", "MAP", "JSON")) for row in found)


def _broken_json(path: Path) -> str:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                json.loads(line or "{}")
            except ValueError:
                return f"line {number} is not JSON: {line.strip()[:60]!r}"
    return "it must hold one JSON object per line, or a list of them"


@dataclass(frozen=True)
class _Layout:
    """Delimiter, lines before the header, and names."""

    delimiter: str
    skip: int
    names: list[str]
    before: str
    guarded: bool = False


def _csv(
    db: "duckdb.DuckDBPyConnection",
    origin: Path,
    path: Path,
    read: Read,
    scratch: Path,
    said: tuple[str, ...],
    *,
    first: bool,
) -> Opened:
    layout = _layout(origin, path, read, first=first)
    if not layout.names:
        raise FileError(f"{origin} is empty; name a table with data")
    names = _unique(layout.names)
    named = [name for name, given in zip(names, layout.names, strict=True) if name == given.strip()]
    listed = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in names)
    target = scratch / "rows.parquet"
    skip = 0 if read.sheet else layout.skip
    picked = ""
    if layout.guarded:
        # In Excel, a text that must not change is written as a formula, ="007".
        inner = [f"regexp_replace({identifier(name)}, '^=\"(.*)\"$', '\\1') AS {identifier(name)}" for name in names]
        picked = f"SELECT {', '.join(inner)}"
        said = (*said, 'values without the ="" around them')
    db.execute(
        f"COPY ({picked} FROM read_csv({literal(path)}, auto_detect=false, header=true, "
        f"delim={literal(layout.delimiter)}, quote='\"', escape='\"', skip={skip}, "
        f"columns={{{listed}}}, store_rejects=true, rejects_limit=0, "
        f"max_line_size=16777216)) TO {literal(target)} (FORMAT parquet)"
    )
    ragged = _ragged(db, layout.delimiter, len(names))
    relation, rows = f"read_parquet({literal(target)})", _count(db, target)
    # Files that were appended to each other repeat their header.
    again = " AND ".join(f"trim({identifier(name)}) IS NOT DISTINCT FROM {literal(name)}" for name in named) or "false"
    ((repeated,),) = db.execute(f"SELECT count_if({again}) FROM {relation}").fetchall()
    if repeated:
        relation = f"(FROM {relation} WHERE NOT ({again}))"
        said = (*said, f"{repeated:,} more line{'s' * (repeated > 1)} with the names of the columns left out")
    if first and len(ragged) > max(5, RAGGED * rows):
        line, why, text = ragged[0]
        raise FileError(
            f"line {line} of {origin} {why}, as {len(ragged) - 1:,} more: {text[:80]!r}; give the field separator "
            "with --delimiter, or correct the file"
        )
    if layout.delimiter != (read.delimiter or ","):
        kinds = {";": "semicolons", "\t": "tabs", "|": "bars"}
        said = (*said, f"{kinds.get(layout.delimiter, layout.delimiter)} between the fields")
    if layout.skip and read.skip is None:
        lines = f"{layout.skip} lines" if layout.skip > 1 else "1 line"
        said = (*said, f"{lines} before the names of the columns left out: {layout.before[:60]!r}")
    found = read.model_copy(update={"delimiter": layout.delimiter, "skip": read.skip if read.sheet else layout.skip})
    return Opened(relation, dict.fromkeys(names, "VARCHAR"), True, found, said, tuple(ragged))


def _layout(origin: Path, path: Path, read: Read, *, first: bool) -> _Layout:
    """Find the delimiter of the fields, and the first line with the most common number of fields."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        head = "".join(line for _, line in zip(range(_HEAD_LINES), file, strict=False))
    best: tuple[tuple[Any, ...], _Layout] | None = None
    for delimiter in read.delimiter or _DELIMITERS:
        rows = _parsed(head, delimiter)
        if not rows:
            continue
        counts = Counter(len(row) for _, row in rows[: max(2, len(rows) - 1)])
        # For a sheet, the lines before the names were removed earlier.
        skip = 0 if read.sheet else read.skip
        if skip is not None:
            place = next((place for place, (line, _) in enumerate(rows) if line >= skip), 0)
            width = len(rows[place][1])
        else:
            width = max(counts, key=lambda size: (counts[size], size))
            place = next(place for place, (_, row) in enumerate(rows) if len(row) == width)
            if place and len(rows[0][1]) > 1 and _data(rows[place][1]) and not _data(rows[0][1]):
                place = 0
            if 2 * sum(map(bool, map(str.strip, rows[place][1]))) <= width:
                # SAP pads a title to the width of the table.
                whole = (at for at, (_, row) in enumerate(rows[:20]) if len(row) == width and all(map(str.strip, row)))
                place = next(whole, place)
        share = counts[width] / sum(counts.values())
        line, names = rows[place]
        layout = _Layout(delimiter, line, names, head.strip().splitlines()[0])
        rank = (width > 1 and share >= 0.8, place == 0, width, share)
        if best is None or rank > best[0]:
            best = rank, layout
    if best is None:
        return _Layout(",", 0, [], "")
    found = best[1]
    width = len(found.names)
    below = [row for line, row in _parsed(head, found.delimiter) if line > found.skip]
    if below and all(len(row) == width + 1 for row in below[: max(1, len(below) - 1)]):
        # Each line but the first ends with a separator, or the first column (R's row numbers) has no name.
        wider = [row for row in below if len(row) > width]
        if all(not row[-1].strip() for row in wider):
            found = replace(found, names=[*found.names, ""])
        elif [row[0] for row in wider] == [str(number) for number in range(1, len(wider) + 1)]:
            found = replace(found, names=["", *found.names])
    found = replace(found, guarded='="' in head or '"=""' in head)
    if first and _data(found.names):
        raise FileError(
            f"the first line of {origin} holds data, such as {found.names[0]!r}, not names of columns; add a line with "
            "names, or give the number of lines before it with --skip-rows"
        )
    return found


def _parsed(head: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """Return the first rows, each with the number of lines before it."""
    reader = csv.reader(io.StringIO(head, newline=""), delimiter=delimiter)
    found, line = [], 0
    with contextlib.suppress(csv.Error):
        for row in reader:
            if row:
                found.append((line, row))
            line = reader.line_num
    return found


def _data(names: Sequence[str]) -> bool:
    """Return whether a line looks like data: it has a time, or almost only numbers."""
    numbers = sum(bool(re.fullmatch(r"[+-]?\d+([.,]\d+)?", name.strip())) for name in names)
    times = any(re.fullmatch(r"\d{4}-\d\d-\d\d.*|\d\d?[./]\d\d?[./]\d{4}.*", name.strip()) for name in names)
    return bool(times or numbers * 2 > len(names))


def _unique(names: Sequence[str]) -> list[str]:
    """Give every column a unique name; DuckDB ignores upper and lower case."""
    found: list[str] = []
    taken: set[str] = set()
    for place, name in enumerate(names):
        base = name.strip() or f"column{place}"
        chosen, number = base, 1
        while chosen.lower() in taken:
            chosen, number = f"{base}_{number}", number + 1
        taken.add(chosen.lower())
        found.append(chosen)
    return found


def _ragged(db: "duckdb.DuckDBPyConnection", delimiter: str, width: int) -> list[tuple[int, str, str]]:
    found = []
    query = "SELECT line, any_value(error_type::VARCHAR), any_value(csv_line) FROM reject_errors GROUP BY 1 ORDER BY 1"
    for line, kind, text in db.execute(query).fetchall():
        whole = (text or "").strip("\r\n")
        fields = len(next(csv.reader([whole], delimiter=delimiter), []))
        if kind == "LINE SIZE OVER MAXIMUM":
            why = "is longer than 16 MiB"
        elif kind == "UNQUOTED VALUE" or fields == width:
            why = "has a quote inside a value, or one that is not closed"
        else:
            why = f"has {fields} field{'s' * (fields != 1)}, the header {width}"
        found.append((int(line), why, whole[:500]))
    return found


def _count(db: "duckdb.DuckDBPyConnection", path: Path) -> int:
    ((rows,),) = db.execute(f"SELECT count(*) FROM read_parquet({literal(path)})").fetchall()
    return int(rows)


@contextlib.contextmanager
def opened(
    db: "duckdb.DuckDBPyConnection", path: Path, read: Read, near: Path, *, first: bool = False
) -> Iterator[Opened]:
    """Open a file with a temporary folder, which is removed afterwards, as are the folders of killed readers.

    Raises:
        FileError: it cannot be read.
    """
    with _scratch(near) as scratch:
        yield open_file(db, path, read, scratch, first=first)


@contextlib.contextmanager
def _scratch(near: Path) -> Iterator[Path]:
    """Make a folder that is locked while its process lives, and remove the folders of processes that have ended."""
    with contextlib.ExitStack() as held:
        with _locked(near):
            for left in near.glob(".reading-*"):
                with contextlib.suppress(BlockingIOError, FileNotFoundError), _locked(left, wait=False):
                    shutil.rmtree(left)
            scratch = Path(held.enter_context(tempfile.TemporaryDirectory(prefix=".reading-", dir=near)))
            held.enter_context(_locked(scratch))
        yield scratch


@contextlib.contextmanager
def _locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
