"""Answers the requests that clients of other embedding and re-ranking servers already send.

`/v1/embeddings` has the form of OpenAI's API, and `/v1/rerank` the one that Cohere's and Jina's share. Both take texts
and pictures; a picture is a data URL or base64, never an address.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import Discriminator, Field, Tag, model_validator

from diptych.apps.serve import requests as calls
from diptych.apps.serve import schemas
from diptych.apps.serve.errors import ApiError
from diptych.apps.serve.requests import Inputs
from diptych.apps.serve.schemas import FirstError, ModelRequest, ModelResponse, Number, Response, Text
from diptych.apps.serve.state import ServerState
from diptych.apps.serve.texts import why_no_text

DATA_URL = re.compile(
    r"\s*data:(image/[a-z0-9.+-]{1,40}(;[a-z0-9_.-]{1,40}=[^;,\s]{0,99}){0,9})?;base64,", re.IGNORECASE
)
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]{0,20}:", re.IGNORECASE)

# --------------------------------------------------------------------------- requests


class PictureUrl(schemas.Request):
    url: str = Field(description="A data URL with a picture in base64, as in data:image/png;base64,….")
    detail: Text | None = Field(None, description="Accepted from clients that send it; every picture is read alike.")


class Part(schemas.Request):
    """One text or one picture."""

    type: Literal["text", "image_url", "image"] | None = Field(None, description="Which of the fields is given.")
    text: Text | None = None
    image_url: str | PictureUrl | None = Field(None, description="A data URL.")
    image: str | None = Field(None, description="A data URL, or the base64 alone.")

    @model_validator(mode="after")
    def _one(self) -> Part:
        given = [name for name in ("text", "image_url", "image") if getattr(self, name) is not None]
        if len(given) != 1 or (self.type or given[0]) != given[0]:
            raise ValueError("give one of text, image_url and image, and the type of that one or none")
        return self


def _kind(sent: Any) -> str:
    """Tells by its type what was sent, so that errors are about that alone. `describe` leaves out names in brackets."""
    return "[part]" if isinstance(sent, dict | Part) else "[list]" if isinstance(sent, list) else "[text]"


Item = Annotated[Annotated[Text, Tag("[text]")] | Annotated[Part, Tag("[part]")], Discriminator(_kind)]
Items = Annotated[list[Item], Field(min_length=1), FirstError()]
Input = Annotated[
    Annotated[Text, Tag("[text]")] | Annotated[Part, Tag("[part]")] | Annotated[Items, Tag("[list]")],
    Discriminator(_kind),
]


def _are_ids(sent: Any) -> bool:
    """Tells whether something is a list that begins with a whole number."""
    return isinstance(sent, list) and bool(sent) and type(sent[0]) is int


class EmbeddingsRequest(ModelRequest):
    input: Input = Field(description="A text, a data URL, a part, or a list of them.")
    encoding_format: Literal["float", "base64"] | None = Field(
        "float", description="base64: the vector's little-endian 32-bit floats in base64. null is float."
    )
    dimensions: int | None = Field(None, ge=1, description="Numbers of a vector; only the model's own can be had.")
    user: Text | None = Field(None, description="Accepted from clients that send it; nothing is kept about users.")

    @model_validator(mode="before")
    @classmethod
    def _some_text(cls, values: Any) -> Any:
        sent = values.get("input") if isinstance(values, dict) else None
        if isinstance(values, dict) and "input" in values and (sent is None or sent == []):
            raise ValueError("input is empty: send a text, a data URL with a picture, or a list of them")
        if isinstance(sent, list) and (_are_ids(sent) or (sent and _are_ids(sent[0]))):
            raise ValueError("input holds token ids, of another model's vocabulary: send the texts themselves")
        return values


class EmbeddingItem(Response):
    object: Literal["embedding"] = "embedding"
    index: int = Field(description="The place of the text or picture in the request.")
    embedding: list[Number] | str = Field(description="A vector of length 1, as a list or in base64.")


class Usage(Response):
    prompt_tokens: int = Field(description="Tokens of the texts that the model read.")
    total_tokens: int


class EmbeddingsResponse(ModelResponse):
    object: Literal["list"] = "list"
    data: list[EmbeddingItem]
    usage: Usage


class RerankRequest(ModelRequest):
    query: Item = Field(description="A text, or a picture as a data URL or a part.")
    documents: Items = Field(description="Pictures, or texts: what is to be ordered.")
    top_n: int | None = Field(None, ge=1, description="The largest number of results; null returns all.")
    return_documents: bool = Field(False, description="Whether results repeat their texts.")


class RankedDocument(Response):
    text: str


class RankedItem(Response):
    index: int = Field(description="The place of the document in the request.")
    relevance_score: Number = Field(
        description="In 0..1: by match a probability, by similarity a cosine, or 0 below it."
    )
    document: RankedDocument | None = Field(None, description="The text, with return_documents.")


class RerankResponse(ModelResponse):
    results: list[RankedItem] = Field(description="The most relevant first.")
    scored_by: Literal["match", "similarity"] = Field(
        description="match: by the fusion encoder, a picture with a text. similarity: of vectors, for two of a kind."
    )
    usage: Usage


# --------------------------------------------------------------------------- routes


@dataclass(frozen=True)
class Given:
    """A text, or a picture in base64."""

    content: str
    is_picture: bool


def given_of(item: str | Part, name: str) -> Given:
    """Reads a text or a picture. Raises ApiError for a picture that is named by its address.

    A text that is nothing but an address or a path, or a picture in base64, is refused as well: whoever sends it means
    what is there.

    >>> given_of("a boat", "input"), given_of("data:image/png;base64,iVBO", "input")
    (Given(content='a boat', is_picture=False), Given(content='iVBO', is_picture=True))
    """
    if isinstance(item, str) and (url := DATA_URL.match(item)):
        return Given(item[url.end() :], True)
    if (text := item if isinstance(item, str) else item.text) is not None:
        if reason := why_no_text(text):
            raise ApiError("bad_picture", f"{name} {reason}: write data:image/…;base64,… for a picture")
        return Given(text, False)
    assert isinstance(item, Part)
    sent = item.image_url.url if isinstance(item.image_url, PictureUrl) else item.image_url or item.image or ""
    url = DATA_URL.match(sent)
    if url is None and (item.image is None or ADDRESS.match(sent)):
        message = f"{name}: not a data URL with base64 (data:image/png;base64,…). No address is ever fetched"
        raise ApiError("bad_picture", message)
    return Given(sent[url.end() :] if url else sent, True)


def add_compatible_routes(router: APIRouter, state: ServerState, responses: dict[int | str, dict[str, Any]]) -> None:
    """Adds /embeddings and /rerank."""

    @router.post("/embeddings", responses=responses)
    async def embeddings(body: EmbeddingsRequest, request: Request) -> EmbeddingsResponse:
        """Returns vectors in the form of OpenAI's API. They are those of /v1/embed."""
        model = state.find("embed", body.model)
        items = body.input if isinstance(body.input, list) else [body.input]
        given = [given_of(item, f"input[{position}]") for position, item in enumerate(items)]
        inputs, tokens = await _prepare(state, model.predictor, given, "input")
        vectors = _in_order(given, *await state.submit(request, calls.Embed(model), inputs))
        if body.dimensions not in (None, len(vectors[0])):
            message = f"this model's vectors have {len(vectors[0])} dimensions, and no others can be had"
            raise ApiError("refused", message)
        data = [
            EmbeddingItem(index=index, embedding=_base64(vector) if body.encoding_format == "base64" else vector)
            for index, vector in enumerate(vectors)
        ]
        return EmbeddingsResponse(
            model=model.name,
            data=data,
            usage=Usage(prompt_tokens=tokens, total_tokens=tokens),
            unknown_words=inputs.unknown_words,
        )

    @router.post("/rerank", responses=responses)
    async def rerank(body: RerankRequest, request: Request) -> RerankResponse:
        """Orders documents by their relevance to a query, in the form that Cohere's and Jina's APIs share.

        Pictures are ordered for a text, and texts for a picture, by match; pictures for a picture, and texts for a
        text, by similarity.
        """
        query = given_of(body.query, "query")
        given = [given_of(item, f"documents[{position}]") for position, item in enumerate(body.documents)]
        if len({one.is_picture for one in given}) > 1:
            raise ApiError(
                "refused", "documents holds texts and pictures, whose scores cannot be compared: send one kind"
            )
        by_match = query.is_picture != given[0].is_picture
        model = state.find("match" if by_match else "embed", body.model)
        inputs, tokens = await _prepare(state, model.predictor, [query, *given], "documents", first="query")
        if by_match:
            matches = await state.submit(request, calls.Match(model), inputs)
            scores = matches[0] if query.is_picture else [row[0] for row in matches]
        else:
            asked, *vectors = _in_order([query, *given], *await state.submit(request, calls.Embed(model), inputs))
            scores = (np.asarray(vectors) @ np.asarray(asked)).tolist()
        best = sorted(range(len(given)), key=lambda index: -scores[index])[: body.top_n]
        results = [
            RankedItem(
                index=index,
                relevance_score=min(max(scores[index], 0.0), 1.0),
                document=RankedDocument(text=given[index].content)
                if body.return_documents and not given[index].is_picture
                else None,
            )
            for index in best
        ]
        return RerankResponse(
            model=model.name,
            results=results,
            scored_by="match" if by_match else "similarity",
            usage=Usage(prompt_tokens=tokens, total_tokens=tokens),
            unknown_words=inputs.unknown_words,
        )


async def _prepare(
    state: ServerState, predictor: Any, given: Sequence[Given], name: str, first: str | None = None
) -> tuple[Inputs, int]:
    """Prepares texts and pictures in any order, and counts the tokens of the texts.

    `name` is the field of the list. `first` is the field of the first one, if it does not belong to the list.
    """
    names = [*([first] if first else []), *(f"{name}[{position}]" for position in range(len(given) - bool(first)))]
    state.preparer.check_count(len(given) - bool(first), name)
    named = list(zip(names, given, strict=True))
    pictures = {field: one.content for field, one in named if one.is_picture}
    texts = {field: one.content for field, one in named if not one.is_picture}
    return await state.prepare(state.preparer.named, predictor, pictures, texts, pictures=len(pictures))


def _in_order(
    given: Sequence[Given], pictures: Sequence[list[float]], texts: Sequence[list[float]]
) -> list[list[float]]:
    """Puts the vectors of pictures and of texts into the order of the request."""
    of_pictures, of_texts = iter(pictures), iter(texts)
    return [next(of_pictures if one.is_picture else of_texts) for one in given]


def _base64(vector: Sequence[float]) -> str:
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
