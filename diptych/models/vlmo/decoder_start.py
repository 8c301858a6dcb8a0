"""What an answer decoder begins with."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from diptych.schema import VlmoConfig


def start_of_answer_decoder(state: Mapping[str, Tensor], config: VlmoConfig) -> dict[str, Tensor]:
    """Self-attention and feed-forward of the top fusion blocks, under a decoder's names."""
    return {}
