"""The contract of a model, on ALBEF: neither padding nor batch mates nor order change a result; errors say the way out.

A plain implementation of one sequence at a time, written from the paper, stands beside the packed one.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.models.albef import Albef, ImageState, TextState
from diptych.nn.blocks import TextBlock
from diptych.nn.embeddings import ImageEmbedding, resize_positions
from diptych.types import Joint, Progress, Texts, TokenPositions
from tests import tiny
from tests.tiny import alone, same
from tests.traces import traced

LENGTHS = (5, 9, 3, 7)
TEXT_INDEX, IMAGE_INDEX = torch.tensor([0, 1, 1, 3, 2, 0]), torch.tensor([2, 0, 2, 2, 4, 0])
"""Six pairs of four texts and five images: images 1 and 3 are in none, image 2 in three, text order broken."""
LISTED = TokenPositions(torch.tensor([4, 0, 1, 1, 3]), torch.tensor([2, 0, 8, 3, 6]))


@pytest.fixture(scope="module", params=tiny.VARIANTS, ids="-".join)
def model(request: pytest.FixtureRequest) -> Albef:
    norm, stem = request.param
    return tiny.albef(norm=norm, stem=stem).requires_grad_(False)


@pytest.fixture(scope="module")
def texts(model: Albef) -> TextState:
    return model.text_state(tiny.texts(LENGTHS))


@pytest.fixture(scope="module")
def images(model: Albef) -> ImageState:
    return model.image_state(pixels())


def pixels(side: int = tiny.SIDE) -> Tensor:
    return tiny.uniform(5, 3, side, side, seed=3) * 2 - 1


# --------------------------------------------------------------------------- a plain implementation


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Attends within one sequence; returns the result and the map [heads, Q, K]."""
    mixed, maps = [], []
    for q, k, v in zip(*(x.chunk(heads, dim=-1) for x in (query, key, value)), strict=True):
        maps.append(torch.softmax(q @ k.T / math.sqrt(q.shape[1]), dim=1))
        mixed.append(maps[-1] @ v)
    return torch.cat(mixed, dim=1), torch.stack(maps)


def text_layer(block: TextBlock, hidden: Tensor, image: Tensor | None) -> tuple[Tensor, Tensor | None]:
    kept: Tensor | None = None

    def self_attention(x: Tensor) -> Tensor:
        return block.attention.out(attention(*block.attention.qkv(x).chunk(3, dim=-1), block.attention.heads)[0])

    def cross_attention(x: Tensor) -> Tensor:
        nonlocal kept
        mixed, kept = attention(block.cross.q(x), *block.cross.kv(image).chunk(2, dim=-1), block.cross.heads)
        return block.cross.out(mixed)

    def feed_forward(x: Tensor) -> Tensor:
        return block.fc2(F.gelu(block.fc1(x)))

    parts = [(self_attention, block.attention_norm), (feed_forward, block.mlp_norm)]
    if image is not None:
        parts.insert(1, (cross_attention, block.cross_norm))
    for part, norm in parts:
        hidden = hidden + part(norm(hidden)) if block.norm_place == "pre" else norm(hidden + part(hidden))
    return hidden, kept


def plain_text(model: Albef, ids: Tensor) -> Tensor:
    """Hidden states [L, D] of one text's ids [L]."""
    table = model.text.embedding
    hidden = table.norm(table.words.weight[ids] + table.positions.weight[: len(ids)] + table.types.weight[0])
    for block in model.text.layers[: model.config.text.fusion_start]:
        hidden, _ = text_layer(block, hidden, None)
    return hidden


def plain_fusion(model: Albef, hidden: Tensor, image: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
    """One text's hidden states [L, D] with one image's tokens [T, Dv]; maps [heads, L, patches] by layer."""
    maps: dict[int, Tensor] = {}
    for number in range(model.config.text.fusion_start, model.config.text.layers):
        hidden, probabilities = text_layer(model.text.layers[number], hidden, image)
        assert probabilities is not None
        maps[number] = probabilities[:, :, 1:]
    return model.text.fusion_norm(hidden), maps


def plain_image(model: Albef, one: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [T, D] of one picture [3, H, W], and the last block's map from [CLS] to the patches."""
    hidden, probabilities = model.vision.embedding(one[None])[0], torch.empty(0)
    for block in model.vision.blocks:
        mixed, probabilities = attention(*block.qkv(block.norm1(hidden)).chunk(3, dim=-1), block.heads)
        hidden = hidden + block.out(mixed)
        hidden = hidden + block.fc2(F.gelu(block.fc1(block.norm2(hidden))))
    return model.vision.norm(hidden), probabilities[:, :1, 1:]


# --------------------------------------------------------------------------- encoders


@pytest.mark.parametrize("length", [0, tiny.POSITIONS], ids=["alone", "padded"])
def test_a_text_is_encoded_the_same_alone_padded_or_among_others(model: Albef, texts: TextState, length: int) -> None:
    batch, embedded = tiny.texts(LENGTHS), model.embed_text(texts)["main"]
    for which, own in enumerate(LENGTHS):
        state = model.text_state(alone(batch, which, max(length, own)))
        same(state.hidden, texts[torch.tensor([which])].hidden)
        same(state.hidden, plain_text(model, batch.input_ids[which, :own]))
        same(model.embed_text(state)["main"][0], embedded[which])
    same(model.text_state(tiny.padded(batch, tiny.POSITIONS)).hidden, texts.hidden)


def test_an_image_is_encoded_the_same_alone_or_among_others(model: Albef, images: ImageState) -> None:
    embedded = model.embed_image(images)["main"]
    for which, picture in enumerate(pixels()):
        state = model.image_state(picture[None])
        same(state.tokens, images.tokens[which : which + 1])
        same(state.tokens[0], plain_image(model, picture)[0])
        same(model.embed_image(state)["main"][0], embedded[which])


def test_embeddings_are_projected_class_tokens_of_length_one(
    model: Albef, texts: TextState, images: ImageState
) -> None:
    given = zip(tiny.texts(LENGTHS).input_ids, LENGTHS, strict=True)
    first = torch.stack([plain_text(model, ids[:length])[0] for ids, length in given])
    same(model.embed_text(texts)["main"], F.normalize(model.text_proj(model.text.text_norm(first)), dim=1))
    same(model.embed_image(images)["main"], F.normalize(model.image_proj(images.tokens[:, 0]), dim=1))


def test_states_are_cut_and_joined_like_lists(model: Albef, texts: TextState, images: ImageState) -> None:
    order = torch.tensor([3, 1, 1])
    again = TextState.cat([texts[order[:1]], texts[order[1:]]])
    batch = tiny.texts(LENGTHS)
    same(again.hidden, model.text_state(Texts(batch.input_ids[order], batch.attention_mask[order])).hidden)
    assert again.packed.lengths.tolist() == [7, 9, 9]
    assert torch.equal(texts[1:3].hidden, texts[torch.tensor([1, 2])].hidden)
    assert torch.equal(ImageState.cat([images[:2], images[2:]]).tokens, images.tokens)
    assert (len(again), len(images[order])) == (3, 3)


@pytest.mark.parametrize("side", [8, 24])
def test_another_image_size_resizes_the_positions(model: Albef, side: int) -> None:
    config = replace(model.config, vision=replace(model.config.vision, image_size=side))
    state = model.state_dict()
    name = "vision.embedding.positions"
    other = Albef(config).eval()
    other.load_state_dict(state | {name: resize_positions(state[name], side // 4)})
    tokens = model.image_state(pixels(side)).tokens
    assert tokens.shape[1] == (side // 4) ** 2 + 1
    same(tokens, other.image_state(pixels(side)).tokens)


@pytest.mark.parametrize("class_token", [True, False])
def test_positions_start_as_sines_of_row_and_column_with_a_convolutional_stem_alone(class_token: bool) -> None:
    """Written out patch by patch: 16 channels are four frequencies of four waves each."""
    torch.manual_seed(0)
    conv, patch = (ImageEmbedding(12, 4, 16, stem, class_token=class_token).positions[0] for stem in ("conv", "patch"))
    first, speeds = int(class_token), [0.01 ** (place / 3) for place in range(4)]
    for row in range(3):
        for column in range(3):
            found = conv[first + 3 * row + column].tolist()
            expected = [
                wave(place * speed) / 2 for place in (row, column) for wave in (math.sin, math.cos) for speed in speeds
            ]
            assert found == pytest.approx(expected, abs=1e-6)
    assert conv[:first].abs().sum() < 1
    assert patch.abs().max() < 0.1


# --------------------------------------------------------------------------- fusion


def fuse(model: Albef, texts: TextState, images: ImageState, rows: object = None, **more: object) -> Joint:
    return model.fuse(texts, images, TEXT_INDEX, IMAGE_INDEX, rows, **more)


def test_every_pair_is_fused_as_the_plain_implementation_fuses_it_alone(
    model: Albef, texts: TextState, images: ImageState
) -> None:
    pooled, listed, everything = (fuse(model, texts, images, rows) for rows in (None, LISTED, "all"))
    plain = [
        plain_fusion(model, texts[t[None]].hidden, images.tokens[i])[0]
        for t, i in zip(TEXT_INDEX, IMAGE_INDEX, strict=True)
    ]
    first = torch.stack([hidden[0] for hidden in plain])
    for joint in (pooled, listed, everything):
        same(joint.pooled, first)
        same(model.match_logits(joint), model.match_head(first))
    assert pooled.hidden is None
    wanted = torch.stack([plain[p][r] for p, r in zip(LISTED.pair, LISTED.position, strict=True)])
    same(listed.hidden, wanted)
    same(model.word_logits(listed.hidden), model.word_logits(wanted))
    assert everything.mask is not None
    assert everything.mask.sum(1).tolist() == [LENGTHS[t] for t in TEXT_INDEX]
    same(everything.hidden[everything.mask], torch.cat(plain))


def test_pairs_alone_and_in_any_order_give_the_same(model: Albef, texts: TextState, images: ImageState) -> None:
    whole = fuse(model, texts, images)
    order = torch.tensor([3, 5, 0, 4, 2, 1])
    same(model.fuse(texts, images, TEXT_INDEX[order], IMAGE_INDEX[order]).pooled, whole.pooled[order])
    listed = fuse(model, texts, images, LISTED)
    place = order.argsort()
    moved = TokenPositions(place[LISTED.pair], LISTED.position)
    same(model.fuse(texts, images, TEXT_INDEX[order], IMAGE_INDEX[order], moved).hidden, listed.hidden)
    for p, (t, i) in enumerate(zip(TEXT_INDEX, IMAGE_INDEX, strict=True)):
        zero = torch.zeros(1, dtype=torch.long)
        same(model.fuse(texts[t[None]], images[i[None]], zero, zero).pooled[0], whole.pooled[p])


def test_one_image_may_serve_every_pair(model: Albef, texts: TextState, images: ImageState) -> None:
    every = torch.arange(len(texts))
    one = model.fuse(texts, images[torch.tensor([2])], every, torch.zeros_like(every), "all")
    spread = model.fuse(texts, images, every, torch.full_like(every, 2), "all")
    same(one.hidden, spread.hidden)
    same(one.pooled[0], fuse(model, texts, images).pooled[0])


def test_an_empty_list_of_positions_is_fine(model: Albef, texts: TextState, images: ImageState) -> None:
    nothing = torch.empty(0, dtype=torch.long)
    joint = fuse(model, texts, images, TokenPositions(nothing, nothing))
    assert model.word_logits(joint.hidden).shape == (0, tiny.VOCABULARY)
    same(joint.pooled, fuse(model, texts, images).pooled)


@pytest.mark.parametrize("rows", [None, LISTED, "all"], ids=["none", "list", "all"])
def test_fusion_maps_are_the_cross_attention_and_change_no_result(
    model: Albef, texts: TextState, images: ImageState, rows: object
) -> None:
    start, end = model.config.text.fusion_start, model.config.text.layers
    joint, plain = fuse(model, texts, images, rows, maps=range(start, end)), fuse(model, texts, images, rows)
    same(joint.pooled, plain.pooled)
    if rows is None:
        assert joint.hidden is None
    else:
        same(joint.hidden, plain.hidden)
    assert set(joint.maps) == set(range(start, end))
    for p, (t, i) in enumerate(zip(TEXT_INDEX, IMAGE_INDEX, strict=True)):
        _, maps = plain_fusion(model, texts[t[None]].hidden, images.tokens[i])
        for number, expected in maps.items():
            assert joint.maps[number].shape[-1] == tiny.PATCHES
            same(joint.maps[number][p, :, : LENGTHS[t]], expected)


def test_image_maps_are_the_attention_of_the_class_token_and_change_no_result(model: Albef, images: ImageState) -> None:
    last = model.config.vision.depth - 1
    state = model.image_state(pixels(), maps=[last])
    same(state.tokens, images.tokens)
    assert set(state.maps) == {last}
    for which, picture in enumerate(pixels()):
        same(state.maps[last][which], plain_image(model, picture)[1])


def test_maps_stay_in_the_graph() -> None:
    """Grad-CAM differentiates a score by them."""
    model = tiny.albef()
    images, texts = model.image_state(pixels(), maps=[1]), model.text_state(tiny.texts(LENGTHS))
    joint = fuse(model, texts, images, maps=[2])
    gradients = torch.autograd.grad(model.match_logits(joint)[:, 1].sum(), [joint.maps[2], images.maps[1]])
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize(("norm", "stem"), tiny.VARIANTS)
def test_computing_the_padding_changes_no_valid_token(norm: str, stem: str) -> None:
    packed = tiny.albef(norm=norm, stem=stem).requires_grad_(False)
    wide = Albef(packed.config).eval()
    wide.load_state_dict(packed.state_dict())
    wide.keep_padding = True
    batch = tiny.padded(tiny.texts(LENGTHS), 11)
    kept, lean, images = wide.text_state(batch), packed.text_state(batch), packed.image_state(pixels())
    assert (len(kept.hidden), len(lean.hidden)) == (4 * 11, sum(LENGTHS))
    same(kept.hidden[kept.attention_mask], lean.hidden)
    same(wide.embed_text(kept)["main"], packed.embed_text(lean)["main"])
    ours, theirs = fuse(packed, lean, images, "all"), fuse(wide, kept, images, "all")
    same(theirs.hidden[theirs.mask], ours.hidden[ours.mask])
    same(fuse(wide, kept, images, LISTED).hidden, fuse(packed, lean, images, LISTED).hidden)


# --------------------------------------------------------------------------- errors, precision


def test_a_text_longer_than_the_positions_is_refused_with_the_way_out(model: Albef) -> None:
    with pytest.raises(ValueError, match="13 tokens is longer than the model's 12 positions: cut texts"):
        model.text_state(tiny.texts([13, 4]))


def test_a_map_of_a_layer_without_cross_attention_is_refused(
    model: Albef, texts: TextState, images: ImageState
) -> None:
    with pytest.raises(ValueError, match=r"layers \[1, 4\] have no cross-attention; those from 2 on have"):
        fuse(model, texts, images, maps=[1, 3, 4])


@pytest.mark.parametrize("shape", [(16, 12), (18, 18)])
def test_pixels_that_are_no_square_of_patches_are_refused(model: Albef, shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"{shape[0]}, {shape[1]}.*not a square of multiples of 4"):
        model.image_state(torch.zeros(1, 3, *shape))


@pytest.mark.parametrize("start", [0, 4, 7])
def test_a_fusion_start_outside_the_layers_is_refused(start: int) -> None:
    with pytest.raises(ValueError, match=r"text\.fusion_start must lie within 1\.\.3"):
        Albef(tiny.albef_config(fusion_start=start))


def test_sizes_that_do_not_divide_are_refused() -> None:
    config = tiny.albef_config(stem="conv")
    with pytest.raises(ValueError, match="image_size 18 is not a multiple of patch_size 4"):
        Albef(replace(config, vision=replace(config.vision, image_size=18)))
    with pytest.raises(ValueError, match="power of two, not 6"):
        Albef(replace(config, vision=replace(config.vision, image_size=18, patch_size=6)))


@pytest.mark.parametrize(("norm", "stem"), tiny.VARIANTS)
def test_losses_in_bf16_are_within_a_percent(norm: str, stem: str) -> None:
    task = tiny.pretraining(model={"norm": norm, "stem": stem})
    batch, progress = tiny.batch(), Progress(step=3, epoch=2.0)
    # Negatives are recorded: a rounded similarity may draw another one, which is another loss, not a wrong one.
    image, text = traced(task, batch, progress)[0].negatives
    draws = replace(task.draw(batch, progress), negative_image=image, negative_text=text)
    exact = task(batch, progress, draws)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = task(batch, progress, draws)
    for name, (_, term) in exact.terms.items():
        other = rounded.terms[name][1].mean
        assert other.dtype == torch.float32
        assert other.item() == pytest.approx(term.mean.item(), rel=0.01), name
        assert not torch.equal(other, term.mean), f"{name} was not computed in bf16"
    rounded.total.backward()
    assert all(weight.grad.isfinite().all() for weight in task.parameters() if weight.requires_grad)


def test_no_parameter_is_shared_between_modules() -> None:
    """The word table serves the word head too; it is handed over, not registered twice."""
    names = [name for name, _ in tiny.albef().named_parameters(remove_duplicate=False)]
    assert len(names) == len(set(names)) == len(list(tiny.albef().parameters()))
    assert isinstance(tiny.albef().text.text_norm, nn.Identity)
