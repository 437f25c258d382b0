"""Render what a validation found as one HTML page that needs nothing beside itself."""

from kubeloop import pages
from kubeloop.data.validation_report import Report


def html(title: str, report: Report) -> str:
    """Return a complete page; it loads nothing, runs no script and follows the reader's light or dark scheme.

    Args:
        title: such as the model's name and what was validated.
        report: of `validation.validate`.
    """
    return pages.render("validation", title=title, report=report)
