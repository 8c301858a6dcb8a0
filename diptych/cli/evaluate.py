"""`diptych evaluate RUN [name=value …]`"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.cli.loading import add_precision

if TYPE_CHECKING:
    from diptych.metrics.accuracy import Estimate
    from diptych.run import EvaluatedClasses, EvaluatedTask


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "diptych evaluate",
        usage="diptych evaluate RUN [--split SPLIT] [--submission FILE] [--json] [name=value …]\n"
        "       diptych evaluate RUN --classes DIR [--probe] [--template TEXT …] [--class-names FILE] [--json]",
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
    parser.add_argument(
        "--classes", type=Path, metavar="DIR",
        help="measure on a folder with a subfolder of pictures for each class instead: zero-shot, by their names",
    )  # fmt: skip
    parser.add_argument(
        "--probe", action="store_true",
        help="with --classes, also train logistic regression on the frozen vectors: on DIR/train, or in five folds",
    )  # fmt: skip
    parser.add_argument(
        "--template", action="append", metavar="TEXT",
        help="with --classes, a sentence in which {} stands for the name; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--class-names", type=Path, metavar="FILE", help="with --classes, a JSON object of names by folder"
    )
    add_precision(parser, "fp32")
    options, assignments = parser.parse_known_args(arguments)

    if options.classes is not None:
        _classes(options, assignments)
        return
    if options.probe or options.template or options.class_names:
        raise ValueError("--probe, --template and --class-names belong to --classes DIR")
    from diptych.apps.report import summary
    from diptych.pretrained import locate
    from diptych.recipes.override import parse_assignments
    from diptych.run import EvaluatedTask, evaluate

    changes = parse_assignments(assignments)
    with _notes_apart(options.json):
        evaluated = evaluate(locate(options.run), options.split, options.submission, changes, False, options.precision)
    # They are printed first: what took hours to measure must not be lost because it cannot be written.
    if options.json:
        print(json.dumps(evaluated.to_json(), indent=1), flush=True)
    else:
        text = as_text(evaluated) if isinstance(evaluated, EvaluatedTask) else summary(evaluated.to_json())
        print(text, flush=True)
    evaluated.write()
    if options.json:
        return
    written = [*evaluated.written, *([options.submission] if options.submission else [])]
    print("\nWritten:", *(f"  {file}" for file in written), sep="\n")


def _notes_apart(as_json: bool) -> AbstractContextManager[Any]:
    """Sends what is said during an evaluation to standard error, so that standard output holds nothing but the JSON."""
    return redirect_stdout(sys.stderr) if as_json else nullcontext()


def _classes(options: argparse.Namespace, assignments: Sequence[str]) -> None:
    """Measures on a folder of classes and prints the measures before they are written."""
    if assignments or options.submission or options.split != "test":
        raise ValueError("--classes DIR names the data: --split, --submission and name=value do not go with it")
    from diptych.data.classes import read_class_names
    from diptych.predict.predictor import TEMPLATES
    from diptych.run import evaluate_classes

    names = read_class_names(options.class_names) if options.class_names else None
    templates = options.template or TEMPLATES
    with _notes_apart(options.json):
        evaluated = evaluate_classes(
            options.run, options.classes, options.probe, templates, names, precision=options.precision
        )
    print(json.dumps(evaluated.to_json(), indent=1) if options.json else classes_as_text(evaluated))
    file = evaluated.write()
    if not options.json:
        print(f"\nWritten:\n  {file}")


def classes_as_text(evaluated: EvaluatedClasses) -> str:
    """Formats the measures on a folder of classes, and how many pictures of each class were told."""
    names = {
        "zero_shot.accuracy": "Zero-shot, by name", "zero_shot.accuracy@5": "Zero-shot, among the nearest five",
        "linear_probe.accuracy": "Linear probe",
    }  # fmt: skip
    scores = evaluated.scores()
    width = max(len(names[name]) for name in scores)
    chance = 100 / len(evaluated.names)
    lines = [f"{evaluated.source}: {len(evaluated.names)} classes, in % with 95 % intervals (chance {chance:.1f})"]
    lines += [_line(names[name], score, width) for name, score in scores.items()]
    wide = max(map(len, evaluated.names))
    probe = evaluated.probe
    lines.append("Pictures of each class that were told" + (", zero-shot and by the probe:" if probe else ":"))
    for name, count in evaluated.zero_shot.classes.items():
        by_probe = f"  {probe.classes[name].right:>6,}" if probe else ""
        lines.append(f"  {name:<{wide}}  {count.right:>6,}{by_probe} of {count.labelled:,}")
    if evaluated.unknown_words:
        lines.append(f"words of the names that the model cannot read: {', '.join(evaluated.unknown_words)}")
    if evaluated.skipped:
        lines.append(f"{len(evaluated.skipped)} could not be read: {evaluated.skipped[0]}")
    return "\n".join(lines)


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
    value, low, high = (round(number, 6) for number in (score.value, *score.interval))  # as in eval.json
    return f"  {name:<{width}}  {value:5.1f}   {low:5.1f} … {high:5.1f}   of {score.count:,}"
