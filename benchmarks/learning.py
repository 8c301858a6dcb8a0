"""What the demonstrations' models learn, seed by seed: `python -m benchmarks.learning RUN… --to FILE`.

Reads finished runs of `albef_tiny` and `vlmo_tiny` that `diptych evaluate` has measured, and prints a table with a row
for each run. With `--to` it also writes them as JSON: by recipe a list for each measure, one entry a seed in their
order. Recalls are pairs (image → text, text → image) in percent among 1,000 unseen scenes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diptych
from diptych.evaluate.nouns import evaluate_nouns
from diptych.evaluate.pointing import evaluate_pointing
from diptych.train.state import stored_recipe

FINAL = {"albef_tiny": "", "vlmo_tiny": "contrastive."}
"""Prefix of the entries of `eval.json` that count as a recipe's recall: re-ranked for ALBEF, the dual encoder's for
VLMo (VLMo §4)."""
BOTH = ("image_to_text", "text_to_image")


def measure(run: Path) -> dict[str, Any]:
    """Reads a run's measures. Raises ValueError for a run that has not ended or was not evaluated."""
    recipe = stored_recipe(run)
    if recipe.name not in FINAL:
        raise ValueError(f"{run} trained {recipe.name}: only {', '.join(FINAL)} are compared by seed")
    if not (run / "eval.json").exists():
        raise ValueError(f"{run} has no eval.json: run `diptych evaluate {run}` first")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    if lines[-1]["step"] != recipe.run.steps:
        raise ValueError(f"{run} has not ended: it is at step {lines[-1]['step']} of {recipe.run.steps}")
    measured = json.loads((run / "eval.json").read_text(encoding="utf-8"))

    def recall(prefix: str, k: int) -> list[float]:
        return [measured[f"{prefix}{way}.recall@{k}"] for way in BOTH]

    predictor = diptych.load(run)
    nouns, pointing = evaluate_nouns(predictor), evaluate_pointing(predictor)
    return {
        "recipe": recipe.name,
        "start": "stages" if recipe.init_from else "random weights",
        "seed": recipe.run.seed,
        "steps": recipe.run.steps,
        "seconds": round(lines[-1]["seconds"]),
        "recall@1": recall(FINAL[recipe.name], 1),
        "recall@10": recall(FINAL[recipe.name], 10),
        "recall@1 by similarity": recall("contrastive.", 1),
        "recall@1 re-ranked": recall("", 1),
        "one noun, a right image first": {key: nouns[f"{key}.right_first"] for key in ("similarity", "match")},
        "one noun, area under the curve": {key: nouns[f"{key}.roc_area"] for key in ("similarity", "match")},
        "pointing game": {key: round(value, 1) for key, value in pointing.items()},
    }


def by_recipe(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[Any]]]:
    """Lists each measure by recipe, in the order of the seeds.

    >>> by_recipe([{"recipe": "a", "seed": 1, "x": 5}, {"recipe": "a", "seed": 0, "x": 4}])
    {'a': {'seed': [0, 1], 'x': [4, 5]}}
    """
    tables: dict[str, dict[str, list[Any]]] = {}
    for row in sorted(rows, key=lambda row: (row["recipe"], row["seed"])):
        table = tables.setdefault(row["recipe"], {})
        for name, value in row.items():
            if name != "recipe":
                table.setdefault(name, []).append(value)
    return tables


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.learning", description="Collect what seeds have learnt.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="finished and evaluated run")
    parser.add_argument(
        "--to", type=Path, metavar="FILE", help="JSON file to write, such as docs/results/learning.json"
    )
    options = parser.parse_args()
    rows = [measure(run) for run in options.runs]
    for row in rows:
        print(json.dumps(row))
    if options.to:
        options.to.parent.mkdir(parents=True, exist_ok=True)
        options.to.write_text(json.dumps(by_recipe(rows), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
