"""Recall@1 by the number of candidates that are re-ranked: `python -m benchmarks.depth RUN… [--depths 8 16 …]`.

Each run's test split is re-ranked once, with the largest number of candidates. Fewer are the first of them, so that all
numbers are about the same scores. 0 stands for the order of similarity alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from benchmarks.nouns import print_table
from diptych.run.evaluation import evaluate_as_retrieval

DEPTHS = (4, 8, 16, 32, 64, 128, 256)


def measure(run: Path, depths: Sequence[int]) -> dict[str, float]:
    """Measures recall@1 in percent for each depth, both ways, and the share of queries whose answer is among so many.

    Raises ValueError for a model that cannot re-rank.
    """
    evaluated = evaluate_as_retrieval(run, changes={"evaluation.rerank": max(depths)}, write=False)
    owner, result = evaluated.split.image_of_text, evaluated.result
    to_text, to_image = result.image_to_text.reranked, result.text_to_image.reranked
    if to_text.match is None or to_image.match is None:
        raise ValueError(f"{run} was not trained to match pairs, so that nothing can be re-ranked")
    right = {
        "image_to_text": (owner[to_text.candidates] == torch.arange(len(to_text.candidates))[:, None], to_text.match),
        "text_to_image": (to_image.candidates == owner[:, None], to_image.match),
    }
    measures = {}
    for way, (right_QK, match_QK) in right.items():
        measures[f"{way}.recall@1.0"] = 100 * right_QK[:, 0].double().mean().item()
        for depth in sorted(depths):
            measures[f"{way}.recall@1.{depth}"] = recall_at_depth(right_QK, match_QK, depth)
            measures[f"{way}.among.{depth}"] = 100 * right_QK[:, :depth].any(1).double().mean().item()
    return measures


def recall_at_depth(right: Bool[Tensor, "Q K"], match: Float[Tensor, "Q K"], depth: int) -> float:
    """Computes the percentage of queries whose best match among the first `depth` candidates is right."""
    best = match[:, :depth].argmax(1, keepdim=True)
    return 100 * right.gather(1, best).double().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.depth", description="Measure how deep re-ranking should go.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="trained run")
    parser.add_argument("--depths", type=int, nargs="+", default=list(DEPTHS), help="numbers of candidates")
    parser.add_argument("--to", type=Path, metavar="FILE", help="JSON file for the measures of each run")
    options = parser.parse_args()
    if min(options.depths) < 1:
        parser.error(f"--depths has {min(options.depths)}: at least one candidate is re-ranked")
    found = {str(run): measure(run, options.depths) for run in options.runs}
    print_table(found)
    if options.to:
        options.to.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
