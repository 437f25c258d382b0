"""Make names that Python, SQL, Feast and Kubernetes all accept from the names of a table's columns."""

import builtins
import keyword
import re
import unicodedata
from collections.abc import Collection
from functools import cache

from kubeloop.data import sources

LONGEST = 28
"""Most characters of a name before a suffix such as `_events_30d`, so that generated lines stay short."""

# Names with another meaning in generated files.
_OURS = frozenset(
    {"any", "asked", "categorical", "changes", "datetime", "day", "entities", "entity", "event_id"}
    | {"event_timestamp", "events", "feast", "feature", "features", "float64", "hour", "inputs", "known", "label"}
    | {"label_available_at", "labels", "long", "moment", "number", "or_zero", "positives", "probability", "reasons"}
    | {"request", "rows", "services", "short", "so_far", "source", "string", "table", "timedelta", "training"}
    | {"typing", "values", "views", "weekday"}
)
_PYTHON = frozenset(word.lower() for word in (*keyword.kwlist, *keyword.softkwlist, *dir(builtins)))
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_DERIVED = re.compile(r"_(now|history|(seen|events|rate)_\d+[dhm])$")


def safe(text: str, taken: Collection[str] = (), fallback: str = "field", *, ascii_only: bool = False) -> str:
    """Return a lower-case identifier for any text, in at most `LONGEST` characters.

    Letters of every script stay: Python, DuckDB, Feast, ONNX and JSON take them in names.

    Args:
        text: any text, possibly empty.
        taken: names that are in use or reserved, in lower case.
        fallback: replaces a text without a letter, and is appended to a reserved word of a language.
        ascii_only: for names that also occur in files, addresses and loop.yaml.
    """

    def free(name: str) -> bool:
        return not (name in taken or name in _OURS | _PYTHON | _sql() or _DERIVED.search(name))

    base = _latin(text) if ascii_only else _letters(text)
    if not base.isidentifier() or base.startswith("_"):
        base = f"{fallback}_{base}".rstrip("_")
    base = _short(base, LONGEST)
    if free(base):
        return base
    number = 1
    name = f"{_short(base, LONGEST - len(fallback) - 1)}_{fallback}"
    while not free(name):
        number += 1
        name = f"{_short(base, LONGEST - len(str(number)) - 1)}_{number}"
    return name


@cache
def _sql() -> frozenset[str]:
    """Return the words that DuckDB reserves, everywhere or in some places."""
    with sources.connect() as db:
        found = db.execute("SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category <> 'unreserved'")
        return frozenset(row[0] for row in found.fetchall())


def dns(text: str) -> str:
    """Return a name that Kubernetes accepts for a service, with at most 40 characters."""
    name = _latin(text).replace("_", "-")
    if not name or not name[0].isalpha():
        name = f"loop-{name}"
    return name[:40].rstrip("-")


def _latin(text: str) -> str:
    split = _WORDS.sub("_", unicodedata.normalize("NFKD", text))
    return re.sub(r"[^a-z0-9]+", "_", split.encode("ascii", "ignore").decode().lower()).strip("_")


def _letters(text: str) -> str:
    # Python reads identifiers in this form. Converting to lower case may add marks, which must be composed afterwards.
    lower = unicodedata.normalize("NFKC", _WORDS.sub("_", unicodedata.normalize("NFKC", text)).lower())
    kept = "".join(sign if f"a{sign}".isidentifier() else "_" for sign in lower)
    return re.sub(r"_+", "_", kept).strip("_")


def _short(name: str, length: int) -> str:
    return name[:length].rstrip("_")
