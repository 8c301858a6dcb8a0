"""Explains a match of a picture and a text by a heat map of every word.

h × w patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from diptych.data.heatmap import BAR, DRAWN, enlarge, heat_picture
from diptych.data.tokenizer import CONTINUES, Tokenizer
from diptych.predict.inputs import Picture, open_to_draw
from diptych.predict.predictor import Predictor
from diptych.schema import GroundingConfig
from diptych.search.contract import evaluating
from diptych.tasks.grounding import boxes_config, phrase_maps
from diptych.types import to_device


@dataclass(frozen=True, eq=False)
class WordMap:
    """A word of a text with its heat map."""

    word: str
    heat: Float[np.ndarray, "h w"]
    """The evidence of each patch for the match through this word: 0 or more, summed over the pieces of the word."""


@dataclass(frozen=True, eq=False)
class Explained:
    """The probability that a picture and a text belong together, with a heat map of every word."""

    text: str
    match: float
    """Probability that they belong together, by the fusion encoder."""
    words: tuple[WordMap, ...]
    """The words in order, as the model reads them."""
    layer: int
    """The fusion layer whose attention the maps are made from."""
    picture: Picture = field(repr=False)

    def draw(self, side: int | None = None) -> tuple[Image.Image, ...]:
        """Draws each word's map over the picture in grey, on one scale.

        The longer side is `side`, also of a smaller picture. None draws a picture at its own size, at most `DRAWN`.
        """
        image = enlarged(open_to_draw(self.picture, DRAWN if side is None else side)[0], side)
        heats = [torch.from_numpy(word.heat) for word in self.words]
        top = max((float(enlarge(heat, image.size).max()) for heat in heats), default=0.0)
        drawn = [heat_picture(image, heat, hottest=top if top > 0 else None) for heat in heats]
        return tuple(picture.crop((0, 0, picture.width, picture.height - BAR)) for picture in drawn)

    def __str__(self) -> str:
        return f"{self.text}: {self.match:.1%}"


def explain(predictor: Predictor, picture: Picture, text: str) -> Explained:
    """Computes the probability of a match, and for every word Grad-CAM of the match by a fusion layer's attention.

    Raises ValueError for a model without a trained match head, a text without words, and no picture.
    """
    if why := predictor.missing("match"):
        raise ValueError(why)
    texts, config = predictor.texts(text), match_config(predictor)
    with evaluating(predictor.model):
        pixels = predictor.transform(predictor.open(picture))[None].to(predictor.device)
        averages_padding = predictor.recipe.released.heat_map_averages_padding
        maps = phrase_maps(predictor.model, pixels, to_device(texts, predictor.device), config, None, averages_padding)
    assert maps.tokens is not None, "mode itm gives a map for every token"
    words = gather_words(texts.input_ids[0].tolist(), maps.tokens[0].cpu(), predictor.tokenizer)
    return Explained(text, float(maps.fit[0]), words, config.layer, picture)


def match_config(predictor: Predictor) -> GroundingConfig:
    """Returns the settings of maps: those of boxes, but always with the fusion encoder."""
    config = boxes_config(predictor.recipe, predictor.model)
    if config.mode == "itm":
        return config
    layers = predictor.model.map_layers
    return replace(config, mode="itm", layer=layers[(len(layers) - 1) // 2])


def gather_words(ids: Sequence[int], tokens: Float[Tensor, "L h w"], tokenizer: Tokenizer) -> tuple[WordMap, ...]:
    """Sums the maps of a text's tokens by word; [CLS], [SEP] and padding are left out."""
    words: list[WordMap] = []
    silent = {tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id}
    for number, heat in zip(ids, tokens.numpy(), strict=True):
        if number in silent:
            continue
        piece = tokenizer.token(number)
        if piece.startswith(CONTINUES) and words:
            last = words.pop()
            words.append(WordMap(last.word + piece.removeprefix(CONTINUES), last.heat + heat))
        else:
            words.append(WordMap(piece, heat))
    return tuple(words)


def enlarged(image: Image.Image, side: int | None) -> Image.Image:
    """Enlarges a picture smaller than `side` to that size, so that drawings on it can be read."""
    if side is None or max(image.size) >= side:
        return image
    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.BICUBIC)
