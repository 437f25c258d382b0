"""Validate tables against their suites with Great Expectations: a verdict, a quarantine and Data Docs.

Importing the library takes seconds, so functions import it when they run. It reads its environment at that
moment: the process must have `config.QUIET` set before it validates.
"""

import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kubeloop.data.expectations import Entry, SuiteError, load, resolve
from kubeloop.data.validation_report import CRITICAL, Failure, Report, TableReport, ValidationFailed, require

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuite
    from great_expectations.core.expectation_validation_result import (
        ExpectationSuiteValidationResult,
        ExpectationValidationResult,
    )
    from great_expectations.data_context.data_context.ephemeral_data_context import EphemeralDataContext

__all__ = ["REASONS", "Failure", "Report", "TableReport", "ValidationFailed", "require", "validate"]

REASONS = "reasons"
"""The column of a quarantine file that names the expectations that a row missed."""

# The quarantine needs the index of every missed row. A query string with all of them would only cost time.
_RESULT_FORMAT = {
    "result_format": "COMPLETE",
    "partial_unexpected_count": 20,
    "return_unexpected_index_query": False,
}


def validate(
    tables: Mapping[str, Path],
    suites: Path,
    *,
    as_of: datetime,
    docs: Path,
    quarantine: Path,
    clean: Path,
    misfits: Mapping[str, Path] | None = None,
) -> Report:
    """Run every table's suite, separate the rows that miss, and write the Data Docs.

    Rows that miss a row-level expectation within its `mostly` tolerance go to `quarantine/<table>.parquet`, with a
    list column `reasons`, and are left out of `clean/<table>.parquet`: together the two files hold the table. No
    other row is dropped. A table with a critical failure gets no clean file, and its quarantine file also holds the
    rows behind the failures. What an earlier run left for these tables in the folders is replaced.

    Expectations see numbers as int64 and float64 and moments as `datetime64[us, UTC]`, whatever their width, unit and
    zone in the file; the files that are written keep the types of the source.

    Args:
        tables: the Parquet file of each table.
        suites: folder with a `<table>.yaml` for each table; see `kubeloop.data.expectations` for the format.
        as_of: the run's moment, timezone-aware.
        docs: folder for the static site; its `index.html` links to every result.
        quarantine: folder for the rows that missed.
        clean: folder for the good rows.
        misfits: Parquet files of rows that could not be read, with their `reasons`, by table; they count as rows of
            the table and go to its quarantine. Reasons that differ only after `): `, in the value, count as one.

    Raises:
        SuiteError: a suite is missing or wrong; raised before any table is validated.
        ValueError: `as_of` has no time zone, or a table has a column named `reasons`.
    """
    entries = resolve(load(suites, list(tables)), tables, as_of)
    built = {table: _suite(table, entries[table]) for table in tables}
    context = _context(docs)
    for folder in (quarantine, clean):
        folder.mkdir(parents=True, exist_ok=True)

    reports: dict[str, TableReport] = {}
    failures: list[Failure] = []
    for table, path in tables.items():
        data = pq.read_table(path)
        if REASONS in data.column_names:
            raise ValueError(
                f"table {table} has a column {REASONS!r}, but the quarantine needs this name; rename the column"
            )
        outcome = _run(context, built[table], data)
        failed = _failures(table, entries[table], outcome)
        usable = not any(failure.severity == CRITICAL for failure in failed)
        reasons = _reasons(entries[table], outcome, with_failed=not usable)
        unread = pq.read_table(misfits[table]) if misfits and table in misfits else None
        _separate(data, reasons, unread, quarantine / f"{table}.parquet", clean / f"{table}.parquet", usable)
        counts = Counter(reason for row in reasons.values() for reason in row)
        if unread is not None:
            counts.update(_short(reason) for row in unread[REASONS].to_pylist() for reason in row)
        more = unread.num_rows if unread is not None else 0
        reports[table] = TableReport(data.num_rows + more, len(reasons) + more, len(entries[table]), dict(counts))
        failures += failed
        _publish(context, entries[table], outcome, as_of)
    # The library's own cleaning would delete every file under the folder, including files that are not its pages.
    for pages in ("expectations", "validations"):
        shutil.rmtree(docs / pages, ignore_errors=True)
    context.build_data_docs()
    # Remove 4 MB of images and fonts that our pages do not use.
    shutil.rmtree(docs / "static", ignore_errors=True)
    passed = not any(failure.severity == CRITICAL for failure in failures)
    return Report(passed, as_of.astimezone(UTC), reports, tuple(failures), docs, quarantine)


def _context(docs: Path) -> "EphemeralDataContext":
    """Open a context in memory with one Data Docs site, in the folder `docs`."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    view = {"module_name": "kubeloop.data.data_docs", "class_name": "View"}
    site = {
        "class_name": "SiteBuilder",
        "show_how_to_buttons": False,
        "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs.absolute())},
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder", "view": view},
        "site_section_builders": {part: {"view": view} for part in ("expectations", "validations")},
    }
    config = DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(),
        data_docs_sites={"local": site},
        analytics_enabled=False,
        progress_bars=ProgressBarsConfig(globally=False),
    )
    return gx.get_context(project_config=config, mode="ephemeral")


def _suite(table: str, entries: Sequence[Entry], *, shown: bool = False) -> "ExpectationSuite":
    """Build the native suite; an expectation's `meta.entry` is its position in the file."""
    from great_expectations.core import ExpectationSuite
    from great_expectations.exceptions.exceptions import ExpectationNotFoundError
    from great_expectations.expectations.registry import get_expectation_impl

    suite = ExpectationSuite(name=table)
    for place, entry in enumerate(entries, start=1):
        name, arguments = (entry.name, entry.shown) if shown else (entry.runs_as, entry.arguments)
        try:
            implementation = get_expectation_impl(name)
            expectation = implementation(**arguments | {"meta": {**arguments.get("meta", {}), "entry": place}})
        except ExpectationNotFoundError as error:
            raise SuiteError(
                f"{entry.origin}: Great Expectations does not have this expectation; "
                "https://greatexpectations.io/expectations lists the names"
            ) from error
        except ValueError as error:
            raise SuiteError(f"{entry.origin}: {error}") from error
        suite.expectations.append(expectation)
    return suite


def _run(
    context: "EphemeralDataContext", suite: "ExpectationSuite", data: pa.Table
) -> "ExpectationSuiteValidationResult":
    source = context.data_sources.add_or_update_pandas(suite.name)
    batches = source.add_dataframe_asset(suite.name).add_batch_definition_whole_dataframe("all")
    # A row's index label is then its position in the Arrow table, whatever index pandas once wrote into the file.
    frame = _widen(data).to_pandas(ignore_metadata=True)
    outcome = batches.get_batch(batch_parameters={"dataframe": frame}).validate(suite, result_format=_RESULT_FORMAT)
    outcome.results.sort(key=_place)
    return outcome


def _widen(data: pa.Table) -> pa.Table:
    """Convert all numbers to one type, and all moments to one type.

    Then a suite does not have to name the file's width or unit, and comparisons are fast: with narrower numbers, the
    library compares value by value in Python.
    """

    def wide(kind: pa.DataType) -> pa.DataType:
        if pa.types.is_floating(kind):
            return pa.float64()
        if pa.types.is_timestamp(kind) and kind.tz:
            return pa.timestamp("us", "UTC")
        return pa.int64() if pa.types.is_integer(kind) and kind != pa.uint64() else kind

    return data.cast(pa.schema([field.with_type(wide(field.type)) for field in data.schema]), safe=False)


def _place(result: "ExpectationValidationResult") -> int:
    return int(_config(result).meta["entry"])


def _config(result: "ExpectationValidationResult") -> Any:
    """Return the configuration; its type allows None, but a validated suite always has one."""
    return result.expectation_config


def _failures(table: str, entries: Sequence[Entry], outcome: "ExpectationSuiteValidationResult") -> list[Failure]:
    return [
        Failure(
            table=table,
            expectation=entry.name,
            column=", ".join(entry.columns),
            observed=_observed(result),
            expected=_expected(entry),
            share=_share(result),
            examples=tuple(_plain(item["value"]) for item in result.result.get("partial_unexpected_counts", ())[:5]),
            severity=str(entry.arguments.get("severity", CRITICAL)),
        )
        for entry, result in zip(entries, outcome.results, strict=True)
        if not result.success
    ]


def _reasons(
    entries: Sequence[Entry], outcome: "ExpectationSuiteValidationResult", *, with_failed: bool
) -> dict[int, list[str]]:
    """Return the missed expectations by row position."""
    reasons: dict[int, list[str]] = defaultdict(list)
    for entry, result in zip(entries, outcome.results, strict=True):
        if entry.keeps_rows or not (result.success or with_failed):
            continue
        for position in result.result.get("unexpected_index_list") or ():
            reasons[int(position)].append(entry.label)
    return reasons


def _short(reason: str) -> str:
    label, end, _ = reason.partition("): ")
    return label + end[:1]


def _separate(
    data: pa.Table,
    reasons: Mapping[int, list[str]],
    unread: pa.Table | None,
    quarantine: Path,
    clean: Path,
    usable: bool,
) -> None:
    quarantine.unlink(missing_ok=True)
    clean.unlink(missing_ok=True)
    positions = sorted(reasons)
    apart = [unread] if unread is not None and unread.num_rows else []
    if positions:
        texts = pa.array([reasons[position] for position in positions], pa.list_(pa.string()))
        apart.insert(0, data.take(positions).append_column(REASONS, texts))
    if apart:
        pq.write_table(pa.concat_tables(apart, promote_options="permissive"), quarantine)
    if usable:
        keep = np.ones(data.num_rows, dtype=bool)
        keep[positions] = False
        pq.write_table(data.filter(pa.array(keep)) if positions else data, clean)


def _publish(
    context: "EphemeralDataContext",
    entries: Sequence[Entry],
    outcome: "ExpectationSuiteValidationResult",
    as_of: datetime,
) -> None:
    """Store suite and result for the Data Docs, without row positions and values of other tables."""
    from great_expectations.core.run_identifier import RunIdentifier
    from great_expectations.data_context.types.resource_identifiers import (
        ExpectationSuiteIdentifier,
        ValidationResultIdentifier,
    )

    suite = context.suites.add(_suite(outcome.suite_name, entries, shown=True))
    for expectation, result in zip(suite.expectations, outcome.results, strict=True):
        result.expectation_config = expectation.configuration
        for detail in ("unexpected_list", "unexpected_index_list", "partial_unexpected_index_list"):
            result.result.pop(detail, None)
    # It is named after the run's moment, so that the same run on the same data writes the same site.
    run = RunIdentifier(run_name=f"as-of-{as_of:%Y-%m-%d}", run_time=as_of)
    outcome.meta |= {"run_id": run, "validation_time": as_of}
    key = ValidationResultIdentifier(ExpectationSuiteIdentifier(suite.name), run, batch_identifier=suite.name)
    context.validation_results_store.set(key, outcome)


def _observed(result: "ExpectationValidationResult") -> str:
    """Describe the observed data with the result's own figures."""
    problem = _exception(result.exception_info)
    if problem:
        return problem
    found = result.result
    share = _share(result)
    if share is not None:
        looked_at = found["element_count"] - found.get("missing_count", 0)
        return f"{found['unexpected_count']} of {looked_at} values that miss ({share:.2%})"
    mismatched = found.get("details", {}).get("mismatched")
    if mismatched:
        return "; ".join(f"{kind} {', '.join(map(str, names))}" for kind, names in mismatched.items())
    return str(_plain(found["observed_value"])) if "observed_value" in found else "that it does not hold"


def _exception(info: Mapping[str, Any]) -> str:
    """Return the first message; a failed metric nests its information one level deeper."""
    nested = [info, *(value for value in info.values() if isinstance(value, Mapping))]
    messages = [str(each["exception_message"]) for each in nested if each.get("raised_exception")]
    return messages[0].removeprefix("Error: ") if messages else ""


def _share(result: "ExpectationValidationResult") -> float | None:
    percent = result.result.get("unexpected_percent")
    return None if percent is None else float(percent) / 100


def _expected(entry: Entry) -> str:
    hidden = ("meta", "severity", "notes", "description", "column", "column_A", "column_B")
    return ", ".join(f"{key} {_plain(value)}" for key, value in entry.shown.items() if key not in hidden)


def _plain(value: Any) -> str | int | float | bool | None:
    """Return a value that fits JSON and that a person can read."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple, set)):
        items = [str(_plain(item)) for item in value]
        return f"[{', '.join(items[:20])}{f', … {len(items) - 20} more' if len(items) > 20 else ''}]"
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)
