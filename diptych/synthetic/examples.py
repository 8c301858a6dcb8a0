"""The numbered examples of each task: pure functions of (configuration, split, index), as scenes themselves are.

Every scene falls into its split by what it shows (`generator.split_of`), so the splits of all tasks, and of the
captions, never share a scene. The scene of example i is not that of caption i, nor of example i of another task.
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
from diptych.synthetic.statements import Statement, pictures, statement

T = TypeVar("T")
PAIRS = 4
"""Pairs of pictures that share a statement, as in NLVR2: half make it true, half make it false."""
_HYPOTHESIS, _QUESTION, _STATEMENT, _PICTURES, _EXPRESSION = range(3, 8)
"""Purposes of the random streams; 0 to 2 are those of scenes and captions."""
_SCENES = 2_000
"""Scenes drawn until something can be said of one."""


@dataclass(frozen=True)
class PairExample:
    """A statement with one of its pairs of pictures."""

    statement: Statement
    group: int
    """The same for the pairs that share the statement."""
    left: Scene
    right: Scene
    label: bool


def entailment_example(config: ScenesConfig, split: Split, index: int) -> tuple[Scene, Hypothesis]:
    """Raises ValueError where the configuration allows no such example; so do the others."""
    return _first(hypothesis, config, split, index, _HYPOTHESIS)


def question_example(config: ScenesConfig, split: Split, index: int) -> tuple[Scene, Question]:
    return _first(question, config, split, index, _QUESTION)


def referring_example(config: ScenesConfig, split: Split, index: int) -> tuple[Scene, Expression]:
    return _first(expression, config, split, index, _EXPRESSION)


def pair_example(config: ScenesConfig, split: Split, index: int) -> PairExample:
    """Pairs `PAIRS * g` to `PAIRS * g + PAIRS - 1` share statement g."""
    _check(config)
    group = index // PAIRS
    said = statement(stream(config.seed, split, group, _STATEMENT), config)
    label = index % 2 == 0
    random = stream(config.seed, split, index, _PICTURES)
    left, right = pictures(said, label, random, config, split, index)
    return PairExample(said, group, left, right, label)


def _first(
    say: Callable[[Scene, Random, ScenesConfig], T | None], config: ScenesConfig, split: Split, index: int, purpose: int
) -> tuple[Scene, T]:
    """The first scene of the index's stream of which something can be said, and what is said."""
    _check(config)
    random = stream(config.seed, split, index, purpose)
    for _ in range(_SCENES):
        scene = draw_scene(config, split, index, random.random)
        said = say(scene, random, config)
        if said is not None:
            return scene, said
    raise ValueError(
        f"scenes.objects={config.objects}, scenes.compositions={config.compositions}: no {split} scene leaves anything "
        "to say for this task: allow more objects"
    )


def _check(config: ScenesConfig) -> None:
    if config.language != "en":
        raise ValueError(f"scenes.language={config.language!r}: the tasks' texts are English; use scenes.language=en")
