"""What holds of maps, boxes, overlaps and heat maps whatever the model's numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.measure import label
from torch import Tensor
from torch.nn import functional as F

from diptych.data.heatmap import (
    BAR,
    COLOURS,
    EXPECTED,
    FOUND,
    OPACITY,
    enlarge,
    heat_colours,
    heat_picture,
)
from diptych.metrics.grounding import box_accuracy, box_iou, central_box, largest_box
from diptych.metrics.intervals import mean_interval
from diptych.schema import GroundingConfig
from diptych.task import Model
from diptych.tasks.grounding import PhraseMaps, box_of_map, check_within, find_box, phrase_maps, proposal_scores
from diptych.types import Joint, Texts
from tests import tiny

PLACES = [("itm", 2), ("itm", 3), ("itc", 0), ("itc", 1)]
"""Each mode with every layer of the small model that it can read."""
place = pytest.mark.parametrize(("mode", "layer"), PLACES)


def pictures(count: int, side: int = tiny.SIDE) -> Tensor:
    return tiny.uniform(count, 3, side, side, seed=3) * 2 - 1


def one(texts: Texts, row: int) -> Texts:
    """A text on its own, without padding."""
    length = int(texts.attention_mask[row].sum())
    return Texts(texts.input_ids[row : row + 1, :length], texts.attention_mask[row : row + 1, :length])


def assert_same_maps(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert theirs.max() > 0, "an empty map equals anything"
    assert (ours - theirs).abs().max() <= 2e-5 * theirs.max()


# --------------------------------------------------------------------------- a model whose gradient is known


@dataclass(frozen=True)
class Given:
    attention: Tensor
    wanted: tuple[int, ...] = ()
    maps: dict[int, Tensor] = field(default_factory=dict)


class Weighing(Model):
    """Its attention is the picture itself, one head a channel, and its score is Σ weight × attention: the gradient by
    attention is the weight. Like a model without an image encoder, it attends only once it embeds."""

    parts = {}  # noqa: RUF012

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = weights

    def image_state(self, pixels: Tensor, maps: Sequence[int] = (), rng_keys: Tensor | None = None) -> Given:
        return Given(pixels.flatten(2)[:, :, None], tuple(maps))

    def text_state(self, texts: Texts) -> Texts:
        return texts

    def embed_image(self, state: Given, branches: Sequence[str] = ("main",)) -> dict[str, Tensor]:
        attention = state.attention * 1
        state.maps.update(dict.fromkeys(state.wanted, attention))
        return {"main": (attention * self.weights[:, :1]).sum((2, 3))}

    def embed_text(self, state: Texts, branches: Sequence[str] = ("main",)) -> dict[str, Tensor]:
        return {"main": torch.ones(len(state), len(self.weights))}

    def temperature(self, branch: str = "main") -> Tensor:
        return torch.tensor(0.5)

    def fuse(
        self, texts: Any, images: Given, text_index: Any, image_index: Any, rows: Any = None, maps: Any = ()
    ) -> Joint:
        attention = (images.attention * torch.ones(self.weights.shape[1], 1))[image_index]
        attention = attention * texts.attention_mask[text_index][:, None, :, None]
        return Joint((attention * self.weights).sum((1, 2, 3))[:, None], None, maps=dict.fromkeys(maps, attention))

    def match_logits(self, joint: Joint) -> Tensor:
        return F.pad(joint.pooled, (1, 0))

    def word_logits(self, rows: Tensor) -> Tensor:
        raise NotImplementedError

    def joint_width(self, images: int = 1) -> int:
        return 1


def test_a_map_is_attention_times_the_positive_gradient_averaged_over_heads() -> None:
    pixels, texts = tiny.uniform(2, 3, 2, 5, seed=1), tiny.texts([4, 2])
    weights = tiny.uniform(3, 4, 10, seed=2) - 0.5
    model = Weighing(weights).eval()
    heads = pixels[:, :, None] * weights.unflatten(-1, (2, 5)).clamp(min=0)
    expected = heads.mean(1) * texts.attention_mask[:, :, None, None]
    fused = phrase_maps(model, pixels, texts, GroundingConfig("itm", 7))
    assert_same_maps(fused.tokens, expected)
    assert_same_maps(fused.phrase, torch.stack([expected[0].mean(0), expected[1, :2].mean(0)]))
    encoded = phrase_maps(model, pixels, texts, GroundingConfig("itc", 7))
    assert encoded.tokens is None
    assert_same_maps(encoded.phrase, heads[:, :, 0].mean(1) / 0.5)


# --------------------------------------------------------------------------- maps


@pytest.mark.parametrize("mode", ["itm", "itc"])
@pytest.mark.parametrize("system", tiny.MODELS, ids=str)
def test_the_map_of_all_layers_is_the_sum_of_theirs(mode: Any, system: dict[str, Any]) -> None:
    model, pixels, texts = tiny.any_model(**system), pictures(4), tiny.texts([5, 9, 3, 7])
    layers = model.map_layers if mode == "itm" else model.image_layers
    assert len(layers) > 1
    found = phrase_maps(model, pixels, texts, GroundingConfig(mode, "all"))
    single = [phrase_maps(model, pixels, texts, GroundingConfig(mode, layer)) for layer in layers]
    assert_same_maps(found.phrase, torch.stack([each.phrase for each in single]).sum(0))
    torch.testing.assert_close(found.score, single[0].score)


@place
@pytest.mark.parametrize("system", tiny.MODELS, ids=str)
def test_padding_and_batch_mates_change_no_map(mode: Any, layer: int, system: dict[str, Any]) -> None:
    model, config = tiny.any_model(**system), GroundingConfig(mode, layer)
    pixels, texts = pictures(4), tiny.texts([5, 9, 3, 7])
    together = phrase_maps(model, pixels, texts, config)
    wider = phrase_maps(model, pixels, tiny.padded(texts, 12), config)
    assert_same_maps(wider.phrase, together.phrase)
    for row in range(4):
        alone = phrase_maps(model, pixels[row : row + 1], one(texts, row), config)
        assert_same_maps(together.phrase[row], alone.phrase[0])
        assert torch.allclose(together.score[row], alone.score[0], atol=1e-5)
        if mode == "itm":
            length = alone.tokens.shape[1]
            assert_same_maps(together.tokens[row, :length], alone.tokens[0])
            assert not together.tokens[row, length:].any()
            assert not wider.tokens[row, length:].any()


@place
def test_computing_padded_rows_changes_no_map(mode: Any, layer: int) -> None:
    pixels, texts, config = pictures(3), tiny.texts([5, 9, 3]), GroundingConfig(mode, layer)
    packed, kept = (phrase_maps(tiny.albef(keep_padding=keep), pixels, texts, config) for keep in (False, True))
    assert_same_maps(kept.phrase, packed.phrase)
    if mode == "itm":
        assert_same_maps(kept.tokens, packed.tokens)


def test_the_released_average_is_diluted_by_batch_mates() -> None:
    model, pixels, texts = tiny.albef(), pictures(2), tiny.texts([4, 8])
    config = GroundingConfig("itm", 2)
    ours = phrase_maps(model, pixels, texts, config).phrase
    theirs = phrase_maps(model, pixels, texts, config, averages_padding=True).phrase
    assert_same_maps(theirs[0] * 2, ours[0])
    assert_same_maps(theirs[1], ours[1])


@place
def test_phrases_of_one_image_have_the_maps_they_have_alone(
    mode: Any, layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, config = tiny.albef(), GroundingConfig(mode, layer)
    pixels, texts, owner = pictures(2), tiny.texts([5, 9, 3, 7]), torch.tensor([1, 0, 1, 1])
    seen: list[int] = []
    encode = model.image_state
    monkeypatch.setattr(model, "image_state", lambda given, maps=(): seen.append(len(given)) or encode(given, maps))
    found = phrase_maps(model, pixels, texts, config, owner)
    assert seen == [2], "each image is encoded once"
    for row, image in enumerate(owner.tolist()):
        alone = phrase_maps(model, pixels[image : image + 1], one(texts, row), config)
        assert_same_maps(found.phrase[row], alone.phrase[0])


@place
@pytest.mark.parametrize("frozen", [True, False])
def test_no_gradient_is_left_and_nothing_changes(mode: Any, layer: int, frozen: bool) -> None:
    model, config = tiny.albef(), GroundingConfig(mode, layer)
    pixels, texts = pictures(2), tiny.texts([4, 6])
    expected = phrase_maps(model, pixels, texts, config)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.requires_grad_(not frozen)
    with torch.no_grad():
        found = phrase_maps(model, pixels, texts, config)
    assert_same_maps(found.phrase, expected.phrase)
    made = [found.phrase, found.score, *([found.tokens] if mode == "itm" else [])]
    assert not any(tensor.requires_grad for tensor in made)
    assert not pixels.requires_grad
    assert pixels.grad is None
    assert all(weight.grad is None for weight in model.parameters())
    assert all(weight.requires_grad is not frozen for weight in model.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert not model.training


@place
@pytest.mark.parametrize("side", [8, 32])
def test_any_image_size_has_maps_of_its_patches(mode: Any, layer: int, side: int) -> None:
    found = phrase_maps(tiny.albef(), pictures(1, side), tiny.texts([4]), GroundingConfig(mode, layer))
    assert found.phrase.shape == (1, side // 4, side // 4)
    assert found.phrase.min() >= 0
    assert found.phrase.max() > 0


@pytest.mark.parametrize(
    ("mode", "layer", "message"),
    [
        ("itm", 1, "no cross-attention"),
        ("itm", 4, "no cross-attention"),
        ("itc", 2, "no block 2"),
        ("itc", -1, "no block"),
    ],
)
def test_a_layer_that_is_not_there_is_an_error(mode: Any, layer: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        phrase_maps(tiny.albef(), pictures(1), tiny.texts([4]), GroundingConfig(mode, layer))


def test_a_model_in_training_and_phrases_without_images_are_errors() -> None:
    model, config = tiny.albef(), GroundingConfig("itm", 2)
    with pytest.raises(ValueError, match="2 images for 3 phrases"):
        phrase_maps(model, pictures(2), tiny.texts([4, 4, 4]), config)
    with pytest.raises(ValueError, match=r"model\.eval"):
        phrase_maps(model.train(), pictures(1), tiny.texts([4]), config)


def test_dropout_rates_change_no_map() -> None:
    config = GroundingConfig("itm", 2)
    plain, dropping = tiny.albef(), tiny.albef(dropout=0.5, attention_dropout=0.5)
    maps: list[PhraseMaps] = [phrase_maps(model, pictures(1), tiny.texts([4]), config) for model in (plain, dropping)]
    assert_same_maps(maps[1].phrase, maps[0].phrase)


# --------------------------------------------------------------------------- boxes


def test_proposals_score_the_plain_sum_over_their_pixels() -> None:
    random = np.random.default_rng(0)
    heat = random.normal(size=(23, 31))
    boxes = np.concatenate([random.uniform(0, 30, (200, 2)), random.uniform(0.1, 40, (200, 2))], axis=1)
    scores = proposal_scores(heat, boxes, 0.7)
    for (x, y, w, h), score in zip(boxes.tolist(), scores.tolist(), strict=True):
        plain = heat[int(y) : int(y + h), int(x) : int(x + w)].sum() / (w * h) ** 0.7
        assert score == pytest.approx(plain, abs=1e-9)


def test_a_proposal_outside_of_the_picture_is_refused_when_a_user_gives_it() -> None:
    check_within([(-3.0, -3.0, 5.0, 5.0), (60.0, 60.0, 500.0, 500.0), (0.0, 0.0, 64.0, 64.0)], (64, 64))
    for outside in [(500.0, 500.0, 20.0, 20.0), (64.0, 0.0, 5.0, 5.0), (0.0, -9.0, 9.0, 9.0)]:
        with pytest.raises(ValueError, match=r"proposal 1, .*, is outside of the picture of 64 × 64 pixels"):
            check_within([(0.0, 0.0, 9.0, 9.0), outside], (64, 64))


def test_proposals_as_shares_of_the_picture_are_refused() -> None:
    shares = [(0.1, 0.2, 0.5, 0.5), (0.0, 0.0, 1.0, 1.0)]
    with pytest.raises(ValueError, match=r"all numbers of the proposals are within 0..1, as shares of the picture"):
        check_within(shares, (64, 64))
    check_within([*shares, (3.0, 3.0, 9.0, 9.0)], (64, 64))
    check_within([(0.0, 0.0, 1.0, 1.0)], (4, 4))


def test_what_lies_outside_the_picture_adds_nothing() -> None:
    heat = np.ones((4, 6))
    boxes = np.array([[-3.0, -2, 5, 4], [4, 2, 10, 10], [-9, 0, 4, 4], [7, 0, 2, 2]])
    assert proposal_scores(heat, boxes, 0.0).tolist() == [4, 4, 0, 0]


def test_a_proposal_without_an_area_is_named() -> None:
    with pytest.raises(ValueError, match="proposal 1 has no area"):
        proposal_scores(np.ones((4, 4)), np.array([[0.0, 0, 1, 1], [0, 0, 0, 1]]))


def test_the_first_of_equally_good_proposals_wins_and_one_wins_always() -> None:
    config = GroundingConfig()
    boxes = ((0.0, 0.0, 2.0, 2.0), (2.0, 2.0, 2.0, 2.0))
    assert find_box(torch.ones(4, 4), (4, 4), boxes, config) == boxes[0]
    assert find_box(torch.zeros(4, 4), (4, 4), boxes, config) == boxes[0]
    cold = -torch.ones(4, 4)
    cold[2:, 2:] = -0.5
    assert find_box(cold, (4, 4), boxes, config) == boxes[1]


def test_alpha_weighs_heat_against_size() -> None:
    heat = torch.full((8, 8), 0.1)
    heat[3:5, 3:5] = 1
    boxes = ((3.0, 3.0, 2.0, 2.0), (0.0, 0.0, 8.0, 8.0))
    assert find_box(heat, (8, 8), boxes, GroundingConfig(alpha=0.0)) == boxes[1]
    assert find_box(heat, (8, 8), boxes, GroundingConfig(alpha=1.0)) == boxes[0]


@pytest.mark.parametrize("seed", range(20))
def test_the_maps_own_box_is_around_the_region_with_the_most_heat(seed: int) -> None:
    """Regions against scikit-image's, on maps from a few large blobs to noise."""
    random = np.random.default_rng(seed)
    grid = torch.from_numpy(random.uniform(size=(1, 1, 3 + seed, 4 + seed)))
    heat = F.interpolate(grid, (37, 53), mode="bicubic")[0, 0].numpy()
    threshold = random.uniform(0.3, 0.9)
    regions = label(heat >= threshold * heat.max(), connectivity=1)
    assert regions.max() > 1 or seed == 0
    best = 1 + np.argmax([heat[regions == number].sum() for number in range(1, regions.max() + 1)])
    rows, columns = np.nonzero(regions == best)
    expected = (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)
    assert box_of_map(heat, threshold) == expected


def test_a_map_without_heat_names_the_whole_picture() -> None:
    assert box_of_map(np.zeros((3, 5))) == (0, 0, 5, 3)


def test_a_blob_is_found_at_the_pictures_own_size_and_shape() -> None:
    heat = torch.zeros(8, 8)
    heat[2:4, 5:8] = 1
    x, y, width, height = find_box(heat, (160, 80), (), GroundingConfig())
    assert box_iou(np.array([x, y, width, height]), np.array([100.0, 20, 60, 20])) > 0.8


@pytest.mark.parametrize("threshold", [0.0, 1.5])
def test_a_threshold_that_is_no_share_is_an_error(threshold: float) -> None:
    with pytest.raises(ValueError, match="share of the map's peak"):
        find_box(torch.ones(2, 2), (4, 4), (), GroundingConfig(threshold=threshold))


def test_a_map_that_is_not_finite_is_an_error() -> None:
    broken = torch.full((2, 2), torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        find_box(broken, (4, 4), (), GroundingConfig())
    with pytest.raises(ValueError, match="not finite"):
        heat_picture(Image.new("RGB", (4, 4)), broken)


# --------------------------------------------------------------------------- measures


def painted(box: np.ndarray) -> np.ndarray:
    page = np.zeros((40, 40), bool)
    x, y, width, height = box.astype(int)
    page[y : y + height, x : x + width] = True
    return page


def test_overlap_on_whole_pixels_is_counted_pixels() -> None:
    random = np.random.default_rng(0)
    boxes = random.integers([0, 0, 2, 2], [20, 20, 20, 20], (2, 100, 4)).astype(np.float64)
    found, released = box_iou(*boxes), box_iou(*boxes, whole_pixels=True)
    for pair in range(100):
        first, second = painted(boxes[0, pair]), painted(boxes[1, pair])
        shared = first & second
        assert found[pair] == pytest.approx(shared.sum() / (first | second).sum())
        thin = min(shared.any(0).sum(), shared.any(1).sum()) < 2
        assert released[pair] == pytest.approx(0.0 if thin else found[pair])
    assert ((found > 0) & (released == 0)).any(), "the two ways must differ somewhere"


def test_a_box_without_an_area_is_an_error() -> None:
    with pytest.raises(ValueError, match="no area"):
        box_iou(np.array([0.0, 0, 0, 3]), np.array([0.0, 0, 1, 1]))


def test_accuracy_is_the_share_of_each_split_and_its_interval_draws_pictures() -> None:
    iou = np.array([0.5, 0.49, 0.9, 0.1, 1.0, 0.0])
    splits = ["val", "testA", "val", "val", "testA", "val"]
    found = box_accuracy(iou, splits, ["a", "a", "a", "b", "b", "b"])
    assert [(name, one.value, one.count) for name, one in found.items()] == [("val", 50.0, 4), ("testA", 50.0, 2)]
    whole = box_accuracy(np.tile([1.0, 0.0], 200), ["val"] * 400, np.repeat(np.arange(200), 2).tolist())["val"]
    assert whole.interval == (50.0, 50.0), "every picture has one right and one wrong: no draw of pictures differs"
    single = box_accuracy(np.tile([1.0, 0.0], 200), ["val"] * 400, list(range(400)), seed=1)["val"]
    assert single.interval == pytest.approx(mean_interval(100.0 * np.tile([1.0, 0.0], 200), seed=1))


def test_accuracy_needs_one_split_and_one_picture_a_phrase() -> None:
    with pytest.raises(ValueError, match="1 overlaps, 1 splits and 2 pictures"):
        box_accuracy(np.array([0.5]), ["val"], [1, 2])


def test_guesses_without_a_look_take_the_largest_and_the_most_central_box() -> None:
    boxes = np.array([[0.0, 0, 9, 9], [40, 20, 4, 4], [90, 40, 3, 3]])
    assert (largest_box(boxes), central_box(boxes, (100, 50))) == (0, 1)


# --------------------------------------------------------------------------- heat maps


def corner_heat() -> Tensor:
    heat = torch.zeros(4, 4)
    heat[3, 3] = 2.0
    return heat


def shade(grey: int, colour: np.ndarray) -> tuple[int, ...]:
    return tuple(np.rint((1 - OPACITY) * grey + OPACITY * colour).astype(int).tolist())


def test_hot_pixels_have_the_last_colour_and_cold_ones_the_first_over_the_grey_picture() -> None:
    image = Image.new("RGB", (64, 48), (200, 200, 200))
    image.paste((0, 0, 0), (0, 0, 8, 8))
    page = heat_picture(image, corner_heat())
    assert page.size == (64, 48 + BAR)
    y, x = np.unravel_index(int(enlarge(corner_heat(), image.size).argmax()), (48, 64))
    assert x >= 48
    assert y >= 36
    assert page.getpixel((int(x), int(y))) == shade(200, COLOURS[-1])
    assert page.getpixel((2, 2)) == shade(0, COLOURS[0])
    assert page.getpixel((30, 4)) == shade(200, COLOURS[0])


def test_the_bar_runs_through_the_colours_with_growing_brightness() -> None:
    page = heat_picture(Image.new("RGB", (256, 20)), corner_heat())
    row = np.asarray(page)[-1].astype(int)
    assert tuple(row[0]) == shade(128, COLOURS[0])
    assert tuple(row[-1]) == shade(128, COLOURS[-1])
    assert tuple(row[51]) == shade(128, heat_colours(np.array(51 / 255)))
    brightness = np.asarray(page.convert("L"))[-1].astype(int)
    assert (np.diff(brightness[::16]) > 0).all()
    assert brightness[-1] - brightness[0] > 80
    ends = np.asarray(page)[20:].astype(int)
    assert (ends[:, :20] > 220).all(-1).any(), "a white 0 on the dark end"
    assert (ends[:, -40:] < 40).all(-1).any(), "the peak in black on the bright end"


def test_a_common_scale_makes_maps_comparable() -> None:
    image = Image.new("RGB", (32, 32), "white")
    pale = np.asarray(heat_picture(image, corner_heat(), hottest=200.0))[:32]
    strong = np.asarray(heat_picture(image, corner_heat()))[:32]
    assert tuple(strong[30, 30]) != tuple(pale[30, 30])
    assert np.abs(pale.astype(int) - shade(255, COLOURS[0])).max() <= 3
    with pytest.raises(ValueError, match="hottest"):
        heat_picture(image, corner_heat(), hottest=0.0)


def test_a_map_without_heat_is_cold_everywhere() -> None:
    page = np.asarray(heat_picture(Image.new("RGB", (16, 16), "white"), torch.zeros(2, 2)))[:16]
    assert (page == shade(255, COLOURS[0])).all()


def test_boxes_are_outlined_where_they_are_and_cut_at_the_border() -> None:
    image = Image.new("RGB", (60, 40), "white")
    page = heat_picture(image, corner_heat(), box=(10.0, 5.0, 20.0, 10.0), expected=(40.0, 20.0, 100.0, 100.0))
    bare = heat_picture(image, corner_heat())
    for x, y in ((10, 5), (29, 5), (10, 14), (29, 14), (20, 6)):
        assert page.getpixel((x, y)) == FOUND
    for x, y in ((40, 20), (59, 20), (40, 39), (59, 39)):
        assert page.getpixel((x, y)) == EXPECTED
    assert page.getpixel((12, 7)) == (0, 0, 0)
    for x, y in ((9, 5), (30, 5), (20, 10), (50, 30)):
        assert page.getpixel((x, y)) == bare.getpixel((x, y))
