"""Serves made examples of the tasks: scenes with hypotheses, questions, statements or phrases, or alone.

diptych/synthetic/examples.py generates the examples. This file turns them into the records of the tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from diptych.data.cleanup import clean_caption
from diptych.data.record import AnyRecord, BadRecord, Entailment, PairStatement, Picture, PlainText, Question, Referring
from diptych.data.sources.scenes import Scenes
from diptych.schema import DataConfig, ScenesConfig, Split
from diptych.synthetic.examples import entailment_example, pair_example, question_example, referring_example
from diptych.synthetic.generator import check, make_scene, render
from diptych.synthetic.sprites import sprite_set


@dataclass(frozen=True)
class SceneTask:
    """Serves a split of examples of one task. It holds only its configuration; each example is made when it is read."""

    config: ScenesConfig
    split: Split
    kind: type[AnyRecord]
    texts: int = 1
    """The number of questions or hypotheses about a scene: record i is about scene i // texts."""
    skipped: tuple[BadRecord, ...] = ()

    def __len__(self) -> int:
        return self.config.count if self.split == "train" else self.config.evaluation_count

    def record(self, index: int) -> Any:
        """Returns a record of class `kind`. Raises IndexError, or ValueError if the configuration leaves nothing to
        say."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self._name} has {len(self)} records, asked for {index}")
        return MAKERS[self.kind](self, index)

    def pictures(self, record: Any) -> tuple[Image.Image, ...]:
        return tuple(render(scene, self.config) for scene in record.images)

    def record_id(self, index: int) -> str:
        return f"{self._name}/{index}"

    def image_id(self, index: int) -> str:
        return f"{self._name}/{self.config.seed}/{index // self.texts}"

    @property
    def _name(self) -> str:
        return f"scenes/{self.kind.__name__.lower()}/{self.split}"


def _picture(source: SceneTask, index: int) -> Picture:
    """Returns the scene that `Scenes` has under the same index, with the same identity."""
    identity = f"scenes/{source.split}/{source.config.seed}/{index}"
    return Picture(source.record_id(index), make_scene(source.config, source.split, index), identity)


def _plain_text(source: SceneTask, index: int) -> PlainText:
    """Returns the caption that `Scenes` has under the same index, cleaned as it is for a model."""
    (caption,) = Scenes(source.config, source.split).record(index).captions
    return PlainText(source.record_id(index), clean_caption(caption, len(caption)))


def _entailment(source: SceneTask, index: int) -> Entailment:
    scene, hypothesis = entailment_example(source.config, source.split, index, source.texts)
    return Entailment(source.record_id(index), scene, hypothesis.text, hypothesis.label, source.image_id(index))


def _question(source: SceneTask, index: int) -> Question:
    scene, question = question_example(source.config, source.split, index, source.texts)
    return Question(source.record_id(index), scene, question.text, question.answers, source.image_id(index))


def _statement(source: SceneTask, index: int) -> PairStatement:
    example = pair_example(source.config, source.split, index)
    identity = source.image_id(index)
    return PairStatement(
        id=source.record_id(index),
        images=(example.left, example.right),
        statement=example.statement.text,
        label=example.label,
        image_ids=(f"{identity}/left", f"{identity}/right"),
        group=str(example.group),
    )


def _referring(source: SceneTask, index: int) -> Referring:
    scene, expression = referring_example(source.config, source.split, index)
    box, *proposals = (
        (float(x), float(y), float(width), float(height))
        for x, y, width, height in (expression.box, *expression.proposals)
    )
    record_id = source.record_id(index)
    return Referring(record_id, scene, expression.text, source.image_id(index), box, tuple(proposals), ref_id=record_id)


MAKERS: dict[type, Callable[[SceneTask, int], AnyRecord]] = {
    Picture: _picture,
    PlainText: _plain_text,
    Entailment: _entailment,
    Question: _question,
    PairStatement: _statement,
    Referring: _referring,
}
"""The function that makes a record, by the record's class."""


def open_scene_task(config: DataConfig, split: Split, kind: type[AnyRecord]) -> SceneTask:
    """Opens a split of a task's examples. Draws the sprites or loads them from the cache. Raises ValueError."""
    check(config.scenes)
    sprite_set(config.scenes)
    several = split == "train" and kind in (Entailment, Question)
    source = SceneTask(config.scenes, split, kind, texts=config.texts_per_image if several else 1)
    source.record(0)
    return source
