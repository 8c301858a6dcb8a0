"""Measures how a model answers single nouns: searches for "a fox" among generated scenes that it has not seen.

T nouns, N scenes. Search by a noun differs from retrieval by captions: several scenes are right, or none.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diptych.metrics.recall import chance_recall, recall, retrieval_ranks
from diptych.metrics.roc import roc_areas
from diptych.predict import Predictor
from diptych.schema import Split
from diptych.synthetic.evaluation import evaluation_set, noun_queries
from diptych.synthetic.generator import render


def evaluate_nouns(predictor: Predictor, scenes: int = 200, split: Split = "test") -> dict[str, float]:
    """Searches the first scenes of an evaluation split for every noun of the sprites.

    The scenes are of the kind that the model's recipe configures (`data.scenes`), whatever its own data was. The
    result has `nouns` (how many of them a scene shows), `nouns_not_shown`, `chance.right_first` and, by `similarity`
    and, where the model can match, by `match`, the measures of `noun_measures`.
    """
    config = replace(predictor.recipe.data.scenes, evaluation_count=scenes)
    found = evaluation_set(config, split).scenes
    queries = noun_queries(found, config)
    shown_TN = torch.from_numpy(queries.shown_TN)
    some_T = shown_TN.any(dim=1)
    pictures = [render(scene, config) for scene in found]
    scores_TN = {"similarity": predictor.embed_texts(queries.texts) @ predictor.embed_images(pictures).T}
    if predictor.missing("match") is None:
        scores_TN["match"] = predictor.match(pictures, queries.texts).T
    measures = {
        "scenes": float(scenes),
        "nouns": float(some_T.sum()),
        "nouns_not_shown": float((~some_T).sum()),
        "chance.right_first": chance_recall(shown_TN[some_T].sum(dim=1), scenes, 1),
    }
    for name, scores in scores_TN.items():
        measures |= {f"{name}.{measure}": value for measure, value in noun_measures(scores, shown_TN).items()}
    return measures


def noun_measures(scores: Float[Tensor, "T N"], shown: Bool[Tensor, "T N"]) -> dict[str, float]:
    """Computes the measures of searches by noun. Higher is better, but for `best_not_shown`.

    - `right_first`: percentage of the nouns with a scene that shows it in the first place, of those that any shows.
    - `roc_area`: area under the ROC curve, 0..1, of the scenes that show a noun against the others; the mean of nouns.
    - `best_shown`, `best_not_shown`: mean score of a noun's best scene, and of its best one among those that do not
      show it, which is what a search for a thing that no scene shows finds.
    - `presence_area`: area under the ROC curve, 0..1, of the former scores against the latter over all nouns: whether
      the best score tells that no scene shows the thing.

    Raises ValueError if no noun is shown, or if all scenes show one.
    """
    some = shown.any(dim=1)
    best_shown = scores[some].amax(dim=1)
    best_not_shown = scores.masked_fill(shown, -torch.inf).amax(dim=1)
    is_shown = torch.arange(len(best_shown) + len(best_not_shown)) < len(best_shown)
    return {
        "right_first": recall(retrieval_ranks(scores[some], shown[some]), 1),
        "roc_area": roc_areas(scores[some], shown[some]).mean().item(),
        "best_shown": best_shown.mean().item(),
        "best_not_shown": best_not_shown.mean().item(),
        "presence_area": roc_areas(torch.cat([best_shown, best_not_shown])[None], is_shown[None]).item(),
    }
