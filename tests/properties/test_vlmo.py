"""The contract of a model, on VLMo: neither padding nor batch mates nor order change a result; errors say the way out.

A plain implementation of one sequence at a time, written from the paper, stands beside the packed one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.models.vlmo import BRANCHES, Branch, ImageState, Vlmo
from diptych.nn.attention import CHUNK, attend_biased
from diptych.nn.counter_rng import sample_keys
from diptych.nn.mome import MoMEBlock, MultimodalLayout
from diptych.nn.packed import TextState
from diptych.types import Joint, TokenPositions
from tests import tiny
from tests.tiny import alone, same

LENGTHS = (5, 9, 3, 7)
TEXT_INDEX, IMAGE_INDEX = torch.tensor([0, 1, 1, 3, 2, 0]), torch.tensor([2, 0, 2, 2, 4, 0])
"""Six pairs of four texts and five images: images 1 and 3 are in none, image 2 in three, text order broken."""
LISTED = TokenPositions(torch.tensor([4, 0, 1, 1, 3]), torch.tensor([2, 0, 8, 3, 6]))
Route = Literal["language", "vision", "split", "vl"]


RELATIVE: dict[str, object] = {"positions": "relative", "layer_scale": 0.1, "images_per_text": 2}
ABSOLUTE = {**RELATIVE, "positions": "absolute", "layer_scale": None, "stem": "conv", "text_norm": False}
VARIANTS = {
    "relative": RELATIVE,
    "absolute": ABSOLUTE,
    "one": {**RELATIVE, "experts": "one"},
    "separate": {**RELATIVE, "attention": "separate"},
    "both": {**ABSOLUTE, "experts": "one", "attention": "separate"},
}


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS)
def model(request: pytest.FixtureRequest) -> Vlmo:
    return tiny.vlmo(**request.param).requires_grad_(False)


def branches_of(model: Vlmo) -> tuple[Branch, ...]:
    return BRANCHES if model.config.experts == "modality" else ("main",)


@pytest.fixture(scope="module")
def texts(model: Vlmo) -> TextState:
    return model.text_state(tiny.texts(LENGTHS))


@pytest.fixture(scope="module")
def images(model: Vlmo) -> ImageState:
    return model.image_state(pixels())


def pixels() -> Tensor:
    return tiny.uniform(5, 3, tiny.SIDE, tiny.SIDE, seed=3) * 2 - 1


# --------------------------------------------------------------------------- a plain implementation


def plain_block(
    block: MoMEBlock, hidden: Tensor, bias: Tensor | None, text: int, route: Route
) -> tuple[Tensor, Tensor]:
    """Computes a block for one sequence [L, D] that begins with `text` text tokens; returns its map [H, L, L] too."""
    normed = block.norm1(hidden)
    of_rows = [block.text_attention or block.attention] * text + [block.attention] * (len(hidden) - text)
    projected = []
    for row, attention in zip(normed, of_rows, strict=True):
        query, key, value = (weight @ row for weight in attention.qkv.weight.chunk(3))
        projected.append((query + attention.q_bias, key, value + attention.v_bias))
    mixed, maps = [], []
    heads = (torch.stack(x).chunk(block.attention.heads, dim=1) for x in zip(*projected, strict=True))
    for head, (q, k, v) in enumerate(zip(*heads, strict=True)):
        scores = q @ k.T / math.sqrt(q.shape[1]) + (0 if bias is None else bias[head])
        maps.append(torch.softmax(scores, dim=1))
        mixed.append(maps[-1] @ v)
    gamma_1, gamma_2 = (1 if gamma is None else gamma for gamma in (block.gamma_1, block.gamma_2))
    gathered = zip(of_rows, torch.cat(mixed, dim=1), strict=True)
    hidden = hidden + gamma_1 * torch.stack([attention.out(row) for attention, row in gathered])
    experts = {"split": [("language", hidden[:text]), ("vision", hidden[text:])]}.get(route, [(route, hidden)])
    if block.ffn is not None:
        experts = [("", hidden)]
    fed = []
    for name, tokens in experts:
        ffn = getattr(block, f"{name}_ffn".lstrip("_"))
        fed.append(ffn.fc2(F.gelu(ffn.fc1(ffn.norm(tokens)))))
    return hidden + gamma_2 * torch.cat(fed), torch.stack(maps)


def plain_pass(
    model: Vlmo, ids: Tensor | None, patches: Tensor | None, turn: int = 0, top: Route | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Computes all tokens of one text, one image or a pair after the final norm, and the map of each block.

    `top`: the experts from `fusion_start` on; by default those of the modality, and the VL-FFN for a pair.
    """
    parts, length = [], 0
    if ids is not None:
        table, length = model.text, len(ids)
        words = table.words.weight[ids] + table.types.weight[0]
        if table.positions is not None:
            words = words + table.positions.weight[:length]
        parts.append(table.norm(words) + model.types.weight[0])
    if patches is not None:
        parts.append(patches + model.types.weight[1 + turn])
    hidden = torch.cat(parts)
    low: Route = "split" if len(parts) == 2 else "vision" if ids is None else "language"
    high: Route = top or ("vl" if len(parts) == 2 else low)
    biases: list[Tensor | None] = [None] * model.config.depth
    if model.positions is not None:
        side = None if patches is None else math.isqrt(len(patches) - 1)
        biases = list(model.positions(length, side))
    maps = []
    for number, block in enumerate(model.blocks):
        route = low if number < model.config.fusion_start else high
        hidden, shown = plain_block(block, hidden, biases[number], length, route)
        maps.append(shown)
    return model.norm(hidden), maps


def ids_of(which: int) -> Tensor:
    return tiny.texts(LENGTHS).input_ids[which, : LENGTHS[which]]


# --------------------------------------------------------------------------- dual encoder


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("length", [0, tiny.POSITIONS], ids=["alone", "padded"])
def test_a_text_is_embedded_the_same_alone_padded_or_among_others(
    model: Vlmo, texts: TextState, length: int, branch: str
) -> None:
    if branch not in branches_of(model):
        pytest.skip("a standard transformer has one branch")
    batch, embedded = tiny.texts(LENGTHS), model.embed_text(texts, branches_of(model))[branch]
    head = {"main": model.text_proj, "vl": model.vl_text_proj}[branch]
    for which, own in enumerate(LENGTHS):
        state = model.text_state(alone(batch, which, max(length, own)))
        same(model.embed_text(state, (branch,))[branch][0], embedded[which])
        rows, _ = plain_pass(model, ids_of(which), None, top="vl" if branch == "vl" else None)
        same(F.normalize(head(rows[0]), dim=0), embedded[which])


@pytest.mark.parametrize("branch", BRANCHES)
def test_an_image_is_embedded_the_same_alone_or_among_others(model: Vlmo, images: ImageState, branch: str) -> None:
    if branch not in branches_of(model):
        pytest.skip("a standard transformer has one branch")
    embedded = model.embed_image(images, branches_of(model))[branch]
    head = {"main": model.image_proj, "vl": model.vl_image_proj}[branch]
    for which, picture in enumerate(pixels()):
        same(model.embed_image(model.image_state(picture[None]), (branch,))[branch][0], embedded[which])
        rows, _ = plain_pass(model, None, images.patches[which], top="vl" if branch == "vl" else None)
        same(F.normalize(head(rows[0]), dim=0), embedded[which])


def test_the_stages_read_all_tokens_of_one_modality(model: Vlmo, texts: TextState, images: ImageState) -> None:
    tokens = model.encode_image(images.patches)
    for which in range(len(images)):
        same(tokens[which], plain_pass(model, None, images.patches[which])[0])
    listed = TokenPositions(torch.tensor([0, 1, 1, 3]), torch.tensor([4, 0, 8, 2]))
    rows = model.encode_text(texts, listed)
    for row, text, position in zip(rows, listed.pair.tolist(), listed.position.tolist(), strict=True):
        same(row, plain_pass(model, ids_of(text), None)[0][position])
    nothing = torch.empty(0, dtype=torch.long)
    assert model.encode_text(texts, TokenPositions(nothing, nothing)).shape == (0, model.config.width)


def test_states_are_cut_and_joined_like_lists(model: Vlmo, images: ImageState) -> None:
    order = torch.tensor([3, 1, 1])
    assert torch.equal(ImageState.cat([images[:2], images[2:]]).patches, images.patches)
    assert torch.equal(images[order].patches, images.patches[order])
    assert images.nbytes == images.patches.nbytes


def test_image_maps_are_the_attention_of_the_class_token_and_change_no_result(model: Vlmo, images: ImageState) -> None:
    blocks = (0, model.config.depth - 1)
    state = model.image_state(pixels(), maps=blocks)
    same(model.embed_image(state)["main"], model.embed_image(images)["main"])
    assert set(state.maps) == set(blocks)
    for which in range(len(images)):
        _, maps = plain_pass(model, None, images.patches[which])
        for block in blocks:
            same(state.maps[block][which], maps[block][:, :1, 1:])


# --------------------------------------------------------------------------- fusion


def fuse(model: Vlmo, texts: TextState, images: ImageState, rows: object = None, **more: object) -> Joint:
    return model.fuse(texts, images, TEXT_INDEX, IMAGE_INDEX, rows, **more)


def test_every_pair_is_fused_as_the_plain_implementation_fuses_it_alone(
    model: Vlmo, texts: TextState, images: ImageState
) -> None:
    pooled, listed, everything = (fuse(model, texts, images, rows) for rows in (None, LISTED, "all"))
    plain = [
        plain_pass(model, ids_of(int(t)), images.patches[i])[0] for t, i in zip(TEXT_INDEX, IMAGE_INDEX, strict=True)
    ]
    first = torch.tanh(model.pooler(torch.stack([hidden[0] for hidden in plain])))
    for joint in (pooled, listed, everything):
        same(joint.pooled, first)
        same(model.match_logits(joint), model.match_head(first))
    assert pooled.hidden is None
    wanted = torch.stack([plain[p][r] for p, r in zip(LISTED.pair, LISTED.position, strict=True)])
    same(listed.hidden, wanted)
    assert model.word_logits(wanted).shape == (5, tiny.VOCABULARY)
    assert everything.mask is not None
    assert everything.text_mask is not None
    lengths = [LENGTHS[t] for t in TEXT_INDEX]
    assert everything.text_mask.sum(1).tolist() == lengths
    assert everything.mask.sum(1).tolist() == [length + tiny.PATCHES + 1 for length in lengths]
    same(everything.hidden[everything.mask], torch.cat(plain))


def test_pairs_alone_and_in_any_order_give_the_same(model: Vlmo, texts: TextState, images: ImageState) -> None:
    whole, listed = fuse(model, texts, images), fuse(model, texts, images, LISTED)
    order = torch.tensor([3, 5, 0, 4, 2, 1])
    same(model.fuse(texts, images, TEXT_INDEX[order], IMAGE_INDEX[order]).pooled, whole.pooled[order])
    moved = TokenPositions(order.argsort()[LISTED.pair], LISTED.position)
    same(model.fuse(texts, images, TEXT_INDEX[order], IMAGE_INDEX[order], moved).hidden, listed.hidden)
    for p, (t, i) in enumerate(zip(TEXT_INDEX, IMAGE_INDEX, strict=True)):
        zero = torch.zeros(1, dtype=torch.long)
        same(model.fuse(texts[t[None]], images[i[None]], zero, zero).pooled[0], whole.pooled[p])


def test_an_empty_list_of_positions_is_fine(model: Vlmo, texts: TextState, images: ImageState) -> None:
    nothing = torch.empty(0, dtype=torch.long)
    joint = fuse(model, texts, images, TokenPositions(nothing, nothing))
    assert model.word_logits(joint.hidden).shape == (0, tiny.VOCABULARY)
    same(joint.pooled, fuse(model, texts, images).pooled)


@pytest.mark.parametrize("rows", [None, LISTED, "all"], ids=["none", "list", "all"])
def test_fusion_maps_are_the_attention_from_text_to_patches_and_change_no_result(
    model: Vlmo, texts: TextState, images: ImageState, rows: object
) -> None:
    every = range(model.config.depth)
    joint, plain = fuse(model, texts, images, rows, maps=every), fuse(model, texts, images, rows)
    same(joint.pooled, plain.pooled)
    if rows is None:
        assert joint.hidden is None
    else:
        assert joint.hidden is not None
        assert plain.hidden is not None
        valid = slice(None) if plain.mask is None else plain.mask
        same(joint.hidden[valid], plain.hidden[valid])
    assert set(joint.maps) == set(every)
    for p, (t, i) in enumerate(zip(TEXT_INDEX, IMAGE_INDEX, strict=True)):
        _, maps = plain_pass(model, ids_of(int(t)), images.patches[i])
        length = LENGTHS[t]
        for number, expected in enumerate(maps):
            same(joint.maps[number][p, :, :length], expected[:, :length, length + 1 :])


def test_each_of_two_images_a_text_has_its_own_token_type(model: Vlmo, texts: TextState, images: ImageState) -> None:
    pairs = torch.tensor([[2, 0], [4, 4], [1, 3]])
    joint = model.fuse(texts, images, torch.tensor([1, 0, 3]), pairs)
    assert joint.pooled.shape == (3, model.joint_width(2))
    for p, t in enumerate((1, 0, 3)):
        alone = [plain_pass(model, ids_of(t), images.patches[i], turn)[0][0] for turn, i in enumerate(pairs[p])]
        same(joint.pooled[p], torch.tanh(model.pooler(torch.stack(alone))).flatten())


def test_padding_that_is_kept_changes_no_valid_token(model: Vlmo, images: ImageState) -> None:
    padded = Vlmo(model.config).eval()
    padded.load_state_dict(model.state_dict())
    padded.keep_padding = True
    given = tiny.padded(tiny.texts(LENGTHS), tiny.POSITIONS)
    kept, packed = padded.text_state(given), model.text_state(given)
    assert len(kept.hidden) == len(LENGTHS) * tiny.POSITIONS
    same(padded.embed_text(kept)["main"], model.embed_text(packed)["main"])
    same(fuse(padded, kept, images, LISTED).hidden, fuse(model, packed, images, LISTED).hidden)


# --------------------------------------------------------------------------- parts, regularisation, errors


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"fusion_start": 4}, {"experts": "one"}, {"attention": "separate"},
        {"attention": "separate", "fusion_start": 4},
    ],
    ids=str,
)  # fmt: skip
def test_the_parts_of_calls_get_a_gradient_from_them_and_those_unused_get_none(changes: dict[str, object]) -> None:
    model = tiny.vlmo(**changes)
    texts, images = model.text_state(tiny.texts(LENGTHS)), model.image_state(pixels())
    calls: dict[tuple[str, ...], Callable[[], Tensor | None]] = {
        ("embed_image",): lambda: model.embed_image(images)["main"],
        ("embed_text",): lambda: model.embed_text(texts)["main"],
        ("temperature",): model.temperature,
        ("encode_text",): lambda: model.encode_text(texts, TokenPositions(torch.arange(4), torch.zeros(4).long())),
        ("fuse",): lambda: fuse(model, texts, images, LISTED).hidden,
        ("fuse", "all_tokens"): lambda: fuse(model, texts, images, "all").hidden,
        ("fuse", "pooled"): lambda: fuse(model, texts, images).pooled,
        ("fuse", "pooled", "match_logits"): lambda: model.match_logits(fuse(model, texts, images)),
        ("fuse", "word_logits"): lambda: model.word_logits(fuse(model, texts, images, LISTED).hidden),
    }
    if model.config.has_fusion_experts:
        calls["vl",] = lambda: (
            torch.cat([model.embed_image(images, ("vl",))["vl"], model.embed_text(texts, ("vl",))["vl"]])
            / model.temperature("vl")
        )
    assert {name for names in calls for name in names} | {"vl"} == set(model.call_parts)
    noise = torch.Generator().manual_seed(0)
    for names, make in calls.items():
        made = make()
        assert made is not None
        weights = dict(model.named_parameters())
        loss = (made * torch.randn(made.shape, generator=noise)).sum()
        gradients = dict(
            zip(weights, torch.autograd.grad(loss, weights.values(), allow_unused=True, retain_graph=True), strict=True)
        )
        for part in (part for name in names for part in model.call_parts[name]):
            inside = [name for name in weights if name == part or name.startswith(f"{part}.")]
            assert inside, part
            assert all(gradients[name] is not None for name in inside), f"{names}: {part}"
        for part in model.parts_unused_by(*names):
            inside = [name for name in weights if name == part or name.startswith(f"{part}.")]
            assert all(gradients[name] is None for name in inside), f"{names}: {part}"


def test_stochastic_depth_leaves_out_whole_branches_of_a_sequence() -> None:
    """With the last block's branches always left out, a training pass ends where the block before it did."""
    model = tiny.vlmo(depth=2, fusion_start=1, drop_path=1.0 - 1e-7).train()
    state = model.image_state(pixels())
    start = model._image_pass(state.patches)
    before = model._run(start, range(1), "modality").hidden
    same(model._run(start, range(2), "modality").hidden, before)
    model.eval()
    assert not torch.allclose(model._run(start, range(2), "modality").hidden, before)


@pytest.mark.parametrize("rng_keys", [None, sample_keys(0, 0, 4000)], ids=["drawn", "counted"])
def test_stochastic_depth_draws_for_whole_sequences_and_keeps_the_mean(rng_keys: Tensor | None) -> None:
    block = tiny.vlmo(depth=2, fusion_start=1, drop_path=0.5).blocks[1].train()
    torch.manual_seed(0)
    layout = MultimodalLayout.of(None, 4000, 3, torch.device("cpu"), rng_keys=rng_keys)
    made = block._drop_path(torch.ones(4000 * 3, 1), layout.sequence_ids, layout, 0).view(4000, 3)
    assert set(made.unique().tolist()) == {0.0, 2.0}
    assert float(made.std(1).max()) == 0
    assert abs(float(made.mean()) - 1) < 0.1


def test_errors_say_the_way_out(model: Vlmo, texts: TextState, images: ImageState) -> None:
    with pytest.raises(ValueError, match="cut texts"):
        model.text_state(tiny.texts((tiny.POSITIONS + 1,)))
    with pytest.raises(ValueError, match="no blocks"):
        fuse(model, texts, images, maps=(model.config.depth,))
    with pytest.raises(ValueError, match="images_per_text=3"):
        model.joint_width(3)
    with pytest.raises(ValueError, match="one image a text"):
        model.fuse(texts, images, TEXT_INDEX, IMAGE_INDEX[:, None].expand(-1, 2), "all")
    with pytest.raises(ValueError, match="fusion_start"):
        tiny.vlmo(fusion_start=5)
    with pytest.raises(ValueError, match="fusion_start below"):
        tiny.vlmo(fusion_start=4).embed_image(images, BRANCHES)
    with pytest.raises(ValueError, match="experts=modality"):
        tiny.vlmo(experts="one").embed_image(images, BRANCHES)
    if model.positions is not None:
        with pytest.raises(ValueError, match="image_size"):
            model.image_state(tiny.uniform(1, 3, 24, 24))


def test_a_model_without_vl_ffn_fuses_with_the_experts_of_the_modalities() -> None:
    model = tiny.vlmo(fusion_start=4)
    texts, images = model.text_state(tiny.texts(LENGTHS)), model.image_state(pixels())
    assert not [name for name, _ in model.named_parameters() if "vl_ffn" in name]
    with torch.no_grad():
        pooled = fuse(model, texts, images).pooled
        for p, (t, i) in enumerate(zip(TEXT_INDEX, IMAGE_INDEX, strict=True)):
            rows, _ = plain_pass(model, ids_of(int(t)), images.patches[i], top="split")
            same(pooled[p], torch.tanh(model.pooler(rows[0])))


# --------------------------------------------------------------------------- attention with a learnt bias


def plain_biased(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor, visible: Tensor | None) -> Tensor:
    split = [x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v)]
    scores = split[0] @ split[1].transpose(-1, -2) / math.sqrt(split[0].shape[-1]) + bias
    if visible is not None:
        scores = scores.masked_fill(~visible[:, None, None, :], -torch.inf)
    return (torch.softmax(scores, dim=-1) @ split[2]).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("hidden", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("chunk", [1, CHUNK], ids=["one by one", "at once"])
def test_biased_attention_and_its_gradients_are_the_plain_ones(
    monkeypatch: pytest.MonkeyPatch, hidden: bool, chunk: int
) -> None:
    monkeypatch.setattr("diptych.nn.attention.CHUNK", chunk)
    q, k, v = (nn.Parameter(x) for x in torch.randn(3, 5, 7, 12, generator=torch.Generator().manual_seed(0)).double())
    bias = nn.Parameter(torch.randn(3, 7, 7, generator=torch.Generator().manual_seed(1)).double())
    visible = torch.arange(7) < torch.tensor([7, 3, 5, 1, 6])[:, None] if hidden else None
    weight = torch.randn(5, 7, 12, generator=torch.Generator().manual_seed(2)).double()
    results = []
    for attention in (attend_biased, plain_biased):
        made = attention(q, k, v, 3, bias, visible)
        results.append([made, *torch.autograd.grad((made * weight).sum(), (q, k, v, bias))])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_a_frozen_bias_gets_no_gradient_and_changes_no_other() -> None:
    q, k, v = (nn.Parameter(x) for x in torch.randn(3, 2, 4, 8, generator=torch.Generator().manual_seed(0)))
    bias = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(1))
    gradients = []
    for trained in (True, False):
        own = bias.clone().requires_grad_(trained)
        attend_biased(q, k, v, 2, own).square().sum().backward()
        assert (own.grad is None) is not trained
        gradients.append([x.grad for x in (q, k, v)])
        for x in (q, k, v):
            x.grad = None
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.equal(ours, theirs)
