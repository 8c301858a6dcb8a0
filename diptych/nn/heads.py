"""What stands on a fused vector. D width of the vector, C classes."""

from __future__ import annotations

from torch import nn

from diptych.nn.blocks import init_weights
from diptych.schema import HeadKind


def classifier(width: int, classes: int, kind: HeadKind = "relu", hidden: int | None = None) -> nn.Sequential:
    """Two layers: [*, D] → [*, C], with ReLU between them (ALBEF §5) or a norm and GELU (VLMo §4).

    `hidden`: width between the layers; published: that of the vector or, with GELU for VQA, twice as much.
    """
    hidden = hidden or width * (1 if kind == "relu" else 2)
    between = (nn.ReLU(),) if kind == "relu" else (nn.LayerNorm(hidden), nn.GELU())
    head = nn.Sequential(nn.Linear(width, hidden), *between, nn.Linear(hidden, classes))
    return head.apply(init_weights)
