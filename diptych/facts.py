"""Values in which a task describes itself: its abilities, its submission file and its report.

The methods of `Predictor`, the endpoints of the server and the pages of the report follow from these values, so that
nothing outside `diptych/tasks` asks which task it deals with.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from diptych.data.record import AnyRecord
from diptych.schema import Recipe

# --------------------------------------------------------------------------- abilities


def as_count(k: Any, of: str) -> int:
    """Takes a number of results, of pictures for example. Raises ValueError for what is no whole number from 1 on."""
    try:
        count = operator.index(k)
    except TypeError:
        raise ValueError(f"k is {k!r}: give a whole number of {of}s") from None
    if count < 1:
        raise ValueError(f"k is {count}: ask for at least one {of}")
    return count


@dataclass(frozen=True)
class Argument:
    """A picture or a text that an ability takes."""

    name: str
    """Its name as a Python argument, in the singular."""
    field: str
    """Its name in a JSON request. For texts, of which a request holds a list, this is the plural."""
    description: str = ""
    """Explains the field to users of the HTTP API."""


@dataclass(frozen=True)
class Option:
    """A setting of an ability, which follows its pictures and its text."""

    name: str
    kind: Literal["count", "texts"]
    """`count`: a whole number of 1 or more. `texts`: a list of texts, or None."""
    default: Any
    description: str
    most: int | None = None
    """The largest count that the HTTP API accepts."""


@dataclass(frozen=True)
class Choice:
    """The probabilities of several classes, of which one is right.

    >>> verdict = Choice.of(["false", "true"], [0.25, 0.75])
    >>> verdict.label, verdict.probability, verdict.probabilities["false"]
    ('true', 0.75, 0.25)
    >>> print(verdict)
    true 75.0%, false 25.0%
    """

    probabilities: Mapping[str, float]
    """The probability of each class, the likeliest first; they sum to 1."""

    @classmethod
    def of(cls, names: Sequence[str], probabilities: Sequence[float]) -> Choice:
        """Sorts the classes by probability. Equally likely ones keep their order."""
        pairs = sorted(zip(names, probabilities, strict=True), key=lambda pair: -pair[1])
        return cls(dict(pairs))

    @property
    def label(self) -> str:
        """The likeliest class."""
        return next(iter(self.probabilities))

    @property
    def probability(self) -> float:
        """The probability of the likeliest class."""
        return self.probabilities[self.label]

    def __str__(self) -> str:
        return ", ".join(f"{name} {probability:.1%}" for name, probability in self.probabilities.items())


@dataclass(frozen=True)
class Answer:
    """An answer to a question."""

    text: str
    probability: float
    """Of a closed set: that it is right, whatever the others are. Of a list: its share among the candidates scored.
    Written: its share among all that could be written."""


@dataclass(frozen=True)
class Ability:
    """Something that can be asked of a trained model.

    An ability that only needs the model's own heads states in `calls` which of the model's calls it uses; `Predictor`
    and the server implement it by hand. Every other ability is answered by a task's head. It states its arguments, from
    which `Predictor.ask`, the method of that name and the endpoint `POST /v1/NAME` follow.
    """

    name: str
    """The name of the method and of the endpoint."""
    about: str
    """What the questions are about, in the plural, as in "this model was not trained for {about}"."""
    example: str
    """A line of Python that uses it, for the model card."""
    calls: Callable[[Recipe, Any], tuple[str, ...]] | None = None
    """Names the calls of the model, given the recipe and the model, whose weights must have been trained."""
    description: str = ""
    """Explains the endpoint to users of the HTTP API."""
    pictures: tuple[Argument, ...] = (Argument("image", "picture"),)
    text: Argument | None = None
    """The text that belongs to each picture; None if the pictures are all that the task reads."""
    options: tuple[Option, ...] = ()
    result: Any = Choice
    """The type of the result for one row: `Choice`, `tuple[Answer, ...]`, `str` or any frozen dataclass of plain
    values."""
    record: Callable[[str], AnyRecord] | None = None
    """Makes a record of the text (of "" where there is none), which is then read as in evaluation."""


# --------------------------------------------------------------------------- submissions and reports


@dataclass(frozen=True)
class Submission:
    """The file that an evaluation server takes."""

    title: str
    """The name of the data set or of the task in messages."""
    write: Callable[[Path, Sequence[tuple[str, str]], Sequence[str]], None]
    """Writes (file, predictions by record id, expected ids). Raises ValueError for an incomplete submission."""
    label: Callable[[str], str] = str
    """Turns a prediction into the spelling of the file."""
    server: bool = True
    """False for a data set without an evaluation server, whose files are for people to exchange."""


COMMONEST = {"commonest": "Always the commonest answer"}
"""The reference of most tasks: their official measure for a guesser that always gives the same answer."""


@dataclass(frozen=True)
class TaskReport:
    """How an evaluation record by record is shown to people. The keys of all mappings are those of `TaskEvaluation`."""

    title: str
    """The task's name."""
    measure: str
    """The name of the official measure."""
    how: str
    """Explains in one or two sentences what is asked and what is counted."""
    judged: str = "its task"
    """Names the predictions in a sentence such as "entailment: 71.3 % right"."""
    measures: Mapping[str, str] = field(default_factory=dict)
    """Names of the further measures."""
    references: Mapping[str, str] = field(default_factory=lambda: COMMONEST)
    """Names of the guessers that never look at the picture."""
    figures: Mapping[str, str] = field(default_factory=dict)
    """Names of the figures that are no percentages."""
    examples: Literal["texts", "boxes", "views"] = "texts"
    """What an example shows beside its picture: texts, a heat map with boxes (`Task.heat`), or other views of the
    picture (`Task.views`)."""
    lists_answers: bool = False
    """Whether the predictions given most often are listed."""
