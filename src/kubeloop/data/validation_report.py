"""The results of a validation: the report that a pipeline keeps, and the error that stops it."""

from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from kubeloop.errors import KubeloopError

CRITICAL = "critical"
HELD = "Held back:"
"""The beginning of the sentences of `held_back`, by which `kubeloop run` finds them in the log of a run."""
SHARED = "expect_column_values_to_be_unique(event_id)"
"""The reason for rows with the same ID, for example events with the same key and moment."""


@dataclass(frozen=True)
class Failure:
    """One expectation that does not hold.

    Attributes:
        table: the table's name.
        expectation: native name of the expectation.
        column: its columns, joined by a comma; empty if it is about the whole table.
        observed: what the data hold, in words.
        expected: the expectation's arguments, in words.
        share: share of the checked values that miss, in [0, 1]; None if it does not check single values.
        examples: some missed values, most frequent first.
        severity: critical (fails the report), warning or info.
    """

    table: str
    expectation: str
    column: str
    observed: str
    expected: str
    share: float | None
    examples: tuple[str | int | float | bool | None, ...]
    severity: str = "critical"


@dataclass(frozen=True)
class TableReport:
    """What validation did to one table.

    Attributes:
        rows: rows of the raw table.
        quarantined: rows written to the quarantine.
        expectations: expectations that ran.
        reasons: quarantined rows by reason; a row may have several reasons.
    """

    rows: int
    quarantined: int
    expectations: int
    reasons: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """The outcome of one validation.

    Attributes:
        passed: whether every critical expectation holds.
        as_of: the run's moment.
        tables: a report for each table.
        failures: every expectation that does not hold, including those that are not critical.
        docs: folder of the Data Docs site, or its s3:// address.
        quarantine: folder of the quarantined rows, or its s3:// address.
    """

    passed: bool
    as_of: datetime
    tables: dict[str, TableReport]
    failures: tuple[Failure, ...]
    docs: Path | str
    quarantine: Path | str

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values that JSON can hold."""
        return asdict(self) | {
            "as_of": self.as_of.isoformat(),
            "failures": [asdict(failure) | {"examples": list(failure.examples)} for failure in self.failures],
            "docs": str(self.docs),
            "quarantine": str(self.quarantine),
        }


def held_back(report: Report) -> list[str]:
    """Return a sentence for each table with quarantined rows; each begins with `HELD`."""
    return [f"{HELD} {_held(name, table)}" for name, table in report.tables.items() if table.quarantined]


def _held(name: str, table: TableReport) -> str:
    reasons = ", ".join(f"{rows:,} by {reason}" for reason, rows in table.reasons.items())
    said = f"{table.quarantined:,} of {table.rows:,} rows of {name}: {reasons}"
    return ". ".join(filter(None, (said, advice(table))))


def advice(table: TableReport) -> str:
    """Return what to do about rows with the same ID; empty if there are none."""
    shared = table.reasons.get(SHARED)
    return (
        shared
        and (
            f"{shared:,} rows have the event_id of another row, so their labels cannot be assigned: in "
            "sql/events.sql, add the column that tells them apart to event_id"
        )
    ) or ""


class ValidationFailed(KubeloopError):  # noqa: N818 - the word that a pipeline's log should show
    """Critical expectations do not hold; the message names each, what was observed and what to do next."""

    lasting = True


def require(report: Report) -> None:
    """Stop a run whose data are not fit for use.

    Raises:
        ValidationFailed: a critical expectation does not hold.
    """
    if report.passed:
        return
    critical = [failure for failure in report.failures if failure.severity == CRITICAL]
    lines = [
        f"  {'.'.join(filter(None, (failure.table, failure.column)))}: {failure.expectation}: "
        f"observed {failure.observed}; expected {failure.expected or 'it to hold'}"
        for failure in critical
    ]
    count = f"{len(critical)} expectation{'s do' if len(critical) > 1 else ' does'} not hold"
    raise ValidationFailed(
        f"{count} on the data as of {report.as_of.isoformat()}:\n" + "\n".join(lines) + "\n"
        f"See every result in {report.docs}/index.html and the rows with their reasons in {report.quarantine}; "
        "then fix the source or, if the new data are right, change the suite."
    )
