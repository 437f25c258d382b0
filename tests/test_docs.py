"""The documentation: every link in Markdown files resolves; the site is complete and loads nothing from elsewhere."""

import html.parser
import importlib
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import typer
import yaml

from kubeloop.cli.main import app
from kubeloop.config import explain

PROJECT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for path in PROJECT.rglob("*.md")
    if not any(part.startswith(".") or part == "build" for part in path.relative_to(PROJECT).parts[:-1])
    or path.is_relative_to(PROJECT / ".github")
)
SITE = yaml.safe_load(re.sub(r"!\S+", "", (PROJECT / "mkdocs.yml").read_text()))
GENERATED = {"docs/reference/settings.md", "docs/reference/commands.md", "docs/reference/python.md"}
"""Pages that only the site has (docs/_site/hooks.py)."""
_FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2[`~]*$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!\w+:)([^)\s]+)\)")


def prose(path: Path) -> str:
    """Return a page without its code."""
    return re.sub(r"`[^`\n]+`", "``", _FENCE.sub("", path.read_text()))


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    seen: Counter[str] = Counter()
    found = set()
    for title in re.findall(r"^#+ +(.+?) *$", _FENCE.sub("", path.read_text()), re.MULTILINE):
        bare = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", bare.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_links_lead_somewhere(path: Path) -> None:
    for link in _LINK.findall(prose(path)):
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if target.is_relative_to(PROJECT) and str(target.relative_to(PROJECT)) in GENERATED:
            continue
        assert target.exists(), f"{link} leads nowhere"
        if anchor:
            assert anchor in anchors(target), f"{target.name} has no heading for {link}"


def test_the_check_finds_links() -> None:
    assert len(PAGES) > 15
    assert sum(len(_LINK.findall(prose(path))) for path in PAGES) > 30


def entries(nav: list[dict[str, object]]) -> list[str]:
    found: list[str] = []
    for item in nav:
        for value in item.values():
            found += entries(value) if isinstance(value, list) else [str(value)]
    return found


def test_every_page_is_in_the_navigation_once() -> None:
    listed = Counter(f"docs/{page}" for page in entries(SITE["nav"]))
    assert set(listed.values()) == {1}
    written = {str(path.relative_to(PROJECT)) for path in PAGES if path.is_relative_to(PROJECT / "docs")}
    assert {page for page in listed if not page.startswith("docs/project/")} == written | GENERATED


class Reader(html.parser.HTMLParser):
    """Collects the addresses that a browser loads for a page, and the page's text."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source") and given.get("src"):
            self.loads.append(given["src"] or "")
        if tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(given.get("href") or "")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    """Build the site as `make docs` does, and read its pages."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)],
        cwd=PROJECT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {}
    for path in folder.rglob("*.html"):
        reader = pages[path.relative_to(folder).as_posix()] = Reader()
        reader.feed(path.read_text())
    return pages


def test_the_site_loads_nothing_from_elsewhere(site: dict[str, Reader]) -> None:
    assert len(site) > 20
    assert {name: load for name, page in site.items() for load in page.loads if "//" in load} == {}


def test_the_site_explains_every_setting(site: dict[str, Reader]) -> None:
    told = "".join(site["reference/settings.html"].text)
    for kind, rows in explain.rows().items():
        assert f"task: {kind}" in told
        for row in rows:
            if isinstance(row, explain.Section):
                assert row.path in told
            elif row.meaning:
                # Backquotes become code there.
                assert row.meaning.replace("`", "").partition("\n")[0] in told, row.path


def test_the_site_explains_every_command(site: dict[str, Reader]) -> None:
    told = "".join(site["reference/commands.html"].text)
    names = list(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    assert len(names) > 10
    for name in names:
        assert f"kubeloop {name}" in told


ARCHITECTURE = (PROJECT / "docs" / "architecture.md").read_text()
_WALKS = ARCHITECTURE.partition("## Three walks")[2].partition("\n## ")[0]
_ROOMS = ARCHITECTURE.partition("## Rooms")[2].partition("\n## ")[0]


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([a-z_]+(?:\.\w+)+)`", _WALKS)) - {"loop.yaml"}))
def test_what_the_walks_name_exists(name: str) -> None:
    # A setting of loop.yaml and a name in a module look the same.
    if name in {row.path for row in explain.rows()["binary"]}:
        return
    head, *rest = name.split(".")
    found = importlib.import_module(f"kubeloop.{head}")
    for part in rest:
        if not hasattr(found, part):
            found = importlib.import_module(f"{found.__name__}.{part}")
        else:
            found = getattr(found, part)


def rooms() -> dict[str, set[str]]:
    """Return the modules that the tables of rooms name, by folder."""
    rows = re.findall(r"^\| ((?:`[\w/]+/`(?:, )?)+) \| (.*) \|$", _ROOMS, re.MULTILINE)
    return {
        folder: set(re.findall(r"`(\w+/?)(?:\.py)?`", told))
        for each, told in rows
        for folder in re.findall(r"`(.+?)`", each)
    }


def test_every_module_has_a_place_in_the_table_of_rooms() -> None:
    source = PROJECT / "src" / "kubeloop"
    told = rooms()
    folders = {path for path in source.rglob("*/") if (path / "__init__.py").is_file()} - {source}
    named = {folder for folder in told if (source / folder).is_dir()}
    # The modules in migrations/ have a separate table.
    there = {f"{path.relative_to(source).as_posix()}/" for path in folders if "migrations" not in path.parts}
    assert named == there
    for folder in sorted(named - {"report/"}):
        modules = {path.stem for path in (source / folder).glob("*.py") if not path.stem.startswith("__")}
        assert modules <= told[folder], folder
        gone = {name for name in told[folder] - modules if not name.endswith("/")}
        assert gone <= {"status", "monitor", "Settings", "curves"}, folder
    alone = {path.stem for path in source.glob("*.py")} - {"__init__"}
    assert alone <= set(re.findall(r"\| `(\w+)` \|", _ROOMS))


def test_what_the_table_of_places_names_exists() -> None:
    table = ARCHITECTURE.partition("## Where do I put")[2].partition("\n## ")[0]
    found = [path for path in re.findall(r"`([\w/]+(?:/|\.py))`", table) if "/" in path]
    assert len(found) > 20
    for path in found:
        assert (PROJECT / "src" / "kubeloop" / path).exists() or (PROJECT / path).exists(), path


def quotes() -> list[str]:
    """Return the parts of messages that the first column of the troubleshooting tables quotes."""
    page = (PROJECT / "docs" / "troubleshooting.md").read_text()
    cells = re.findall(r"^\| (.+?) \| ", page, re.MULTILINE)
    return [text for cell in cells for text in re.findall(r"`([^`]+)`", cell) if " " in text]


@pytest.mark.parametrize("quote", quotes())
def test_troubleshooting_quotes_messages_that_there_are(quote: str) -> None:
    told = "".join(path.read_text() for path in (PROJECT / "src" / "kubeloop").rglob("*.py"))
    # A long message is split over several literals.
    found = quote in re.sub(r'"\s*\n\s*f?"', "", told)
    assert found, f"no message of src/kubeloop contains {quote!r} any more; quote the new one"


DROPPED = re.compile(
    r"\b(anew|beside|mend(s|ed|ing)?|whoever|alike|aloud|thereof|for ever|held against|in the place of|"
    r"(stands?|lies?) (there|here|next to|behind|beyond|under|above|in(?! for)|on|at|between)|"
    r"(is|are|was|were) no (?!longer\b|more\b|such\b|less\b|other\b)\w+(?<!\bverdict)|"
    r"(one|a|an) (?!that)[a-z-]+ an? "
    r"(row|line|table|feature|setting|file|step|name|process|environment|request|key|value|pod))\b",
    re.IGNORECASE,
)
"""Patterns that these pages avoid, since a native writer would not use them; "there is no X" is fine."""


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_words_that_were_dropped_do_not_come_back(path: Path) -> None:
    text = re.sub(r"\bthere (is|are|was|were) no\b", "", prose(path), flags=re.IGNORECASE)
    text = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    found = [text[max(0, match.start() - 60) : match.end() + 40] for match in DROPPED.finditer(text)]
    assert found == []
