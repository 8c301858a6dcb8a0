"""Tests foils and quadruples of made scenes, readers of published tests, and their measures."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from diptych.data.compositions import read_items
from diptych.evaluate.compositions import evaluate_compositions, evaluate_items, quadruple_measures
from diptych.predict import Predictor, load
from diptych.schema import ScenesConfig
from diptych.synthetic.captions import PHRASES, RelationFact
from diptych.synthetic.compositions import FOILS, foils, quadruples
from diptych.synthetic.generator import Scene, split_of
from diptych.synthetic.sprites import sprite_set
from tests.runs import save_run

CONFIG = ScenesConfig(sprites="shapes", objects=(2, 4), size=64)
WORDS = {words: relation for relation, ways in PHRASES.items() for words in ways}
RELATION = re.compile(f"^(.+?) ({'|'.join(sorted(WORDS, key=len, reverse=True))}) (.+)$")


def names(config: ScenesConfig) -> dict[str, tuple[str, int]]:
    """Maps the phrases of the nouns to their name and number."""
    nouns = {sprite.noun for sprite in sprite_set(config).sprites}
    return {noun.phrase(count): (noun.singular, count) for noun in nouns for count in range(1, 5)}


def holds(text: str, scene: Scene) -> bool:
    """Judges a text about a relation, about two numbers, or a list of nouns by the scene."""
    known = names(CONFIG)
    if match := RELATION.match(text):
        first, words, second = match.groups()
        return RelationFact(known[first][0], WORDS[words], known[second][0]).true_of(scene)
    things = [known[phrase] for phrase in text.split(" and ")]
    return all(len(scene.kinds.get(name, ())) >= count for name, count in things)


@pytest.mark.parametrize("kind", ["swap", "replace_noun", "replace_relation", "swap_number", "add_noun"])
def test_the_true_text_of_a_foil_is_true_and_the_false_one_false(kind: str) -> None:
    made = foils(kind, 60, CONFIG, "test")
    assert len({foil.scene.index for foil in made}) == 60
    for foil in made:
        assert holds(foil.true, foil.scene)
        assert not holds(foil.false, foil.scene)
    assert made == foils(kind, 60, CONFIG, "test")


def test_the_background_of_a_foil_is_another_one() -> None:
    for foil in foils("replace_background", 40, CONFIG, "test"):
        true, false = (text.split(" on ")[1].split(" ")[1] for text in (foil.true, foil.false))
        assert true == foil.scene.background != false


def test_swaps_and_word_orders_keep_the_words() -> None:
    for kind in ("swap", "word_order"):
        for foil in foils(kind, 40, CONFIG, "test"):
            assert foil.true != foil.false
            assert sorted(foil.true.split()) == sorted(foil.false.split())


def test_each_text_of_a_quadruple_is_true_of_its_scene_only() -> None:
    for made in quadruples(60, CONFIG, "test"):
        truths = [[holds(text, scene) for text in made.texts] for scene in made.scenes]
        assert truths == [[True, False], [False, True]]
        first, second = made.scenes
        assert sorted(item.sprite for item in first.objects) == sorted(item.sprite for item in second.objects)
        assert sorted(made.texts[0].split()) == sorted(made.texts[1].split())
        for item in second.objects:
            assert 0 <= item.x <= second.side - item.width
            assert 0 <= item.y <= second.side - item.height
        kinds = [sprite_set(CONFIG).sprites[item.sprite].key for item in second.objects]
        assert split_of(kinds, second.background) == "test"


def test_scenes_of_one_thing_leave_nothing_to_exchange() -> None:
    alone = ScenesConfig(sprites="shapes", objects=(1, 1), size=64)
    with pytest.raises(ValueError, match="hardly any scene leaves something to exchange for 5 of 'swap': allow more"):
        foils("swap", 5, alone, "test")


def test_quadruples_are_scored_as_in_winoground() -> None:
    """Of four items, one is right in both ways, one for its texts only, one for its pictures only, and one not."""
    scores = torch.tensor(
        [[[0.9, 0.1], [0.2, 0.8]], [[0.3, 0.1], [0.8, 0.9]], [[0.5, 0.9], [0.1, 0.95]], [[0.1, 0.1], [0.1, 0.1]]]
    )
    assert quadruple_measures(scores) == {"text": 50.0, "image": 50.0, "group": 25.0}


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return load(save_run(tmp_path_factory.mktemp("compositions"), "pretraining"), device="cpu")


def test_a_model_is_scored_by_similarity_match_and_blind(predictor: Predictor) -> None:
    measures = evaluate_compositions(predictor, 12)
    assert {name.split(".")[0] for name in measures} == {*FOILS, "quadruples"}
    assert all(0 <= value <= 100 for value in measures.values())
    assert measures["quadruples.blind.image"] == 0  # both pictures are the same
    assert {name.split(".")[1] for name in measures} == {"similarity", "match", "blind"}


# --------------------------------------------------------------------------- published tests

PUBLISHED: Mapping[str, Any] = {
    "winoground": [{"id": 0, "image_0": "a", "image_1": "b", "caption_0": "x y", "caption_1": "y x"}],
    "sugarcrepe": {"0": {"filename": "a.png", "caption": "x", "negative_caption": "y"}},
    "aro": [{"image_path": "a.png", "true_caption": "x", "false_caption": "y", "bbox_x": 2, "bbox_y": 3, "bbox_w": 4,
             "bbox_h": 5}],
    "valse": {"existence_0": {"image_file": "b.png", "caption": "x", "foil": "y", "mturk": {"caption": 3}},
              "existence_1": {"image_file": "b.png", "caption": "z", "foil": "y", "mturk": {"caption": 1}},
              "plurals_0": {"image_file": "a.png", "caption": ["x"], "foils": ["y"], "mturk": {"caption": 2}}},
}  # fmt: skip


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for place, name in enumerate("ab"):
        Image.new("RGB", (12, 12), (90 * place, 60, 30)).save(tmp_path / f"{name}.png")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("winoground", [("a.png", "b.png", "x y", "y x")]),
        ("sugarcrepe", [("a.png", "x", "y")]),
        ("aro", [("a.png", "x", "y")]),
        ("valse", [("b.png", "x", "y"), ("a.png", "x", "y")]),
    ],
)
def test_published_files_are_read(name: str, expected: list[tuple[str, ...]], pictures: Path) -> None:
    file = pictures / f"{name}.json"
    file.write_text(json.dumps(PUBLISHED[name]))
    items = read_items(file, pictures)
    assert [(*(path.name for path in item.pictures), *item.texts) for item in items] == expected
    assert items[0].box == ((2, 3, 4, 5) if name == "aro" else None)


def test_json_lines_are_read_as_a_list_is(pictures: Path) -> None:
    file = pictures / "examples.jsonl"
    (line,) = PUBLISHED["winoground"]
    file.write_text(f"{json.dumps(line)}\n\n{json.dumps(line)}\n")
    assert len(read_items(file, pictures)) == 2


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ([{"image": "a.png", "text": "x"}], "item 0: .* is no item of Winoground, SugarCrepe, ARO or VALSE"),
        ([{**PUBLISHED["winoground"][0], "image_1": "c"}], "no picture c in"),
        ({"e": {"image_file": "b.png", "caption": "x", "mturk": {"caption": 3}}}, "item e: 'foils' is missing"),
        ([], "holds no item"),
    ],
)
def test_a_mistake_in_a_published_file_is_named(plain: Any, message: str, pictures: Path) -> None:
    file = pictures / "items.json"
    file.write_text(json.dumps(plain))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_items(file, pictures)


@pytest.mark.parametrize("name", ["winoground", "aro"])
def test_published_items_are_scored(name: str, pictures: Path, predictor: Predictor) -> None:
    file = pictures / f"{name}.json"
    file.write_text(json.dumps(PUBLISHED[name]))
    measures = evaluate_items(predictor, read_items(file, pictures))
    wanted = {"similarity", "match", "blind"}
    assert {measure.split(".")[0] for measure in measures} == wanted
    assert ("match.group" in measures) == (name == "winoground")
