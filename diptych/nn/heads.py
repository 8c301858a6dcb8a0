"""What stands on a fused vector. D width of the vector, C classes."""

from __future__ import annotations

from torch import nn

from diptych.nn.blocks import init_weights


def classifier(width: int, classes: int, hidden: int | None = None) -> nn.Sequential:
    """Two layers with ReLU between: [*, D] → [*, C] (ALBEF §5: visual entailment, NLVR2).

    `hidden`: width between the layers; published: that of the vector.
    """
    hidden = width if hidden is None else hidden
    head = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, classes))
    return head.apply(init_weights)
