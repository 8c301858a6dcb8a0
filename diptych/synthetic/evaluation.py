"""Retrieval tests: scenes whose captions are each true of exactly one of them, and what nouns alone would reach.

N scenes, V different names.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from diptych.schema import ScenesConfig, Split
from diptych.synthetic.captions import Caption, describe, fullest, name_list
from diptych.synthetic.generator import Scene, make_scene, stream

_WORDINGS = 8
"""Captions tried for a scene before the fullest one."""
_DRAWS = 20
"""Scenes drawn for each one wanted before giving up."""


@dataclass(frozen=True)
class EvaluationSet:
    """One caption a scene: caption i is true of scene i and of no other."""

    scenes: tuple[Scene, ...]
    captions: tuple[Caption, ...]


class _Builder:
    """Takes scenes one by one and keeps every caption true of exactly one of them. Indexed by name."""

    def __init__(self) -> None:
        self.scenes: list[Scene] = []
        self.captions: list[Caption] = []
        self._scenes_with: defaultdict[str, set[int]] = defaultdict(set)
        self._captions_about: defaultdict[str, list[Caption]] = defaultdict(list)

    def true_of(self, caption: Caption) -> list[int]:
        """Which scenes so far a caption is true of."""
        holding = sorted((self._scenes_with[name] for name in set(caption.names)), key=len)
        candidates = set.intersection(*holding)
        return [index for index in candidates if caption.true_of(self.scenes[index])]

    def already_said(self, scene: Scene) -> bool:
        """Whether a caption of an earlier scene is true of this one too."""
        return any(caption.true_of(scene) for name in scene.kinds for caption in self._captions_about[name])

    def add(self, scene: Scene, caption: Caption) -> None:
        for name in scene.kinds:
            self._scenes_with[name].add(len(self.scenes))
        self._captions_about[caption.names[0]].append(caption)
        self.scenes.append(scene)
        self.captions.append(caption)


@lru_cache(maxsize=8)
def evaluation_set(config: ScenesConfig, split: Split) -> EvaluationSet:
    """The split's scenes in the order drawn, without those that no caption of their own could be found for.

    Captions name everything in the scene. Scenes of one object are left out where the configuration allows more: one
    thing alone is hardly ever one scene's own. A larger `evaluation_count` only adds scenes. Raises ValueError when
    the configuration allows too few scenes that differ.
    """
    fewest = min(2, config.objects[1])
    builder = _Builder()
    for index in range(_DRAWS * config.evaluation_count):
        scene = make_scene(config, split, index)
        if len(scene.objects) < fewest or builder.already_said(scene):
            continue
        caption = _own_caption(builder, scene, config)
        if caption:
            builder.add(scene, caption)
        if len(builder.scenes) == config.evaluation_count:
            return EvaluationSet(tuple(builder.scenes), tuple(builder.captions))
    raise ValueError(
        f"only {len(builder.scenes)} of {config.evaluation_count} {split} scenes have a caption true of no other: "
        "allow more objects (scenes.objects) or names (scenes.names=full), or ask for fewer (scenes.evaluation_count)"
    )


def _own_caption(builder: _Builder, scene: Scene, config: ScenesConfig) -> Caption | None:
    if config.language != "en":
        tried = iter([name_list(scene)])
    else:
        random = stream(config.seed, scene.split, scene.index, purpose=1)
        wordings = (describe(scene, random, config, complete=True) for _ in range(_WORDINGS))
        tried = (caption for captions in (wordings, [fullest(scene, config)]) for caption in captions)
    return next((caption for caption in tried if not builder.true_of(caption)), None)


def noun_set_ceiling(scenes: Sequence[Scene], captions: Sequence[Caption]) -> dict[str, float]:
    """Recall, in [0, 1], that a matcher reaches which sees of each side only the set of its nouns, expected over ties.

    It ranks by the overlap of the two sets (Jaccard), which puts a caption of the same nouns first. With b better ones
    and t tied ones (the right one among them), the right one's rank is uniform on b+1 … b+t. Keys as in the evaluation:
    `image_to_text.recall@1`, … `text_to_image.recall@10`. Caption i belongs to scene i.
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
