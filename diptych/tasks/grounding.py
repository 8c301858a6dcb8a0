"""Visual grounding: where in a picture is the thing that a phrase names? (ALBEF §5, §6.4; weakly supervised)

The task trains as retrieval does and never sees a box. The map of a phrase is Grad-CAM of the pair's score with respect
to attention probabilities: attention × the positive part of the gradient, averaged over heads. A box is the best of the
proposals, or comes from the map itself.

P phrases, I images, L text length, h × w patches, H × W pixels of a picture, N proposals. Boxes are x, y, width, height
in pixels of the picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diptych.data.heatmap import enlarge, scaled_box
from diptych.data.loader import EvaluationBatch
from diptych.data.record import Box, Referring
from diptych.data.tokenizer import Tokenizer
from diptych.facts import Ability, TaskReport
from diptych.metrics.accuracy import Estimate, estimate
from diptych.metrics.grounding import HALF, box_accuracy, box_iou, central_box, largest_box
from diptych.metrics.task_evaluation import MAIN, Decision, TaskEvaluation, check_finite, has_label
from diptych.schema import GroundingConfig, GroundingTrainingConfig, Recipe, RetrievalConfig
from diptych.task import Model
from diptych.tasks.retrieval import Retrieval
from diptych.types import Batch, Texts

LARGEST_MAP = 1 << 22
"""Number of pixels to which a map is enlarged at most. No picture of the published data sets has as many."""

# --------------------------------------------------------------------------- the task


def boxes_config(recipe: Recipe, model: Model) -> GroundingConfig:
    """Returns how a model finds boxes: as its recipe says or, for a recipe of another task, as published for its depth.

    Published is the cross-attention of the third of six fusion layers (ALBEF §6.4), which is half way up. In lower
    layers a word has hardly met the picture; in higher ones its token has mixed with the others and stands for the
    whole text.
    """
    if isinstance(recipe.task, GroundingTrainingConfig):
        return recipe.task.boxes
    return GroundingConfig(layer=middle_layer(model))


def middle_layer(model: Model) -> int:
    """Returns the fusion layer half way up, the lower one of two."""
    return model.map_layers[(len(model.map_layers) - 1) // 2]


def _calls(recipe: Recipe, model: Model) -> tuple[str, ...]:
    """Names the model's calls that a map needs."""
    if boxes_config(recipe, model).mode == "itm":
        return "match_logits", "fuse", "pooled"
    return "embed_image", "embed_text", "temperature"


@dataclass(frozen=True)
class BoxedPhrase:
    """A phrase with the boxes that were found for it, in pixels of its picture."""

    record: Referring
    size: tuple[int, int]
    """Width and height of the picture."""
    box: Box
    """The best proposal or, without proposals, the box of the map."""
    box_of_map: Box


class Grounding(Retrieval):
    """Retrieval on phrases, evaluated by boxes."""

    record = Referring
    purpose = "visual grounding"
    hub_tag = None
    abilities = (
        Ability(
            "locate",
            about="phrases",
            example='model.locate("a.jpg", "the dog on the left")          # a box and a heat map',
            calls=_calls,
        ),
    )
    measured_as_retrieval = False
    fails_early = True  # a layer without attention shows with the first map
    report = TaskReport(
        title="Visual grounding",
        measure="Box accuracy",
        how="Where is what the phrase names? A box is right if it overlaps the right one by half or more (IoU). The "
        "model was trained without boxes.",
        judged="boxes of phrases",
        measures={"accuracy.without_proposals": "Box accuracy, from the map alone"},
        references={
            "largest_proposal": "Always the largest proposal",
            "central_proposal": "Always the most central proposal",
            "any_proposal": "Any proposal, drawn evenly",
        },
        examples="boxes",
    )

    config: GroundingTrainingConfig

    @classmethod
    def check(cls, config: RetrievalConfig) -> None:
        """Raises ValueError for settings that contradict each other, also for maps of a score that nothing trains."""
        super().check(config)
        assert isinstance(config, GroundingTrainingConfig)
        mode = config.boxes.mode
        if not getattr(config, mode):
            raise ValueError(f"task.boxes.mode={mode} asks what task.{mode}=0 does not train: set the other mode")

    def heat(self, batch: Batch) -> Float[Tensor, "P h w"]:
        averages_padding = self.released.heat_map_averages_padding
        return phrase_maps(self.model, batch.pixels, batch.texts, self.config.boxes, None, averages_padding).phrase

    def evaluate(self, batches: Iterable[EvaluationBatch], tokenizer: Tokenizer, resamples: int) -> TaskEvaluation:
        """Measures box accuracy by proposals, if there are any, over all phrases and by split; and by the map alone.

        The phrases of one picture are resampled together.
        """
        located = [phrase for chunk in batches for phrase in self._locate(chunk)]
        labelled = [phrase for phrase in located if has_label(phrase.record)]
        overlaps = iter(self._iou([phrase.box for phrase in labelled], labelled).tolist())
        decisions = tuple(
            Decision(phrase.record.id, list(phrase.box), None, phrase.record.box and list(phrase.record.box), score)
            for phrase in located
            for score in [next(overlaps) if has_label(phrase.record) else None]
        )
        if not labelled:
            return TaskEvaluation({}, decisions=decisions)
        proposed = all(phrase.record.proposals for phrase in labelled)
        references = self._references(labelled, resamples) if proposed else {}
        return TaskEvaluation(self._scores(labelled, resamples), references, decisions=decisions)

    def _locate(self, chunk: EvaluationBatch) -> Iterator[BoxedPhrase]:
        """Finds the box of each phrase. A picture is encoded once for all of its phrases in the batch."""
        first = {record.image_id: row for row, record in reversed(list(enumerate(chunk.records)))}
        place = {identity: number for number, identity in enumerate(first)}
        pixels = chunk.batch.pixels[list(first.values())]
        image_index = torch.tensor([place[record.image_id] for record in chunk.records], device=pixels.device)
        texts, averages_padding = chunk.batch.texts, self.released.heat_map_averages_padding
        maps = phrase_maps(self.model, pixels, texts, self.config.boxes, image_index, averages_padding).phrase
        for record, heat, size in zip(chunk.records, check_finite(maps, chunk.records), chunk.sizes, strict=True):
            box_of_heat = find_box(heat, size, (), self.config.boxes)
            best = find_box(heat, size, record.proposals, self.config.boxes) if record.proposals else box_of_heat
            yield BoxedPhrase(record, size, best, box_of_heat)

    def _scores(self, labelled: Sequence[BoxedPhrase], resamples: int) -> dict[str, Estimate]:
        pictures, parts = zip(*((phrase.record.image_id, phrase.record.part) for phrase in labelled), strict=True)
        iou = self._iou([phrase.box for phrase in labelled], labelled)
        by_part = box_accuracy(iou, parts, pictures, resamples)
        without_proposals = self._iou([phrase.box_of_map for phrase in labelled], labelled)
        return {
            MAIN: estimate(_hits(iou), pictures, resamples),
            **{f"accuracy.{part}": score for part, score in by_part.items() if part},
            "accuracy.without_proposals": estimate(_hits(without_proposals), pictures, resamples),
        }

    def _references(self, labelled: Sequence[BoxedPhrase], resamples: int) -> dict[str, Estimate]:
        """Measures guessers that do not look: the largest proposal, the most central one, and any of them by chance."""
        largest, central, by_chance = [], [], []
        for phrase in labelled:
            proposals = phrase.record.proposals
            boxes = np.array(proposals, np.float64)
            largest.append(proposals[largest_box(boxes)])
            central.append(proposals[central_box(boxes, phrase.size)])
            by_chance.append(_hits(self._iou(proposals, [phrase] * len(proposals))).mean())
        hits = {
            "largest_proposal": _hits(self._iou(largest, labelled)),
            "central_proposal": _hits(self._iou(central, labelled)),
            "any_proposal": np.array(by_chance),
        }
        pictures = [phrase.record.image_id for phrase in labelled]
        return {name: estimate(values, pictures, resamples) for name, values in hits.items()}

    def _iou(self, boxes: Sequence[Box], labelled: Sequence[BoxedPhrase]) -> Float[np.ndarray, "R"]:
        """Computes the overlap of a box for each phrase with the right one."""
        right = [phrase.record.box for phrase in labelled]
        first, second = (np.array(each, np.float64).reshape(-1, 4) for each in (boxes, right))
        return box_iou(first, second, self.released.iou_in_whole_pixels)


def _hits(iou: Float[np.ndarray, "R"]) -> Float[np.ndarray, "R"]:
    return (iou >= HALF).astype(np.float64)


# --------------------------------------------------------------------------- maps


@dataclass(frozen=True)
class PhraseMaps:
    """The evidence of each patch for each phrase: 0 or more, comparable between maps of one model, mode and layer."""

    phrase: Float[Tensor, "P h w"]
    tokens: Float[Tensor, "P L h w"] | None
    """The same for each token, 0 at padding; None in mode itc, which sees a phrase as one vector."""
    score: Float[Tensor, "P"]
    """The score that was differentiated: the match logit (itm), or similarity / temperature (itc)."""
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
    """Computes the map of phrase p on image image_index[p] (by default image p), for any image size and batch.

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
    if config.layer == "all":
        layers = tuple(model.map_layers if config.mode == "itm" else model.image_layers)
    else:
        layers = (config.layer,)
    with _frozen(model):
        heat, score, fit = find(model, pixels, texts, layers, image_index)
    tokens = patch_grid(heat, pixels)
    if config.mode == "itc":
        return PhraseMaps(tokens[:, 0], None, score, fit)
    length = texts.attention_mask.shape[1]
    tokens = torch.cat([tokens, tokens.new_zeros(phrases, length - tokens.shape[1], *tokens.shape[2:])], dim=1)
    counts = tokens.new_full((phrases,), length) if averages_padding else texts.attention_mask.sum(1)
    return PhraseMaps(tokens.sum(1) / counts[:, None, None], tokens, score, fit)


def patch_grid(heat: Float[Tensor, "*M patches"], pixels: Float[Tensor, "I 3 H W"]) -> Float[Tensor, "*M h w"]:
    """Arranges values of the patches, row by row, as a grid of the images' proportions."""
    rows = round((heat.shape[-1] * pixels.shape[-2] / pixels.shape[-1]) ** 0.5)
    return heat.unflatten(-1, (rows, -1))


@contextmanager
def _frozen(model: Model) -> Iterator[None]:
    """Switches off the gradients of all weights meanwhile: only that of the attention is needed."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _fusion_maps(
    model: Model, pixels: Tensor, texts: Texts, layers: tuple[int, ...], image_index: Int[Tensor, "P"]
) -> tuple[Float[Tensor, "P l patches"], Float[Tensor, "P"], Float[Tensor, "P"]]:
    """Uses the cross-attention of fusion layers; the score is the match logit.

    Padding has no gradient, so its maps are 0. The graph begins with the encoded images: it exists for frozen weights
    too and leaves out the encoders.
    """
    with torch.no_grad():
        images, words = model.image_state(pixels), model.text_state(texts)
    with torch.enable_grad():
        text_index = torch.arange(len(texts), device=image_index.device)
        joint = model.fuse(words, _tracked(images), text_index, image_index, maps=layers)
        attention, logits = [joint.maps[layer] for layer in layers], model.match_logits(joint)
        gradients = torch.autograd.grad(logits[:, 1].sum(), attention)
    heat = sum(_grad_cam(*both) for both in zip(attention, gradients, strict=True))
    assert isinstance(heat, Tensor)
    return heat, logits[:, 1].detach(), logits.detach().float().softmax(1)[:, 1]


def _encoder_maps(
    model: Model, pixels: Tensor, texts: Texts, blocks: tuple[int, ...], image_index: Int[Tensor, "P"]
) -> tuple[Float[Tensor, "P 1 patches"], Float[Tensor, "P"], Float[Tensor, "P"]]:
    """Uses the class token's self-attention in blocks of the image encoder; the score is similarity / temperature.

    Phrases of one image share its attention, so each needs a backward pass of its own.
    """
    with torch.no_grad():
        text = model.embed_text(model.text_state(texts))["main"]
    with torch.enable_grad():
        images = model.image_state(pixels.detach().requires_grad_(), maps=blocks)
        image = model.embed_image(images)["main"]  # first: a model may not attend before it embeds
        similarity = (image[image_index] * text).sum(1)
        score = similarity / model.temperature().detach()
    if missing := [block for block in blocks if block not in images.maps]:
        raise ValueError(f"the image encoder has no block {missing[0]}: blocks count from 0")
    attention, turns = [images.maps[block] for block in blocks], _turns(image_index)
    heat = score.new_zeros(len(texts), *attention[0].shape[2:])
    for turn in range(int(turns.max()) + 1):
        now = turns == turn
        gradients = torch.autograd.grad(score, attention, now.to(score.dtype), retain_graph=True)
        for both in zip(attention, gradients, strict=True):
            heat[now] += _grad_cam(*both)[image_index[now]]
    return heat, score.detach(), similarity.detach()


def _grad_cam(
    attention: Float[Tensor, "P heads Q K"], gradient: Float[Tensor, "P heads Q K"]
) -> Float[Tensor, "P Q K"]:
    return (attention.detach() * gradient.clamp(min=0)).mean(1).float()  # ALBEF §6.4


def _tracked(state: Any) -> Any:
    """Returns the same state with its tensors as the leaves of a new graph."""
    parts = {item.name: getattr(state, item.name) for item in fields(state)}
    kept = {name: part for name, part in parts.items() if isinstance(part, Tensor) and part.is_floating_point()}
    return replace(state, **{name: part.detach().requires_grad_() for name, part in kept.items()})


def _turns(image_index: Int[Tensor, "P"]) -> Int[Tensor, "P"]:
    """Counts the earlier phrases of the same image.

    >>> _turns(torch.tensor([5, 2, 5, 5])).tolist()
    [0, 0, 1, 2]
    """
    return (image_index[:, None] == image_index).tril(-1).sum(1)


# --------------------------------------------------------------------------- boxes


def find_box(
    heat: Float[Tensor, "h w"], size: tuple[int, int], proposals: Sequence[Box], config: GroundingConfig
) -> Box:
    """Finds the box of a phrase on a picture of `size` (width, height), given its map.

    Without proposals this is the box around the hottest region of the map. With proposals it is the best one, the first
    of equals. The released code takes the first best of those that score above 0; if none does it breaks, while this
    function still takes the best (docs/released_code.md, defect 10).

    A map is enlarged to at most LARGEST_MAP pixels. Boxes on larger pictures, such as a phone's, are found on a smaller
    one of the same shape, whose pixels are still far finer than the map's patches.

    Raises ValueError for a map that is not finite and for proposals without an area.
    """
    scale = min(1.0, math.sqrt(LARGEST_MAP / (size[0] * size[1])))
    small = max(1, int(size[0] * scale)), max(1, int(size[1] * scale))
    grown = enlarge(heat, small).cpu().numpy().astype(np.float64)
    if not proposals:
        return scaled_box(box_of_map(grown, config.threshold), small, size)
    offered = np.array([scaled_box(box, size, small) for box in proposals], np.float64)
    return proposals[int(proposal_scores(grown, offered, config.alpha).argmax())]


SMALLEST = 8
"""Pixels of a side. In a smaller picture a box may be a pixel."""


def check_within(proposals: Sequence[Box], size: tuple[int, int]) -> None:
    """Raises ValueError for a proposal of which no part is in a picture of `size` (width, height).

    Raises it as well if all numbers are within 0..1, unless the picture is that small.
    """
    numbers = [number for box in proposals for number in box]
    if numbers and min(size) > SMALLEST and all(0 <= number <= 1 for number in numbers):
        raise ValueError(
            f"all numbers of the proposals are within 0..1, as shares of the picture of {size[0]} × {size[1]} pixels:"
            " boxes are x, y, width and height in its pixels"
        )
    for number, box in enumerate(proposals):
        x, y, width, height = box
        if x >= size[0] or y >= size[1] or x + width <= 0 or y + height <= 0:
            raise ValueError(
                f"proposal {number}, {[round(edge, 3) for edge in box]}, is outside of the picture of {size[0]} × "
                f"{size[1]} pixels: boxes are x, y, width and height in its pixels"
            )


def proposal_scores(
    heat: Float[np.ndarray, "H W"], proposals: Float[np.ndarray, "N 4"], alpha: float = 0.5
) -> Float[np.ndarray, "N"]:
    """Computes the heat within each proposal divided by its area to the power `alpha`, as released. Higher is better.

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
    """Finds the box around the hottest region, without proposals.

    This is our own choice, in the manner of class activation maps: pixels of at least `threshold` times the peak form
    regions (joined side by side, not at corners), and the region with the largest sum of heat is taken. The sum and not
    the peak decides, so that a single hot patch does not win over an object. For a map without heat the box is the
    whole picture.

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
    """Finds row, start and end (excluded) of each unbroken stretch, row by row."""
    steps = np.diff(np.pad(hot, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    row, start = np.nonzero(steps == 1)
    return row, start, np.nonzero(steps == -1)[1]


def _regions(
    row: Int[np.ndarray, "n"], start: Int[np.ndarray, "n"], end: Int[np.ndarray, "n"], width: int
) -> Int[np.ndarray, "n"]:
    """Numbers the region of each stretch: stretches that touch one of the row above belong together (union-find)."""
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
