"""Render the results of a validation as one self-contained HTML page."""

from kubeloop import pages
from kubeloop.data.validation_report import Report, advice


def html(title: str, report: Report) -> str:
    """Return a complete page; it loads nothing, runs no script and follows the reader's light or dark scheme.

    Args:
        title: for example the model's name and what was validated.
        report: the report of `validation.validate`.
    """
    notes = [f"{name}: {said}." for name, table in report.tables.items() if (said := advice(table))]
    return pages.render("validation", title=title, report=report, notes=notes)
