"""Generates the numbered examples of each task: scenes with hypotheses, questions, expressions or statements.

An example is a pure function of (seed, split, index) and of the configuration, as scenes themselves are. The content of
a scene decides its split (`generator.split_of`), so the splits of all tasks, and of the captions, never share a scene.
The scene of example i differs from that of caption i and from those of example i of the other tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle, islice
from random import Random
from typing import TypeVar

from diptych.schema import ScenesConfig, Split
from diptych.synthetic.expressions import Expression, expression
from diptych.synthetic.generator import Scene, draw_scene, stream
from diptych.synthetic.hypotheses import Hypothesis, hypothesis
from diptych.synthetic.questions import Question, question
from diptych.synthetic.statements import Statement, draw_pair, draw_statement

T = TypeVar("T", Hypothesis, Question, Expression)
PAIRS = 4
"""This many pairs of pictures share a statement, as in NLVR2. It is true of half of them."""
_HYPOTHESIS, _QUESTION, _STATEMENT, _PICTURES, _EXPRESSION = range(3, 8)
"""Purposes of the random streams. Purposes 0 to 2 are those of scenes and captions."""
_SCENES = 2_000
"""The number of scenes that are drawn until one allows a text."""
_TRIES = 20
"""The number of texts that are drawn for each one that is to differ from those before."""


@dataclass(frozen=True)
class PairExample:
    """Holds a statement with one of its pairs of pictures."""

    statement: Statement
    group: int
    """Equal for the pairs that share the statement."""
    left: Scene
    right: Scene
    label: bool


def entailment_example(config: ScenesConfig, split: Split, index: int, texts: int = 1) -> tuple[Scene, Hypothesis]:
    """Generates a scene with a hypothesis, which is one of `texts` about it. Example i is about scene i // texts.

    Raises ValueError if the configuration allows no such example.
    """
    scene, hypotheses = _about_one_scene(hypothesis, config, split, index // texts, _HYPOTHESIS, texts)
    return scene, hypotheses[index % texts]


def question_example(config: ScenesConfig, split: Split, index: int, texts: int = 1) -> tuple[Scene, Question]:
    """Generates a scene with a question, as `entailment_example` does with a hypothesis."""
    scene, questions = _about_one_scene(question, config, split, index // texts, _QUESTION, texts)
    return scene, questions[index % texts]


def referring_example(config: ScenesConfig, split: Split, index: int) -> tuple[Scene, Expression]:
    """Generates a scene with an expression. Raises ValueError if the configuration allows no such example."""
    scene, (phrase,) = _about_one_scene(expression, config, split, index, _EXPRESSION, 1)
    return scene, phrase


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


@lru_cache(maxsize=8)
def _about_one_scene(
    draw_text: Callable[[Scene, Random, ScenesConfig], T | None],
    config: ScenesConfig,
    split: Split,
    index: int,
    purpose: int,
    texts: int,
) -> tuple[Scene, tuple[T, ...]]:
    """Returns the first scene of the index's random stream that allows a text, and texts about it.

    They differ, unless the scene gives no more. The last results are kept, since the texts about a scene are asked for
    one after another.
    """
    check_language(config)
    random = stream(config.seed, split, index, purpose)
    for _ in range(_SCENES):
        scene = draw_scene(config, split, index, random.random)
        text = draw_text(scene, random, config)
        if text is not None:
            drawn = {text.text: text}
            for _ in range(_TRIES * (texts - 1)):
                if len(drawn) < texts and (further := draw_text(scene, random, config)):
                    drawn.setdefault(further.text, further)
            return scene, tuple(islice(cycle(drawn.values()), texts))
    raise ValueError(
        f"scenes.objects={config.objects}, scenes.compositions={config.compositions}: no {split} scene leaves anything "
        "to say for this task: allow more objects"
    )


def check_language(config: ScenesConfig) -> None:
    if config.language != "en":
        raise ValueError(f"scenes.language={config.language!r}: the tasks' texts are English; use scenes.language=en")
