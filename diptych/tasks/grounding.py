"""Visual grounding: where in a picture is what a phrase names? (ALBEF §5, §6.4; weakly supervised)

Training is retrieval's: no box is ever seen. The map of a phrase is Grad-CAM of the pair's score by attention
probabilities: attention × the positive part of the gradient, averaged over heads. A box is the best of given proposals,
or comes from the map itself.

P phrases, I images, L text length, h × w patches, H × W pixels of a picture, N proposals. Boxes are x, y, width, height
in pixels of the picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diptych.data.heatmap import enlarge
from diptych.data.record import Box
from diptych.schema import GroundingConfig
from diptych.task import Model
from diptych.types import Texts

# --------------------------------------------------------------------------- maps


@dataclass(frozen=True)
class PhraseMaps:
    """How much each patch speaks for each phrase: 0 and more, comparable between maps of one model, mode and layer."""

    phrase: Float[Tensor, "P h w"]
    tokens: Float[Tensor, "P L h w"] | None
    """The same for each token, 0 at padding; None in mode itc, which sees a phrase as one vector."""
    score: Float[Tensor, "P"]
    """What was differentiated: the match logit (itm), or similarity / temperature (itc)."""
    fit: Float[Tensor, "P"]
    """How well phrase and image fit: the probability of a match (itm), or the cosine similarity (itc)."""


def phrase_maps(
    model: Model,
    pixels: Float[Tensor, "I 3 _ _"],
    texts: Texts,
    config: GroundingConfig,
    image_index: Int[Tensor, "P"] | None = None,
    averages_padding: bool = False,
) -> PhraseMaps:
    """Maps of phrase p on image image_index[p] (default: its own image each), for any image size and batch.

    An image is encoded once, however many phrases it has. Weights may be frozen and the caller may be within
    `no_grad`; no gradient is left anywhere.

    A phrase's map is the mean of its tokens' maps, [CLS] included; `averages_padding` counts padding too, as released,
    so that longer batch mates make a map paler (docs/released_code.md, defect 21).

    Raises ValueError for a model in training mode, a layer that the model does not have, and phrases without image.
    """
    if model.training:
        raise ValueError("the model is in training mode, where dropout changes its maps: call model.eval() first")
    phrases = len(texts)
    if image_index is None:
        if len(pixels) != phrases:
            raise ValueError(f"{len(pixels)} images for {phrases} phrases: say by image_index which belong together")
        image_index = torch.arange(phrases, device=pixels.device)
    find = _fusion_maps if config.mode == "itm" else _encoder_maps
    with _frozen(model):
        heat, score, fit = find(model, pixels, texts, config.layer, image_index)
    rows = round((heat.shape[-1] * pixels.shape[-2] / pixels.shape[-1]) ** 0.5)
    tokens = heat.unflatten(-1, (rows, -1))
    if config.mode == "itc":
        return PhraseMaps(tokens[:, 0], None, score, fit)
    length = texts.attention_mask.shape[1]
    tokens = torch.cat([tokens, tokens.new_zeros(phrases, length - tokens.shape[1], *tokens.shape[2:])], dim=1)
    counts = tokens.new_full((phrases,), length) if averages_padding else texts.attention_mask.sum(1)
    return PhraseMaps(tokens.sum(1) / counts[:, None, None], tokens, score, fit)


@contextmanager
def _frozen(model: Model) -> Iterator[None]:
    """Layers leave out the gradients of weights meanwhile: only that of the attention is asked for."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _fusion_maps(
    model: Model, pixels: Tensor, texts: Texts, layer: int, image_index: Int[Tensor, "P"]
) -> tuple[Float[Tensor, "P l patches"], Float[Tensor, "P"], Float[Tensor, "P"]]:
    """By the cross-attention of a fusion layer; the score is the match logit. Padding has no gradient: its rows are 0.

    The graph begins with the encoded images: the encoders are not part of it, and it is there for frozen weights too.
    """
    with torch.no_grad():
        images, words = model.image_state(pixels), model.text_state(texts)
    with torch.enable_grad():
        text_index = torch.arange(len(texts), device=image_index.device)
        joint = model.fuse(words, _tracked(images), text_index, image_index, maps=(layer,))
        attention, logits = joint.maps[layer], model.match_logits(joint)
        (gradient,) = torch.autograd.grad(logits[:, 1].sum(), attention)
    return _grad_cam(attention, gradient), logits[:, 1].detach(), logits.detach().float().softmax(1)[:, 1]


def _encoder_maps(
    model: Model, pixels: Tensor, texts: Texts, block: int, image_index: Int[Tensor, "P"]
) -> tuple[Float[Tensor, "P 1 patches"], Float[Tensor, "P"], Float[Tensor, "P"]]:
    """By the class token's self-attention in a block of the image encoder; the score is similarity / temperature.

    Phrases of one image share its attention, so each takes a turn of its own going back.
    """
    with torch.no_grad():
        text = model.embed_text(model.text_state(texts))["main"]
    with torch.enable_grad():
        images = model.image_state(pixels.detach().requires_grad_(), maps=(block,))
        image = model.embed_image(images)["main"]  # first: a model may not attend before it embeds
        similarity = (image[image_index] * text).sum(1)
        score = similarity / model.temperature().detach()
    if block not in images.maps:
        raise ValueError(f"the image encoder has no block {block}: blocks count from 0")
    attention, turns = images.maps[block], _turns(image_index)
    heat = attention.new_zeros(len(texts), *attention.shape[2:])
    for turn in range(int(turns.max()) + 1):
        now = turns == turn
        (gradient,) = torch.autograd.grad(score, attention, now.to(score.dtype), retain_graph=True)
        heat[now] = _grad_cam(attention, gradient)[image_index[now]]
    return heat, score.detach(), similarity.detach()


def _grad_cam(
    attention: Float[Tensor, "P heads Q K"], gradient: Float[Tensor, "P heads Q K"]
) -> Float[Tensor, "P Q K"]:
    return (attention.detach() * gradient.clamp(min=0)).mean(1).float()


def _tracked(state: Any) -> Any:
    """The same state with its tensors as the leaves of a new graph."""
    parts = {item.name: getattr(state, item.name) for item in fields(state)}
    kept = {name: part for name, part in parts.items() if isinstance(part, Tensor) and part.is_floating_point()}
    return replace(state, **{name: part.detach().requires_grad_() for name, part in kept.items()})


def _turns(image_index: Int[Tensor, "P"]) -> Int[Tensor, "P"]:
    """How many earlier phrases have the same image.

    >>> _turns(torch.tensor([5, 2, 5, 5])).tolist()
    [0, 0, 1, 2]
    """
    return (image_index[:, None] == image_index).tril(-1).sum(1)


# --------------------------------------------------------------------------- boxes


def find_box(
    heat: Float[Tensor, "h w"], size: tuple[int, int], proposals: Sequence[Box], config: GroundingConfig
) -> Box:
    """The box of a phrase on a picture of `size` (width, height), given its map.

    Without proposals, the box that the map itself draws. With proposals, the best one, the first of equals. As released
    that is the first best of those that score above 0; where none does, the released code breaks and this one still
    takes the best (docs/released_code.md, defect 10).

    Raises ValueError for a map that is not finite and for proposals without an area.
    """
    grown = enlarge(heat, size).cpu().numpy().astype(np.float64)
    if not proposals:
        return box_of_map(grown, config.threshold)
    return proposals[int(proposal_scores(grown, np.array(proposals, np.float64), config.alpha).argmax())]


def proposal_scores(
    heat: Float[np.ndarray, "H W"], proposals: Float[np.ndarray, "N 4"], alpha: float = 0.5
) -> Float[np.ndarray, "N"]:
    """The heat within each proposal divided by its area to the power `alpha`, as released. Higher is better.

    A proposal covers the pixels int(x) … int(x + width) - 1 and int(y) … int(y + height) - 1 as far as the picture
    reaches. One table of sums serves all proposals.

    >>> proposal_scores(np.array([[0.0, 4], [0, 0]]), np.array([[1.0, 0, 1, 1], [0, 0, 2, 2]])).tolist()
    [4.0, 2.0]
    """
    if not (proposals[:, 2:] > 0).all():
        row = int((~(proposals[:, 2:] > 0).all(axis=1)).argmax())
        raise ValueError(f"proposal {row} has no area: boxes are x, y, width, height, with width and height above 0")
    rows, columns = heat.shape
    table = np.zeros((rows + 1, columns + 1))
    table[1:, 1:] = heat.cumsum(0, dtype=np.float64).cumsum(1)
    x, y, width, height = proposals.T
    left, right = (np.clip(np.trunc(edge), 0, columns).astype(np.int64) for edge in (x, x + width))
    top, bottom = (np.clip(np.trunc(edge), 0, rows).astype(np.int64) for edge in (y, y + height))
    sums = table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]
    return sums / (width * height) ** alpha


def box_of_map(heat: Float[np.ndarray, "H W"], threshold: float = 0.5) -> Box:
    """The box around the hottest place: no proposals needed.

    Our own choice, in the manner of class activation maps: pixels of at least `threshold` times the peak form regions
    (joined side by side, not at corners), and the region with the most heat in all is taken. The sum and not the peak
    decides, so that one overheated patch does not win over a thing. A map without heat names no place: the whole
    picture.

    >>> box_of_map(np.array([[0.0, 0, 0, 0], [0, 2, 3, 0], [4, 0, 0, 0]]))
    (1.0, 1.0, 2.0, 1.0)
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}: it is a share of the map's peak, above 0 and at most 1")
    height, width = heat.shape
    if heat.max() <= 0:
        return 0.0, 0.0, float(width), float(height)
    row, start, end = _runs(heat >= threshold * heat.max())
    region = _regions(row, start, end, width)
    along = np.pad(heat.cumsum(1, dtype=np.float64), ((0, 0), (1, 0)))
    mine = region == np.bincount(region, weights=along[row, end] - along[row, start]).argmax()
    left, top = start[mine].min(), row[mine].min()
    return float(left), float(top), float(end[mine].max() - left), float(row[mine].max() + 1 - top)


def _runs(hot: Bool[np.ndarray, "H W"]) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """Row, start and end (excluded) of each unbroken stretch, row by row."""
    steps = np.diff(np.pad(hot, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    row, start = np.nonzero(steps == 1)
    return row, start, np.nonzero(steps == -1)[1]


def _regions(
    row: Int[np.ndarray, "n"], start: Int[np.ndarray, "n"], end: Int[np.ndarray, "n"], width: int
) -> Int[np.ndarray, "n"]:
    """The region of each stretch: stretches that touch one of the row above belong together (union-find)."""
    parent = list(range(len(row)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = run = parent[parent[run]]
        return run

    # In places counted through all rows both ends are sorted, so those above that overlap are a range.
    stride = width + 1
    first = np.searchsorted(row * stride + end, (row - 1) * stride + start, side="right")
    last = np.searchsorted(row * stride + start, (row - 1) * stride + end, side="left")
    for run, (low, high) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
        for above in range(low, high):
            parent[root(run)] = root(above)
    return np.array([root(run) for run in range(len(row))])
