"""Pages as single HTML files without any file or network beside them, from the templates in `templates/`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from diptych import __version__
from diptych.apps.report.charts import axes, reliability_points
from diptych.apps.report.data import Chart, ReportData
from diptych.apps.report.html import MARK, Html, picture
from diptych.apps.report.numbers import duration, number, operations, percent
from diptych.writing import write_text

FILE = "report.html"
LONGEST = 12
"""Items of a list that are shown of a field, such as all the answers to choose from."""


def write_report(folder: Path, data: ReportData) -> Path:
    """Writes `folder/report.html`, whole or not at all, and returns its path."""
    return write_text(folder / FILE, render(data))


def render(data: ReportData) -> str:
    """Renders the report of a run."""
    return fill("report.html.j2", report=data)


def fill(template: str, **values: object) -> Html:
    """Renders a template. All text in `values` is escaped."""
    return Html(_environment().get_template(template).render(values))


def draw(chart: Chart) -> Html:
    """Draws curves as inline SVG, with a legend, axes and, under the pointer, the values at a step."""
    return fill("chart.html.j2", chart=chart, **axes(chart))


def gain_verdict(low: float, high: float) -> str:
    """Says what the interval of a difference allows to claim.

    >>> gain_verdict(-0.4, 1.2)
    'inside the noise'
    """
    if low > 0:
        return "above 0"
    return "below 0" if high < 0 else "inside the noise"


def calibrated_kinds(evaluation: Mapping[str, Any]) -> list[str]:
    """Lists the kinds of queries for which the calibration of hits was measured.

    >>> calibrated_kinds({"calibration.min_match": 0.5, "calibration.captions.error": 1.2})
    ['captions']
    """
    return [name.split(".")[1] for name in evaluation if name.startswith("calibration.") and name.endswith(".error")]


def flat(recipe: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """Lists all fields of a recipe by their dotted names. Long lists are cut.

    >>> flat({"name": "tiny", "model": {"width": 64}})
    [('name', 'tiny'), ('model.width', '64')]
    """
    fields: list[tuple[str, str]] = []
    for name, value in recipe.items():
        if isinstance(value, Mapping):
            fields += flat(value, f"{above}{name}.")
        elif isinstance(value, list | tuple) and len(value) > LONGEST:
            fields.append((f"{above}{name}", f"{', '.join(map(str, value[:LONGEST]))} … {len(value)} in all"))
        else:
            fields.append((f"{above}{name}", str(value)))
    return fields


@cache
def _environment() -> Environment:
    loader = FileSystemLoader(Path(__file__).with_name("templates"))
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "fmt": format,
        "interval": _interval,
        "number": number,
        "percent": percent,
        "duration": duration,
        "operations": operations,
    }
    environment.globals |= {
        "version": __version__,
        "mark": MARK,
        "picture": picture,
        "draw": draw,
        "flat": flat,
        "gain_verdict": gain_verdict,
        "calibrated_kinds": calibrated_kinds,
        "reliability_points": reliability_points,
    }
    return environment


def _interval(ends: Sequence[float], form: str = ".1f") -> str:
    return f"{ends[0]:{form}} … {ends[1]:{form}}"
