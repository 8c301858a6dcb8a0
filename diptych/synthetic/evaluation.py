"""Generates retrieval tests, and computes the recall that a matcher of nouns alone would reach on them.

A test consists of scenes and captions, each of which is true of exactly one of the scenes. It is drawn from the scenes
of a split in order, as a pure function of (seed, split). N is the number of scenes and V that of different names.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np

from diptych.schema import ScenesConfig, Split
from diptych.synthetic.captions import Caption, describe, fullest, name_list
from diptych.synthetic.claims import alike
from diptych.synthetic.generator import Scene, make_scene, stream
from diptych.synthetic.sprites import sprite_set

_WORDINGS = 8
"""The number of captions that are tried for a scene before the fullest one."""
_DRAWS = 20
"""The number of scenes that are drawn per wanted scene before giving up."""


@dataclass(frozen=True)
class EvaluationSet:
    """Holds scenes with one caption each. Caption i is true of scene i and of no other."""

    scenes: tuple[Scene, ...]
    captions: tuple[Caption, ...]


class _Builder:
    """Collects scenes whose captions are true of exactly one of them. Scenes and captions are indexed by name."""

    def __init__(self) -> None:
        self.scenes: list[Scene] = []
        self.captions: list[Caption] = []
        self._scenes_with: defaultdict[str, set[int]] = defaultdict(set)
        self._captions_about: defaultdict[str, list[Caption]] = defaultdict(list)

    def true_of(self, caption: Caption) -> list[int]:
        """Returns the scenes so far of which a caption is true."""
        scenes_by_name = sorted((self._scenes_with[name] for name in set(caption.names)), key=len)
        candidates = set.intersection(*scenes_by_name)
        return [index for index in candidates if caption.true_of(self.scenes[index])]

    def is_described(self, scene: Scene) -> bool:
        """Returns whether the caption of an earlier scene is true of this one too."""
        return any(caption.true_of(scene) for name in scene.kinds for caption in self._captions_about[name])

    def add(self, scene: Scene, caption: Caption) -> None:
        for name in scene.kinds:
            self._scenes_with[name].add(len(self.scenes))
        self._captions_about[caption.names[0]].append(caption)
        self.scenes.append(scene)
        self.captions.append(caption)


@lru_cache(maxsize=8)
def evaluation_set(config: ScenesConfig, split: Split) -> EvaluationSet:
    """Returns the split's scenes in the order drawn, without those for which no unique caption could be drawn.

    Captions name everything in the scene. Scenes of one object are left out if the configuration allows more, because a
    single thing hardly ever identifies a scene. A larger `evaluation_count` only adds scenes. Raises ValueError if the
    configuration allows too few different scenes.
    """
    fewest = min(2, config.objects[1])
    builder = _Builder()
    for index in range(_DRAWS * config.evaluation_count):
        scene = make_scene(config, split, index)
        if len(scene.objects) < fewest or builder.is_described(scene):
            continue
        caption = _unique_caption(builder, scene, config)
        if caption:
            builder.add(scene, caption)
        if len(builder.scenes) == config.evaluation_count:
            return EvaluationSet(tuple(builder.scenes), tuple(builder.captions))
    raise ValueError(
        f"only {len(builder.scenes)} of {config.evaluation_count} {split} scenes have a caption true of no other: "
        "allow more objects (scenes.objects) or names (scenes.names=full), or ask for fewer (scenes.evaluation_count)"
    )


def _unique_caption(builder: _Builder, scene: Scene, config: ScenesConfig) -> Caption | None:
    """Draws a caption that is true of no earlier scene. Returns None if there is none."""
    if config.language != "en":
        candidates = iter([name_list(scene)])
    else:
        random = stream(config.seed, scene.split, scene.index, purpose=1)
        drawn = (describe(scene, random, config, complete=True) for _ in range(_WORDINGS))
        candidates = chain(drawn, [fullest(scene, config)])
    return next((caption for caption in candidates if not builder.true_of(caption)), None)


@dataclass(frozen=True)
class NounQueries:
    """Holds a query for each noun of the sprites, T in all, such as `a fox`, and which of N scenes show it."""

    texts: tuple[str, ...]
    shown_TN: np.ndarray
    """A noun that can mean the same as one in the scene counts as shown."""


def noun_queries(scenes: Sequence[Scene], config: ScenesConfig) -> NounQueries:
    """Makes a query of each noun that the configured sprites have, in the order of the sprites."""
    nouns = list(dict.fromkeys(sprite.noun for sprite in sprite_set(config).sprites))
    shown_TN = [
        [any(noun.singular == kind or alike(noun.singular, kind, config) for kind in scene.kinds) for scene in scenes]
        for noun in nouns
    ]
    return NounQueries(tuple(noun.phrase(1) for noun in nouns), np.array(shown_TN, dtype=bool))


def noun_set_ceiling(scenes: Sequence[Scene], captions: Sequence[Caption]) -> dict[str, float]:
    """Returns the expected recall, in [0, 1], of a matcher that sees only the set of nouns of each scene and caption.

    It ranks by the overlap of the two sets (Jaccard index), which puts a caption with the same nouns first. If b
    candidates are better and t are tied (including the right one), the right one's rank is uniform on b+1 … b+t. The
    keys are those of the evaluation, from `image_to_text.recall@1` to `text_to_image.recall@10`. Caption i belongs to
    scene i.
    """
    names = {name for scene in scenes for name in scene.kinds} | {
        name for caption in captions for name in caption.names
    }
    vocabulary = {name: column for column, name in enumerate(sorted(names))}
    images_NV = _one_hot([list(scene.kinds) for scene in scenes], vocabulary)
    texts_NV = _one_hot([list(caption.names) for caption in captions], vocabulary)
    shared_NN = images_NV @ texts_NV.T
    union_NN = images_NV.sum(axis=1)[:, None] + texts_NV.sum(axis=1)[None, :] - shared_NN
    score_NN = shared_NN / union_NN
    return {
        f"{way}.recall@{k}": _expected_recall(score, k)
        for way, score in (("image_to_text", score_NN), ("text_to_image", score_NN.T))
        for k in (1, 5, 10)
    }


def _one_hot(names: list[list[str]], vocabulary: dict[str, int]) -> np.ndarray:
    rows = np.zeros((len(names), len(vocabulary)))
    for row, present in zip(rows, names, strict=True):
        row[[vocabulary[name] for name in present]] = 1
    return rows


def _expected_recall(score: np.ndarray, k: int) -> float:
    right = np.diag(score)[:, None]
    better, tied = (score > right).sum(axis=1), (score == right).sum(axis=1)
    return float(np.clip((k - better) / tied, 0, 1).mean())
