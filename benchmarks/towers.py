"""Two towers, one tower, or both: what each finds and what a search costs: `python -m benchmarks.towers RUN…`.

Two towers (a dual encoder) order by similarity. One tower (a fusion encoder) orders by ITM, which has to read every
pair. Both together take candidates by similarity and order these by ITM and similarity (ALBEF §5; VLMo §3.1 has both in
one network). All pairs of each run's test split are matched once, so that all numbers are about the same scores. A
number of candidates of 0 stands for similarity alone, and `tower` for ITM alone on all pairs.

The cost is that of one search by a text of usual length among stored images. What does not depend on the text is
computed beforehand: vectors, and the states that fusion starts from.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from benchmarks import machine
from benchmarks.nouns import print_table
from diptych.evaluate.retrieval import RetrievalResult
from diptych.run.evaluation import EvaluatedRetrieval, evaluate_as_retrieval
from diptych.search.contract import evaluating
from diptych.search.rerank import evidence, match_logits
from diptych.types import Texts

DEPTHS = (4, 8, 16, 32, 64, 128, 256)
ALL = 1_000_000
"""More candidates than there are."""
PORTION = 64
"""Images whose pairs with the text are fused in one call."""


def measure(
    run: Path, depths: Sequence[int] = DEPTHS, rounds: int = machine.ROUNDS, scenes: int | None = None
) -> dict[str, float]:
    """Measures a run: recall@1 in percent both ways, operations and seconds of a search by text, for each depth.

    `among.K` is the share of queries whose right answer is among K candidates. A model that was not trained to match
    has similarity alone. `scenes` is how many generated scenes are searched, where not as many as the recipe says.
    """
    changes: dict[str, Any] = {"evaluation.rerank": ALL, "evaluation.score": "match"}
    if scenes is not None:
        changes["data.scenes.evaluation_count"] = scenes
    evaluated = evaluate_as_retrieval(run, changes=changes, write=False)
    found = recalls(
        evaluated.result, evaluated.split.image_of_text, depths, evaluated.predictor.model.temperature().item()
    )
    matches = evaluated.result.text_to_image.reranked.match is not None
    searches = _searches(evaluated, depths if matches else (), tower=matches)
    operations = {name: machine.flops(search) for name, search in searches.items()}
    times = machine.interleaved(searches, rounds)
    return found | {
        f"{kind}.{name}": value
        for name in searches
        for kind, value in (("flop", operations[name]), ("seconds", times[name].seconds))
    }


def recalls(result: RetrievalResult, owner: Tensor, depths: Sequence[int], temperature: float) -> dict[str, float]:
    """Computes recall@1 of a result whose candidates are all there are, by similarity, by ITM and by both.

    `owner` [T] is the image of each text. The score of both is the log odds of a match plus similarity / temperature.
    """
    to_text, to_image = result.image_to_text.reranked, result.text_to_image.reranked
    right = {
        "image_to_text": (to_text, owner[to_text.candidates] == torch.arange(len(to_text.candidates))[:, None]),
        "text_to_image": (to_image, to_image.candidates == owner[:, None]),
    }
    measures = {}
    for way, (ranked, right_QN) in right.items():
        measures[f"{way}.recall@1.0"] = 100 * right_QN[:, 0].double().mean().item()
        if ranked.match is None or ranked.log_odds is None:
            continue
        both_QN = evidence(ranked.log_odds, ranked.similarity, temperature)
        measures[f"{way}.recall@1.tower"] = recall_at_depth(right_QN, ranked.match, right_QN.shape[1])
        for depth in sorted(depths):
            measures[f"{way}.recall@1.{depth}"] = recall_at_depth(right_QN, both_QN, depth)
            measures[f"{way}.among.{depth}"] = 100 * right_QN[:, :depth].any(1).double().mean().item()
    return measures


def recall_at_depth(right: Bool[Tensor, "Q N"], score: Float[Tensor, "Q N"], depth: int) -> float:
    """Computes the percentage of queries whose best score among the first `depth` candidates is right."""
    best = score[:, :depth].argmax(1, keepdim=True)
    return 100 * right.gather(1, best).double().mean().item()


def _searches(evaluated: EvaluatedRetrieval, depths: Sequence[int], tower: bool) -> Mapping[str, Callable[[], object]]:
    """Makes the search of each depth, by the caption of median length among the images of the split."""
    predictor, split = evaluated.predictor, evaluated.split
    model: Any = predictor.model
    lengths = split.texts.attention_mask.sum(1)
    place = int(lengths.argsort()[len(lengths) // 2])
    ids = split.texts.input_ids[place : place + 1, : int(lengths[place])]
    text = Texts(ids, torch.ones_like(ids, dtype=torch.bool))
    with evaluating(model):
        states = [model.image_state(pixels.to(predictor.device)) for pixels in split.pictures]
        vectors = torch.cat([model.embed_image(state)["main"] for state in states])
    images = type(states[0]).cat(states)

    def search(depth: int) -> Tensor:
        with evaluating(model):
            words = model.text_state(text)
            similarity = vectors @ model.embed_text(words)["main"][0]
            best = similarity.topk(max(1, min(depth, len(similarity)))).indices
            pairs = best.split(PORTION) if depth else ()
            zeros = [torch.zeros_like(part) for part in pairs]
            logits = [match_logits(model, words, images, *pair) for pair in zip(zeros, pairs, strict=True)]
            return torch.cat(logits) if logits else best

    names = {"0": 0} | {str(depth): depth for depth in sorted(depths)} | ({"tower": ALL} if tower else {})
    return {name: partial(search, depth) for name, depth in names.items()}


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.towers", description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="trained run")
    parser.add_argument("--depths", type=int, nargs="+", default=list(DEPTHS), help="numbers of candidates")
    parser.add_argument("--scenes", type=int, metavar="N", help="generated scenes to search (default: the recipe's)")
    parser.add_argument("--to", type=Path, metavar="FILE", help="JSON file for the measures of each run")
    options = parser.parse_args()
    if min(options.depths) < 1:
        parser.error(f"--depths has {min(options.depths)}: at least one candidate is re-ranked")
    found = {str(run): measure(run, options.depths, scenes=options.scenes) for run in options.runs}
    print_table(found)
    if options.to:
        options.to.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
