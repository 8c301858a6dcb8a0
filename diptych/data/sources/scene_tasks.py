"""The source of made examples for the tasks: scenes with hypotheses, questions, statements or phrases, or alone.

What they say is made in diptych/synthetic/examples.py; here it becomes the tasks' records.
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
    """A split of examples of one task. Holds only its configuration: examples are made when asked for."""

    config: ScenesConfig
    split: Split
    kind: type[AnyRecord]
    skipped: tuple[BadRecord, ...] = ()

    def __len__(self) -> int:
        return self.config.count if self.split == "train" else self.config.evaluation_count

    def record(self, index: int) -> Any:
        """A record of `kind`. Raises IndexError, and ValueError where the configuration leaves nothing to say."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self._name} has {len(self)} records, asked for {index}")
        return MAKERS[self.kind](self, index)

    def pictures(self, record: Any) -> tuple[Image.Image, ...]:
        return tuple(render(scene, self.config) for scene in record.images)

    def name(self, index: int) -> str:
        return f"{self._name}/{index}"

    def image_id(self, index: int) -> str:
        return f"{self._name}/{self.config.seed}/{index}"

    @property
    def _name(self) -> str:
        return f"scenes/{self.kind.__name__.lower()}/{self.split}"


def _picture(source: SceneTask, index: int) -> Picture:
    """The scene that has a caption elsewhere, under the identity that it has there."""
    identity = f"scenes/{source.split}/{source.config.seed}/{index}"
    return Picture(source.name(index), make_scene(source.config, source.split, index), identity)


def _plain_text(source: SceneTask, index: int) -> PlainText:
    """What the scene's caption says elsewhere, cleaned as it is there."""
    (caption,) = Scenes(source.config, source.split).record(index).captions
    return PlainText(source.name(index), clean_caption(caption, len(caption)))


def _entailment(source: SceneTask, index: int) -> Entailment:
    scene, said = entailment_example(source.config, source.split, index)
    return Entailment(source.name(index), scene, said.text, said.label, source.image_id(index))


def _question(source: SceneTask, index: int) -> Question:
    scene, asked = question_example(source.config, source.split, index)
    return Question(source.name(index), scene, asked.text, asked.answers, source.image_id(index))


def _statement(source: SceneTask, index: int) -> PairStatement:
    made = pair_example(source.config, source.split, index)
    identity = source.image_id(index)
    return PairStatement(
        id=source.name(index),
        images=(made.left, made.right),
        statement=made.statement.text,
        label=made.label,
        image_ids=(f"{identity}/left", f"{identity}/right"),
        group=str(made.group),
    )


def _referring(source: SceneTask, index: int) -> Referring:
    scene, said = referring_example(source.config, source.split, index)
    x, y, width, height = map(float, said.box)
    proposals = tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in said.proposals)
    return Referring(
        source.name(index), scene, said.text, source.image_id(index), (x, y, width, height), proposals,
        ref_id=source.name(index),
    )  # fmt: skip


MAKERS: dict[type, Callable[[SceneTask, int], AnyRecord]] = {
    Picture: _picture,
    PlainText: _plain_text,
    Entailment: _entailment,
    Question: _question,
    PairStatement: _statement,
    Referring: _referring,
}
"""What makes a record, by its kind."""


def open_scene_task(config: DataConfig, split: Split, kind: type[AnyRecord]) -> SceneTask:
    """The split of a task's made examples. Draws the sprites, or loads them from the cache. Raises ValueError."""
    check(config.scenes)
    sprite_set(config.scenes)
    source = SceneTask(config.scenes, split, kind)
    source.record(0)
    return source
