"""Published VLMos and BEiTs are recognised, loaded completely or not at all, computed correctly, and written back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.catalog import build_task, find_recipe
from diptych.checkpoints import store
from diptych.checkpoints.convert import counts, to_published
from diptych.cli.main import main
from diptych.data.tokenizer import SPECIAL, Tokenizer
from diptych.models.vlmo import Vlmo
from diptych.models.vlmo_weights import fit_state
from diptych.pretrained import LAYOUTS, Options, assemble, convert, export, from_pretrained, inspect
from diptych.pretrained.vlmo import VlmoFamily
from diptych.pretrained.vlmo_names import published_rules
from diptych.schema import (
    AlbefConfig,
    LanguageStageConfig,
    Recipe,
    VisionStageConfig,
    VisualTokenizerConfig,
    VlmoConfig,
    VlmoPretrainConfig,
    VqaClosedSetConfig,
)
from diptych.serialize import from_dict, to_dict
from diptych.train.start import start_from
from tests import tiny

WORDS = Tokenizer(
    [*SPECIAL, *(chr(ord("a") + number) for number in range(tiny.VOCABULARY - len(SPECIAL)))], separator=True
)
STYLES = {
    "relative": tiny.VLMO,
    "absolute": replace(tiny.VLMO, positions="absolute", layer_scale=None),
}
SIDE = tiny.SIDE // 4


@pytest.fixture
def words(tmp_path: Path) -> Path:
    WORDS.save(tmp_path / "words")
    return tmp_path / "words"


def recipe_of(config: VlmoConfig, task: Any = None) -> Recipe:
    base = find_recipe("vlmo_base")
    return replace(base, model=config, task=task or VlmoPretrainConfig(), data=replace(base.data, max_tokens=8))


def run(path: Path, recipe: Recipe) -> dict[str, Tensor]:
    """Writes a run of ours with changed weights, and returns the weights."""
    task = build_task(recipe, WORDS)
    tiny.shake(task)
    content = store.CheckpointState(task.state_dict(), {}, {"step": 1}, to_dict(recipe), WORDS.save)
    store.save_checkpoint(path / "checkpoints", 1, content)
    return task.state_dict()


def published(config: VlmoConfig, task: Any = None) -> dict[str, Tensor]:
    """Returns the tensors of a released pre-training file, without index tables."""
    task_of_ours = build_task(recipe_of(config, task), WORDS)
    tiny.shake(task_of_ours)
    rules = published_rules(config, [])
    state = to_published(task_of_ours.state_dict(), rules)
    return {name: tensor.clone() for name, tensor in (state | counts(state, rules)).items()}


def write(path: Path, state: Mapping[str, Tensor]) -> Path:
    torch.save({"state_dict": dict(state), "epoch": 3, "hyper_parameters": {"lr": 1e-4}}, path)
    return path


def options(words: Path, **changes: Any) -> Options:
    return replace(Options(words, heads=(3, 3), trained_image_size=tiny.SIDE), **changes)


# --------------------------------------------------------------------------- out and in again


@pytest.mark.parametrize("style", STYLES)
def test_a_run_of_ours_goes_out_and_comes_back(tmp_path: Path, words: Path, style: str) -> None:
    config = STYLES[style]
    weights = run(tmp_path / "run", recipe_of(config))
    left_out = export(tmp_path / "run", tmp_path / "out.pth")
    assert set(left_out) == ({"text_embeddings.position_embeddings.weight"} if style == "relative" else set())
    assembled = assemble([tmp_path / "out.pth"], options(words, trained_image_size=None))
    assert isinstance(assembled.recipe.model, VlmoConfig)
    assert replace(assembled.recipe.model, drop_path=0.0, dropout=0.0) == config
    assert (assembled.recipe.data.max_tokens, assembled.recipe.data.normalise) == (
        8 if style == "relative" else tiny.POSITIONS, "vlmo",
    )  # fmt: skip
    assert assembled.tokenizer.separator
    assert assembled.weights.keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in assembled.weights.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stem": "conv"}, r"the released code does not know model\.stem=conv"),
        ({"text_norm": False}, "the released code normalises text embeddings"),
    ],
)
def test_what_the_released_code_cannot_compute_is_not_exported(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    run(tmp_path / "run", recipe_of(replace(tiny.VLMO, **change)))
    with pytest.raises(ValueError, match=rf"has no released layout: {message}"):
        export(tmp_path / "run", tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


def test_pictures_that_were_shown_otherwise_are_told_of(tmp_path: Path) -> None:
    recipe = recipe_of(tiny.VLMO)
    run(tmp_path / "run", replace(recipe, data=replace(recipe.data, normalise="albef")))
    assert "-1 to 1" in export(tmp_path / "run", tmp_path / "out.pth")["pixels"]


def test_the_second_stage_starts_the_third(tmp_path: Path, words: Path) -> None:
    config = replace(tiny.VLMO, fusion_start=tiny.VLMO.depth)
    first = run(tmp_path / "run", recipe_of(config, LanguageStageConfig()))
    export(tmp_path / "run", tmp_path / "stage2.pth")
    convert([tmp_path / "stage2.pth"], tmp_path / "converted", options(words, trained_image_size=None, image_size=24))
    task = build_task(recipe_of(replace(tiny.VLMO, image_size=24)), WORDS)
    fresh = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    start_from(task, tmp_path / "converted", WORDS)
    after = task.state_dict()
    shared = [name for name in first if name.startswith(("model.text.", "model.blocks.", "model.word_head."))]
    assert len(shared) > 50
    assert all(torch.equal(after[name], first[name]) for name in shared)
    experts = [name for name in after if ".vl_ffn." in name]
    assert experts
    assert all(torch.equal(after[name], fresh[name]) for name in experts)
    resized = fit_state(first, config, replace(config, image_size=24))["model.positions.table"]
    assert torch.equal(after["model.positions.table"], resized)


# --------------------------------------------------------------------------- strict


def without(part: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: [state.pop(name) for name in list(state) if part in name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.update(extra=torch.ones(1)), "1 tensors of the checkpoint are not known: extra"),
        (without("blocks.1.mlp_text.fc1.bias"), r"lacks 1 tensors .*model\.blocks\.1\.language_ffn\.fc1\.bias"),
        (without("pooler"), r"lacks 2 tensors .*model\.pooler"),
        (without("patch_embed"), "lacks transformer.patch_embed.proj.weight, without which its sizes are not known"),
        (lambda state: state.update({"transformer.norm.bias": torch.ones(5)}), r"model\.norm\.bias is \(5,\)"),
        (
            lambda state: state.update(relative_position_bias_table=torch.ones(77, 12)),
            "77 relative positions do not belong to a grid of 4 × 4",
        ),
        (
            lambda state: state.update(relative_position_bias_table=torch.ones(78, 13)),
            "13 columns of relative positions are no whole heads of 4 layers",
        ),
        (
            lambda state: state.update(relative_position_index=torch.zeros(17, 17, dtype=torch.long)),
            "relative_position_index numbers relative positions otherwise",
        ),
        (
            lambda state: state.update(relative_position_index=torch.zeros(18, 18, dtype=torch.long)),
            "17 patches are no square",
        ),
    ],
)
def test_anything_too_much_too_little_or_of_a_wrong_size_is_an_error(
    tmp_path: Path, words: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    state = published(tiny.VLMO)
    assert state["relative_position_bias_table"].shape == (78, 12)
    change(state)
    with pytest.raises(ValueError, match=message):
        assemble([write(tmp_path / "file.pth", state)], options(words))


def test_a_damaged_file_is_said_to_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "file.pth", published(tiny.VLMO))
    file.write_bytes(file.read_bytes()[:2000])
    assert main(["inspect", str(file)]) == 2
    assert "is no checkpoint that can be read: it is cut off" in capsys.readouterr().err


def test_what_the_user_must_say_is_asked_for(tmp_path: Path, words: Path) -> None:
    relative = write(tmp_path / "relative.pth", published(tiny.VLMO))
    with pytest.raises(ValueError, match=r"16 px and 12 tokens.*say it with --trained-image-size"):
        assemble([relative], options(words, trained_image_size=None))
    absolute = write(tmp_path / "absolute.pth", published(STYLES["absolute"]))
    with pytest.raises(ValueError, match="say with --heads"):
        assemble([absolute], options(words, heads=None))
    with pytest.raises(ValueError, match="12 positions that were learnt: ask for 12 at most"):
        assemble([absolute], options(words, text_length=13))
    with pytest.raises(ValueError, match=r"name the vocab\.txt"):
        assemble([relative], options(words, vocabulary=None))
    with pytest.raises(ValueError, match="give one ALBEF checkpoint, one VLMo checkpoint"):
        assemble([relative, absolute], options(words))
    with pytest.raises(ValueError, match="a VLMo starts from a VLMo"):
        fit_state({}, AlbefConfig(), tiny.VLMO)


def test_longer_texts_go_on_from_the_outermost_distance(tmp_path: Path, words: Path) -> None:
    file = write(tmp_path / "file.pth", published(tiny.VLMO))
    assembled = assemble([file], options(words, text_length=20))
    assert assembled.recipe.model.max_positions == 20
    assert "positions of texts of 12 tokens made to fit 20" in str(assembled)
    table = assembled.weights["model.positions.table"]
    assert torch.equal(table[-4], table[-12])  # 18 and 10 behind the query


def test_pictures_of_a_text_gain_and_lose_their_token_types() -> None:
    table = torch.arange(12.0).view(2, 6)
    single, three = tiny.VLMO, replace(tiny.VLMO, images_per_text=3)
    grown = fit_state({"model.types.weight": table, "head.types.weight": table}, single, three)
    assert torch.equal(grown["model.types.weight"], table[[0, 1, 1, 1]])
    assert torch.equal(grown["head.types.weight"], table)
    assert torch.equal(fit_state(grown, three, single)["model.types.weight"], table)


# --------------------------------------------------------------------------- use


def test_a_vqa_file_answers_from_the_list_that_is_given(golden_vlmo: Path, tmp_path: Path) -> None:
    sizes = json.loads((golden_vlmo / "manifest.json").read_text())["config"]
    answers = [f"answer {number}" for number in range(sizes["vqa_label_size"])]
    (tmp_path / "answers.json").write_text(json.dumps(answers))
    predictor = from_pretrained(
        golden_vlmo / "weights_vqa.safetensors", vocabulary=golden_vlmo, heads=(sizes["num_heads"],) * 2,
        trained_image_size=sizes["img_size"], answers=tmp_path / "answers.json", device="cpu",
    )  # fmt: skip
    picture = np.zeros((8, 8, 3), dtype=np.uint8)
    assert predictor.answer(picture, "what is this")[0].text in answers
    with pytest.raises(ValueError, match="no trained image_proj"):
        predictor.embed_images(picture)


@pytest.mark.parametrize("style", STYLES)
def test_inspect_says_what_a_file_and_its_run_are(
    tmp_path: Path, words: Path, style: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "run", recipe_of(STYLES[style]))
    export(tmp_path / "run", tmp_path / "out.pth")
    for path in (tmp_path / "out.pth", tmp_path / "run"):
        output = inspect(path)
        assert f"4 of width 24, vision-language experts in the top 2, {style} positions" in output
        assert "patch 4, for 16 px" in output
        assert "40 words, 12 positions" in output
        assert "start any fine-tuning" in output
    assert LAYOUTS["vlmo"].title in inspect(tmp_path / "out.pth")
    to = str(tmp_path / "again")
    arguments = ["--heads", "3", "--vocabulary", str(words), "--text-length", "9", "--image-size", "24", "--to", to]
    assert main(["convert", str(tmp_path / "out.pth"), *arguments]) == 0
    assert "resized from 4 × 4 to 6 × 6 patches: 24 px; positions of texts of 12 tokens" in capsys.readouterr().out
    assert "for 24 px" in inspect(tmp_path / "again")


def test_inspect_says_what_a_file_does_not_tell(tmp_path: Path) -> None:
    output = inspect(write(tmp_path / "file.pth", published(tiny.VLMO)))
    assert "4 of width 24" in output
    assert "unsaid   positions are for" in output
    assert "or 16 px and 12 tokens" in output
    assert "40 words" not in output


# --------------------------------------------------------------------------- BEiT


def beit(
    positions: str = "layers", indexed: bool = True, width: int = 24, depth: int = 3, heads: int = 3
) -> dict[str, Tensor]:
    """Makes a BEiT. `positions`: a table in each of its `layers` (fine-tuned), one `shared`, or `absolute`."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width), "patch_embed.proj.weight": (width, 3, 4, 4), "patch_embed.proj.bias": (width,),
    }  # fmt: skip
    for i in range(depth):
        parts = {"attn.proj": (width, width), "mlp.fc1": (2 * width, width), "mlp.fc2": (width, 2 * width)}
        for name, shape in (parts | {"norm1": (width,), "norm2": (width,)}).items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
        shapes |= {f"blocks.{i}.{name}": (width,) for name in ("gamma_1", "gamma_2", "attn.q_bias", "attn.v_bias")}
        shapes |= {f"blocks.{i}.attn.qkv.weight": (3 * width, width)}
        if positions == "layers":
            shapes[f"blocks.{i}.attn.relative_position_bias_table"] = ((2 * SIDE - 1) ** 2 + 3, heads)
    if positions == "shared":
        shapes |= {"rel_pos_bias.relative_position_bias_table": ((2 * SIDE - 1) ** 2 + 3, heads)}
        shapes |= {"mask_token": (1, 1, width), "norm.weight": (width,), "norm.bias": (width,)}
        shapes |= {"lm_head.weight": (50, width), "lm_head.bias": (50,)}
    else:
        shapes |= {f"{name}.{p}": shape for name, p, shape in (
            ("fc_norm", "weight", (width,)), ("fc_norm", "bias", (width,)),
            ("head", "weight", (10, width)), ("head", "bias", (10,)),
        )}  # fmt: skip
    if positions == "absolute":
        shapes["pos_embed"] = (1, SIDE**2 + 1, width)
    noise = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=noise) * 0.3 for name, shape in shapes.items()}
    if indexed and positions != "absolute":
        owners = [f"blocks.{i}.attn" for i in range(depth)] if positions == "layers" else ["rel_pos_bias"]
        state |= {f"{owner}.relative_position_index": index_table() for owner in owners}
    return state


def index_table() -> Tensor:
    """Returns the row of the table that belongs to each query and key, computed one by one."""
    places = [None, *((row, column) for row in range(SIDE) for column in range(SIDE))]
    last = (2 * SIDE - 1) ** 2 + 3

    def row(query: tuple[int, int] | None, key: tuple[int, int] | None) -> int:
        if query is None or key is None:
            return last - 1 if query == key else last - 3 if query is None else last - 2
        return (query[0] - key[0] + SIDE - 1) * (2 * SIDE - 1) + query[1] - key[1] + SIDE - 1

    return torch.tensor([[row(query, key) for key in places] for query in places])


def plain_beit(state: Mapping[str, Tensor], pixels: Tensor, heads: int = 3) -> Tensor:
    """Computes every token after the last block, from the layout's names alone."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    x = F.conv2d(pixels, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=4)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
    x = x + state.get("pos_embed", 0)
    for i in range(len({name.split(".")[1] for name in state if name.startswith("blocks.")})):
        block, offset = f"blocks.{i}", torch.zeros_like(state["blocks.0.attn.q_bias"])
        bias = torch.cat([state[f"{block}.attn.q_bias"], offset, state[f"{block}.attn.v_bias"]])
        qkv = norm(x, f"{block}.norm1") @ state[f"{block}.attn.qkv.weight"].T + bias
        q, k, v = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        own = state.get(f"{block}.attn.relative_position_bias_table")
        table = state.get("rel_pos_bias.relative_position_bias_table") if own is None else own
        if table is not None:
            scores = scores + table[index_table()].permute(2, 0, 1)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + state[f"{block}.gamma_1"] * linear(mixed, f"{block}.attn.proj")
        hidden = F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
        x = x + state[f"{block}.gamma_2"] * linear(hidden, f"{block}.mlp.fc2")
    return x


@pytest.mark.parametrize("indexed", [True, False], ids=["released", "timm"])
@pytest.mark.parametrize("positions", ["layers", "shared", "absolute"])
def test_a_beit_starts_the_image_side(tmp_path: Path, words: Path, positions: str, indexed: bool) -> None:
    state = beit(positions, indexed)
    assembled = assemble([write(tmp_path / "beit.pth", state)], options(words, trained_image_size=None))
    model = assembled.recipe.model
    assert isinstance(model, VlmoConfig)
    assert (model.width, model.depth, model.heads, model.fusion_start, model.image_size) == (24, 3, 3, 3, 16)
    vlmo = Vlmo(model).eval()
    weights = {name.removeprefix("model."): tensor for name, tensor in assembled.weights.items()}
    vlmo.load_state_dict(weights | {"types.weight": torch.zeros(2, 24)})
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        tokens = vlmo.encode_image(vlmo.image_state(pixels).patches)
        plain = F.layer_norm(plain_beit(state, pixels), (24,), state.get("norm.weight"), state.get("norm.bias"), 1e-6)
    torch.testing.assert_close(tokens, plain, atol=1e-4, rtol=1e-4)
    assert assembled.report.loaded.keys() | assembled.report.dropped.keys() == state.keys()
    assert all((*assembled.report.dropped.values(), *assembled.report.missing.values()))
    assert "a BEiT reads no text: random" in str(assembled)


def test_a_beit_starts_the_second_stage_of_a_run(tmp_path: Path, words: Path) -> None:
    state = beit()
    convert([write(tmp_path / "beit.pth", state)], tmp_path / "run", options(words, trained_image_size=None))
    checkpoint = store.load_from(tmp_path / "run")
    assert isinstance(from_dict(checkpoint.recipe).task, LanguageStageConfig)
    assert {"text", "word_head", "pooler", "blocks.*.language_ffn"} <= set(checkpoint.state["fresh"])
    wanted = replace(tiny.VLMO, depth=3, fusion_start=2, image_size=24, max_positions=30)
    task = build_task(recipe_of(wanted, LanguageStageConfig()), WORDS)
    start_from(task, tmp_path / "run", WORDS)
    after = task.state_dict()
    assert torch.equal(after["model.blocks.2.vision_ffn.fc1.weight"], state["blocks.2.mlp.fc1.weight"])
    tables = [state[f"blocks.{i}.attn.relative_position_bias_table"][-3:] for i in range(3)]
    assert torch.equal(after["model.positions.table"][11**2 : 11**2 + 3], torch.cat(tables, dim=1))
    assert not after["model.positions.table"][11**2 + 3 :].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("blocks.1.attn.relative_position_bias_table"), r"lacks a part of model\.positions\.table"),
        (without("blocks.1.gamma_1"), r"lacks 1 tensors .*model\.blocks\.1\.gamma_1"),
        (lambda state: state.update({"blocks.0.attn.k_norm.weight": torch.ones(8)}), "not known: blocks.0.attn.k_norm"),
        (
            lambda state: state.update({"blocks.0.attn.relative_position_bias_table": torch.ones(53, 3)}),
            "50 patch offsets are no square",
        ),
    ],
)
def test_other_kinds_of_beit_are_refused(
    tmp_path: Path, words: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    state = beit()
    change(state)
    with pytest.raises(ValueError, match=message):
        assemble([write(tmp_path / "beit.pth", state)], options(words))


@pytest.mark.parametrize("style", STYLES)
def test_a_run_of_the_first_stage_goes_out_as_a_beit_that_computes_the_same(
    tmp_path: Path, words: Path, style: str
) -> None:
    config = STYLES[style]
    visual = VisualTokenizerConfig(image_size=8, patch_size=2, codes=11, code_width=8, width=8, residual_blocks=1)
    weights = run(tmp_path / "run", recipe_of(config, VisionStageConfig(visual=visual)))
    left_out = export(tmp_path / "run", tmp_path / "beit.pth")
    assert {name.split(".")[0] for name in left_out} == {"model", "tokenizer"}
    assert LAYOUTS["beit"].title in inspect(tmp_path / "beit.pth")
    state = torch.load(tmp_path / "beit.pth", weights_only=True)["model"]
    assert state["lm_head.weight"].shape == (11, 24)
    vlmo = Vlmo(config).eval()
    vlmo.load_state_dict({name[6:]: tensor for name, tensor in weights.items() if name.startswith("model.")})
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    scales = {f"blocks.{i}.gamma_{n}": torch.ones(24) for i in range(config.depth) for n in (1, 2)}
    with torch.no_grad():
        ours = vlmo.encode_image(vlmo.image_state(pixels).patches)
        tokens = plain_beit(scales | state, pixels)
    plain = F.layer_norm(tokens, (24,), state["norm.weight"], state["norm.bias"], 1e-6)
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    kind = weights["model.types.weight"][1]
    assert torch.equal(state["mask_token"], (weights["head.mask_token"] + kind)[None, None])
    assembled = assemble([tmp_path / "beit.pth"], options(words, trained_image_size=None))
    assert torch.equal(assembled.weights["model.norm.weight"], weights["model.norm.weight"])


def test_a_classifier_of_another_form_is_not_exported(tmp_path: Path) -> None:
    run(tmp_path / "run", recipe_of(tiny.VLMO, VqaClosedSetConfig(answers=("yes", "no"), head="relu")))
    with pytest.raises(ValueError, match=r"head\.2\.\w+ has no published name"):
        export(tmp_path / "run", tmp_path / "out.pth")


def test_inspect_says_what_a_beit_is(tmp_path: Path) -> None:
    output = inspect(write(tmp_path / "beit.pth", beit()))
    assert LAYOUTS["beit"].title in output
    assert "3 of width 24, no vision-language experts, relative positions" in output
    assert "start VLMo's second stage" in output
    assert "words" not in output


def test_options_of_one_system_are_refused_by_the_other(golden_albef: Path) -> None:
    file = golden_albef / "state" / "retrieval.safetensors"
    with pytest.raises(ValueError, match="--text-length, --answers is for VLMo"):
        assemble([file], Options(golden_albef / "vocab.txt", heads=(2, 2), text_length=9, answers="answers.json"))


def test_a_file_of_a_published_size_gets_the_recipe_of_that_size() -> None:
    sizes = {"vlmo_base": (768, 12), "vlmo_base_plus": (544, 24), "vlmo_large": (1024, 24)}
    for name, (width, depth) in sizes.items():
        state = {f"transformer.blocks.{i}.gamma_1": torch.empty(width, device="meta") for i in range(depth)}
        state["transformer.cls_token"] = torch.empty(1, 1, width, device="meta")
        assert VlmoFamily().recipe(LAYOUTS["vlmo"], state).name == name
