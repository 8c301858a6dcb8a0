"""Checks the pointing game: what counts as pointing at a thing, and what a model that looks at it scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from diptych.evaluate import pointing
from diptych.evaluate.pointing import evaluate_pointing, mentioned, points_at
from diptych.predict import Predictor, load
from diptych.predict.explain import Explained, WordMap
from diptych.synthetic.evaluation import evaluation_set
from diptych.synthetic.generator import render
from tests.runs import save_run


def test_a_map_points_at_the_thing_whose_box_holds_the_centre_of_its_hottest_patch() -> None:
    heat = np.zeros((4, 4))
    assert not points_at(heat, (0, 0, 64, 64), side=64), "a map without heat points nowhere"
    heat[1, 2] = 1.0  # its centre: x 40, y 24
    assert points_at(heat, (36, 20, 8, 8), side=64)
    assert not points_at(heat, (41, 20, 8, 8), side=64)
    assert not points_at(heat, (36, 8, 8, 15), side=64)


def test_a_name_of_several_words_is_found_whole() -> None:
    read = ["a", "hot", "dog", "on", "a", "dog"]
    words = [WordMap(word, np.full((1, 1), float(number))) for number, word in enumerate(read)]
    assert [word.word for word in mentioned(words, "hot dog")] == ["hot", "dog"]
    assert mentioned(words, "dog") == words[2:3]
    assert not mentioned(words, "cat")


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return load(save_run(tmp_path_factory.mktemp("pointing"), "pretraining"), device="cpu")


def test_a_model_that_looks_at_what_a_word_names_points_always(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The maps are made from the scene itself: the words of a thing's name have heat where it stands."""
    config = replace(predictor.recipe.data.scenes, evaluation_count=30)
    scenes = {render(scene, config).tobytes(): scene for scene in evaluation_set(config, "test").scenes}

    def looks(_: Predictor, picture: Image.Image, text: str, kind: str) -> Explained:
        scene, words = scenes[picture.tobytes()], list[WordMap]()
        read = [word.strip(".,") for word in text.lower().split()]
        for word in read:
            heat = np.zeros((scene.side, scene.side))
            for name, members in scene.kinds.items():
                x, y, width, height = members[0].box
                if word in name.split() and kind == "attention":
                    heat[y : y + height, x : x + width] += 1
            words.append(WordMap(word, heat))
        return Explained(text, 1.0, tuple(words), (0,), "attention", picture)

    monkeypatch.setattr(pointing, "explain", looks)
    found = evaluate_pointing(predictor, scenes=30)
    assert found["attention.caption"] == found["attention.alone"] == 100
    assert found["grad_cam.caption"] == 0
    assert found["attention.other_word"] < 60
    assert 1 < found["chance"] < 40
    assert found["scenes"] >= 20


def test_the_measures_of_a_model_are_percentages(predictor: Predictor) -> None:
    found = evaluate_pointing(predictor, scenes=5)
    assert set(found) >= {"attention.caption", "grad_cam.alone", "attention.other_word", "chance", "scenes"}
    assert all(0 <= value <= 100 for value in found.values())
