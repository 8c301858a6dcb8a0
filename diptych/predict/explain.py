"""Explains a match of a picture and a text by a heat map of every word.

L tokens of a text, h × w patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

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
from diptych.task import Model
from diptych.tasks.grounding import boxes_config, patch_grid, phrase_maps
from diptych.types import Texts, to_device

Maps = Literal["attention", "grad_cam"]


@dataclass(frozen=True, eq=False)
class WordMap:
    """A word of a text with its heat map."""

    word: str
    heat: Float[np.ndarray, "h w"]
    """How much this word has to do with each patch: 0 or more, summed over the pieces of the word."""


@dataclass(frozen=True, eq=False)
class Explained:
    """The probability that a picture and a text belong together, with a heat map of every word."""

    text: str
    match: float
    """Probability that they belong together, by the fusion encoder."""
    words: tuple[WordMap, ...]
    """The words in order, as the model reads them."""
    layers: tuple[int, ...]
    """The fusion layers whose attention the maps are made from."""
    picture: Picture = field(repr=False)

    def draw(self, side: int | None = None) -> tuple[Image.Image, ...]:
        """Draws each word's map over the picture in grey.

        Each word has a scale of its own, by `last_colour`. The longer side is `side`, also of a smaller picture. None
        draws a picture at its own size, at most `DRAWN`.
        """
        image = enlarged(open_to_draw(self.picture, DRAWN if side is None else side)[0], side)
        heats = [torch.from_numpy(word.heat) for word in self.words]
        peaks = [float(enlarge(heat, image.size).max()) for heat in heats]
        ends = [last_colour(peak, max(peaks)) for peak in peaks]
        drawn = [heat_picture(image, heat, hottest=end) for heat, end in zip(heats, ends, strict=True)]
        return tuple(picture.crop((0, 0, picture.width, picture.height - BAR)) for picture in drawn)

    def __str__(self) -> str:
        return f"{self.text}: {self.match:.1%}"


def last_colour(peak: float, highest: float) -> float | None:
    """Returns the heat at which a word's map reaches the last colour: the geometric mean of its peak and the highest.

    On one scale a single hot patch would leave all other words dark. With each peak in the last colour, words that look
    nowhere would seem to look somewhere. In between, a peak of a hundredth of the highest has the colour of a tenth.
    None for a map without heat.

    >>> last_colour(0.01, 1.0)
    0.1
    """
    return math.sqrt(peak * highest) or None


def explain(predictor: Predictor, picture: Picture, text: str, maps: Maps = "attention") -> Explained:
    """Computes the probability of a match, and a heat map of every word of the text.

    `maps` says what a word's map shows:

    - `attention`: the attention from the word to the patches, as far as it exceeds the mean of all tokens. It tells
      what this word looks at more than the others do.
    - `grad_cam`: Grad-CAM of the match with respect to one layer's attention, as in ALBEF §6.4 and in grounding: which
      patches support the match through this word.

    `python -m benchmarks.pointing` measures how often both point at the thing that a word names.
    Raises ValueError for a model without a trained match head, a text without words, and no picture.
    """
    if why := predictor.missing("match"):
        raise ValueError(why)
    texts, model = to_device(predictor.texts(text), predictor.device), predictor.model
    pixels = predictor.transform(predictor.open(picture))[None].to(predictor.device)
    with evaluating(model):
        if maps == "attention":
            layers = tuple(model.map_layers)
            tokens, match = attention_maps(model, pixels, texts, layers)
        else:
            config = match_config(predictor)
            layers = (config.layer,)
            found = phrase_maps(model, pixels, texts, config)
            assert found.tokens is not None, "mode itm gives a map for every token"
            tokens, match = found.tokens[0], float(found.fit[0])
    words = gather_words(texts.input_ids[0].tolist(), tokens.cpu(), predictor.tokenizer)
    return Explained(text, match, words, layers, picture)


@torch.no_grad()
def attention_maps(
    model: Model, pixels: Float[Tensor, "1 3 _ _"], texts: Texts, layers: Sequence[int]
) -> tuple[Float[Tensor, "L h w"], float]:
    """Returns the map of each token of one text, and the probability that it belongs to the image.

    Attention is averaged over heads and summed over `layers`. All tokens look at whatever is there; the mean of all
    tokens, [CLS] and [SEP] included, is that part, and what is left above it is the token's own.
    """
    first = torch.zeros(1, dtype=torch.long, device=pixels.device)
    joint = model.fuse(model.text_state(texts), model.image_state(pixels), first, first, maps=tuple(layers))
    attention = torch.stack([joint.maps[layer][0].float().mean(0) for layer in layers]).sum(0)  # [L, patches]
    own = (attention - attention.mean(0)).clamp(min=0)  # a single text has no padding
    match = model.match_logits(joint).float().softmax(1)[0, 1]
    return patch_grid(own, pixels), float(match)


def match_config(predictor: Predictor) -> GroundingConfig:
    """Returns the settings of Grad-CAM: those of boxes, but always with the fusion encoder."""
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
