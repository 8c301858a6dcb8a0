"""A VLMo's weights made to fit another configuration."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from diptych.schema import VlmoConfig


def fit_state(state: Mapping[str, Tensor], config: VlmoConfig) -> dict[str, Tensor]:
    """The state of a task with a VLMo, its names beginning with `model.` or `teacher.`, as it fits `config`."""
    return dict(state)
