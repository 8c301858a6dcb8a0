"""The results of `benchmarks gpu`: printed as they come, as one JSON, and as one page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path

from diptych.writing import write_text

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin:.5rem 0}th,td{padding:.2rem .8rem;text-align:right;"
    "border-bottom:1px solid #ccc}th:first-child,td:first-child{text-align:left}.error{color:#b00}"
)


@dataclass
class Outcome:
    """The figures of a part by their names, and how it ended."""

    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: float | None = None
    error: str | None = None
    """Why the part did not end well. Empty: it did. None: it has not ended."""
    traceback: str = ""


class Report:
    """Collects the figures of all parts. Every change is written at once, so that nothing is lost."""

    def __init__(self, folder: Path, machine: str) -> None:
        self.folder, self.machine = folder, machine
        self.file = folder / "gpu.json"
        self.parts: dict[str, Outcome] = {}

    @property
    def failed(self) -> bool:
        """Whether a part did not end well."""
        return any(part.error != "" for part in self.parts.values())

    def begin(self, name: str) -> Outcome:
        """Begins a part."""
        print(name, flush=True)
        self.parts[name] = Outcome()
        self._write()
        return self.parts[name]

    def add(self, name: str, figure: str, numbers: Mapping[str, float]) -> None:
        """Adds a figure to a part."""
        said = ", ".join(f"{label} {number:.4g}" for label, number in numbers.items())
        print(f"  {figure}: {said}", flush=True)
        self.parts[name].figures[figure] = dict(numbers)
        self._write()

    def end(self, name: str, error: str, seconds: float) -> None:
        """Ends a part, with an error or with an empty one, and writes the page."""
        part = self.parts[name]
        part.error, part.seconds = error, seconds
        print(f"  {error or 'done'} ({seconds:.0f} s)", flush=True)
        if part.traceback:
            print(part.traceback, flush=True)
        self._write()
        self.page()

    def figures(self, name: str, label: str) -> dict[str, dict[str, float]]:
        """Returns the figures of a part that have such a number. None if the part did not run."""
        part = self.parts.get(name, Outcome())
        return {figure: numbers for figure, numbers in part.figures.items() if label in numbers}

    def page(self) -> Path:
        """Writes the page and returns its path."""
        body = "".join(_section(name, part) for name, part in self.parts.items())
        head = f"<meta charset='utf-8'><title>diptych on a card</title><style>{STYLE}</style>"
        title = f"<h1>diptych on a card</h1><p>{escape(self.machine)}</p>"
        return write_text(self.folder / "gpu.html", f"<!doctype html><html lang='en'>{head}{title}{body}</html>\n")

    def _write(self) -> None:
        content = {"machine": self.machine, "parts": {name: asdict(part) for name, part in self.parts.items()}}
        write_text(self.file, json.dumps(content, indent=1) + "\n")


def _section(name: str, part: Outcome) -> str:
    """Builds the part's table: a row for each figure, a column for each number."""
    columns = list(dict.fromkeys(label for numbers in part.figures.values() for label in numbers))
    rows = [_row("th", ["", *columns])]
    for figure, numbers in part.figures.items():
        rows.append(_row("td", [figure, *(f"{numbers[c]:.4g}" if c in numbers else "" for c in columns)]))
    error = f"<p class='error'>{escape(part.error)}</p>" if part.error else ""
    return f"<h2>{escape(name)}</h2>{error}<table>{''.join(rows)}</table>"


def _row(kind: str, cells: list[str]) -> str:
    return "<tr>" + "".join(f"<{kind}>{escape(cell)}</{kind}>" for cell in cells) + "</tr>"
