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
        epilog="name=value evaluates the same model on other data or in another way, as in data.test_path=FILE, "
        "data.scenes.compositions=held_out, evaluation.rerank=256, task.inference=generate. The measures then go to "
        "RUN/eval-changed.json.",
        description="Measure a run's best checkpoint and write RUN/eval.json. Where a task is evaluated record by "
        "record, also write its predictions to RUN/predictions.jsonl. Retrieval is ranked over the whole split.",
    )
    parser.add_argument("run", type=Path, help="a run's folder, one of its checkpoints, or published weights")
    parser.add_argument(
        "--split", choices=("validation", "test"), default="test", help="the split to measure (default: test)"
    )
    parser.add_argument(
        "--submission",
        type=Path,
        metavar="FILE",
        help="also write the file for the VQA evaluation server, NLVR2 or SNLI-VE, checked before it is written",
    )
    parser.add_argument("--json", action="store_true", help="print what eval.json holds instead of a table")
    options, assignments = parser.parse_known_args(arguments)

    from diptych.apps.report import summary
    from diptych.pretrained import locate
    from diptych.recipes.override import parse_assignments
    from diptych.run import EvaluatedTask, evaluate

    evaluated = evaluate(locate(options.run), options.split, options.submission, parse_assignments(assignments))
    if options.json:
        print(json.dumps(evaluated.to_json(), indent=1))
        return
    print(as_text(evaluated) if isinstance(evaluated, EvaluatedTask) else summary(evaluated.to_json()))
    written = [*evaluated.written, *([options.submission] if options.submission else [])]
    print("\nWritten:", *(f"  {file}" for file in written), sep="\n")


def as_text(evaluated: EvaluatedTask) -> str:
    """Formats the measures of a task as lines: value, interval and number of records, and the same of references."""
    from diptych.apps.report import named_figures, named_references, named_scores

    recipe, result = evaluated.opened.recipe, evaluated.result
    head = f"{recipe.name}, {evaluated.split} split: {len(result.decisions):,} records"
    if not result.scores:
        return f"{head}\n  no score, since none of them has a label"
    scores, references = named_scores(recipe.task, result), named_references(recipe.task, result)
    width = max(map(len, [*scores, *references]))
    lines = [f"{head}, in % with 95 % intervals", *(_line(*named, width) for named in scores.items())]
    if references:
        lines += ["Without looking:", *(_line(*named, width) for named in references.items())]
    if result.figures:
        figures = named_figures(recipe.task, result)
        wide = max(map(len, figures))
        lines += ["Beside:", *(f"  {name:<{wide}}  {value:,.4g}" for name, value in figures.items())]
    if result.classes:
        wide = max(map(len, result.classes))
        lines.append("Records of each class that were found, and predictions of it that were right:")
        lines += [
            f"  {name:<{wide}}  {count.right:>6,} of {count.labelled:>6,}  {count.right:>6,} of {count.predicted:>6,}"
            for name, count in result.classes.items()
        ]
    return "\n".join(lines)


def _line(name: str, score: Estimate, width: int) -> str:
    low, high = score.interval
    return f"  {name:<{width}}  {score.value:5.1f}   {low:5.1f} … {high:5.1f}   of {score.count:,}"
