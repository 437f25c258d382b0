"""Render what a validation found as one HTML page that needs nothing beside itself."""

from kubeloop.validation_report import Report


def html(title: str, report: Report) -> str:
    """Return a complete page; it loads nothing, runs no script and follows the reader's light or dark scheme.

    Args:
        title: such as the model's name and what was validated.
        report: of `validation.validate`.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    page = Environment(loader=PackageLoader("kubeloop"), autoescape=True, undefined=StrictUndefined)
    return page.get_template("validation.html").render(title=title, report=report)
