"""Render Great Expectations' documents as pages that are safe to publish; the library calls `View`.

The library's own templates put some values of the data into the page as markup. They build tables and charts with
scripts from five other sites. Here every text of a document is masked before the templates see it, their output is
sanitized, and the result is put into one of our pages. Folded parts are <details>, charts are tables, and the filter
for failed expectations is a style.
"""

import html
from collections.abc import Mapping
from typing import Any

from kubeloop import pages

_VEIL = {ord(sign): chr(0xF0000 + place) for place, sign in enumerate("<>&\"'`")}
_UNVEIL = {ord(veiled): html.escape(chr(sign)) for sign, veiled in _VEIL.items()}
# The library itself makes this markup; the second holds a JSON schema, which the library escapes.
_MARKUP = frozenset({"html_success_icon", "formatted_json"})

_TAGS = {
    *("a", "b", "blockquote", "br", "code", "details", "div", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "i"),
    *("li", "ol", "p", "pre", "small", "span", "strong", "summary", "table", "tbody", "td", "th", "thead", "tr", "ul"),
}
_ATTRIBUTES = {
    "*": {"class", "hidden", "id"},
    "a": {"href"},
    "td": {"colspan", "rowspan"},
    "th": {"colspan", "rowspan"},
}
_KINDS = {
    "SiteIndexPageRenderer": "All results and suites",
    "ExpectationSuitePageRenderer": "Expectation suite",
    "ValidationResultsPageRenderer": "Validation result",
}


class View:
    """A view in the library's sense: it renders one document as one page."""

    def __init__(self, **_: object) -> None:
        from great_expectations.render.view.view import DefaultJinjaPageView
        from jinja2 import ChoiceLoader, PackageLoader

        self._env = DefaultJinjaPageView().env
        theirs = [self._env.loader] if self._env.loader else []
        self._env.loader = ChoiceLoader([PackageLoader("kubeloop", "templates/data_docs"), *theirs])

    def render(self, document: Any, **_: object) -> str:
        """Return the page of a `RenderedDocumentContent`."""
        import nh3
        from markupsafe import Markup

        content = document.to_json_dict()
        made = self._env.get_template("sections.j2").render(_veiled(content))
        clean = nh3.clean(
            made, tags=_TAGS, attributes=_ATTRIBUTES, clean_content_tags={"script", "style"}, url_schemes={"https"}
        )
        kind = content["renderer_type"]
        return pages.render(
            "data_docs",
            title=content.get("page_title") or "Data Docs",
            kind=_KINDS.get(kind, "Data Docs"),
            home=_home(content),
            filters=kind == "ValidationResultsPageRenderer",
            sections=[section.get("section_name") for section in content["sections"]],
            body=Markup(clean.translate(_UNVEIL)),  # noqa: S704 - sanitized, and each veiled sign is escaped
        )


def _veiled(value: Any) -> Any:
    """Return a document whose texts contain no character with a meaning in HTML.

    Escaping would not work, because some of the library's templates escape again.
    """
    if isinstance(value, str):
        return value.translate(_VEIL)
    if isinstance(value, Mapping):
        return {key: item if key in _MARKUP else _veiled(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_veiled(item) for item in value]
    return value


def _home(content: Mapping[str, Any]) -> str | None:
    """Return the relative path from a page to the site's index; empty for the index."""
    up = {"ExpectationSuitePageRenderer": 1, "ValidationResultsPageRenderer": 4}.get(content["renderer_type"])
    if up is None:
        return None
    return "../" * (up + str(content.get("expectation_suite_name") or "").count(".")) + "index.html"
