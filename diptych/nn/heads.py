"""The classifier head on fused vectors. D width of the vector, C classes."""

from __future__ import annotations

from torch import nn

from diptych.nn.blocks import init_weights
from diptych.schema import HeadKind


def classifier(width: int, classes: int, kind: HeadKind = "relu", mlp_width: int | None = None) -> nn.Sequential:
    """Builds an MLP of two layers, [*, D] → [*, C], with ReLU between them (ALBEF §5) or a norm and GELU (VLMo §4).

    `mlp_width`: width between the layers. Published: that of the vector or, with GELU for VQA, twice as much.
    """
    mlp_width = mlp_width or width * (1 if kind == "relu" else 2)
    between = (nn.ReLU(),) if kind == "relu" else (nn.LayerNorm(mlp_width), nn.GELU())
    head = nn.Sequential(nn.Linear(width, mlp_width), *between, nn.Linear(mlp_width, classes))
    return head.apply(init_weights)
