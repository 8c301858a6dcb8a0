"""Reading VLMo's golden folder, and comparing with it under its own stated tolerance."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diptych.checkpoints.convert import from_published, to_published
from diptych.models.vlmo import Vlmo
from diptych.pretrained.vlmo_names import published_rules
from diptych.schema import SpecialIds, VlmoConfig
from diptych.types import Texts
from tests.parity import golden
from tests.parity.golden import padded, read_tensors

STAGES = ("pretrain", "textmlm", "irtr", "vqa", "nlvr2")
"""The folder's five modules."""
Reader = Callable[[Path, str, VlmoConfig], dict[str, Tensor]]


@dataclass
class Golden(golden.Golden):
    """One file of the folder. Remembers which of its tensors were compared."""

    def check(self, key: str, ours: Tensor, within: float | None = None) -> None:
        """Fail unless `ours` equals the stored tensor: integers exactly, others within 1e-5, absolute and relative.

        `within`: this share of the largest entry instead, as gradients are compared.
        """
        theirs = self[key]
        assert ours.shape == theirs.shape, f"{key}: shape {tuple(ours.shape)}, stored {tuple(theirs.shape)}"
        if not theirs.is_floating_point():
            assert torch.equal(ours.to(theirs.dtype), theirs), f"{key}: integers differ"
            return
        limit = 1e-5 * (1 + theirs.abs()) if within is None else within * theirs.abs().max().clamp(min=1e-12)
        error = (ours.detach().float() - theirs).abs()
        assert bool((error <= limit).all()), f"{key}: off by {error.max():.2e}"

    @property
    def unused(self) -> set[str]:
        return set(self.tensors) - self.used


@cache
def manifest(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return content


def special_ids(folder: Path) -> SpecialIds:
    sizes = manifest(folder)["config"]
    return SpecialIds(*(sizes[f"{name}_id"] for name in ("pad", "unk", "cls", "sep", "mask")))


def config_from(sizes: Mapping[str, Any], stage: str = "pretrain", **changes: Any) -> VlmoConfig:
    """The model whose sizes a folder's `config` gives."""
    language = stage == "textmlm"
    settings: dict[str, Any] = {
        "image_size": sizes["img_size"], "patch_size": sizes["patch_size"], "width": sizes["embed_dim"],
        "depth": sizes["depth"], "heads": sizes["num_heads"], "mlp_ratio": float(sizes["mlp_ratio"]),
        "fusion_start": sizes["textmlm_vlffn_start_layer_index" if language else "vlffn_start_layer_index"],
        "positions": "relative" if sizes["relative_position_bias"] else "absolute",
        "layer_scale": 0.1 if sizes["layer_scale"] else None,
        "max_positions": _positions(sizes, language), "vocab_size": sizes["vocab_size"], "pad_id": sizes["pad_id"],
        "norm_eps": sizes["block_norm_eps"], "text_norm_eps": sizes["text_embedding_norm_eps"],
        "drop_path": sizes["drop_path"], "dropout": sizes["dropout"],
        "images_per_text": 2 if stage == "nlvr2" else 1,
    }  # fmt: skip
    return VlmoConfig(**settings | changes)


def _positions(sizes: Mapping[str, Any], language: bool) -> int:
    """Relative: one table for all stages. Absolute: one as long as the stage's texts."""
    if sizes["relative_position_bias"]:
        return int(sizes["max_text_len_of_initckpt"])
    return int(sizes["max_text_len_textmlm" if language else "max_text_len"])


def vlmo_config(folder: Path, stage: str = "pretrain", **changes: Any) -> VlmoConfig:
    return config_from(manifest(folder)["config"], stage, **changes)


def stored(folder: Path, stage: str, config: VlmoConfig) -> dict[str, Tensor]:
    """A stage's weights under our names, which begin with `model.` or `head.`."""
    state, _ = from_published(read_tensors(folder / f"weights_{stage}.safetensors"), published_rules(config))
    return state


def scaled(folder: Path, stage: str, config: VlmoConfig) -> dict[str, Tensor]:
    """`stored`, with the tensors of `eps_probe` made small."""
    probe, rules = manifest(folder)["eps_probe"], published_rules(config)
    small = {
        name: value * probe["factor"] if any(re.search(p, name) for p in probe["scaled_name_patterns"]) else value
        for name, value in to_published(stored(folder, stage, config), rules).items()
    }
    return from_published(small, rules)[0]


def load_stage(task: nn.Module, folder: Path, stage: str, own: tuple[str, ...] = (), read: Reader = stored) -> None:
    """Puts a stage's weights, as `read`, into a task, strictly but for its `own` parts, which the file lacks."""
    model = task.get_submodule("model")
    assert isinstance(model, Vlmo)
    missing, unexpected = task.load_state_dict(read(folder, stage, model.config), strict=False)
    assert not unexpected, unexpected
    assert all(name.startswith(own) for name in missing), missing


@cache
def build(folder: Path, stage: str = "pretrain", keep_padding: bool = True) -> Vlmo:
    """The model of a stage in evaluation mode. Heads that the stage does not have are random."""
    config = vlmo_config(folder, stage)
    model = padded(Vlmo(config), keep_padding)
    state = stored(folder, stage, config)
    missing, unexpected = model.load_state_dict(
        {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}, strict=False
    )
    assert not unexpected, unexpected
    heads = ("image_proj", "text_proj", "vl_", "log_scale", "match_head", "word_head", "pooler")
    assert all(name.startswith(heads) for name in missing), missing
    return model.eval()


def read_texts(inputs: Golden, group: str, masked: bool = False) -> Texts:
    """The texts of a group of `inputs`, plain or with words hidden."""
    ids = inputs[f"{group}/text_ids{'_mlm' * masked}"]
    return Texts(ids, inputs[f"{group}/text_masks"].bool())
