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

from diptych.data.collate import pad_texts
from diptych.data.heatmap import BAR, DRAWN, enlarge, heat_picture
from diptych.data.tokenizer import CONTINUES, Tokenizer
from diptych.predict.inputs import Picture, open_to_draw
from diptych.predict.predictor import Predictor
from diptych.schema import GroundingConfig
from diptych.search.contract import evaluating
from diptych.task import Model
from diptych.tasks.grounding import boxes_config, middle_layer, patch_grid, phrase_maps
from diptych.types import Joint, Texts, to_device

Maps = Literal["similarity", "attention", "grad_cam"]
SIMILARITY = GroundingConfig(mode="itc", layer="all")
"""How the similarity of a word and the picture is explained."""


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
    """The layers whose attention the maps are made from: blocks of the image encoder, or fusion layers."""
    maps: Maps
    """What the maps show, as in `explain`."""
    picture: Picture = field(repr=False)

    def draw(self, side: int | None = None) -> tuple[Image.Image, ...]:
        """Draws each word's map over the picture in grey.

        Each word has a scale of its own, by `last_colour`. The longer side is `side`, also of a smaller picture. None
        draws a picture at its own size, at most `DRAWN`. Raises ValueError for a side below 1.
        """
        if side is not None and side < 1:
            raise ValueError(f"side is {side}: draw at least one pixel")
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


def explain(predictor: Predictor, picture: Picture, text: str, maps: Maps | None = None) -> Explained:
    """Computes the probability of a match, and a heat map of every word of the text.

    `maps` says what a word's map shows:

    - `similarity`: Grad-CAM of the similarity of the word, as a text of its own, and the picture, with respect to the
      attention of [CLS] in all blocks of the image encoder, as far as it exceeds the mean of all words. It tells which
      patches bring the picture nearer to this word. It takes a backward pass for every word.
    - `attention`: the attention from the word to the patches, as far as it exceeds the mean of all tokens. It tells
      what this word looks at more than the others do.
    - `grad_cam`: Grad-CAM of the match with respect to one layer's attention, as in ALBEF §6.4 and in grounding: which
      patches support the match through this word.

    None takes `similarity`, or `attention` of a model without a trained similarity. `python -m benchmarks.pointing`
    measures how often each of them points at the thing that a word names (docs/decisions.md 140).
    Raises ValueError for a model without a trained match head, a text without words, and no picture.
    """
    if why := predictor.missing("match"):
        raise ValueError(why)
    texts, model = to_device(predictor.texts(text), predictor.device), predictor.model
    pixels = predictor.transform(predictor.open(picture))[None].to(predictor.device)
    maps = maps or ("attention" if predictor.missing("embed") else "similarity")
    ids, tokenizer = texts.input_ids[0].tolist(), predictor.tokenizer
    words = words_of(ids, tokenizer)
    if not words:
        raise ValueError("the text has no words to explain")
    with evaluating(model):
        if maps == "similarity":
            layers = tuple(model.image_layers)
            _, match = _fused(model, pixels, texts)
            end = [tokenizer.sep_id] if ids[-1] == tokenizer.sep_id else []  # tokenizers without it leave it out
            alone = pad_texts([[ids[0], *pieces, *end] for _, pieces, _ in words], tokenizer.pad_id)
            heats = similarity_maps(model, pixels, to_device(alone, pixels.device))
            return Explained(
                text, match, tuple(map(WordMap, (word for word, _, _ in words), heats)), layers, maps, picture
            )
        if maps == "attention":
            layers = tuple(model.map_layers)
            tokens, match = attention_maps(model, pixels, texts, layers)
        else:
            config = match_config(predictor)
            found = phrase_maps(model, pixels, texts, config)
            assert found.tokens is not None, "mode itm gives a map for every token"
            assert config.layer != "all"
            layers = (config.layer,)
            tokens, match = found.tokens[0], float(found.fit[0])
    heat = tokens.cpu().numpy()
    return Explained(
        text, match, tuple(WordMap(word, heat[places].sum(0)) for word, _, places in words), layers, maps, picture
    )  # fmt: skip


def similarity_maps(model: Model, pixels: Float[Tensor, "1 3 _ _"], words: Texts) -> Float[np.ndarray, "W h w"]:
    """Computes the map of each word, as a text of its own, above the mean of all words' maps and of an empty one.

    So a single word keeps a map.
    """
    image = torch.zeros(len(words), dtype=torch.long, device=pixels.device)
    heat = phrase_maps(model, pixels, words, SIMILARITY, image).phrase  # [W, h, w]
    own: np.ndarray = (heat - heat.sum(0) / (len(words) + 1)).clamp(min=0).cpu().numpy()
    return own


@torch.no_grad()
def _fused(
    model: Model, pixels: Float[Tensor, "1 3 _ _"], texts: Texts, maps: Sequence[int] = ()
) -> tuple[Joint, float]:
    """Fuses a text and an image. Returns the output, and the probability that they belong together."""
    first = torch.zeros(1, dtype=torch.long, device=pixels.device)
    joint = model.fuse(model.text_state(texts), model.image_state(pixels), first, first, maps=tuple(maps))
    return joint, float(model.match_logits(joint).float().softmax(1)[0, 1])


def attention_maps(
    model: Model, pixels: Float[Tensor, "1 3 _ _"], texts: Texts, layers: Sequence[int]
) -> tuple[Float[Tensor, "L h w"], float]:
    """Returns the map of each token of one text, and the probability that it belongs to the image.

    Attention is averaged over heads and summed over `layers`. All tokens look at whatever is there; the mean of all
    tokens, [CLS] and [SEP] included, is that part, and what is left above it is the token's own.
    """
    joint, match = _fused(model, pixels, texts, layers)
    attention = torch.stack([joint.maps[layer][0].float().mean(0) for layer in layers]).sum(0)  # [L, patches]
    own = (attention - attention.mean(0)).clamp(min=0)  # a single text has no padding
    return patch_grid(own, pixels), match


def match_config(predictor: Predictor) -> GroundingConfig:
    """Returns the settings of Grad-CAM: those of boxes, but always with the fusion encoder."""
    config = boxes_config(predictor.recipe, predictor.model)
    if config.mode == "itm":
        return config
    return replace(config, mode="itm", layer=middle_layer(predictor.model))


def words_of(ids: Sequence[int], tokenizer: Tokenizer) -> list[tuple[str, list[int], list[int]]]:
    """Returns each word of a text with its token ids and their places; [CLS], [SEP] and padding are left out."""
    words: list[tuple[str, list[int], list[int]]] = []
    silent = {tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id}
    for place, number in enumerate(ids):
        if number in silent:
            continue
        piece = tokenizer.token(number)
        if piece.startswith(CONTINUES) and words:
            word, numbers, places = words.pop()
            words.append((word + piece.removeprefix(CONTINUES), [*numbers, number], [*places, place]))
        else:
            words.append((piece, [number], [place]))
    return words


def enlarged(image: Image.Image, side: int | None) -> Image.Image:
    """Enlarges a picture smaller than `side` to that size, so that drawings on it can be read."""
    if side is None or max(image.size) >= side:
        return image
    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.BICUBIC)
