"""A model for CLIP_benchmark: zero-shot classification, zero-shot retrieval and linear probes.

`python -m diptych.apps.adapters.clip_benchmark eval --model_type diptych --pretrained runs/demo …` is CLIP_benchmark's
own command line with this kind of model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from diptych.apps.adapters.common import AnyModel, opened, tool
from diptych.predict import Predictor
from diptych.types import Texts

PACKAGE = "diptych[clip-benchmark]"
MODEL_TYPE = "diptych"


class ClipModel(nn.Module):
    """The two calls that CLIP_benchmark makes of a model."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.network: Any = predictor.model
        self.pad_id = predictor.tokenizer.pad_id

    def encode_image(self, pixels: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N E"]:
        """Embeds pictures that the transform has prepared. Vectors are normalised."""
        return self.network.embed_image(self.network.image_state(pixels))["main"]

    def encode_text(self, input_ids: Int[Tensor, "M L"]) -> Float[Tensor, "M E"]:
        """Embeds texts that the tokenizer has encoded. Vectors are normalised."""
        texts = Texts(input_ids, input_ids != self.pad_id)
        return self.network.embed_text(self.network.text_state(texts))["main"]


def clip_benchmark_model(
    model: AnyModel, device: str = "auto"
) -> tuple[ClipModel, Callable[[Image.Image], Tensor], Callable[[list[str]], Tensor]]:
    """Makes what CLIP_benchmark's `load_clip` returns: the model, the transform of a picture, and the tokenizer.

    CLIP_benchmark's metrics take them as they are. Raises ValueError for a model without trained embeddings.
    """
    predictor = opened(model, device, "embed")

    def transform(image: Image.Image) -> Tensor:
        return predictor.transform(image.convert("RGB"))

    def tokenize(texts: list[str]) -> Tensor:
        return predictor.texts(list(texts)).input_ids

    return ClipModel(predictor).eval(), transform, tokenize


def register_clip_benchmark() -> None:
    """Adds the model type `diptych` to CLIP_benchmark: `--pretrained` is then a run. `--model` is only shown.

    Raises ValueError without the package clip-benchmark.
    """
    models = tool("clip_benchmark.models", PACKAGE)
    models.TYPE2FUNC[MODEL_TYPE] = _load
    if MODEL_TYPE not in models.MODEL_TYPES:
        models.MODEL_TYPES.append(MODEL_TYPE)


def _load(model_name: str, pretrained: str, cache_dir: str | None = None, device: Any = "cpu") -> Any:
    return clip_benchmark_model(pretrained, torch.device(device).type)


if __name__ == "__main__":
    register_clip_benchmark()
    tool("clip_benchmark.cli", PACKAGE).main()
