"""Tests that scenes are pure functions, that splits share none, and that pixels agree with boxes and colours."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.data.sources.scenes import open_scenes
from diptych.schema import DataConfig, ScenesConfig
from diptych.synthetic.generator import BACKGROUNDS, Scene, make_scene, render

SHAPES = ScenesConfig(sprites="shapes", evaluation_count=50)
CURATED = ScenesConfig()
DIGEST = """
import hashlib
from diptych.data.sources.scenes import open_scenes
from diptych.schema import DataConfig, ScenesConfig
found = hashlib.sha256()
config = DataConfig(scenes=ScenesConfig(seed=3, noise=0.5, evaluation_count=30))
for split in ("train", "validation", "test"):
    source = open_scenes(config, split)
    for index in range(20):
        record = source.record(index)
        found.update(repr((record, source.boxes(index))).encode() + source.picture(record).tobytes())
print(found.hexdigest())
"""


def _pixels(scene: Scene, config: ScenesConfig) -> np.ndarray:
    return np.asarray(render(scene, config)).astype(int)


def _changed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a != b).any(axis=-1)


def _content(scene: Scene) -> tuple[str, tuple[str, ...]]:
    return scene.background, tuple(sorted(item.name for item in scene.objects))


def test_another_process_makes_the_same_records_and_pictures() -> None:
    digests = {
        subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(digests) == 1
    here: dict[str, object] = {}
    exec(DIGEST.replace("print(found.hexdigest())", ""), here)
    assert {here["found"].hexdigest() + "\n"} == digests  # type: ignore[attr-defined]


@settings(max_examples=30, deadline=None)
@given(index=st.integers(0, 10**9), seed=st.integers(-(2**40), 2**40), split=st.sampled_from(["train", "test"]))
def test_a_scene_is_a_function_of_its_arguments_alone(index: int, seed: int, split: str) -> None:
    config = replace(SHAPES, seed=seed)
    first = make_scene(config, split, index)
    make_scene(config, "train", index + 1)
    assert make_scene(config, split, index) == first
    assert make_scene(replace(config, noise=0.7, count=5), split, index) == first


def test_seeds_and_indices_give_different_scenes() -> None:
    scenes = {
        repr(make_scene(replace(SHAPES, seed=seed), "train", i).objects) for seed in (0, 1, -1) for i in range(200)
    }
    assert len(scenes) == 600


@pytest.mark.parametrize("config", [CURATED, replace(SHAPES, objects=(1, 2))], ids=["openmoji", "shapes"])
def test_no_content_stands_in_two_splits_whatever_the_seed(config: ScenesConfig) -> None:
    contents = {
        split: {
            _content(make_scene(replace(config, seed=seed), split, index)) for seed in (0, 7) for index in range(count)
        }
        for split, count in (("train", 1000), ("validation", 300), ("test", 300))
    }
    assert contents["train"].isdisjoint(contents["test"] | contents["validation"])
    assert contents["validation"].isdisjoint(contents["test"])


def test_the_evaluated_scenes_have_no_content_of_training() -> None:
    evaluated = {_content(scene) for scene in open_scenes(DataConfig(scenes=SHAPES), "test").evaluation.scenes}
    assert evaluated.isdisjoint({_content(make_scene(SHAPES, "train", index)) for index in range(2000)})


@settings(max_examples=40, deadline=None)
@given(
    index=st.integers(0, 10**6),
    size=st.sampled_from([32, 64, 96, 160]),
    objects=st.sampled_from([(1, 1), (1, 4), (3, 5), (8, 8)]),
)
def test_boxes_stay_inside_and_hardly_overlap(index: int, size: int, objects: tuple[int, int]) -> None:
    scene = make_scene(replace(SHAPES, size=size, objects=objects), "train", index)
    assert objects[0] <= len(scene.objects) <= objects[1]
    masks = []
    for x, y, width, height in scene.boxes:
        assert x >= 0
        assert y >= 0
        assert width > 0
        assert height > 0
        assert x + width <= size
        assert y + height <= size
        mask = np.zeros((size, size), dtype=bool)
        mask[y : y + height, x : x + width] = True
        masks.append(mask)
    for i, first in enumerate(masks):
        for second in masks[:i]:
            assert (first & second).sum() <= 0.15 * min(first.sum(), second.sum())


def test_removing_an_object_changes_its_box_and_nothing_else() -> None:
    for index in range(150):
        scene = make_scene(CURATED, "train", index)
        full = _pixels(scene, CURATED)
        for position, item in enumerate(scene.objects):
            others = scene.objects[:position] + scene.objects[position + 1 :]
            changed = _changed(full, _pixels(replace(scene, objects=others), CURATED))
            ys, xs = np.nonzero(changed)
            x, y, width, height = item.box
            assert xs.min() >= x
            assert ys.min() >= y
            assert xs.max() < x + width
            assert ys.max() < y + height
            if position == len(scene.objects) - 1:  # nothing covers the front one: its box is tight
                assert xs.max() - xs.min() + 1 >= width - 2
                assert ys.max() - ys.min() + 1 >= height - 2


def test_no_object_is_hidden() -> None:
    for index in range(200):
        scene = make_scene(CURATED, "train", index)
        full = _pixels(scene, CURATED)
        empty = _pixels(replace(scene, objects=()), CURATED)
        for position, item in enumerate(scene.objects):
            others = scene.objects[:position] + scene.objects[position + 1 :]
            seen = _changed(full, _pixels(replace(scene, objects=others), CURATED)).sum()
            alone = _changed(empty, _pixels(replace(scene, objects=(item,)), CURATED)).sum()
            assert seen >= 0.5 * alone > 0, (index, item.name)


def test_size_words_never_overlap() -> None:
    sides: dict[str, list[int]] = {"small": [], "medium": [], "large": []}
    for index in range(600):
        for item in make_scene(CURATED, "train", index).objects:
            sides[item.size].append(max(item.width, item.height))
    assert max(sides["small"]) + 2 < min(sides["medium"])
    assert max(sides["medium"]) + 2 < min(sides["large"])
    assert all(len(sizes) > 100 for sizes in sides.values())


def test_the_background_colour_is_the_one_named() -> None:
    for index in range(200):
        scene = make_scene(CURATED, "train", index)
        empty = _pixels(replace(scene, objects=()), CURATED).reshape(-1, 3)
        distances = [np.abs(empty - colour).max(axis=1) for colour in np.array(list(BACKGROUNDS.values()))]
        nearest = np.array(list(BACKGROUNDS))[np.argmin(distances, axis=0)]
        assert (nearest == scene.background).mean() > 0.85, (index, scene.background, Counter(nearest))


def test_relations_hold_for_all_objects_of_both_names() -> None:
    counts: Counter[str] = Counter()
    for index in range(300):
        scene = make_scene(CURATED, "train", index)
        for first, relation, second in scene.relations():
            counts[relation] += 1
            for a in (item for item in scene.objects if item.name == first):
                for b in (item for item in scene.objects if item.name == second):
                    dx, dy = 2 * (b.x - a.x) + b.width - a.width, 2 * (b.y - a.y) + b.height - a.height
                    assert {"left": dx > 0, "right": dx < 0, "above": dy > 0, "below": dy < 0}[relation]
                    assert (abs(dx) > abs(dy)) == (relation in ("left", "right"))
    assert min(counts.values()) > 50
    assert len(counts) == 4


def test_relations_come_in_opposite_pairs() -> None:
    opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}
    for index in range(200):
        relations = set(make_scene(CURATED, "train", index).relations())
        assert {(second, opposite[relation], first) for first, relation, second in relations} == relations


def test_every_sprite_and_background_and_several_of_a_kind_occur() -> None:
    scenes = [make_scene(CURATED, "train", index) for index in range(3000)]
    counts = Counter(item.name for scene in scenes for item in scene.objects)
    assert len(counts) >= 100
    assert max(counts.values()) < 3 * min(counts.values())
    assert len({scene.background for scene in scenes}) == len(BACKGROUNDS)
    assert {max(scene.counts.values()) for scene in scenes} >= {1, 2, 3}


def test_the_facts_of_the_caption_that_a_record_shows_are_known_unless_noise_changed_its_words() -> None:
    noisy = replace(SHAPES, count=300, mismatch=0.3, noise=0.5)
    source = open_scenes(DataConfig(scenes=noisy), "train")
    plain = open_scenes(DataConfig(scenes=replace(SHAPES, count=300)), "train")
    clean = {plain.caption(index).text for index in range(300)}
    for index in range(300):
        given, (text,) = source.given(index), source.record(index).captions
        assert (given is None) == (text not in clean), "words are dropped or added, so that no scene has the text"
        assert given is None or given.text == text
    assert {source.given(index) is None for index in range(300)} == {True, False}
    test = open_scenes(DataConfig(scenes=noisy), "test")
    assert test.given(0) == test.caption(0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(SHAPES, objects=(0, 3)), "scenes.objects"),
        (replace(SHAPES, objects=(3, 2)), "scenes.objects"),
        (replace(SHAPES, objects=(1, 40)), "scenes.objects"),
        (replace(SHAPES, size=16), "scenes.size"),
        (replace(SHAPES, noise=1.5), "scenes.noise"),
        (replace(SHAPES, count=0), "scenes.count"),
        (replace(SHAPES, language="de"), "openmoji"),
        (replace(CURATED, language="xx"), "emoji package has ar, de, en"),
    ],
)
def test_a_configuration_that_makes_no_scene_is_refused_in_its_own_words(config: ScenesConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_scenes(DataConfig(scenes=config), "train")
