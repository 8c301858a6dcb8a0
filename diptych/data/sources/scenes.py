"""Serves generated pictures with captions: scenes of sprites (diptych/synthetic) as records."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from random import Random

from PIL import Image

from diptych.data.record import BadRecord, Part, Record
from diptych.schema import DataConfig, ScenesConfig, Split
from diptych.synthetic.captions import Caption, caption_parts, describe, name_list, true_phrases
from diptych.synthetic.evaluation import EvaluationSet, evaluation_set
from diptych.synthetic.generator import Box, Scene, check, make_scene, render, stream
from diptych.synthetic.noise import add_boilerplate, drop_words
from diptych.synthetic.sprites import sprite_set

_CAPTION, _NOISE, _MISMATCH = 1, 2, 3
"""Purposes of the random streams (`generator.stream`). Purpose 0 is the scene itself."""


@dataclass(frozen=True)
class SceneTruth:
    """Knows the facts of a scene and of its caption."""

    scene: Scene
    caption: Caption | None
    """None for a noisy caption, which is cut by its words."""
    language: str

    def parts(self) -> tuple[Part, ...]:
        """Returns the caption and the well-formed texts that state some of its facts; none for a list of names."""
        return self._parts

    @cached_property
    def _parts(self) -> tuple[Part, ...]:  # asked for three times a sample
        if self.caption is None or self.language != "en":
            return ()
        return tuple(Part(text, phrases) for text, phrases in caption_parts(self.caption, self.scene))

    def shown(self) -> tuple[str, ...]:
        """Returns the noun phrases that are true of the scene, and its background; names in other languages."""
        return true_phrases(self.scene) if self.language == "en" else tuple(self.scene.kinds)


@dataclass(frozen=True)
class Scenes:
    """Serves a split of generated scenes. It holds only its configuration; each scene is made when it is read.

    A training record is scene i with one caption, which is noisy with the configured probability. Validation and test
    have one clean caption per scene, which is true of no other scene of the split (`evaluation_set`, built once per
    process).
    """

    config: ScenesConfig
    split: Split
    skipped: tuple[BadRecord, ...] = ()

    def __len__(self) -> int:
        return self.config.count if self.split == "train" else self.config.evaluation_count

    def scene(self, index: int) -> Scene:
        """Returns the scene of record `index`: names, boxes, sizes, relations and background."""
        if self.split != "train":
            return self.evaluation.scenes[self._within(index)]
        return make_scene(self.config, self.split, self._within(index))

    def boxes(self, index: int) -> tuple[Box, ...]:
        """Returns x, y, width and height in pixels of each object of record `index`, from back to front."""
        return self.scene(index).boxes

    def caption(self, index: int) -> Caption:
        """Returns the clean caption of record `index`, with the facts that it states."""
        if self.split != "train":
            return self.evaluation.captions[self._within(index)]
        return self._describe(self.scene(index))

    def record(self, index: int) -> Record:
        scene = self.scene(index)
        caption = self.caption(index) if self.split != "train" else self._describe(scene)
        clean = caption.text
        text = self._given(caption, index)[0] if self.split == "train" else clean
        return Record(
            id=f"scenes/{self.split}/{index}",
            image=scene,
            captions=(text,),
            image_id=f"scenes/{self.split}/{self.config.seed}/{scene.index}",
            clean=(clean,) if text != clean else (),
            truth=SceneTruth(scene, caption if text == clean else None, self.config.language),
        )

    def given(self, index: int) -> Caption | None:
        """Returns the caption that record `index` shows, even if it is another scene's, with the facts that it states.

        None for a caption whose words noise has changed.
        """
        caption = self.caption(index)
        return self._given(caption, index)[1] if self.split == "train" else caption

    def picture(self, record: Record) -> Image.Image:
        return render(record.image, self.config)

    @property
    def evaluation(self) -> EvaluationSet:
        """The scenes and captions of an evaluation split."""
        assert self.split != "train"
        return evaluation_set(self.config, self.split)

    def _within(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"scenes/{self.split} has {len(self)} records, asked for {index}")
        return index

    def _describe(self, scene: Scene) -> Caption:
        if self.config.language != "en":
            return name_list(scene)
        return describe(scene, stream(self.config.seed, scene.split, scene.index, _CAPTION), self.config)

    def _given(self, clean: Caption, index: int) -> tuple[str, Caption | None]:
        """Returns the clean caption, or with the configured probabilities another scene's, or one as noisy as the
        web's; and what it states, None for changed words."""
        if self.config.mismatch and len(self) > 1:
            random = stream(self.config.seed, self.split, index, _MISMATCH)
            if random.random() < self.config.mismatch:
                return self._of_another(index, random)
        if not self.config.noise:
            return clean.text, clean
        random = stream(self.config.seed, self.split, index, _NOISE)
        if random.random() >= self.config.noise:
            return clean.text, clean
        kind = random.random()
        if kind < 1 / 3 and len(self) > 1:
            return self._of_another(index, random)
        return (drop_words if kind < 2 / 3 else add_boilerplate)(clean.text, random), None

    def _of_another(self, index: int, random: Random) -> tuple[str, Caption]:
        """Returns the caption of any other record."""
        caption = self.caption((index + 1 + int(random.random() * (len(self) - 1))) % len(self))
        return caption.text, caption


def open_scenes(config: DataConfig, split: Split) -> Scenes:
    """Opens a split of scenes. Draws the sprites or loads them from the cache. Raises ValueError."""
    check(config.scenes)
    sprite_set(config.scenes)
    return Scenes(config.scenes, split)
