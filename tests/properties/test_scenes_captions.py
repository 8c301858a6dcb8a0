"""Tests captions of scenes with an independent parser, which compares them with the boxes."""

from __future__ import annotations

import pickle
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import pytest

from diptych.data.sources.scenes import Scenes, open_scenes
from diptych.schema import DataConfig, ScenesConfig
from diptych.synthetic.evaluation import noun_set_ceiling
from diptych.synthetic.generator import BACKGROUNDS, Scene
from diptych.synthetic.sprites import sprite_set

COUNTS = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4}
SIDES = {"to the left of": "left", "left of": "left", "to the right of": "right", "right of": "right"} | {
    side: side for side in ("above", "below")
}
CURATED = ScenesConfig(evaluation_count=150)
SHAPES = ScenesConfig(sprites="shapes", evaluation_count=150)


# --------------------------------------------------------------------------- an independent reader


@dataclass
class Reading:
    """Holds the claims of a caption: (name, count, size word), (first name, side, second name), background."""

    things: list[tuple[str, int, str]]
    sides: list[tuple[str, str, str]]
    background: str | None


class Reader:
    """Parses the captions of one sprite set. Words that do not belong to the grammar are an error."""

    def __init__(self, config: ScenesConfig) -> None:
        self.singular = {sprite.noun.singular: sprite.noun.singular for sprite in sprite_set(config).sprites}
        self.plural = {sprite.noun.plural: sprite.noun.singular for sprite in sprite_set(config).sprites}
        nouns = "|".join(map(re.escape, sorted({*self.singular, *self.plural}, key=len, reverse=True)))
        self.phrase = re.compile(rf"\b({'|'.join(COUNTS)}) (?:(small|large) )?({nouns})\b")

    def read(self, text: str) -> Reading:
        text, background = self._background(text)
        opener = re.match(r"there (is|are) |a picture of ", text)
        text = text[opener.end() :] if opener else text
        matches = list(self.phrase.finditer(text))
        assert matches, text
        assert matches[0].start() == 0, text
        assert matches[-1].end() == len(text), text
        things = [self._thing(match) for match in matches]
        if opener and opener[1]:
            assert opener[1] == ("is" if things[0][1] == 1 else "are"), text
        sides = []
        for before, after, thing in zip(matches, matches[1:], things[1:], strict=False):
            link = text[before.end() : after.start()].strip()
            verb = re.match(r"(is|are) ", link)
            if verb:
                assert verb[1] == ("is" if things[0][1] == 1 else "are"), text
            side = re.sub(r"^(is|are|and) ", "", link)
            if side in SIDES:
                sides.append((things[0][0], SIDES[side], thing[0]))
            else:
                assert link in (",", "and", "with", ", with"), (link, text)
        return Reading(things, sides, background)

    def _background(self, text: str) -> tuple[str, str | None]:
        match = re.search(r" on (an?) (\w+) background$", text)
        if not match:
            return text, None
        assert match[2] in BACKGROUNDS
        assert match[1] == ("an" if match[2] == "orange" else "a")
        return text[: match.start()], match[2]

    def _thing(self, match: re.Match[str]) -> tuple[str, int, str]:
        number, size, noun = match.groups()
        names = self.singular if COUNTS[number] == 1 else self.plural
        assert noun in names, f"{match[0]}: number and noun disagree"
        if COUNTS[number] == 1:
            assert number == ("an" if (size or noun)[0] in "aeiou" else "a"), match[0]
        return names[noun], COUNTS[number], size or ""


def _middle(box: tuple[int, int, int, int]) -> tuple[float, float]:
    return box[0] + box[2] / 2, box[1] + box[3] / 2


def _beside(a: tuple[int, int, int, int], side: str, b: tuple[int, int, int, int]) -> bool:
    (ax, ay), (bx, by) = _middle(a), _middle(b)
    return {"left": ax < bx, "right": ax > bx, "above": ay < by, "below": ay > by}[side]


def _boxes(scene: Scene) -> dict[str, list[tuple[int, int, int, int]]]:
    boxes = defaultdict(list)
    for item in scene.objects:
        boxes[item.name].append(item.box)
    return boxes


def _strictly_true(reading: Reading, scene: Scene) -> bool:
    """Checks that counts, sizes and sides are exactly those of all objects that the words name."""
    boxes = _boxes(scene)
    sizes = {(item.name, item.size) for item in scene.objects}
    return (
        all(len(boxes[name]) == count for name, count, _ in reading.things)
        and all({s for n, s in sizes if n == name} == {size} for name, _, size in reading.things if size)
        and all(
            _beside(a, side, b) for first, side, second in reading.sides for a in boxes[first] for b in boxes[second]
        )
        and reading.background in (None, scene.background)
    )


def _generously_true(reading: Reading, scene: Scene) -> bool:
    """Checks generously: at least that many objects, and any object of a name."""
    boxes = _boxes(scene)
    sizes = Counter((item.name, item.size) for item in scene.objects)
    return (
        all((sizes[name, size] if size else len(boxes[name])) >= count for name, count, size in reading.things)
        and all(
            any(_beside(a, side, b) for a in boxes[first] for b in boxes[second])
            for first, side, second in reading.sides
        )
        and reading.background in (None, scene.background)
    )


# --------------------------------------------------------------------------- training captions


@pytest.mark.parametrize("config", [CURATED, SHAPES, replace(CURATED, objects=(4, 4))], ids=["curated", "shapes", "4"])
def test_every_caption_parses_and_is_true_of_its_scene(config: ScenesConfig) -> None:
    source, reader = open_scenes(DataConfig(scenes=config), "train"), Reader(config)
    seen: Counter[str] = Counter()
    for index in range(700):
        caption, scene = source.caption(index), source.scene(index)
        reading = reader.read(caption.text)
        assert _strictly_true(reading, scene), (index, caption.text)
        assert caption.true_of(scene)
        assert Counter(caption.names) == Counter(name for name, _, _ in reading.things)
        complete = len(reading.things) == len(scene.kinds)
        said = {"complete": complete, "partial": not complete, "background": reading.background}
        said |= {"relation": reading.sides, "two relations": len(reading.sides) > 1}
        said |= {"size": any(size for *_, size in reading.things), "number": any(n > 1 for _, n, _ in reading.things)}
        seen.update(what for what, is_so in said.items() if is_so)
    assert len(seen) == 7, seen
    assert min(seen.values()) > 15, seen


@pytest.mark.parametrize(
    ("field", "detail"),
    [
        ("complete", lambda reading, scene: len(reading.things) == len(scene.kinds)),
        ("background_said", lambda reading, scene: reading.background is not None),
        ("size_said", lambda reading, scene: any(size for *_, size in reading.things)),
        ("relation_said", lambda reading, scene: bool(reading.sides)),
    ],
)
def test_how_often_a_detail_is_said_is_a_field(field: str, detail: Callable[[Reading, Scene], bool]) -> None:
    reader, share = Reader(CURATED), {}
    for value in (0.0, 0.5, 1.0):
        source = open_scenes(DataConfig(scenes=replace(CURATED, objects=(3, 3), **{field: value})), "train")
        seen = [detail(reader.read(source.caption(index).text), source.scene(index)) for index in range(300)]
        share[value] = sum(seen) / len(seen)
    assert share[0.0] < share[0.5] - 0.1 < share[1.0] - 0.2
    if field in ("complete", "background_said"):  # the others need a picture that allows them
        assert share[1.0] == 1
    if field != "complete":  # what leaves out nothing by chance is complete too
        assert share[0.0] == 0
    with pytest.raises(ValueError, match=rf"scenes\.{field}=1\.5: a share lies between 0 and 1"):
        open_scenes(DataConfig(scenes=replace(CURATED, **{field: 1.5})), "train")


def test_the_facts_are_what_the_words_say() -> None:
    source, reader = open_scenes(DataConfig(scenes=CURATED), "train"), Reader(CURATED)
    others = [source.scene(index) for index in range(300)]
    for index in range(100):
        caption = source.caption(index)
        reading = reader.read(caption.text)
        for scene in others:
            assert caption.true_of(scene) == _generously_true(reading, scene), (caption, scene)


def test_the_full_set_has_well_formed_captions() -> None:
    source = open_scenes(DataConfig(scenes=ScenesConfig(names="full")), "train")
    for index in range(400):
        text = source.caption(index).text
        assert text == text.strip()
        assert not re.search(r"\b(a|an) (a|an)\b|  |\ba (?!euro|ewe|one)[aeio]", text), text


def test_captions_use_few_words() -> None:
    source = open_scenes(DataConfig(scenes=CURATED), "train")
    said = {word for index in range(1500) for word in re.findall(r"\w+", source.record(index).captions[0])}
    nouns = {form for sprite in sprite_set(CURATED).sprites for form in (sprite.noun.singular, sprite.noun.plural)}
    assert nouns & said
    assert len(said | nouns) < 250


# --------------------------------------------------------------------------- the retrieval test


@pytest.mark.parametrize("config", [CURATED, SHAPES], ids=["curated", "shapes"])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_each_evaluated_caption_is_true_of_exactly_one_scene(config: ScenesConfig, split: str) -> None:
    source, reader = open_scenes(DataConfig(scenes=config), split), Reader(config)
    scenes = [source.scene(index) for index in range(len(source))]
    for index in range(len(source)):
        (text,) = source.record(index).captions
        reading = reader.read(text)
        assert _strictly_true(reading, scenes[index]), text
        assert [i for i, scene in enumerate(scenes) if _generously_true(reading, scene)] == [index], text
        assert {name for name, _, _ in reading.things} == set(scenes[index].counts)
    assert np.mean([len(scene.objects) for scene in scenes]) >= 2
    assert len({source.record(index).image_id for index in range(len(source))}) == len(source)


def test_more_evaluated_scenes_only_add_to_fewer() -> None:
    few, many = (open_scenes(DataConfig(scenes=replace(CURATED, evaluation_count=n)), "test") for n in (40, 80))
    assert [few.record(i) for i in range(40)] == [many.record(i) for i in range(40)]


def test_too_few_different_scenes_are_reported_with_the_way_out() -> None:
    config = replace(SHAPES, objects=(1, 1), evaluation_count=120)
    with pytest.raises(ValueError, match=r"of 120 test scenes have a caption true of no other: allow more objects"):
        open_scenes(DataConfig(scenes=config), "test").record(0)


def test_the_noun_set_ceiling_is_the_mean_over_broken_ties() -> None:
    source = open_scenes(DataConfig(scenes=replace(SHAPES, objects=(1, 2), evaluation_count=60)), "test")
    scenes, captions = source.evaluation.scenes, source.evaluation.captions
    ceiling = noun_set_ceiling(scenes, captions)
    nouns = [{item.name for item in scene.objects} for scene in scenes]
    nouns_of_captions = [set(caption.names) for caption in captions]
    overlap = [[len(a & b) / len(a | b) for b in nouns_of_captions] for a in nouns]
    for way in ("image_to_text", "text_to_image"):
        rows = overlap if way == "image_to_text" else [list(column) for column in zip(*overlap, strict=True)]
        for k in (1, 5, 10):
            assert ceiling[f"{way}.recall@{k}"] == pytest.approx(_simulated(rows, k), abs=0.015)
    assert ceiling["image_to_text.recall@1"] < 1 == ceiling["image_to_text.recall@10"]


def _simulated(rows: list[list[float]], k: int, trials: int = 150) -> float:
    """Returns the mean recall@k over random orders of ties."""
    random, hits = Random(0), 0
    for _ in range(trials):
        for index, row in enumerate(rows):
            order = sorted(range(len(row)), key=lambda i: (-row[i], random.random()))
            hits += index in order[:k]
    return hits / trials / len(rows)


# --------------------------------------------------------------------------- noise


@pytest.mark.parametrize("share", [0.2, 0.7])
def test_the_noisy_share_is_as_asked_and_the_clean_caption_stays(share: float) -> None:
    clean = open_scenes(DataConfig(scenes=CURATED), "train")
    noisy = open_scenes(DataConfig(scenes=replace(CURATED, noise=share)), "train")
    count = 600
    changed = 0
    for index in range(count):
        was, record = clean.record(index), noisy.record(index)
        if record.clean:
            changed += 1
            assert record.clean == was.captions != record.captions
            assert record.captions[0].strip()
        else:
            assert record.captions == was.captions
        assert record.image == was.image
    # A word cannot be dropped from, nor another caption differ from, every caption: hence a little below the share.
    deviation = (share * (1 - share) / count) ** 0.5
    assert share - 4 * deviation - 0.02 <= changed / count <= share + 4 * deviation


def test_noise_is_of_three_kinds() -> None:
    source, reader = open_scenes(DataConfig(scenes=replace(CURATED, noise=1.0)), "train"), Reader(CURATED)
    kinds: Counter[str] = Counter()
    for index in range(900):
        record = source.record(index)
        text, clean = record.captions[0], (record.clean or record.captions)[0]
        rest = iter(clean.split(" "))
        if re.search(r"photo|download|wallpaper|sale|price|click", text):
            kinds["boilerplate"] += 1
        elif all(word in rest for word in text.split(" ")):
            kinds["dropped words"] += 1
        else:
            reader.read(text)
            kinds["another scene's"] += 1
    assert set(kinds) == {"boilerplate", "dropped words", "another scene's"}
    assert min(kinds.values()) > 240


def test_evaluation_is_never_noisy() -> None:
    quiet, loud = (open_scenes(DataConfig(scenes=replace(CURATED, noise=n)), "test") for n in (0.0, 0.9))
    for index in range(50):
        assert quiet.record(index) == loud.record(index)
        assert not loud.record(index).clean


# --------------------------------------------------------------------------- the source


@pytest.mark.parametrize("language", ["de", "fr", "es", "zh"])
def test_other_languages_list_names_of_the_same_pictures(language: str) -> None:
    config = replace(CURATED, language=language)
    here, there = open_scenes(DataConfig(scenes=CURATED), "train"), open_scenes(DataConfig(scenes=config), "train")
    names = {
        e.key: o.noun.singular for e, o in zip(sprite_set(CURATED).sprites, sprite_set(config).sprites, strict=True)
    }
    keys = {sprite.noun.singular: sprite.key for sprite in sprite_set(CURATED).sprites}
    for index in range(50):
        ours, theirs = here.record(index), there.record(index)
        expected = [names[keys[name]] for name in here.scene(index).counts]
        assert theirs.captions == (", ".join(expected),)
        assert here.picture(ours).tobytes() == there.picture(theirs).tobytes()
    assert len({open_scenes(DataConfig(scenes=config), "test").record(index).captions for index in range(150)}) == 150


def test_a_source_travels_to_another_process_small_and_equal() -> None:
    source = open_scenes(DataConfig(scenes=CURATED), "test")
    source.record(0)
    packed = pickle.dumps(source)
    assert len(packed) < 2000
    copy = pickle.loads(packed)
    assert isinstance(copy, Scenes)
    assert copy.record(7) == source.record(7)
    assert pickle.loads(pickle.dumps(source.record(7))) == source.record(7)


def test_records_are_named_once_and_pictures_are_rgb_of_the_size() -> None:
    source = open_scenes(DataConfig(scenes=replace(CURATED, size=96)), "train")
    records = [source.record(index) for index in range(200)]
    assert len(source) == 100_000
    assert [record.id for record in records[:2]] == ["scenes/train/0", "scenes/train/1"]
    assert len({record.image_id for record in records}) == 200
    picture = source.picture(records[3])
    assert (picture.mode, picture.size) == ("RGB", (96, 96))
    assert source.boxes(3) == tuple(item.box for item in source.scene(3).objects)
    assert source.skipped == ()


@pytest.mark.parametrize(("split", "index"), [("train", 100_000), ("train", -1), ("test", 150)])
def test_an_index_outside_the_split_is_an_error(split: str, index: int) -> None:
    with pytest.raises(IndexError, match=f"scenes/{split} has"):
        open_scenes(DataConfig(scenes=CURATED), split).record(index)
