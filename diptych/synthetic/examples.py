"""Generates the numbered examples of each task: scenes with hypotheses, questions, expressions or statements.

An example is a pure function of (seed, split, index) and of the configuration, as scenes themselves are. The content of
a scene decides its split (`generator.split_of`), so the splits of all tasks, and of the captions, never share a scene.
The scene of example i differs from that of caption i and from those of example i of the other tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from diptych.schema import ScenesConfig, Split
from diptych.synthetic.expressions import Expression, expression
from diptych.synthetic.generator import Scene, draw_scene, stream
from diptych.synthetic.hypotheses import Hypothesis, hypothesis
from diptych.synthetic.questions import Question, question
from diptych.synthetic.statements import Statement, draw_pair, draw_statement

T = TypeVar("T")
PAIRS = 4
"""This many pairs of pictures share a statement, as in NLVR2. It is true of half of them."""
_HYPOTHESIS, _QUESTION, _STATEMENT, _PICTURES, _EXPRESSION = range(3, 8)
"""Purposes of the random streams. Purposes 0 to 2 are those of scenes and captions."""
_SCENES = 2_000
"""The number of scenes that are drawn until one allows a text."""


@dataclass(frozen=True)
class PairExample:
    """Holds a statement with one of its pairs of pictures."""

    statement: Statement
    group: int
    """Equal for the pairs that share the statement."""
    left: Scene
    right: Scene
    label: bool


def entailment_example(config: ScenesConfig, split: Split, index: int) -> tuple[Scene, Hypothesis]:
    """Generates a scene with a hypothesis. Raises ValueError if the configuration allows no such example."""
    return _first(hypothesis, config, split, index, _HYPOTHESIS)


def question_example(config: ScenesConfig, split: Split, index: int) -> tuple[Scene, Question]:
    """Generates a scene with a question. Raises ValueError if the configuration allows no such example."""
    return _first(question, config, split, index, _QUESTION)


def referring_example(config: ScenesConfig, split: Split, index: int) -> tuple[Scene, Expression]:
    """Generates a scene with an expression. Raises ValueError if the configuration allows no such example."""
    return _first(expression, config, split, index, _EXPRESSION)


def pair_example(config: ScenesConfig, split: Split, index: int) -> PairExample:
    """Generates a statement with a pair of scenes. Pairs `PAIRS * g` to `PAIRS * g + PAIRS - 1` share statement g.

    Raises ValueError if the configuration allows no such example.
    """
    check_language(config)
    group = index // PAIRS
    statement = draw_statement(stream(config.seed, split, group, _STATEMENT), config)
    label = index % 2 == 0
    random = stream(config.seed, split, index, _PICTURES)
    left, right = draw_pair(statement, label, random, config, split, index)
    return PairExample(statement, group, left, right, label)


def _first(
    draw_text: Callable[[Scene, Random, ScenesConfig], T | None],
    config: ScenesConfig,
    split: Split,
    index: int,
    purpose: int,
) -> tuple[Scene, T]:
    """Returns the first scene of the index's random stream that allows a text, and this text."""
    check_language(config)
    random = stream(config.seed, split, index, purpose)
    for _ in range(_SCENES):
        scene = draw_scene(config, split, index, random.random)
        text = draw_text(scene, random, config)
        if text is not None:
            return scene, text
    raise ValueError(
        f"scenes.objects={config.objects}, scenes.compositions={config.compositions}: no {split} scene leaves anything "
        "to say for this task: allow more objects"
    )


def check_language(config: ScenesConfig) -> None:
    if config.language != "en":
        raise ValueError(f"scenes.language={config.language!r}: the tasks' texts are English; use scenes.language=en")
