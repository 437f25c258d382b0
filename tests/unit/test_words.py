"""The project's English: words that a technical writer would not use, and tests that pin whole sentences."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACES = (
    *("src", "components", "pipelines", "charts", "manifests", "benchmarks", "images", "feature_repo"),
    *("docs", "README.md", "CONTRIBUTING.md", "Makefile", "loop.yaml", "hatch_build.py", "tests"),
)
"""Folders and files whose text is checked."""
ENDINGS = (".py", ".md", ".html", ".txt", ".yaml", ".yml", ".tpl", ".j2", ".sql", ".sh", "Makefile")
_ONE = r"one (Parquet )?(row|line|file|folder|column|view|request|process|run|sentence|value|number|pod|list|name)"
INSTEAD = {
    r"anew": "again",
    r"beside": "next to",
    r"mend(s|ed|ing)?": "fix, or correct",
    r"whoever": "a person who, or every client that",
    r"alike": "in the same way, or both",
    r"aloud": "with an error",
    r"again and again": "repeatedly",
    r"(?<!there )(?<!There )(is|are) no (?!(longer|more|less|better|worse)\b)[a-z]+": "is not a …",
    r"(go|goes|going|went) on(?! (a|an|the)\b)": "continue, or keep …ing",
    r"likewise": "the same, or also",
    r"(some|any)body": "a person who, or another program",
    r"whom": "a person whose",
    r"for want of": "for lack of",
    r"held against": "compared with",
    r"from which on": "from this … on",
    rf"{_ONE} an? [a-z]+": "one … per …",
}
"""Words to drop, as patterns, and better ones."""
_DROPPED = re.compile(r"\b(" + "|".join(INSTEAD) + r")\b", re.IGNORECASE)

_MOST_WORDS = 5
"""Consecutive plain words of a message that a test may match. Names, numbers and quotes end a run of words."""
_PLAIN = re.compile(r"(?<![\w'`./:\\-])[A-Za-z]+(?: [A-Za-z]+)*(?![\w'`./\\-])")


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line numbers and texts to check in a file: Python's comments and strings, every line of other files."""
    source = path.read_text()
    if path.suffix != ".py" or not _DROPPED.search(source):
        yield from enumerate(source.splitlines(), 1)
        return
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in kinds:
            yield from enumerate(token.string.splitlines(), token.start[0])


def files() -> list[Path]:
    found = []
    for place in PLACES:
        root = ROOT / place
        found += [root] if root.is_file() else [path for path in sorted(root.rglob("*")) if path.is_file()]
    listed = [path for path in found if path.name.endswith(ENDINGS) and "__pycache__" not in path.parts]
    return [path for path in listed if path not in (Path(__file__), ROOT / "tests" / "test_docs.py")]


def test_no_word_is_used_that_a_technical_writer_would_not_use() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {match[0]!r} in {text.strip()[:100]!r}"
        for path in files()
        for line, text in texts(path)
        for match in _DROPPED.finditer(text)
    ]
    assert not found, "\n".join(found)


def plain_words(pattern: str) -> int:
    """Return the length of the longest run of plain words in a pattern."""
    return max((len(run.split()) for run in _PLAIN.findall(pattern)), default=0)


def patterns(tree: ast.AST) -> Iterator[ast.Constant]:
    """Yield the texts that `match=` gets in a test, directly or from a column of `parametrize`."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        calls = (call for call in ast.walk(function) if isinstance(call, ast.Call))
        given = [keyword.value for call in calls for keyword in call.keywords if keyword.arg == "match"]
        for value in given:
            yield from strings(value)
        wanted = {name.id for value in given for name in ast.walk(value) if isinstance(name, ast.Name)}
        for decorator in function.decorator_list:
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith("parametrize"):
                yield from column(decorator, wanted)


def column(decorator: ast.Call, wanted: set[str]) -> Iterator[ast.Constant]:
    """Yield the texts that `parametrize` gives to the wanted parameters."""
    if len(decorator.args) < 2:
        return
    names = [name for text in strings(decorator.args[0]) for name in re.findall(r"\w+", str(text.value))]
    rows = decorator.args[1]
    for row in rows.elts if isinstance(rows, ast.List | ast.Tuple) else ():
        cells = row.args if isinstance(row, ast.Call) else row.elts if isinstance(row, ast.Tuple) else [row]
        for name, cell in zip(names, cells, strict=False):
            if name in wanted:
                yield from strings(cell)


def strings(node: ast.AST) -> Iterator[ast.Constant]:
    """Yield the texts in an expression."""
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part


def test_no_test_pins_a_sentence() -> None:
    """An error is matched by its type and the facts in its message, so that its words can be improved."""
    found = [
        f"{path.relative_to(ROOT)}:{text.lineno}: {text.value!r}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        if "match=" in (source := path.read_text())
        for text in patterns(ast.parse(source))
        if plain_words(str(text.value)) > _MOST_WORDS
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [("a b c", 3), (r"a `b` c d", 2), ("a 1 b c d", 3), (r"loop\.yaml is missing", 2), ("it is 'x' .* or not", 2)],
)
def test_names_numbers_and_quotes_end_a_run_of_words(pattern: str, words: int) -> None:
    assert plain_words(pattern) == words


def test_a_pinned_sentence_is_found_in_a_call_and_in_a_column() -> None:
    source = """
@pytest.mark.parametrize(("a", "says"), [(1, "one two three four five six"), pytest.param(2, "short")])
def test(a, says):
    with pytest.raises(ValueError, match=says):
        pass
    with pytest.raises(ValueError, match="this is a whole sentence again"):
        pass
"""
    found = [str(text.value) for text in patterns(ast.parse(source))]
    assert [text for text in found if plain_words(text) > _MOST_WORDS] == [
        "this is a whole sentence again",
        "one two three four five six",
    ]
