"""What is asked and answered, as JSON. Limits on sizes are the server's (`Limits`), and so not part of the types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import GenericAlias
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model, model_validator

from diptych.facts import Ability, Answer, Choice, Option
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
        raise ValueError("holds half of a surrogate pair, which is no character")
    return text


Text = Annotated[str, AfterValidator(_whole)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Request(BaseModel):
    """Types are strict (no "3" for 3), and an unknown field is an error."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class Response(BaseModel):
    model_config = ConfigDict(protected_namespaces=(), allow_inf_nan=False)


class OfModel(Request):
    model: Text | None = Field(None, description="A name of /v1/models; without one, the best for it.")


class Answered(Response):
    model: str = Field(description="Who answered: a name of /v1/models.")


# --------------------------------------------------------------------------- vectors and pairs


class EmbedRequest(OfModel):
    """Pictures, texts or both; their vectors are comparable."""

    pictures: list[Base64] = Field([], description="Pictures.")
    texts: list[Text] = Field([], description="Texts.")

    @model_validator(mode="after")
    def _something(self) -> EmbedRequest:
        if not self.pictures and not self.texts:
            raise ValueError("no pictures and no texts given")
        return self


class EmbedResponse(Answered):
    pictures: list[list[Number]] = Field(description="A vector of length 1 for each picture.")
    texts: list[list[Number]] = Field(description="A vector of length 1 for each text.")


class MatchRequest(OfModel):
    pictures: list[Base64] = Field(min_length=1, description="Pictures.")
    texts: list[Text] = Field(min_length=1, description="Texts, each of which is matched with each picture.")


class MatchResponse(Answered):
    probabilities: list[list[Probability]] = Field(description="That picture n (row) and text m belong together.")


class SearchRequest(Request):
    """By `text` or by `picture`."""

    text: Text | None = Field(None, description="What to look for, in words.")
    picture: Base64 | None = Field(None, description="What to look for, as a picture.")
    k: int = Field(10, ge=1, le=1_000, description="How many to find at most.")
    of: Literal["picture", "text"] = Field("picture", description="What to find.")
    rerank: bool = Field(False, description="Order the nearest by the probability of a match. Slower.")

    @model_validator(mode="after")
    def _one(self) -> SearchRequest:
        if (self.text is None) == (self.picture is None):
            raise ValueError("give either a text or a picture to search by")
        return self


class FoundItem(Response):
    id: str = Field(description="What the index calls it.")
    kind: Literal["picture", "text"]
    text: str | None = Field(description="Of a text.")
    similarity: Number = Field(description="Cosine, in -1..1.")
    match: Probability | None = Field(description="That it belongs to what was asked; null unless re-ranked.")


class SearchResponse(Answered):
    hits: list[FoundItem] = Field(description="The best first.")
    searched: int = Field(description="How many were searched.")
    how: str = Field(description="Exactly or nearly, in words.")
    unknown_words: list[str] = Field(description="Words of the text that the model cannot read.")


# --------------------------------------------------------------------------- by heads of their own


class ChoiceItem(Response):
    label: str = Field(description="The likeliest.")
    probabilities: dict[str, Probability] = Field(description="Of each label, the likeliest first; they sum to 1.")

    @classmethod
    def of(cls, choice: Choice) -> ChoiceItem:
        return cls(label=choice.label, probabilities=dict(choice.probabilities))


class ChoiceResponse(Answered):
    results: list[ChoiceItem] = Field(description="One for each text, in order.")


class AnswerItem(Response):
    answer: str
    probability: Probability = Field(description="Of a closed set: that it is right. Else its share among the others.")


class AnswerResponse(Answered):
    results: list[list[AnswerItem]] = Field(description="For each question, in order: the likeliest answers first.")


def _answer_items(answers: Sequence[Answer]) -> list[AnswerItem]:
    return [AnswerItem(answer=answer.text, probability=answer.probability) for answer in answers]


KNOWN: dict[Any, tuple[type[Answered], Callable[[Any], Any]]] = {
    Choice: (ChoiceResponse, ChoiceItem.of),
    tuple[Answer, ...]: (AnswerResponse, _answer_items),
}
"""By the type of an ability's results: their response, and what writes one. Other types are written as they are."""


def request_of(ability: Ability) -> type[OfModel]:
    """What is asked of the head of a task, with the fields that its ability states."""
    fields: dict[str, Any] = {picture.field: (Base64, ...) for picture in ability.pictures}
    if ability.text is not None:
        fields[ability.text.field] = (list[Text], Field(min_length=1, description=ability.text.description))
    for option in ability.options:
        fields[option.name] = _option(option)
    return create_model(f"{ability.name.title()}Request", __base__=OfModel, **fields)


def _option(option: Option) -> tuple[Any, Any]:
    if option.kind == "count":
        return int, Field(option.default, ge=1, le=option.most, description=option.description)
    return list[Text] | None, Field(option.default, min_length=1, description=option.description)


def response_of(ability: Ability) -> tuple[type[Answered], Callable[[Any], Any]]:
    """What comes back, and what writes one result into it."""
    if ability.result in KNOWN:
        return KNOWN[ability.result]
    listed: Any = GenericAlias(list, (ability.result,))
    results = (listed, Field(description="One for each text, in order; without texts, one."))
    return create_model(f"{ability.name.title()}Response", __base__=Answered, results=results), lambda one: one


class LocateRequest(OfModel):
    picture: Base64
    phrases: list[Text] = Field(min_length=1, description="What to find in the picture.")
    proposals: list[Annotated[list[Number], Field(min_length=4, max_length=4)]] | None = Field(
        None,
        min_length=1,
        description="Boxes to choose from, each x, y, width, height in pixels. Without them the map draws its own.",
    )
    heat: bool = Field(False, description="Send the heat maps, too.")


class Heat(Response):
    map: list[list[Number]] = Field(description="How much each patch speaks for the phrase, row by row: 0 and more.")
    png: str = Field(description="The map on the picture with the box, at most 1,024 pixels wide or high, in base64.")


class LocatedItem(Response):
    phrase: str
    box: list[Number] = Field(min_length=4, max_length=4, description="x, y, width, height in pixels of the picture.")
    score: Number = Field(description="How well phrase and picture fit: whether to believe the box.")
    heat: Heat | None = Field(description="Where it was asked for.")


class LocateResponse(Answered):
    results: list[LocatedItem] = Field(description="One for each phrase, in order.")


# --------------------------------------------------------------------------- the server itself


class ServedModel(Response):
    name: str
    system: str = Field(description="albef or vlmo.")
    recipe: str = Field(description="What it was trained by.")
    abilities: list[str] = Field(description="What it can be asked.")
    best_for: list[str] = Field(description="What it is asked where a request names no model.")
    measured: dict[str, Any] | None = Field(description="Its eval.json; null where nobody measured it.")


class ModelsResponse(Response):
    models: list[ServedModel]
    index: str | None = Field(description="What can be searched, in words; null without an index.")


class Health(Response):
    live: bool
    ready: bool = Field(description="Whether it takes new work.")


class ErrorDetail(Response):
    code: str
    message: str


class ErrorResponse(Response):
    error: ErrorDetail
