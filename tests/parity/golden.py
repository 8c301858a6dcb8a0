"""Reading a golden folder, and comparing with it under its own stated tolerance."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from diptych.checkpoints.convert import Rule, from_published
from diptych.schema import AlbefConfig, SpecialIds, TextConfig, VisionConfig
from diptych.search.rerank import UNSELECTED
from diptych.task import Network


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a file; bfloat16, exact storage, becomes float32."""
    return {k: v.float() if v.dtype == torch.bfloat16 else v for k, v in load_file(path).items()}


def tolerance(scale: float) -> float:
    """The folder's suggestion: 1e-5 × max(1, scale), and 1e-4 × scale for small tensors."""
    return 1e-4 * scale if scale < 0.1 else 1e-5 * max(1.0, scale)


def score_tolerance(scores: Tensor) -> float:
    """The tolerance of re-ranked scores, by the scale of those that were computed; the others are -100."""
    return tolerance(scores[scores != UNSELECTED].abs().max().item())


@dataclass
class Golden:
    """One file of a golden folder. Remembers which of its tensors were compared."""

    folder: Path
    name: str
    used: set[str] = field(default_factory=set)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return read_tensors(self.folder / f"{self.name}.safetensors")

    @cached_property
    def manifest(self) -> dict[str, Any]:
        return json.loads((self.folder / "manifest.json").read_text())["files"][f"{self.name}.safetensors"]

    def __getitem__(self, key: str) -> Tensor:
        self.used.add(key)
        return self.tensors[key]

    def keys(self, prefix: str) -> list[str]:
        return [key for key in self.tensors if key.startswith(prefix)]

    def limit(self, key: str) -> float:
        """The tolerance of a stored tensor."""
        return tolerance(self.manifest[key]["scale"])

    def check(self, key: str, ours: Tensor, within: float | None = None) -> None:
        """Fail unless `ours` equals the stored tensor: integers exactly, others within the tolerance."""
        theirs = self[key]
        assert ours.shape == theirs.shape, f"{key}: shape {tuple(ours.shape)}, stored {tuple(theirs.shape)}"
        if not theirs.is_floating_point():
            assert torch.equal(ours.to(theirs.dtype), theirs), f"{key}: integers differ"
            return
        limit = self.limit(key) if within is None else within
        error = (ours.detach().float() - theirs).abs().max().item() if theirs.numel() else 0.0
        assert error <= limit, f"{key}: off by {error:.2e}, allowed {limit:.2e}"


def run_alone(*arguments: str) -> str:
    """Runs pytest in one process of its own. Returns what it prints; fails with that if anything there fails."""
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", *arguments]
    done = subprocess.run(command, env=alone, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def judged_alone(file: str, folder: Path, golden: Golden) -> bool:
    """Whether `file` was run again in one process, because the tests of it that ran in this one miss tensors.

    That is so where processes share the tests of a file, and none of them sees all comparisons.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ or set(golden.tensors) == golden.used:
        return False
    run_alone(f"--golden-albef={folder.resolve()}", file)
    return True


def check_number(name: str, ours: float, theirs: float, relative: float = 1e-5) -> None:
    limit = relative * max(1.0, abs(theirs))
    assert abs(ours - theirs) <= limit, f"{name}: {ours} and {theirs} differ by {abs(ours - theirs):.2e} > {limit:.1e}"


def albef_config(folder: Path) -> AlbefConfig:
    """The model whose sizes the folder's config.json gives."""
    sizes = json.loads((folder / "config.json").read_text())
    bert = sizes["bert_config"]
    vision = VisionConfig(
        image_size=sizes["image_res"], patch_size=sizes["patch_size"], width=sizes["vit_dim"],
        depth=sizes["vit_depth"], heads=sizes["vit_heads"], mlp_ratio=float(sizes["vit_mlp_ratio"]),
        norm_eps=sizes["vit_layer_norm_eps"],
    )  # fmt: skip
    text = TextConfig(
        vocab_size=bert["vocab_size"], width=bert["hidden_size"], layers=bert["num_hidden_layers"],
        fusion_start=bert["fusion_layer"], heads=bert["num_attention_heads"], intermediate=bert["intermediate_size"],
        max_positions=bert["max_position_embeddings"], pad_id=bert["pad_token_id"], norm_eps=bert["layer_norm_eps"],
        dropout=bert["hidden_dropout_prob"], attention_dropout=bert["attention_probs_dropout_prob"],
    )  # fmt: skip
    assert bert["encoder_width"] == vision.width
    return AlbefConfig(vision, text, sizes["embed_dim"], sizes["temp"])


def padded(model: Network, keep_padding: bool = True) -> Any:
    """The model, which computes padded text rows as the released code does."""
    model.keep_padding = keep_padding
    return model


def special_ids(folder: Path) -> SpecialIds:
    ids = json.loads((folder / "config.json").read_text())["special_token_ids"]
    return SpecialIds(ids["[PAD]"], ids["[UNK]"], ids["[CLS]"], ids["[SEP]"], ids["[MASK]"])


def load_published(
    task: nn.Module, folder: Path, kind: str, rules: Sequence[Rule], own: tuple[str, ...], without: tuple[str, ...] = ()
) -> None:
    """Put the folder's state of `kind` into a task, strictly.

    Only names that begin as `own` keep the task's numbers; stored parts `without` are left out (our names).
    """
    state, _ = from_published(read_tensors(folder / "state" / f"{kind}.safetensors"), rules)
    state = {name: tensor for name, tensor in state.items() if not name.startswith(without)}
    missing, unexpected = task.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.startswith(own) for name in missing)
