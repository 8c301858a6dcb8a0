"""The papers' ablations, ready to run, as far as one process can show them. It imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diptych.apps.ablate.grid import Grid, Part

ALONE = {"init_from": None}
"""Starts a run without the stages of its recipe."""


def _variants(recipe: str, variants: Mapping[str, Mapping[str, Any]], **shared: Any) -> tuple[Part, ...]:
    return tuple(Part(name, recipe, {**shared, **changes}) for name, changes in variants.items())


ALBEF_LOSSES = Grid(
    "albef_losses",
    _variants(
        "albef_tiny",
        {
            "full": {},
            "no distillation of words": {"task.alpha_mlm": 0.0},
            "no distillation": {"task.alpha_mlm": 0.0, "task.alpha_itc": 0.0},
            "nor hard negatives": {"task.alpha_mlm": 0.0, "task.alpha_itc": 0.0, "task.hard_negatives": False},
            "nor contrast": {
                "task.alpha_mlm": 0.0,
                "task.alpha_itc": 0.0,
                "task.hard_negatives": False,
                "task.itc": 0.0,
                "task.fuse_start": 0,
            },
        },
    ),
)
"""ALBEF's Table 1 from its last row to its first, without distillation in downstream tasks. Without contrast, chance
chooses the pictures that are re-ranked."""

VLMO_LOSSES = Grid(
    "vlmo_losses",
    _variants(
        "vlmo_tiny",
        {
            "all three": {},
            "no ITC": {"task.itc": 0.0, "task.fuse_start": 0},
            "no ITM": {"task.itm": 0.0},
            "no MLM": {"task.mlm": 0.0},
            "uniform negatives": {"task.hard_negatives": False},
        },
        init_from=None,
    ),
)
"""Each loss left out (VLMo, Tables 4 to 6), from random weights. Without ITC a dual encoder cannot rank."""

VLMO_CONTRAST = Grid(
    "vlmo_contrast",
    _variants(
        "vlmo_tiny",
        {
            "both": {"task.itc_branches": "both"},
            "main": {"task.itc_branches": "main"},
            "vl": {"task.itc_branches": "vl"},
        },
        init_from=None,
    ),
)
"""ITC of the dual encoder, of the VL-FFN, or of both, as released; from random weights."""

VLMO_TRANSFORMER = Grid(
    "vlmo_transformer",
    _variants(
        "vlmo_tiny",
        {
            "modality experts": {},
            "one feed-forward": {"model.experts": "one"},
            "separate attention": {"model.attention": "separate"},
        },
        init_from=None,
        **{"task.itc_branches": "main"},
    ),
)
"""MoME against a standard transformer, and shared against separate self-attention (VLMo, Tables 4 to 6), from random
weights. All variants have one contrast, since a standard transformer has no second one."""

DUAL = {"evaluation.rerank": 0}
"""Evaluates dual encoders, without fusion."""
VLMO_STAGES = Grid(
    "vlmo_stages",
    (
        Part("no stages", "vlmo_tiny", {**DUAL, **ALONE}),
        Part("vision", "vlmo_tiny", DUAL, {"init_from": "vision stage"}),
        Part("vision and language", "vlmo_tiny", DUAL, {"init_from": "language stage"}),
    ),
    stages=(
        Part("visual tokenizer", "visual_tokenizer_tiny"),
        Part("vision stage", "vlmo_tiny_vision", after={"task.tokenizer": "visual tokenizer"}),
        Part("language stage", "vlmo_tiny_language", after={"init_from": "vision stage"}),
    ),
)
"""The worth of the stages before the pairs (VLMo, Tables 4 to 6), at equal numbers of pairs. The stages see pictures
without captions and captions without pictures, of scenes that are not among the pairs."""

GRIDS = {grid.name: grid for grid in (ALBEF_LOSSES, VLMO_LOSSES, VLMO_CONTRAST, VLMO_TRANSFORMER, VLMO_STAGES)}
