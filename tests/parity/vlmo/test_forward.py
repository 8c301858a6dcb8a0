"""Features of every pass and stage against the released code's: `forward`, and `eps_probe` for the norms' epsilons."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diptych.models.vlmo import Vlmo
from diptych.nn.mome import MoMEBlock
from diptych.types import Texts, TokenPositions
from tests.parity.vlmo.golden import Golden, build, read_texts, scaled

Features = dict[str, Tensor]


@pytest.fixture(scope="module")
def inputs(golden_vlmo: Path) -> Golden:
    return Golden(golden_vlmo, "inputs")


@pytest.fixture(scope="module")
def forward(golden_vlmo: Path) -> Golden:
    return Golden(golden_vlmo, "forward")


def watched(model: Vlmo, call: Callable[[], object]) -> tuple[list[Tensor], list[Tensor]]:
    """What entered and left each block during a call, in order."""
    before: list[Tensor] = []
    after: list[Tensor] = []

    def note(block: MoMEBlock, given: tuple[Tensor, ...], made: tuple[Tensor, ...]) -> None:
        before.append(given[0])
        after.append(made[0])

    hooks = [block.register_forward_hook(note) for block in model.blocks]
    call()
    for hook in hooks:
        hook.remove()
    return before, after


def side_by_side(rows: Tensor, texts: int, length: int, tokens: int) -> Tensor:
    """Packed rows, all texts first, as one row a pair [P, L + T, D]."""
    text, image = rows.split([texts * length, texts * tokens])
    return torch.cat([text.view(texts, length, -1), image.view(texts, tokens, -1)], dim=1)


@torch.no_grad()
def fused(model: Vlmo, pixels: Tensor, texts: Texts, turn: int = 0) -> Features:
    """The fusion encoder's features; `turn` is which of a text's images it is."""
    images, words = model.image_state(pixels), model.text_state(texts)
    here = torch.arange(len(texts))
    run = model._pair_pass(words, images, here, here, torch.full_like(here, turn))
    tokens, length = images.patches.shape[1], texts.input_ids.shape[1]
    joint = model.fuse(words, images, here, here, positions="all") if turn == 0 else None
    before, after = watched(
        model, lambda: model._run(model._run(run, range(start(model)), "modality"), upper(model), "vl")
    )
    normed = model.norm(after[-1])
    grid = side_by_side(normed, len(texts), length, tokens)
    if joint is not None:
        assert joint.hidden is not None
        assert torch.allclose(joint.hidden, grid, atol=1e-6)
    found = {
        "embed": side_by_side(before[0], len(texts), length, tokens),
        "text_feats": grid[:, :length], "image_feats": grid[:, length:],
        "raw_cls_feats": grid[:, 0], "cls_feats": torch.tanh(model.pooler(grid[:, 0])),
    }  # fmt: skip
    return found | {
        f"hidden/{number}": side_by_side(rows, len(texts), length, tokens) for number, rows in enumerate(after)
    }


def start(model: Vlmo) -> int:
    return model.config.fusion_start


def upper(model: Vlmo) -> range:
    return range(start(model), model.config.depth)


@torch.no_grad()
def images_alone(model: Vlmo, pixels: Tensor, heads: bool = True) -> Features:
    state = model.image_state(pixels)
    shape = state.patches.shape
    before, after = watched(model, lambda: model.encode_image(state.patches))
    found = {
        "embed": before[0].view(shape), "image_feats": model.norm(after[-1]).view(shape),
        "raw_cls_feats": after[-1].view(shape)[:, 0],
    }  # fmt: skip
    found |= {f"hidden/{number}": rows.view(shape) for number, rows in enumerate(after)}
    if upper(model):
        run = model._image_pass(state.patches)
        lower = model._run(run, range(start(model)), "modality")
        _, side = watched(model, lambda: model._run(lower, upper(model), "vl"))
        found |= {f"hidden_vl/{number}": rows.view(shape) for number, rows in zip(upper(model), side, strict=True)}
    if heads:
        embedded = model.embed_image(state, ("main", "vl"))
        found |= {"cls_feats": embedded["main"], "cls_vlffn_feats": embedded["vl"]}
    return found


@torch.no_grad()
def texts_alone(model: Vlmo, texts: Texts, heads: bool = True) -> Features:
    state = model.text_state(texts)
    shape = (*texts.input_ids.shape, -1)
    where = torch.ones_like(texts.attention_mask).nonzero()
    every = TokenPositions(where[:, 0], where[:, 1])
    run = model._text_pass(state)
    before, after = watched(model, lambda: model._run(run, range(model.config.depth), "modality"))
    normed = model.encode_text(state, every).view(shape)
    found = {"embed": before[0].view(shape), "text_feats": normed, "raw_cls_feats": after[-1].view(shape)[:, 0]}
    found |= {f"hidden/{number}": rows.view(shape) for number, rows in enumerate(after)}
    if upper(model):
        lower = model._run(run, range(start(model)), "modality")
        _, side = watched(model, lambda: model._run(lower, upper(model), "vl"))
        found |= {f"hidden_vl/{number}": rows.view(shape) for number, rows in zip(upper(model), side, strict=True)}
    if heads:
        embedded = model.embed_text(state, ("main", "vl"))
        found |= {"cls_feats": embedded["main"], "cls_vlffn_feats": embedded["vl"]}
    return found


def compare(golden: Golden, group: str, found: Features) -> int:
    """Every stored tensor of the group; returns how many there were."""
    keys = golden.keys(f"{group}/")
    for key in keys:
        golden.check(key, found[key.removeprefix(f"{group}/")])
    return len(keys)


def test_every_pass_of_every_stage_gives_the_stored_features(
    golden_vlmo: Path, inputs: Golden, forward: Golden
) -> None:
    model = build(golden_vlmo)
    pixels, plain, masked = inputs["vl/image"], read_texts(inputs, "vl"), read_texts(inputs, "vl", masked=True)
    assert compare(forward, "infer", fused(model, pixels, plain))
    assert compare(forward, "infer_mlm", fused(model, pixels, masked))
    assert compare(forward, "infer_image", images_alone(model, pixels))
    assert compare(forward, "infer_image_ft", images_alone(model, pixels))
    assert compare(forward, "infer_text", texts_alone(model, plain))
    assert compare(forward, "infer_text_ft", texts_alone(model, plain))
    assert compare(forward, "infer_text_mlm", texts_alone(model, masked))
    with torch.no_grad():
        forward.check("text_embeddings_only", model.text_state(plain).hidden.view(*plain.input_ids.shape, -1))
        forward.check("visual_embed_only", model.image_state(pixels).patches)

    language = build(golden_vlmo, "textmlm")
    read = read_texts(inputs, "textmlm", masked=True)
    assert compare(forward, "textmlm_stage/infer_text_mlm", texts_alone(language, read, heads=False))

    retrieval = build(golden_vlmo, "irtr")
    assert compare(forward, "irtr_stage/infer_image_ft", images_alone(retrieval, pixels))
    assert compare(forward, "irtr_stage/infer_text_ft", texts_alone(retrieval, plain))

    reasoning, said = build(golden_vlmo, "nlvr2"), read_texts(inputs, "nlvr2")
    for turn, name in enumerate(("first", "second")):
        found = fused(reasoning, inputs[f"nlvr2/image_{turn}"], said, turn)
        assert compare(forward, f"nlvr2_stage/infer_{name}", found)
    assert not forward.unused


def test_two_images_a_text_give_both_pooled_vectors_side_by_side(
    golden_vlmo: Path, inputs: Golden, forward: Golden
) -> None:
    model, texts = build(golden_vlmo, "nlvr2"), read_texts(inputs, "nlvr2")
    size = len(texts)
    with torch.no_grad():
        images = model.image_state(torch.cat([inputs["nlvr2/image_0"], inputs["nlvr2/image_1"]]))
        index = torch.arange(2 * size).view(2, size).T
        pooled = model.fuse(model.text_state(texts), images, torch.arange(size), index).pooled
    first, second = pooled.chunk(2, dim=1)
    forward.check("nlvr2_stage/infer_first/cls_feats", first)
    forward.check("nlvr2_stage/infer_second/cls_feats", second)


def test_without_padding_the_valid_rows_are_the_same(golden_vlmo: Path, inputs: Golden, forward: Golden) -> None:
    model, texts = build(golden_vlmo, keep_padding=False), read_texts(inputs, "vl", masked=True)
    here = torch.arange(len(texts))
    with torch.no_grad():
        joint = model.fuse(model.text_state(texts), model.image_state(inputs["vl/image"]), here, here, positions="all")
    assert joint.hidden is not None
    assert joint.mask is not None
    assert joint.text_mask is not None
    theirs = torch.cat(
        [forward["infer_mlm/text_feats"][texts.attention_mask], forward["infer_mlm/image_feats"].flatten(0, 1)]
    )
    ours = torch.cat([joint.hidden[joint.text_mask], joint.hidden[joint.mask & ~joint.text_mask]])
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    forward.check("infer_mlm/cls_feats", joint.pooled)


def test_small_residual_streams_show_every_epsilon(golden_vlmo: Path, inputs: Golden) -> None:
    probe = Golden(golden_vlmo, "eps_probe")
    model = copy.deepcopy(build(golden_vlmo))
    small = scaled(golden_vlmo, "pretrain", model.config)
    model.load_state_dict({name.removeprefix("model."): value for name, value in small.items()}, strict=False)
    pixels, masked = inputs["vl/image"], read_texts(inputs, "vl", masked=True)
    found = fused(model, pixels, masked)
    assert compare(probe, "pretrain/infer_mlm", found)
    with torch.no_grad():
        probe.check("pretrain/mlm_logits", model.word_logits(found["text_feats"]))
    assert compare(probe, "pretrain/infer_image", images_alone(model, pixels))
    assert compare(probe, "pretrain/infer_text", texts_alone(model, read_texts(inputs, "vl")))
    assert all(key.endswith("logits") for key in probe.unused)  # of heads: test_tasks.py
