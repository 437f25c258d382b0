"""The numbers that a run against a cluster measures: JSON in build/e2e, and a short table at the end."""

import json
import sys
from pathlib import Path
from typing import Any

Cell = str | int | float | None


class Figures:
    """Numbers by section and name; each is written to the file as soon as it is known."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.content: dict[str, dict[str, Cell]] = json.loads(path.read_text()) if path.exists() else {}

    def note(self, section: str, name: str, value: Cell) -> None:
        """Record a number under its section."""
        self.content.setdefault(section, {})[name] = round(value, 2) if isinstance(value, float) else value
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self.content, indent=2) + "\n")

    def table(self) -> str:
        """Return all numbers as a Markdown table."""
        rows = [(section, name, _text(value)) for section, item in self.content.items() for name, value in item.items()]
        lines = ["| what | which | measured |", "|---|---|---|"]
        shown = ""
        for section, name, value in rows:
            lines.append(f"| {'' if section == shown else section} | {name} | {value} |")
            shown = section
        return "\n".join(lines)


def _text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    print(Figures(Path(sys.argv[1])).table())
