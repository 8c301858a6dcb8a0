"""Fills the tables of the page "What each idea is worth" and draws its figures: `python docs/ideas.py`.

The tables are the `table.json` of `diptych ablate` and the files of `python -m benchmarks.compositions`, kept in
`docs/results/ablations`. The questions and commands on the page are written by hand. What stands between two markers,
`<!-- NAME -->` and `<!-- end -->`, follows from the file of that name, also the sentences that say whether a difference
exceeds the noise.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from math import ceil, floor, log10
from pathlib import Path
from statistics import fmean
from typing import Any

from diptych.metrics.intervals import seed_interval

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "ablations"
PAGE = HERE / "ideas.md"
PICTURES = HERE / "pictures"
SEVERAL = ("compositions", "towers", "views", "pseudo", "audit")
"""Beginnings of the names of files whose runs no ablation compares. Each has a part of the page of its own."""
LEVEL = 0.05
MARKED = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
MEASURES = tuple(
    f"{way}, recall@1, {kind}" for kind in ("re-ranked", "dual encoder") for way in ("text → picture", "picture → text")
)
"""Those that the page shows."""


def filled(page: str) -> str:
    """Fills the marked parts of the page from the stored results. A part without results is left empty."""
    return MARKED.sub(lambda match: f"{match[1]}{_part(match[2])}{match[3]}", page)


def _part(name: str) -> str:
    if name == "compositions":
        return compositions()
    if name == "towers":
        return towers()
    if name == "views":
        return views()
    if name == "pseudo":
        return pseudo_targets()
    if name == "audit":
        return audit()
    file = RESULTS / f"{name}.json"
    return _section(name, json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else ""


def _rows(table: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Lists the rows of the measures that the page shows: after fine-tuning for retrieval, where the table has it."""
    task = "retrieval" if any(row["task"] == "retrieval" for row in table["reached"]) else ""
    rows = [row for row in table["reached"] if row["task"] == task]
    return [row for measure in MEASURES for row in rows if row["measure"] == measure]


def _section(name: str, table: Mapping[str, Any]) -> str:
    rows = _rows(table)
    seeds = sorted({int(seed) for row in rows for seed in row["seeds"]})
    task = rows[0]["task"]
    flops = {
        cost["variant"]: sum(part["flops"] for part in cost["parts"] if part["part"] in cost["tasks"][task]) / 1e12
        for cost in table["costs"]
    }
    against = {row["against"] for row in rows} - {None}
    difference = f"minus “{against.pop()}”" if len(against) == 1 else "minus the row above"
    head = (
        "recall@1, %", "variant", f"mean of {len(seeds)} seeds", difference, "95 %", "verdict", "seeds for half",
        "TFLOP",
    )  # fmt: skip
    body = [
        (
            _short(row["measure"]), row["variant"], f"{row['mean']:.1f}", _signed(row["difference"]),
            _interval(row["difference_interval"]), _verdict(row), str(row["seeds_for_half"] or ""),
            f"{flops[row['variant']]:.0f}",
        )
        for row in rows
    ]  # fmt: skip
    return "\n".join(
        [
            f"![Differences with their intervals](pictures/ideas-{name}.svg)", "", *_table(head, body), "",
            *(f"- {sentence}" for sentence in _answers(rows)), "",
            f"Seeds {', '.join(map(str, seeds))}, version {table['version']}; "
            f"every run is in [{name}.json](results/ablations/{name}.json).", "",
        ]
    )  # fmt: skip


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---"] * len(head)
    return [f"| {' | '.join(cells)} |".replace("  ", " ") for cells in (head, rule, *body)]


def _answers(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Says for each difference whether it exceeds the noise."""
    for row in rows:
        if row["difference"] is None:
            continue
        change = f"**{row['variant']}**, compared with “{row['against']}”: {_short(row['measure'])} changes by "
        change += f"{_signed(row['difference'])} points"
        ends = _interval(row["difference_interval"])
        if row["p"] is None:
            yield f"{change} with one seed, which says nothing about the noise."
        elif row["p"] < LEVEL:
            yield f"{change} (95 %: {ends}), which is beyond noise (p = {row['p']:.3f})."
        else:
            yield f"{change} (95 %: {ends}). Not shown at this size: this is within the noise (p = {row['p']:.2f})."


def _short(measure: str) -> str:
    way, _, kind = measure.split(", ")
    return f"{way.replace('picture', 'image')}, {kind}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f}".replace("-", "−")


def _interval(ends: Sequence[float] | None) -> str:
    return "" if ends is None else f"{_signed(ends[0])} to {_signed(ends[1])}"


def _verdict(row: Mapping[str, Any]) -> str:
    if row["p"] is None:
        return ""
    return "**beyond noise**" if row["p"] < LEVEL else "within noise"


# --------------------------------------------------------------------------- compositions

KINDS = {
    "swap": "swap the things of a relation",
    "replace_relation": "replace a relation by its opposite",
    "swap_number": "swap two numbers",
    "replace_noun": "replace a noun",
    "replace_background": "replace the background's colour",
    "add_noun": "add a noun",
    "word_order": "shuffle the words",
}
CHANCES = (("text", "25.0"), ("image", "25.0"), ("group", "16.7"))
SCORES = {"similarity": "similarity", "match": "ITM", "blind": "ITM, blind"}
SYSTEMS = {"albef_tiny": "ALBEF", "vlmo_tiny": "VLMo"}
Found = Mapping[str, Mapping[str, Mapping[str, float]]]
"""The measures of each run of each system."""


def compositions() -> str:
    """Writes the tables of compositions from the files of `python -m benchmarks.compositions`."""
    found = {
        system: json.loads(file.read_text(encoding="utf-8"))
        for system in SYSTEMS
        if (file := RESULTS / f"compositions_{system}.json").is_file()
    }
    if not found:
        return ""
    head = [f"{SYSTEMS[system]}, {score}" for system in found for score in SCORES.values()]
    seeing = [name for name in head if "blind" not in name]
    pairs = [(label, *_means(found, kind, ""), "50.0") for kind, label in KINDS.items()]
    quadruples = [
        (f"{name} score", *_means(found, "quadruples", f".{name}", ("similarity", "match")), chance)
        for name, chance in CHANCES
    ]
    return "\n".join(
        [
            *_table(("true text above the false one, %", *head, "chance"), pairs), "",
            *_table(("quadruples, %", *seeing, "chance"), quadruples), "",
            f"Means of {len(next(iter(found.values())))} seeds with Student's 95 % intervals.", "",
            *(f"- {sentence}" for sentence in _readings(found)), "",
        ]
    )  # fmt: skip


def _means(found: Found, kind: str, measure: str, scores: Sequence[str] = tuple(SCORES)) -> list[str]:
    return [_mean(_values(runs, f"{kind}.{score}{measure}")) for runs in found.values() for score in scores]


def _values(runs: Mapping[str, Mapping[str, float]], name: str) -> list[float]:
    return [measures[name] for measures in runs.values() if name in measures]


def _mean(values: Sequence[float], digits: int = 1) -> str:
    interval = seed_interval(values)
    ends = f" ({interval.low:.{digits}f} … {interval.high:.{digits}f})" if interval else ""
    return (f"{fmean(values):.{digits}f}" if values else "") + ends


def _readings(found: Found) -> Iterator[str]:
    """Says for each system what it reads: what it tells more often than chance and than ITM without the image."""
    for system, runs in found.items():
        for score in ("similarity", "match"):
            read = [name for kind, name in KINDS.items() if _is_read(runs, kind, score)]
            unread = [name for name in KINDS.values() if name not in read]
            told = f"{SYSTEMS[system]}, {SCORES[score]}, is above chance{BLIND[score]} for “{'”, “'.join(read)}”"
            yield told + (f"; not for “{'”, “'.join(unread)}”." if unread else ".")


BLIND = {"similarity": "", "match": " and above blind ITM"}


def _is_read(runs: Mapping[str, Mapping[str, float]], kind: str, score: str) -> bool:
    """Judges by Student's intervals over seeds: that of the score, and of its paired difference to blind ITM."""
    leads = [[measures[f"{kind}.{score}"] - 50 for measures in runs.values()]]
    if score == "match":
        leads.append([measures[f"{kind}.match"] - measures[f"{kind}.blind"] for measures in runs.values()])
    intervals = [seed_interval(values) for values in leads]
    return all(interval is not None and interval.low > 0 for interval in intervals)


# --------------------------------------------------------------------------- two towers, one tower, or both

WAYS = {"image_to_text": "image → text", "text_to_image": "text → image"}


def stored_towers() -> dict[str, dict[str, dict[str, float]]]:
    """Reads the files of `python -m benchmarks.towers`, by system and run."""
    files = {system: RESULTS / f"towers_{system}.json" for system in SYSTEMS}
    return {system: json.loads(file.read_text("utf-8")) for system, file in files.items() if file.is_file()}


def towers() -> str:
    """Writes, for each system, a table of what each way to search finds and costs, below a figure of both systems."""
    stored = stored_towers()
    lines = ["![Recall over the searches a second](pictures/ideas-towers.svg)", ""] if stored else []
    for system, runs in stored.items():
        body = [
            (
                _searched(name),
                *(_mean(_values(runs, f"{way}.recall@1.{name}")) for way in WAYS),
                *(_mean(_values(runs, f"{way}.among.{name}")) for way in WAYS),
                _rounded(fmean(_values(runs, f"flop.{name}")) / 1e6),
                _rounded(1 / fmean(_values(runs, f"seconds.{name}"))),
            )
            for name in _depths(runs)
        ]
        head = (
            "searched by", *(f"recall@1, {way}" for way in WAYS.values()),
            *(f"among them, {way}" for way in WAYS.values()), "MFLOP a search", "searches a second",
        )  # fmt: skip
        seeds = "one run" if len(runs) == 1 else f"means of {len(runs)} seeds with Student's 95 % intervals"
        lines += [f"{SYSTEMS[system]}, in %, {seeds}:", "", *_table(head, body), ""]
    return "\n".join(lines)


def _depths(runs: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Lists the numbers of candidates that were measured, with 0 first and `tower` last."""
    names = {name.rpartition(".")[2] for measures in runs.values() for name in measures if name.startswith("flop.")}
    return sorted(names, key=lambda name: float("inf") if name == "tower" else int(name))


def _rounded(value: float) -> str:
    """Writes a number with two digits that count, as in 0.031 or 1,200."""
    digits = 1 - floor(log10(value))
    return f"{round(value, digits):,.{max(digits, 0)}f}"


def _searched(name: str) -> str:
    words = {"0": "similarity alone (two towers)", "tower": "ITM on all pairs (one tower)"}
    return words.get(name, f"both: ITM and similarity of the first {name}")


# --------------------------------------------------------------------------- objectives as views

BOUNDS = {
    "mi_bound": "image and text (ITC)",
    "mi_bound_words": "word and its context (MLM)",
    "mi_bound_teacher": "image and a text of the momentum encoder",
}


def stored_views() -> dict[str, dict[str, dict[str, float]]]:
    """Reads the files of `python -m benchmarks.views`, by system and run."""
    files = {system: RESULTS / f"views_{system}.json" for system in SYSTEMS}
    return {system: json.loads(file.read_text("utf-8")) for system, file in files.items() if file.is_file()}


def views() -> str:
    """Writes, for each system, its figure and a table of the bounds where the recall was validated."""
    lines: list[str] = []
    for system, runs in stored_views().items():
        measures = [name for name in (*BOUNDS, "mean_recall") if _courses(runs, name)]
        steps = sorted(_courses(runs, "mean_recall"))
        body = [
            (str(step), *(_mean(_courses(runs, name).get(step, ()), 2 if name in BOUNDS else 1) for name in measures))
            for step in steps
        ]
        head = ("step", *(BOUNDS[name] for name in measures if name in BOUNDS), "validation's mean recall, %")
        lines += [f"![The bounds over the steps](pictures/ideas-views_{system}.svg)", ""]
        lines += [f"{SYSTEMS[system]}, bounds in nats, means of {len(runs)} seeds with Student's 95 % intervals:", ""]
        lines += [*_table(head, body), ""]
    return "\n".join(lines)


def _courses(runs: Mapping[str, Mapping[str, float]], name: str) -> dict[int, list[float]]:
    """Collects the values of a measure by step, those of all runs together."""
    found: dict[int, list[float]] = {}
    for measures in runs.values():
        for key, value in measures.items():
            measure, _, step = key.rpartition(".")
            if measure == name:
                found.setdefault(int(step), []).append(value)
    return found


# --------------------------------------------------------------------------- pseudo-targets and the audit

JUDGED = {"label": "only the label", "pseudo": "only the pseudo-target", "both": "both", "neither": "neither"}


def pseudo_targets() -> str:
    """Writes the tables of the texts and of the words from the file of `python -m benchmarks.pseudo_targets`."""
    runs = _stored("pseudo_targets")
    lines: list[str] = []
    for kind, label in (("texts", "texts (ITC)"), ("words", "masked names (MLM)")):
        courses = {right: _courses(runs, f"{kind}.{right}") for right in JUDGED}
        body = [
            (str(step), *(_mean(courses[right].get(step, ())) for right in JUDGED)) for step in sorted(courses["both"])
        ]
        head = (f"{label}, step", *(f"{words} right, %" for words in JUDGED.values()))
        lines += [*_table(head, body), ""] if body else []
    return "\n".join(lines)


def audit() -> str:
    """Writes the table of the mismatched pairs that were found, from the file of `python -m benchmarks.audit`."""
    names = {"contrast": "contrast", "match": "ITM", "both": "both"}
    body = [
        (
            run,
            f"{100 * float(share):.0f} %",
            *(f"{measures[f'{share}.{score}.roc_area']:.3f}" for score in names),
        )
        for run, measures in _stored("audit").items()
        for share in sorted({name.rpartition(".")[0].rpartition(".")[0] for name in measures})
    ]
    head = ("trained on", "captions of other scenes", *(f"area by {name}" for name in names.values()))
    return "\n".join([*_table(head, body), ""]) if body else ""


def _stored(name: str) -> dict[str, dict[str, float]]:
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


# --------------------------------------------------------------------------- figures

WIDTH, LEFT, LINE, TOP = 760, 330, 26, 34
COLOURS = ("#2a8fb0", "#c46f1f")
"""Of dual encoders and of re-ranking, on light and on dark pages."""


def figure(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Draws differences with their intervals, as SVG."""
    rows = [row for row in rows if row["difference"] is not None]
    ends = [end for row in rows for end in (row["difference_interval"] or (row["difference"], row["difference"]))]
    low, high = min(0.0, *ends), max(0.0, *ends)
    height = TOP + LINE * len(rows) + 30

    def at(value: float) -> float:
        return LEFT + 40 + (value - low) * (WIDTH - LEFT - 100) / ((high - low) or 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="-apple-system, Segoe UI, Noto Sans, Helvetica, Arial, sans-serif" font-size="13" fill="#768390">',
        f"<title>{escape(title)}</title>",
        f'<text x="{at(0):.1f}" y="20" text-anchor="middle">no difference</text>',
        f'<path d="M{at(0):.1f} 26V{height - 26}" stroke="#768390" stroke-dasharray="3 3"/>',
    ]
    for place, row in enumerate(rows):
        y, label = TOP + LINE * place + 12, f"{row['variant']}: {_short(row['measure'])}"
        parts.append(f'<text x="{LEFT}" y="{y + 4}" text-anchor="end">{escape(label)}</text>')
        colour = COLOURS["re-ranked" in row["measure"]]
        if row["difference_interval"]:
            first, last = (at(end) for end in row["difference_interval"])
            parts.append(f'<path d="M{first:.1f} {y}H{last:.1f}" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<circle cx="{at(row["difference"]):.1f}" cy="{y}" r="5" fill="{colour}"/>')
    parts += [
        f'<text x="{at(value):.1f}" y="{height - 8}" text-anchor="middle">{_signed(value)} points</text>'
        for value in (low, high)
        if value
    ]
    return "\n".join([*parts, "</svg>", ""])


CURVES = {"mi_bound": "#2a8fb0", "mi_bound_words": "#c46f1f", "mi_bound_teacher": "#8a63b8", "mean_recall": "#57965c"}


def curves(title: str, runs: Mapping[str, Mapping[str, float]]) -> str:
    """Draws the bounds in nats and, below them, the validation's recall over the steps, as SVG; means of all runs."""
    courses = {name: {step: fmean(values) for step, values in _courses(runs, name).items()} for name in CURVES}
    last = max(step for course in courses.values() for step in course)
    most = max(value for name in BOUNDS for value in courses[name].values())
    upper, lower, left, right = (40, 200), (250, 350), 50, WIDTH - 250

    def line(name: str, band: tuple[int, int], full: float) -> Iterator[str]:
        course = sorted(courses[name].items())
        at = [
            (left + step / last * (right - left), band[1] - max(value, 0) / full * (band[1] - band[0]))
            for step, value in course
        ]
        if not at:
            return
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in at)
        yield f'<path d="M{path}" fill="none" stroke="{CURVES[name]}" stroke-width="2"/>'
        label = escape(BOUNDS.get(name, "mean recall"))
        yield f'<text x="{right + 8}" y="{at[-1][1] + 4:.1f}" fill="{CURVES[name]}">{label}</text>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} 390" width="{WIDTH}" height="390" '
        'font-family="-apple-system, Segoe UI, Noto Sans, Helvetica, Arial, sans-serif" font-size="13" fill="#768390">',
        f"<title>{escape(title)}</title>",
    ]
    for (top, bottom), most_said, unit in ((upper, f"{most:.1f}", "nats"), (lower, "100", "%")):
        parts += [
            f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="#768390"/>',
            f'<text x="{left - 6}" y="{top + 5}" text-anchor="end">{most_said}</text>',
            f'<text x="{left - 6}" y="{bottom + 4}" text-anchor="end">0</text>',
            f'<text x="{left - 6}" y="{(top + bottom) // 2 + 4}" text-anchor="end">{unit}</text>',
        ]
    for name in BOUNDS:
        parts += line(name, upper, most)
    parts += line("mean_recall", lower, 100)
    parts.append(f'<text x="{left}" y="372">step 0</text><text x="{right}" y="372" text-anchor="end">{last}</text>')
    return "\n".join([*parts, "</svg>", ""])


def rates(stored: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Draws each system's recall@1 of searches by text over their number a second on a logarithmic axis, as SVG."""
    places = {
        system: {
            name: (
                log10(1 / fmean(_values(runs, f"seconds.{name}"))),
                fmean(_values(runs, f"text_to_image.recall@1.{name}")),
            )
            for name in _depths(runs)
        }
        for system, runs in stored.items()
    }
    points = [point for course in places.values() for point in course.values()]
    first, last = floor(min(x for x, _ in points)), ceil(max(x for x, _ in points))
    lowest = 10 * floor(min(y for _, y in points) / 10)
    left, right, top, bottom = 60, WIDTH - 120, 30, 300

    def at(x: float, y: float) -> tuple[float, float]:
        across, up = (x - first) / (last - first), (y - lowest) / (100 - lowest)
        return left + across * (right - left), bottom - up * (bottom - top)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} 350" width="{WIDTH}" height="350" '
        'font-family="-apple-system, Segoe UI, Noto Sans, Helvetica, Arial, sans-serif" font-size="13" fill="#768390">',
        "<title>Recall@1 over the searches a second</title>",
        f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="#768390"/>',
        f'<text x="{left - 6}" y="{top + 5}" text-anchor="end">100</text>',
        f'<text x="{left - 6}" y="{bottom + 4}" text-anchor="end">{lowest}</text>',
        f'<text x="{left}" y="{top - 12}">recall@1, text → image, %</text>',
        f'<text x="{right}" y="{bottom + 40}" text-anchor="end">searches a second, logarithmic</text>',
    ]
    for power in range(first, last + 1):
        x, _ = at(power, lowest)
        parts.append(f'<text x="{x:.1f}" y="{bottom + 20}" text-anchor="middle">{10.0**power:g}</text>')
    for colour, below, (system, course) in zip(COLOURS, (18, -10), places.items(), strict=False):
        path = "L".join("{:.1f} {:.1f}".format(*at(*point)) for point in course.values())
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for name, point in course.items():
            x, y = at(*point)
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
            if name in ("0", "tower"):
                words = f"{SYSTEMS[system]}, {'two towers' if name == '0' else 'one tower'}"
                parts.append(f'<text x="{x + 8:.1f}" y="{y + below:.1f}" fill="{colour}">{words}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    for system, runs in stored_views().items():
        title = f"{SYSTEMS[system]}: bounds on mutual information and recall"
        (PICTURES / f"ideas-views_{system}.svg").write_text(curves(title, runs), encoding="utf-8")
    if stored := stored_towers():
        (PICTURES / "ideas-towers.svg").write_text(rates(stored), encoding="utf-8")
    for file in sorted(RESULTS.glob("*.json")):
        if not file.stem.startswith(SEVERAL):
            rows = _rows(json.loads(file.read_text(encoding="utf-8")))
            (PICTURES / f"ideas-{file.stem}.svg").write_text(figure(file.stem, rows), encoding="utf-8")
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
