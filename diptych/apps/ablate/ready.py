"""The papers' ablations, ready to run, as far as one process can show them. It imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diptych.apps.ablate.grid import Grid, Part

ALONE = {"init_from": None}
"""Starts a run without the stages of its recipe."""


def _variants(recipe: str, variants: Mapping[str, Mapping[str, Any]], **shared: Any) -> tuple[Part, ...]:
    return tuple(Part(name, recipe, {**shared, **changes}) for name, changes in variants.items())


UNDISTILLED = {"task.alpha_mlm": 0.0, "task.alpha_itc": 0.0}
"""ALBEF's pre-training on its labels alone."""
DISTILLED_TASKS = {"task.alpha": 0.4}
"""Momentum distillation in a task, at the paper's weight."""
ALBEF_TABLE1 = Grid(
    "albef_table1",
    (
        Part(
            "MLM and ITM", "albef_tiny",
            {**UNDISTILLED, "task.hard_negatives": False, "task.itc": 0.0, "task.phrases": 0.0, "task.fuse_start": 0},
        ),
        Part("with ITC", "albef_tiny", {**UNDISTILLED, "task.hard_negatives": False}),
        Part("with hard negatives", "albef_tiny", UNDISTILLED),
        Part("with ITC distilled", "albef_tiny", {"task.alpha_mlm": 0.0}),
        Part("with MLM distilled", "albef_tiny"),
        Part(
            "with tasks distilled", "albef_tiny",
            tasks=dict.fromkeys(("retrieval", "entailment", "vqa", "nlvr2"), DISTILLED_TASKS),
        ),
    ),
    tasks=(
        Part("retrieval", "albef_tiny_retrieval", {"task.alpha": 0.0}),
        Part("entailment", "albef_tiny_entailment", {"task.alpha": 0.0}),
        Part("vqa", "albef_tiny_vqa", {"task.alpha": 0.0}),
        Part("assignment", "albef_tiny_assignment", after={"init_from": "entailment"}),
        Part("nlvr2", "albef_tiny_nlvr2", {"task.alpha": 0.0}, {"init_from": "assignment"}),
    ),
    against="previous",
)  # fmt: skip
"""ALBEF's Table 1: each row adds one idea to the row above it, and is measured after fine-tuning. Without ITC no
candidates can be found before the fine-tuning for retrieval, so the first row's own recall is chance."""

DISTILLATION: Mapping[str, Mapping[str, Any]] = {
    "no distillation": UNDISTILLED,
    "distillation of ITC": {"task.alpha_mlm": 0.0},
    "distillation of MLM": {"task.alpha_itc": 0.0},
    "distillation of both": {},
}
NOISE = (0, 20, 40, 60)
"""Percent of the captions that are another scene's."""


ALBEF_NOISE = tuple(
    Grid(
        f"albef_noise{percent}",
        _variants("albef_tiny", DISTILLATION, **{"data.scenes.mismatch": percent / 100}),
    )
    for percent in NOISE
)
"""Momentum distillation on captions of which a share is wrong. Nothing is wrong with the test's captions."""

VLMO_LOSSES = Grid(
    "vlmo_losses",
    _variants(
        "vlmo_tiny",
        {
            "all three": {},
            "no ITC": {"task.itc": 0.0, "task.phrases": 0.0, "task.fuse_start": 0},
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

GRIDS = {
    grid.name: grid for grid in (ALBEF_TABLE1, *ALBEF_NOISE, VLMO_LOSSES, VLMO_CONTRAST, VLMO_TRANSFORMER, VLMO_STAGES)
}
