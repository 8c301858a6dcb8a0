"""Models for `mteb`, the benchmark of embeddings: an encoder of texts and pictures, and a cross-encoder of pairs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from diptych.apps.adapters.common import AnyModel, opened, pair_logits, tool
from diptych.predict import Predictor

PACKAGE = "diptych[mteb]"


def mteb_encoder(model: AnyModel, name: str | None = None, device: str = "auto") -> MtebEncoder:
    """Makes an encoder for `mteb.evaluate`. `name` is shown in its results, as in `me/fox` (default: the run's name).

    Raises ValueError without the package mteb, and for a model without trained embeddings.
    """
    tool("mteb", PACKAGE)
    return MtebEncoder(opened(model, device, "embed"), name)


def mteb_cross_encoder(model: AnyModel, name: str | None = None, device: str = "auto") -> MtebCrossEncoder:
    """Makes a cross-encoder for mteb's re-ranking of pictures by texts, or of texts by pictures.

    Raises ValueError without the package mteb, and for a model without a trained fusion encoder.
    """
    tool("mteb", PACKAGE)
    return MtebCrossEncoder(opened(model, device, "match"), name)


class _MtebModel:
    """Holds a model and what mteb asks about it."""

    kind = "dense"

    def __init__(self, predictor: Predictor, name: str | None = None) -> None:
        self.predictor, self.name = predictor, name

    @property
    def mteb_model_meta(self) -> Any:
        """The description that mteb stores with its results."""
        meta = tool("mteb.models.model_meta", PACKAGE)
        network, origin = self.predictor.model, self.predictor.origin
        run = origin.parent.parent if origin.parent.name == "checkpoints" else origin
        name = self.name or f"diptych/{run.name}"
        return meta.ModelMeta.create_empty(
            {
                "name": name if "/" in name else f"diptych/{name}",
                "revision": origin.name,
                "n_parameters": sum(weight.numel() for weight in network.parameters()),
                "max_tokens": self.predictor.recipe.data.max_tokens_evaluation,
                "embed_dim": network.embed_dim,
                "similarity_fn_name": meta.ScoringFunction.COSINE,
                "framework": ["PyTorch"],
                "modalities": ["image", "text"],
                "model_type": [self.kind],
            }
        )


class MtebEncoder(_MtebModel):
    """Embeds texts, pictures, or both together by the mean of their vectors, as mteb's own CLIP models do."""

    def encode(self, inputs: Iterable[Mapping[str, Any]], **_: Any) -> Float[Tensor, "N E"]:
        """Embeds batches of `{"text": …}`, `{"image": …}` or both. Vectors are normalised, and on the CPU."""
        vectors: list[Tensor] = []
        for batch in inputs:
            texts, pictures = batch.get("text"), batch.get("image")
            parts = [self.predictor.embed_texts(list(map(_said, texts)))] if texts is not None else []
            parts += [self.predictor.embed_images(list(pictures))] if pictures is not None else []
            if not parts:
                raise ValueError(f"this model embeds texts and pictures, not {', '.join(batch)}")
            vectors.append(F.normalize(torch.stack(parts).sum(dim=0), dim=1))
        return torch.cat(vectors)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Computes the cosine of each vector with each."""
        return _rows(embeddings1) @ _rows(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Computes the cosine of the vectors at the same places."""
        return (_rows(embeddings1) * _rows(embeddings2)).sum(dim=1)


class MtebCrossEncoder(_MtebModel):
    """Scores pairs of a text and a picture by the log odds of a match."""

    kind = "cross-encoder"

    def predict(
        self, inputs1: Iterable[Mapping[str, Any]], inputs2: Iterable[Mapping[str, Any]], **_: Any
    ) -> Float[Tensor, "P"]:
        """Scores the pairs of batches of texts with batches of pictures, in either order. Higher fits better."""
        scores = []
        for first, second in zip(inputs1, inputs2, strict=True):
            of_texts, of_pictures = (second, first) if first.get("image") is not None else (first, second)
            texts, pictures = of_texts.get("text"), of_pictures.get("image")
            if texts is None or pictures is None:
                raise ValueError("this model matches texts with pictures: a pair needs one of each")
            scores.append(pair_logits(self.predictor, list(pictures), list(map(_said, texts))))
        return torch.cat(scores)


def _said(text: str) -> str:
    """Returns the text, or a full word where it is empty: benchmarks hold a few, and each needs a vector."""
    return text if any(map(str.isalnum, text)) else "nothing"


def _rows(vectors: Any) -> Float[Tensor, "N E"]:
    rows = torch.as_tensor(vectors, dtype=torch.float32)
    return F.normalize(rows if rows.ndim == 2 else rows[None], dim=1)
