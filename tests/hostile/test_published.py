"""Published pages: text from the data stays text in them, and a policy lets none of it run or load."""

import ast
import base64
import hashlib
import html
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from selectolax.lexbor import LexborHTMLParser

import kubeloop
from kubeloop import pages
from kubeloop.data.data_docs import View
from kubeloop.models import gates_page
from tests.hostile.browser import Tab, opened
from tests.hostile.producers import ALL, ELSEWHERE, KUBEFLOW, PAGES, SCRIPTS, Page, _verdict
from tests.outside import PROJECT

PACKAGE = Path(kubeloop.__file__).parent
SOURCES = {
    path.relative_to(PROJECT).as_posix(): path.read_text()
    for folder in ("src", "components", "pipelines")
    for path in sorted((PROJECT / folder).rglob("*.py"))
}
FRAMED = """<!doctype html><title>Kubeflow</title><body><script>
addEventListener("message", event => { document.title = event.data });
const frame = document.createElement("iframe");
frame.sandbox = "allow-scripts";
frame.srcdoc = %s;
frame.onload = () => setTimeout(() => document.body.dataset.over = "yes", 50);
document.body.append(frame);
</script>"""
"""How Kubeflow's UI shows an HTML artifact: frontend/src/components/viewers/HTMLViewer.tsx of its repository."""
LINKS = {"action", "background", "cite", "data", "formaction", "href", "ping", "poster", "src", "srcset", "xlink:href"}
TAGS = frozenset(
    {
        *("a", "article", "b", "blockquote", "body", "br", "code", "dd", "details", "div", "dl", "dt", "em", "footer"),
        *("h1", "h2", "h3", "h4", "h5", "h6", "head", "header", "hr", "html", "i", "input", "label", "li", "main"),
        *("meta", "nav", "ol", "p", "pre", "section", "small", "span", "strong", "style", "summary", "table", "tbody"),
        *(
            "td",
            "th",
            "thead",
            "title",
            "tr",
            "ul",
            "circle",
            "g",
            "line",
            "path",
            "polygon",
            "polyline",
            "rect",
            "svg",
        ),
        *("text", "script"),
    }
)
"""The tags of our templates and of the sanitizer's list; the harmful tags of the hostile values are not among them."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Page]]:
    """All pages of all producers."""
    return {name: list(make(tmp_path_factory.mktemp(name))) for name, make in PAGES.items()}


@pytest.fixture(scope="module")
def chromium(browser: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with opened(browser, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def tab(chromium: Tab) -> Tab:
    """A tab in which nothing has happened yet."""
    chromium.dialogs.clear()
    chromium.requests.clear()
    return chromium


def policy(*, style: str = "", script: str = "") -> str:
    def named(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    parts = ["default-src 'none'", f"style-src {named(style)}", f"script-src {named(script)}" if script else ""]
    return "; ".join([*filter(None, parts), "base-uri 'none'", "form-action 'none'"])


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("name", PAGES)
def test_values_are_text_to_a_parser(made: dict[str, list[Page]], name: str) -> None:
    style = "".join((PACKAGE / "templates" / file).read_text() for file in ("page.css", f"{name}.css"))
    script = PACKAGE / "templates" / f"{name}.js"
    scripts = [script.read_text()] if script.exists() else []
    for page in made[name]:
        tree = LexborHTMLParser(page.html)
        assert [each.text() for each in tree.css("style")] == [style]
        assert [each.text() for each in tree.css("script")] == scripts
        first, second, *_ = tree.css("head > *")
        assert (first.attributes, second.attributes["http-equiv"]) == ({"charset": "utf-8"}, "Content-Security-Policy")
        assert second.attributes["content"] == policy(style=style, script="".join(scripts))
        for each in tree.css("*"):
            assert each.tag in TAGS
            assert each.tag != "meta" or each.attributes.keys() <= {"charset", "name", "http-equiv", "content"}
            for key, value in each.attributes.items():
                assert not key.startswith("on")
                assert key not in {"style", "srcdoc", "autofocus", "tabindex"} or (key, value) == ("tabindex", "0")
                if key in LINKS:
                    assert (each.tag, key) == ("a", "href")
                    assert value is not None
                    # The address of MLflow, from the settings.
                    assert re.match(r"#|(\.\./)*[\w%./-]+$|http:", value), value
                    assert ELSEWHERE not in value
        # A <title> in a drawing is a tooltip; the browser's test checks what a reader sees of it.
        text = words(tree.body.text() if tree.body else "")
        assert [value for value in page.shown if words(value) not in text] == []


@pytest.mark.parametrize("name", PAGES)
def test_nothing_runs_in_a_browser(made: dict[str, list[Page]], tab: Tab, name: str) -> None:
    for page in made[name]:
        title = re.findall(r"<title>(.*?)</title>", page.html, re.DOTALL)[0]
        tab.show(page.html, width=390)
        # Send an event to every element that could react to a pointer, a key or a click.
        tab.evaluate(
            """for (const each of document.querySelectorAll("*")) {
              for (const kind of ["mouseover", "mouseenter", "focus", "pointermove", "load", "error"])
                each.dispatchEvent(new Event(kind, {bubbles: true}));
              if (each.tagName === "DETAILS") each.open = true;
              if (each.href && String(each.href.baseVal ?? each.href).startsWith("javascript:")) each.click?.();
            }"""
        )
        seen = words(
            tab.evaluate(
                """[document.body.innerText,
                  ...Array.from(document.querySelectorAll("[data-tip]"), each => each.dataset.tip)].join(" ")"""
            )
        )
        assert words(tab.evaluate("document.title")) == words(html.unescape(title))
        # Our own style and script do work under the policy.
        assert tab.evaluate("getComputedStyle(document.querySelector('main')).display") == "grid"
        assert tab.evaluate("!!document.querySelector('#tip')") == (name == "report")
        assert [value for value in page.shown if words(value) not in seen] == []
        assert (tab.dialogs, tab.requests) == ([], [])


@pytest.mark.parametrize("name", sorted(PAGES))
def test_nothing_runs_in_the_frame_of_kubeflow(made: dict[str, list[Page]], tab: Tab, name: str) -> None:
    for page in made[name]:
        assert _framed(tab, page.html) == "Kubeflow"
        assert (tab.dialogs, tab.requests) == ([], [])


def _framed(tab: Tab, page: str, *, runs: bool = False) -> str:
    """Show a page as Kubeflow does; return the title of the outer page, which a script in the frame would change."""
    tab.show(FRAMED % json.dumps(page).replace("<", "\\u003c"))
    over = "document.title === 'ran'" if runs else "document.body.dataset.over"
    tab.evaluate(
        f"""new Promise(done => {{
          const begin = Date.now();
          const look = () => {over} || Date.now() > begin + 10000 ? done() : setTimeout(look, 5);
          look();
        }})"""
    )
    return str(tab.evaluate("document.title"))


# The other values run on a click, or after a sanitizer changes them.
@pytest.mark.parametrize("value", [each for each in SCRIPTS if re.match(r"""["']?[<>](?!svg><a |math)""", each)])
def test_the_policy_alone_stops_scripts(tab: Tab, value: str) -> None:
    """The control for the tests above: without the policy the script runs, as it would where escaping failed."""
    page = gates_page.html("gate", _verdict()).replace("</header>", f"{value}</header>", 1)
    assert _framed(tab, re.sub(r"<meta http-equiv=.*?>", "", page), runs=True) == "ran"
    assert _framed(tab, page) == "Kubeflow"


def test_the_sanitizer_alone_stops_what_is_not_veiled() -> None:
    """The library may put its own markup into a document, and by mistake values into that markup."""
    from great_expectations.render import (
        RenderedDocumentContent,
        RenderedHeaderContent,
        RenderedSectionContent,
        RenderedStringTemplateContent,
    )

    text = RenderedStringTemplateContent(
        content_block_type="string_template",
        string_template={"template": "$html_success_icon", "params": {"html_success_icon": f"<b>kept</b> {ALL}"}},
    )
    block = RenderedHeaderContent(content_block_type="header", header=text)
    section = RenderedSectionContent(section_name="one", content_blocks=[block])
    document = RenderedDocumentContent(renderer_type="ValidationResultsPageRenderer", sections=[section])
    tree = LexborHTMLParser(View().render(document))
    body = tree.css_first(".docs")
    assert body is not None
    assert [each.text() for each in body.css("b")] == ["kept"]
    assert {each.tag for each in body.css("*")} <= TAGS - {"svg", "style", "script", "input", "meta"}
    assert {key for each in body.css("*") for key in each.attributes} <= {"class", "href", "id", "rel"}
    assert not [each for each in body.css("a") if not (each.attributes["href"] or "#").startswith("#")]


def test_only_what_failed_is_shown_on_demand(made: dict[str, list[Page]], tab: Tab) -> None:
    result = next(page for page in made["data_docs"] if "Show only what failed" in page.html)
    tab.show(result.html)
    held = "[...document.querySelectorAll('.fa-check-circle')].filter(each => each.checkVisibility()).length"
    missed = held.replace("fa-check-circle", "fa-times")
    assert tab.evaluate(held) > 0
    before = tab.evaluate(missed)
    tab.evaluate("document.querySelector('#failed').click()")
    assert (tab.evaluate(held), tab.evaluate(missed)) == (0, before)


def test_every_page_is_in_the_registry() -> None:
    """A new producer fails here: render it with `kubeloop.pages`, and add it to producers.py."""
    rendered = set()
    for path, text in SOURCES.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("pages.render", "render"):
                assert isinstance(node.args[0], ast.Constant), f"{path}: a page's name is a literal"
                rendered.add(node.args[0].value)
    templates = {path.stem for path in (PACKAGE / "templates").glob("*.html")} - {"page"}
    assert rendered == templates == set(PAGES)
    assert {path.name for path in PACKAGE.rglob("*.html")} == {f"{name}.html" for name in (*templates, "page")}


def test_nothing_else_makes_pages() -> None:
    makers = {path for path, text in SOURCES.items() if re.search(r"\bjinja2\b", text)}
    # The last one writes a loop's first files, which no browser reads.
    assert makers == {f"src/kubeloop/{name}.py" for name in ("data/data_docs", "pages", "scaffold/render")}
    assert not [path for path in (PACKAGE / "templates" / "init").rglob("*") if "htm" in path.name]
    trusted = {path for path, text in SOURCES.items() if re.search(r"Markup\((?!\"\"\))", text)}
    assert trusted == {f"src/kubeloop/{name}.py" for name in ("data/data_docs", "pages", "report/svg")}
    markup = re.compile(r"<(!doctype|html|head|body|script|iframe)\b|text/html|image/svg|HTMLResponse", re.IGNORECASE)
    assert {path for path, text in SOURCES.items() if markup.search(text)} == set()


def test_every_page_of_kubeflow_is_in_the_registry() -> None:
    found = set()
    for path, text in SOURCES.items():
        for node in ast.walk(ast.parse(text)):
            if (
                isinstance(node, ast.arg)
                and node.annotation
                and re.search(r"HTML|Markdown", ast.unparse(node.annotation))
            ):
                found.add((Path(path).stem, node.arg))
    assert found == set(KUBEFLOW)
    assert set(KUBEFLOW.values()) <= set(PAGES)


def test_only_markup_is_not_escaped() -> None:
    page = pages.render("validation", title=ALL, report=_Empty(), notes=())
    assert html.escape(ALL).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in page


class _Empty:
    """A report that says as little as it can."""

    def __getattr__(self, name: str) -> object:
        return {"as_of": datetime(2024, 1, 1, tzinfo=UTC), "tables": {}, "failures": ()}.get(name, "")
