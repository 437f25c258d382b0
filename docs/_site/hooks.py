"""Pages of the site that come from the code: settings, commands and Python's surface, and the files next to docs/.

MkDocs loads this module (mkdocs.yml, `hooks`).
"""

import html
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from kubeloop.cli.main import app
from kubeloop.config import explain

PROJECT = Path(__file__).parents[2]
COPIED = {
    "project/changelog.md": "CHANGELOG.md",
    "project/contributing.md": "CONTRIBUTING.md",
    "project/security.md": "SECURITY.md",
}
"""Pages that are files of the repository's root."""
_LINK = re.compile(r"(\]\()(?!\w+:|#)([^)\s#]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {
        "reference/settings.md": settings(),
        "reference/commands.md": commands(),
        "reference/python.md": python((PROJECT / "docs" / "api.md").read_text()),
        **{page: (PROJECT / name).read_text() for page, name in COPIED.items()},
    }
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links that leave docs/ lead to their page here, or to the repository."""
    source = page.file.src_uri
    folder = posixpath.dirname(COPIED.get(source, f"docs/{source}"))
    here = posixpath.dirname(source)
    known = {name: path for path, name in COPIED.items()}

    def lead(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[2]))
        if target.startswith("docs/") and files.get_file_from_path(target[5:]) is not None:
            address = posixpath.relpath(target[5:], here or ".")
        elif target in known:
            address = posixpath.relpath(known[target], here or ".")
        elif (PROJECT / target).exists():
            address = f"{config.extra['repository']}/blob/main/{target}"
        else:
            # MkDocs says what is wrong with it.
            address = match[2]
        return f"{match[1]}{address}{match[3]}"

    return _LINK.sub(lead, markdown)


def settings() -> str:
    """Return the page of loop.yaml: all settings of a binary task, then what other kinds have in their place."""
    (first, whole), *others = explain.rows().items()
    parts = [
        "# Settings of loop.yaml",
        "",
        "Each heading is a section. `<name>` stands for a name of your choice, and `[]` for an item of a list. "
        "`kubeloop config` prints the same, and [loop.schema.json](../loop.schema.json) lets an editor check and "
        "complete the file.",
        "",
        f"The first part shows a loop whose `task` is `{first}`. The others show what differs for another kind.",
        "",
        f"## task: {first}",
        *_lists(whole),
    ]
    for kind, rows in others:
        other = [row for row in rows if row not in whole or isinstance(row, explain.Section)]
        parts += ["", f"## task: {kind}", *_lists(other)]
    return "\n".join(parts) + "\n"


def _lists(rows: list[explain.Row]) -> Iterator[str]:
    """Yield a heading and a list for each section that has settings here."""
    section: explain.Section | None = None
    lines: list[str] = []
    for row in [*rows, explain.Section("", None, "")]:
        if isinstance(row, explain.Setting):
            name = row.path.rpartition(".")[2]
            facts = f"{_code(row.kind)}, {'required' if row.default == 'required' else 'default ' + _code(row.default)}"
            lines += ["", f'`{name}` <span class="facts">{facts}</span>', f":   {_text(row.meaning) or '–'}"]
            continue
        if lines:
            yield ""
            if section is not None:
                yield from (f"### `{section.path}`", "", _text(section.meaning))
                if section.default is not None:
                    yield from ("", f"Left out, it is `{section.default}`.")
            yield from lines
        section, lines = row, []


def _text(text: str) -> str:
    """Return a sentence of the code as Markdown that keeps its signs."""
    return text.replace("|", "&#124;").replace("<", "&lt;").replace("\n", " ")


def _code(text: str) -> str:
    return f"<code>{html.escape(text).replace('|', '<wbr>&#124;')}</code>"


def commands() -> str:
    """Return the page of the command line, from the commands themselves."""
    root: Any = typer.main.get_command(app)
    parts = [
        "# Command line",
        "",
        f"{root.help} `kubeloop COMMAND --help` prints what is here. In a clone, the program is `.venv/bin/kubeloop`.",
        "",
        "Exit codes: 0 is success; 65 is an error that stays until data, configuration or a decision change; 75 is an "
        "error that may pass, so try again; 1 is an unexpected error, or a check or run whose answer is no; 2 is a "
        "command line that cannot be read.",
    ]
    parts += [line for name, command in root.commands.items() for line in _command(f"kubeloop {name}", command)]
    return "\n".join(parts) + "\n"


def _command(name: str, command: Any) -> Iterator[str]:
    yield from ("", f"## {name}", "", re.sub(r"\n[ \t]+", "\n", command.help or ""))
    here = typer.Context(command)
    rows = [_option(one, here) for one in command.params if one.name != "help" and not getattr(one, "hidden", False)]
    if rows:
        yield from ("", "| option | what it does | default |", "|---|---|---|", *rows)
    for each, inner in getattr(command, "commands", {}).items():
        yield from _command(f"{name} {each}", inner)


def _option(option: Any, here: typer.Context) -> str:
    argument = option.param_type_name == "argument"
    names = option.name.upper() if argument else ", ".join([*option.opts, *option.secondary_opts])
    value = "" if argument or option.is_flag else f" {option.metavar or option.display_type(here)}"
    default = option.show_default if isinstance(option.show_default, str) else option.default
    if option.required:
        shown = "required"
    elif default in (None, False, (), []) or callable(default):
        shown = ""
    else:
        shown = default if isinstance(option.show_default, str) else f"`{default}`"
    return f"| `{names}{value}` | {_text(getattr(option, 'help', None) or '')} | {shown} |"


def python(declared: str) -> str:
    """Return the page of Python's public surface: the modules and names of the table in docs/api.md."""
    parts = ["# Python", "", "What [is public](../api.md) of kubeloop in Python, from the docstrings."]
    for module, names in re.findall(r"^\| `(kubeloop[\w.]*)` \| (`.*?`) \|", declared, re.MULTILINE):
        parts += ["", f"## {module}"]
        for name in re.findall(r"`(\w+)`", names):
            parts += ["", f"::: {module}.{name}"]
    return "\n".join(parts) + "\n"
