"""Defines the JSON of requests and answers. Limits on sizes belong to each server (`Limits`), not to the types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import GenericAlias
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field, create_model, model_validator

from diptych.facts import Ability, Answer, Choice, Option
from diptych.nn.lowered import Precision
from diptych.predict.inputs import is_whole

Base64 = Annotated[
    str,
    Field(
        description="A picture file (JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF …) in base64, without line breaks.",
        json_schema_extra={"contentEncoding": "base64", "contentMediaType": "image/*", "format": "picture"},
    ),
]


def _whole(text: str) -> str:
    if not is_whole(text):
        raise ValueError("contains a lone surrogate, which is not a character")
    return text


Text = Annotated[str, AfterValidator(_whole)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class FirstError(FailFast):
    """Ends the validation of a list at its first wrong item."""

    __hash__ = object.__hash__  # types that are joined by | must be hashable


Texts = Annotated[list[Text], FirstError()]
Base64s = Annotated[list[Base64], FirstError()]
Box = Annotated[list[Number], Field(min_length=4, max_length=4), FirstError()]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Request(BaseModel):
    """Base of requests. Types are strict ("3" is no number), and an unknown field is an error."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class Response(BaseModel):
    """Base of answers."""

    model_config = ConfigDict(protected_namespaces=(), allow_inf_nan=False)


class ModelRequest(Request):
    """Base of requests that may name a model."""

    model: Text | None = Field(None, description="A name from /v1/models; null chooses the best model for the request.")


class ModelResponse(Response):
    """Base of answers of a model."""

    model: str = Field(description="The model that answered, by its name in /v1/models.")
    unknown_words: tuple[str, ...] = Field(
        (), description="Words of the request's texts that the model's vocabulary lacks, which it cannot read."
    )


# --------------------------------------------------------------------------- vectors and pairs


class EmbedRequest(ModelRequest):
    """Pictures, texts or both. Their vectors can be compared with each other."""

    pictures: Base64s = Field([], description="Pictures.")
    texts: Texts = Field([], description="Texts.")

    @model_validator(mode="after")
    def _not_empty(self) -> EmbedRequest:
        if not self.pictures and not self.texts:
            raise ValueError("give pictures or texts")
        return self


class EmbedResponse(ModelResponse):
    pictures: list[list[Number]] = Field(description="A vector of length 1 for each picture, in order.")
    texts: list[list[Number]] = Field(description="A vector of length 1 for each text, in order.")


class MatchRequest(ModelRequest):
    pictures: Base64s = Field(min_length=1, description="Pictures.")
    texts: Texts = Field(min_length=1, description="Texts, each of which is matched with each picture.")


class MatchResponse(ModelResponse):
    probabilities: list[list[Probability]] = Field(
        description="In row n and column m, the probability that picture n and text m belong together."
    )


class SearchRequest(Request):
    """Searches by `text` or by `picture`."""

    text: Text | None = Field(None, description="The text to search by.")
    picture: Base64 | None = Field(None, description="The picture to search by.")
    k: int = Field(10, ge=1, le=1_000, description="The largest number of hits.")
    of: Literal["picture", "text"] = Field("picture", description="The kind of hits.")
    rerank: bool = Field(False, description="Order the most similar hits by match probability, which is slower.")
    min_match: Probability | None = Field(
        None,
        description="With rerank, leave out hits of a lower match probability, so that there may be none. null takes "
        "what the model's calibration found best, and leaves nothing out without calibration or rerank.",
    )

    @model_validator(mode="after")
    def _either(self) -> SearchRequest:
        if (self.text is None) == (self.picture is None):
            raise ValueError("give either a text or a picture to search by")
        if self.min_match and not self.rerank:
            raise ValueError("min_match needs rerank, since only re-ranking gives the probability of a match")
        return self


class FoundItem(Response):
    id: str = Field(description="The id in the index.")
    kind: Literal["picture", "text"]
    text: str | None = Field(description="The text of a text; null for pictures.")
    similarity: Number = Field(description="Cosine similarity in -1..1.")
    match: Probability | None = Field(
        description="Probability that the hit is right, if calibrated; null without rerank."
    )


class SearchResponse(ModelResponse):
    hits: list[FoundItem] = Field(description="The best first; empty if nothing matches with at least min_match.")
    min_match: Probability = Field(description="Hits of a lower match probability were left out; 0 leaves none out.")
    best_match: Probability | None = Field(
        description="The highest match probability, whether that hit was left out or not; null without rerank."
    )
    calibrated: bool = Field(
        description="Whether match probabilities say how likely a hit is right (diptych evaluate calibrates a model)."
    )
    searched: int = Field(description="Number of pictures, or texts, that were searched.")
    how: str = Field(description="The search method in words, as in: exact, 1,000 vectors.")
    notes: list[str] = Field(
        description="Which hits are gone or changed since they were embedded, and what re-ranking could not open."
    )


# --------------------------------------------------------------------------- task heads


class ChoiceItem(Response):
    label: str = Field(description="The label with the largest probability.")
    probabilities: dict[str, Probability] = Field(
        description="The probability of each label, largest first. They sum to 1."
    )

    @classmethod
    def of(cls, choice: Choice) -> ChoiceItem:
        return cls(label=choice.label, probabilities=dict(choice.probabilities))


class ChoiceResponse(ModelResponse):
    results: list[ChoiceItem] = Field(description="One for each text, in order.")


class AnswerItem(Response):
    answer: str
    probability: Probability = Field(
        description="Closed set: the probability that it is right. Else: its share among the candidates."
    )


class AnswerResponse(ModelResponse):
    results: list[list[AnswerItem]] = Field(
        description="For each question, in order, its answers from the likeliest on."
    )


def _answer_items(answers: Sequence[Answer]) -> list[AnswerItem]:
    return [AnswerItem(answer=answer.text, probability=answer.probability) for answer in answers]


RESPONSES: dict[Any, tuple[type[ModelResponse], Callable[[Any], Any]]] = {
    Choice: (ChoiceResponse, ChoiceItem.of),
    tuple[Answer, ...]: (AnswerResponse, _answer_items),
}
"""The response of each type of results, with the function that converts one result. Other types need no conversion."""


def request_of(ability: Ability) -> type[ModelRequest]:
    """Builds the request type of a task head's ability, with the fields that the ability states."""
    fields: dict[str, Any] = {picture.field: (Base64, ...) for picture in ability.pictures}
    if ability.text is not None:
        fields[ability.text.field] = (Texts, Field(min_length=1, description=ability.text.description))
    for option in ability.options:
        fields[option.name] = _option(option)
    return create_model(f"{ability.name.title()}Request", __base__=ModelRequest, **fields)


def _option(option: Option) -> tuple[Any, Any]:
    if option.kind == "count":
        return int, Field(option.default, ge=1, le=option.most, description=option.description)
    return Texts | None, Field(option.default, min_length=1, description=option.description)


def response_of(ability: Ability) -> tuple[type[ModelResponse], Callable[[Any], Any]]:
    """Returns the response type of a task head's ability, and the function that converts one result for it."""
    if ability.result in RESPONSES:
        return RESPONSES[ability.result]
    items: Any = GenericAlias(list, (ability.result,))
    results = items, Field(description="One for each text, in order; without texts, one.")
    response = create_model(f"{ability.name.title()}Response", __base__=ModelResponse, results=results)
    return response, lambda result: result


class LocateRequest(ModelRequest):
    picture: Base64
    phrases: Texts = Field(min_length=1, description="Phrases to find in the picture.")
    proposals: Annotated[list[Box], FirstError()] | None = Field(
        None,
        min_length=1,
        description="Boxes to choose from, each x, y, width, height in pixels; null derives a box from the heat map.",
    )
    heat: bool = Field(False, description="Whether to return the heat maps.")


class Heat(Response):
    map: list[list[Number]] = Field(description="How strongly each patch supports the phrase, row by row: 0 or more.")
    png: str = Field(
        description="The heat map and box drawn over the picture, at most 1,024 pixels wide or high, in base64."
    )


class LocatedItem(Response):
    phrase: str
    box: list[Number] = Field(min_length=4, max_length=4, description="x, y, width, height in pixels of the picture.")
    score: Number = Field(description="How well phrase and picture fit, which says whether to trust the box.")
    heat: Heat | None = Field(description="The heat map, if the request has heat set.")


class LocateResponse(ModelResponse):
    results: list[LocatedItem] = Field(description="One for each phrase, in order.")


# --------------------------------------------------------------------------- the server itself


class ServedModel(Response):
    name: str
    system: str = Field(description="albef or vlmo.")
    recipe: str = Field(description="Name of the recipe that trained it.")
    abilities: list[str] = Field(description="Kinds of requests that it answers.")
    best_for: list[str] = Field(description="Kinds of requests that it answers if they name no model.")
    measured: dict[str, Any] | None = Field(description="The contents of its eval.json; null if it was not evaluated.")
    precision: Precision = Field(description="The precision of its products: fp32, bf16 or int8.")


class ListedModel(Response):
    id: str = Field(description="The name.")
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "diptych"


class ModelsResponse(Response):
    models: list[ServedModel]
    index: str | None = Field(description="The search method of the index in words; null without an index.")
    object: Literal["list"] = "list"
    data: list[ListedModel] = Field(description="The same models in the form of OpenAI's API.")


class Health(Response):
    live: bool
    ready: bool = Field(description="Whether the server accepts new requests.")


class ErrorDetail(Response):
    code: str
    message: str
    type: str = Field(description="The kind of error in OpenAI's words.")
    param: str | None = Field(description="The field that is wrong, if a field is.")


class ErrorResponse(Response):
    error: ErrorDetail
