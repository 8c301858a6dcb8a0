"""Calibrates the matches of a run's searches: fits on the validation split, and measures on the split of an evaluation.

The fit belongs to a checkpoint. It is stored in its folder, where `diptych.load` finds it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional as F

from diptych.data.collate import pad_texts
from diptych.data.sources.scenes import Scenes
from diptych.evaluate import RetrievalResult
from diptych.evaluate.calibration import (
    PICTURES,
    CalibrationResult,
    Queries,
    best_hits,
    fit_calibration,
    measure_calibration,
    search_hits,
)
from diptych.predict import Predictor
from diptych.run.splits import AnySource, RetrievalSplit, open_split, read_retrieval
from diptych.search.calibration import MatchCalibration

CAPTIONS = "captions"


def calibrate(predictor: Predictor) -> Predictor:
    """Fits the probability of hits on the recipe's validation split.

    Returns the predictor with that calibration, or without any, and prints why, where it is impossible: a recipe
    without a validation split, or a model whose matches are no better than chance. A model that does not re-rank has
    nothing to calibrate.
    """
    recipe = predictor.recipe
    predictor = replace(predictor, calibration=None)
    if not recipe.evaluation.rerank or predictor.missing("match"):
        return predictor
    try:
        source = open_split(recipe, "validation")
        split = read_retrieval(recipe, source, predictor.tokenizer, PICTURES)
        queries = [_captions(split), *_names(predictor, source, split)]
        calibration = fit_calibration(
            search_hits(predictor.model, split.pictures, queries, recipe.evaluation, predictor.device)
        )
    except (ValueError, OSError) as error:
        print(f"the probabilities of matches are not calibrated: {error}", file=sys.stderr)
        return predictor
    return replace(predictor, calibration=calibration)


def measure(
    predictor: Predictor, source: AnySource, split: RetrievalSplit, result: RetrievalResult
) -> Iterator[CalibrationResult]:
    """Measures the calibration on a split that was evaluated, whose captions were re-ranked already."""
    calibration = predictor.calibration
    if calibration is None or result.text_to_image.reranked.log_odds is None:
        return
    scored, tokens = result.text_to_image.reranked, split.texts.attention_mask.sum(dim=1)
    right = scored.candidates == split.image_of_text[:, None]
    yield measure_calibration(calibration, best_hits(CAPTIONS, scored, right, tokens, result.images))
    config = predictor.recipe.evaluation
    for kind in _names(predictor, source, split):
        (hits,) = search_hits(predictor.model, split.pictures, [kind], config, predictor.device)
        yield measure_calibration(calibration, hits)


def _captions(split: RetrievalSplit) -> Queries:
    return Queries(CAPTIONS, split.texts, F.one_hot(split.image_of_text, len(split.pictures)).bool())


def _names(predictor: Predictor, source: AnySource, split: RetrievalSplit) -> list[Queries]:
    """Makes a query of each name of a thing in generated scenes, such as `a fox`.

    Other data do not say what is absent.
    """
    if not isinstance(source, Scenes):
        return []
    scenes = [source.scene(place) for place in split.pictures.places]
    things = {name: items[0].noun for scene in scenes for name, items in scene.kinds.items()}
    english = source.config.language == "en"
    texts = [things[name].phrase(1) if english else name for name in sorted(things)]
    ids = predictor.tokenizer.encode(texts, predictor.recipe.data.max_tokens_evaluation)
    right = torch.tensor([[name in scene.kinds for scene in scenes] for name in sorted(things)])
    return [Queries("names", pad_texts(ids, predictor.tokenizer.pad_id), right)]


def to_json(calibration: MatchCalibration | None, measured: Iterable[CalibrationResult]) -> dict[str, Any]:
    """Flattens the names for eval.json. Errors and shares are in percent, `min_match` and the bins in 0..1."""
    if calibration is None:
        return {}
    entries: dict[str, Any] = {"calibration.min_match": calibration.min_match}
    for result in measured:
        entries |= {f"calibration.{result.kind}.{name}": getattr(result, name) for name in ("error", "kept", "nothing")}
        bins = [[part.count, part.probability, part.right] for part in result.bins]
        entries[f"calibration.{result.kind}.bins"] = bins
    return entries
