"""A `SentenceTransformer` that embeds texts and pictures, and a `CrossEncoder` that matches them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from diptych.apps.adapters.common import AnyModel, is_picture, opened, pair_logits, tool
from diptych.predict import Predictor
from diptych.predict.inputs import open_any
from diptych.types import Texts

PACKAGE = "diptych[sentence-transformers]"


def sentence_transformer(model: AnyModel, device: str = "auto") -> Any:
    """Makes a `SentenceTransformer`, whose `encode` takes texts and pictures: normalised vectors of one space.

    A picture is an image, an array, or the path of its file. A list holds texts or pictures, not both. Raises
    ValueError without the package sentence-transformers, and for a model without trained embeddings.
    """
    package = tool("sentence_transformers", PACKAGE)
    predictor = opened(model, device, "embed")
    return package.SentenceTransformer(
        modules=[EmbeddingModule(predictor)], device=str(predictor.device), similarity_fn_name="cosine"
    )


def cross_encoder(model: AnyModel, device: str = "auto") -> Any:
    """Makes a `CrossEncoder`: `predict` and `rank` give the probability that a text and a picture match.

    A pair is a text and a picture, in either order. Raises ValueError without the package sentence-transformers, and
    for a model without a trained fusion encoder.
    """
    package = tool("sentence_transformers", PACKAGE)
    predictor = opened(model, device, "match")
    return package.CrossEncoder(modules=[MatchModule(predictor)], device=str(predictor.device))


class _Module(nn.Module):
    """The first and only module of a model of sentence-transformers."""

    modalities = ("text", "image")
    save_in_root = True

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.predictor = predictor
        self.model = predictor.model

    @property
    def max_seq_length(self) -> int:
        """The longest text in tokens; a longer one is cut."""
        return self.predictor.recipe.data.max_tokens_evaluation

    @property
    def tokenizer(self) -> Any:
        return self.predictor.tokenizer

    def save(self, path: str, *arguments: Any, **named: Any) -> None:
        raise ValueError(
            "sentence-transformers cannot store this model: write it with `diptych export RUN --to FOLDER`, and open "
            "FOLDER with diptych.apps.adapters"
        )


class EmbeddingModule(_Module):
    """Embeds a batch of texts, or of pictures."""

    def get_embedding_dimension(self) -> int:
        return self.predictor.model.embed_dim

    get_sentence_embedding_dimension = get_embedding_dimension

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, Any]:
        """Turns a batch into pixels, or into token ids. Raises ValueError for a batch of both."""
        values = [_unwrapped(value) for value in inputs]
        pictures = [is_picture(value) for value in values]
        if all(pictures):
            return {"pixels": torch.stack([self.predictor.transform(open_any(value)) for value in values])}
        if any(pictures):
            raise ValueError("texts and pictures are embedded in separate calls")
        texts = self.predictor.texts([f"{prompt or ''}{value}" for value in values])
        return {"input_ids": texts.input_ids, "attention_mask": texts.attention_mask}

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        if "pixels" in features:
            vectors = self.model.embed_image(self.model.image_state(features["pixels"]))["main"]
        else:
            texts = Texts(features["input_ids"], features["attention_mask"])
            vectors = self.model.embed_text(self.model.text_state(texts))["main"]
        return {**features, "sentence_embedding": vectors}


class MatchModule(_Module):
    """Scores pairs of a text and a picture by the log odds of a match, of which a `CrossEncoder` takes the sigmoid."""

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, Any]:
        """Sorts each pair into its text and its picture. Raises ValueError for a pair of two texts or two pictures."""
        texts, pictures = [], []
        for pair in inputs:
            first, second = (_unwrapped(value) for value in pair)
            if is_picture(first) == is_picture(second):
                kind = "pictures" if is_picture(first) else "texts"
                raise ValueError(f"a pair is a text and a picture, not two {kind}: {first!r}, {second!r}")
            text, picture = (second, first) if is_picture(first) else (first, second)
            texts.append(f"{prompt or ''}{text}")
            pictures.append(picture)
        return {"texts": texts, "pictures": pictures}

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        odds = pair_logits(self.predictor, features["pictures"], features["texts"])
        return {**features, "scores": odds[:, None].to(self.predictor.device)}


def _unwrapped(value: Any) -> Any:
    """Returns the text or picture of `{"text": …}` or `{"image": …}`, and other values as they are."""
    if isinstance(value, dict):
        if len(value) != 1 or next(iter(value)) not in ("text", "image"):
            raise ValueError(f"give a text or a picture, not {', '.join(map(str, value))} together")
        return next(iter(value.values()))
    return value
