"""Image encoders of other origin give, as ALBEF's, what transformers computes with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diptych.catalog import RECIPES, build_task
from diptych.data.tokenizer import SPECIAL
from diptych.models.albef import Albef
from diptych.pretrained import Assembled, Options, assemble, inspect
from diptych.pretrained.formats import read
from diptych.recipes.albef import albef_base
from diptych.schema import AlbefConfig, AlbefPretrainConfig, Recipe, TextConfig

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 16, "patch_size": 4,
}  # fmt: skip
WORDS = {"vocab_size": 64}
MLP = {"intermediate_size": 96}
DECODER = {
    "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the parts that no tower has small: the text encoder and the queue."""
    monkeypatch.setitem(RECIPES, "albef_base", small_base)


def small_base() -> Recipe:
    recipe = albef_base()
    assert isinstance(recipe.model, AlbefConfig)
    text = TextConfig(width=32, layers=2, fusion_start=1, heads=2, intermediate=32)
    model = replace(recipe.model, text=text, embed_dim=16)
    return replace(recipe, model=model, task=AlbefPretrainConfig(queue_size=16))


def shaken(model: nn.Module) -> nn.Module:
    """Draws all weights, so that none is 0 or 1 by its initialisation."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator) * 0.1
            weight.copy_(weight + noise if weight.ndim == 1 else noise)
    return model.eval()


def clip() -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    vision = SIZES | MLP | {"hidden_act": "quick_gelu"}
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32} | WORDS
    model = shaken(transformers.CLIPModel(transformers.CLIPConfig(vision_config=vision, text_config=text)))
    tower: Any = model.vision_model

    def tokens(pixels: Tensor) -> Tensor:
        return tower.post_layernorm(tower(pixels).last_hidden_state)

    return model, tokens


def siglip() -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    text = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32} | WORDS
    config = transformers.SiglipConfig(vision_config=SIZES | MLP, text_config=text)
    model = shaken(transformers.SiglipModel(config))
    tower: Any = model.vision_model

    def tokens(pixels: Tensor) -> Tensor:
        output = tower(pixels)
        return torch.cat([output.pooler_output[:, None], output.last_hidden_state], dim=1)

    return model, tokens


def dinov2() -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    model: Any = shaken(transformers.Dinov2Model(transformers.Dinov2Config(**SIZES, mlp_ratio=2)))
    return model, lambda pixels: model(pixels).last_hidden_state


def vit() -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    model: Any = shaken(transformers.ViTModel(transformers.ViTConfig(**SIZES, **MLP)))
    return model, lambda pixels: model(pixels).last_hidden_state


def mae() -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    model: Any = shaken(transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**SIZES, **MLP, **DECODER)))
    whole: Any = transformers.ViTModel(transformers.ViTConfig(**SIZES, **MLP), add_pooling_layer=False).eval()
    whole.load_state_dict(model.vit.state_dict())  # without the masking, which shuffles the patches

    return model, lambda pixels: whole(pixels).last_hidden_state


TOWERS = {"clip": clip, "siglip": siglip, "dinov2": dinov2, "vit": vit, "mae": mae}


@pytest.fixture(params=TOWERS)
def tower(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, Callable[[Tensor], Tensor]]:
    """Writes a folder as transformers does. Returns its kind and what it computes of images: all tokens."""
    model, tokens = TOWERS[request.param]()
    model.save_pretrained(tmp_path / "tower")  # type: ignore[operator]
    return request.param, tmp_path / "tower", tokens


def assembled(*files: Path, folder: Path) -> tuple[Assembled, Albef]:
    (folder / "vocab.txt").write_text("\n".join((*SPECIAL, "a", "fox")))
    whole = assemble(files, Options(vocabulary=folder / "vocab.txt"))
    task = build_task(whole.recipe, whole.tokenizer)
    task.load_state_dict(whole.weights)
    assert isinstance(task.model, Albef)
    return whole, task.model.eval()


def test_a_tower_computes_what_transformers_does(
    tower: tuple[str, Path, Callable[[Tensor], Tensor]], tmp_path: Path
) -> None:
    kind, folder, tokens = tower
    whole, model = assembled(folder, folder=tmp_path)
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(model.image_state(pixels).tokens, tokens(pixels), atol=1e-5, rtol=1e-5)
    names = read(folder).tensors.keys()
    assert len(whole.report.loaded) + len(whole.report.dropped) == len(names), "each tensor has a place or a reason"
    assert any(name.startswith("model.text") for name in whole.report.missing)
    assert "3 layers of width 64, patch 4, for 16 px" in inspect(folder)
    assert kind in ("siglip",) or model.config.vision.pooling == "class"


def test_a_tower_trains_and_takes_other_sizes(
    tower: tuple[str, Path, Callable[[Tensor], Tensor]], tmp_path: Path
) -> None:
    _, folder, tokens = tower
    _, model = assembled(folder, folder=tmp_path)
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    cotangent = torch.randn(model.image_state(pixels).tokens.shape, generator=torch.Generator().manual_seed(3))
    ours, theirs = pixels.clone().requires_grad_(), pixels.clone().requires_grad_()
    (model.train().image_state(ours).tokens * cotangent).sum().backward()
    (tokens(theirs) * cotangent).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4)
    assert all(weight.grad is not None for weight in model.vision.parameters())
    assert model.eval().image_state(torch.randn(1, 3, 24, 24)).tokens.shape == (1, 37, 64)


def test_dinov2_in_the_timm_layout_is_the_same(tmp_path: Path) -> None:
    model, tokens = dinov2()
    model.save_pretrained(tmp_path / "tower")  # type: ignore[operator]
    state, timm = load_file(tmp_path / "tower" / "model.safetensors"), dict[str, Tensor]()
    for name, value in state.items():
        if (place := name.replace("embeddings.", "")) in ("cls_token", "mask_token"):
            timm[place] = value
        elif name == "embeddings.position_embeddings":
            timm["pos_embed"] = value
        elif "projection" in name:
            timm[name.replace("embeddings.patch_embeddings.projection", "patch_embed.proj")] = value
        elif "attention.attention.query" in name:
            parts = [state[name.replace("query", part)] for part in ("query", "key", "value")]
            qkv = name.replace("encoder.layer", "blocks").replace("attention.attention.query", "attn.qkv")
            timm[qkv] = torch.cat(parts)
        elif "attention.attention" not in name:
            other = name.replace("encoder.layer", "blocks").replace("attention.output.dense", "attn.proj")
            other = other.replace("layer_scale1.lambda1", "ls1.gamma").replace("layer_scale2.lambda1", "ls2.gamma")
            timm[other.replace("layernorm", "norm")] = value
    save_file(timm, tmp_path / "timm.safetensors")
    (tmp_path / "vocab.txt").write_text("\n".join((*SPECIAL, "a", "fox")))
    whole = assemble([tmp_path / "timm.safetensors"], Options(vocabulary=tmp_path / "vocab.txt", heads=(4, 4)))
    task = build_task(whole.recipe, whole.tokenizer)
    task.load_state_dict(whole.weights)
    pixels = torch.randn(2, 3, 16, 16)
    assert isinstance(task.model, Albef)
    with torch.no_grad():
        torch.testing.assert_close(task.model.eval().image_state(pixels).tokens, tokens(pixels), atol=1e-5, rtol=1e-5)


def test_two_image_encoders_are_refused(tmp_path: Path) -> None:
    for name in ("clip", "vit"):
        TOWERS[name]()[0].save_pretrained(tmp_path / name)  # type: ignore[operator]
    with pytest.raises(ValueError, match="are two image encoders: give one, and one text encoder"):
        assemble([tmp_path / "clip", tmp_path / "vit"], Options())


def test_an_unknown_activation_is_named(tmp_path: Path) -> None:
    vision = transformers.CLIPVisionConfig(**SIZES, **MLP, hidden_act="silu")
    transformers.CLIPVisionModel(vision).save_pretrained(tmp_path / "tower")
    with pytest.raises(ValueError, match="hidden_act=silu; known are gelu, quick_gelu"):
        assembled(tmp_path / "tower", folder=tmp_path)
