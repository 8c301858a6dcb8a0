"""`diptych evaluate RUN [name=value …]`"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diptych.metrics.accuracy import Estimate
    from diptych.run import EvaluatedTask


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "diptych evaluate",
        usage="diptych evaluate RUN [--split SPLIT] [--submission FILE] [--json] [name=value …]",
        epilog="name=value asks the same model of other data or otherwise, as in data.test_path=FILE, "
        "data.scenes.compositions=held_out, evaluation.rerank=256, task.inference=generate; its measures go to "
        "RUN/eval-changed.json.",
        description="Measure a run's best checkpoint; writes RUN/eval.json and, where a task is judged record by "
        "record, what the model said of each into RUN/predictions.jsonl. Retrieval is ranked over the whole split.",
    )
    parser.add_argument("run", type=Path, help="a run's folder, or one of its checkpoints")
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="which records (default: test)")
    parser.add_argument(
        "--submission",
        type=Path,
        metavar="FILE",
        help="also write the file for the VQA evaluation server, NLVR2 or SNLI-VE, checked before it is written",
    )
    parser.add_argument("--json", action="store_true", help="print what eval.json holds instead of a table")
    given, assignments = parser.parse_known_args(arguments)

    from diptych.apps.report import summary
    from diptych.recipes.override import parse_assignments
    from diptych.run import EvaluatedTask, evaluate

    found = evaluate(given.run, given.split, given.submission, parse_assignments(assignments))
    if given.json:
        print(json.dumps(found.to_json(), indent=1))
        return
    print(evaluation_text(found) if isinstance(found, EvaluatedTask) else summary(found.to_json()))
    written = [*found.written, *([given.submission] if given.submission else [])]
    print("\nWritten:", *(f"  {file}" for file in written), sep="\n")


def evaluation_text(evaluated: EvaluatedTask) -> str:
    """Formats the measures of a split: value, interval and number of records; below them the references."""
    from diptych.apps.report import named_figures, named_references, named_scores

    recipe, result = evaluated.opened.recipe, evaluated.result
    head = f"{recipe.name}, {evaluated.split} split: {len(result.decisions):,} records"
    if not result.scores:
        return f"{head}\n  no score: nobody tells what is right of them"
    scores, references = named_scores(recipe.task, result), named_references(recipe.task, result)
    width = max(map(len, [*scores, *references]))
    lines = [f"{head}, in % with 95 % intervals", *(_line(*one, width) for one in scores.items())]
    if references:
        lines += ["Without looking:", *(_line(*one, width) for one in references.items())]
    if result.figures:
        figures = named_figures(recipe.task, result)
        wide = max(map(len, figures))
        lines += ["Beside:", *(f"  {name:<{wide}}  {value:,.4g}" for name, value in figures.items())]
    if result.classes:
        wide = max(map(len, result.classes))
        lines.append("Found of each class, and right where it was said:")
        lines += [
            f"  {name:<{wide}}  {one.right:>6,} of {one.labelled:>6,}  {one.right:>6,} of {one.predicted:>6,}"
            for name, one in result.classes.items()
        ]
    return "\n".join(lines)


def _line(name: str, score: Estimate, width: int) -> str:
    low, high = score.interval
    return f"  {name:<{width}}  {score.value:5.1f}   {low:5.1f} … {high:5.1f}   of {score.count:,}"
