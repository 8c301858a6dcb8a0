"""Real broken files: each becomes an RGB picture or a named BadRecord with its reason, never anything else."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diptych.data.loader import PairLoader, evaluation_items
from diptych.data.pictures import LARGEST_PIXELS, open_picture, upright
from diptych.data.record import BadRecord
from diptych.data.sources.files import open_layout
from diptych.data.sources.folder import read_folder
from diptych.data.sources.jsonl import read_jsonl
from diptych.data.tokenizer import Tokenizer
from diptych.schema import DataConfig

open_folder = partial(open_layout, read_folder)
open_jsonl = partial(open_layout, read_jsonl)

PHOTO = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8).repeat(2, 0).repeat(2, 1)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


JPEG = encoded(Image.fromarray(PHOTO), "JPEG")
PNG = encoded(Image.fromarray(PHOTO), "PNG")


def png_header(width: int, height: int) -> bytes:
    """A valid PNG header that promises a picture of this size, and hardly any data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000))


def written(folder: Path, content: bytes, name: str = "a.jpg") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def shades(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


# --------------------------------------------------------------------------- pictures that cannot be used


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "picture empty"),
        (JPEG[:100], "picture truncated"),
        (JPEG[: len(JPEG) // 2], "picture truncated"),
        (PNG[: len(PNG) // 2], "picture truncated"),
        (b"<html><body>404 Not Found</body></html>", "not a picture"),
        (random.Random(0).randbytes(5000), "not a picture"),
        (JPEG[:3], "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (PNG[:60] + bytes(200) + PNG[260:], "picture broken"),
        (png_header(30_000, 30_000), "picture too large"),
        (png_header(2**31 - 1, 2**31 - 1), "picture too large"),
        (png_header(10_001, 10_001), "picture too large"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_broken_file_is_named_with_its_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(BadRecord) as caught:
        open_picture(written(tmp_path, content), "list:7")
    assert (caught.value.record, caught.value.reason) == ("list:7", reason)
    assert str(caught.value).startswith(f"list:7: {reason}")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # it comes back from a worker


def test_what_is_no_file_says_what_it_is_instead(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "dead.jpg").symlink_to("gone.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, reason, words in (
        ("absent.jpg", "picture missing", "absent.jpg"),
        ("x" * 5000, "picture missing", "too long"),
        ("a\0b.jpg", "picture missing", "null"),
        ("dead.jpg", "picture missing", "dead.jpg is a link to a file that is not there"),
        ("loop.jpg", "picture missing", "Too many levels of symbolic links"),
        ("folder.jpg", "not a picture", "a folder"),
        ("pipe.jpg", "not a picture", "no regular file"),
    ):
        with pytest.raises(BadRecord) as caught:
            open_picture(tmp_path / name, "list:7")
        assert caught.value.reason == reason
        assert words in caught.value.detail


def test_grey_values_of_a_byte_in_wider_numbers_keep_their_shade() -> None:
    grey = Image.new("L", (8, 8), 200)
    for mode in ("I", "F"):
        assert upright(grey.convert(mode)).getpixel((0, 0)) == (200, 200, 200)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(image: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    for name, size, reason in (
        ("bomb", (10_000, LARGEST_PIXELS // 10_000 + 1), "picture too large"),
        ("largest", (10_000, LARGEST_PIXELS // 10_000), "picture broken"),  # which is how our `decode` ends
    ):
        with pytest.raises(BadRecord) as caught:
            open_picture(written(tmp_path, png_header(*size)), name)
        assert caught.value.reason == reason


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_damage_anywhere_gives_a_picture_or_a_bad_record(tmp_path: Path, kind: str) -> None:
    rng = random.Random(kind)
    whole = encoded(Image.fromarray(PHOTO[:24, :32]), kind)
    failures = 0
    for _ in range(60):
        content = bytearray(whole[: rng.randint(1, len(whole))] if rng.random() < 0.3 else whole)
        for _ in range(rng.randint(0, 12)):
            content[rng.randrange(min(len(content), rng.choice((60, len(content)))))] = rng.randrange(256)
        try:
            assert open_picture(written(tmp_path, bytes(content)), "a").mode == "RGB"
        except BadRecord:
            failures += 1
    assert failures > 5


# --------------------------------------------------------------------------- unusual pictures that can


def test_sixteen_bits_are_scaled_to_eight_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256 * 16).reshape(16, 256).astype(np.uint16)
    for kind in ("PNG", "TIFF"):
        result = shades(open_picture(written(tmp_path, encoded(Image.fromarray(ramp), kind)), "a"))
        assert np.abs(result - (ramp / 257)[..., None]).max() <= 0.5 + 1e-9


def test_a_dark_sixteen_bit_picture_stays_dark(tmp_path: Path) -> None:
    image = Image.fromarray(np.full((4, 4), 2570, np.uint16))
    assert (shades(open_picture(written(tmp_path, encoded(image, "PNG")), "a")) == 10).all()


@pytest.mark.parametrize(
    ("values", "white"), [(np.array([[0, 0.5, 1]], np.float32), 1), (np.array([[0, 51, 255]], np.float32), 255)]
)
def test_floating_point_greys_keep_their_shades(tmp_path: Path, values: np.ndarray, white: int) -> None:
    result = shades(open_picture(written(tmp_path, encoded(Image.fromarray(values), "TIFF")), "a"))
    assert np.abs(result[..., 0] - values * 255 / white).max() <= 0.5


def test_cmyk_comes_out_in_its_colours(tmp_path: Path) -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # magenta and yellow: red
    red, green, blue = shades(open_picture(written(tmp_path, encoded(image, "JPEG")), "a"))[8, 8]
    assert red > 240
    assert max(green, blue) < 15


def test_transparency_is_shown_on_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (8, 8), (200, 0, 0, 0))
    clear.paste((0, 0, 200, 255), (0, 0, 4, 8))
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([200, 0, 0, 0, 0, 200])
    palette.paste(1, (0, 0, 4, 8))
    grey = Image.new("LA", (8, 8), (0, 0))
    grey.paste((99, 255), (0, 0, 4, 8))
    keyed = Image.new("RGB", (8, 8), (200, 0, 0))
    keyed.paste((0, 0, 200), (0, 0, 4, 8))
    cases = [
        encoded(clear, "PNG"),
        encoded(clear, "WEBP", lossless=True),
        encoded(palette, "PNG", transparency=0),
        encoded(palette, "GIF", transparency=0),
        encoded(grey, "PNG"),
        encoded(keyed, "PNG", transparency=(200, 0, 0)),
    ]
    for content in cases:
        result = shades(open_picture(written(tmp_path, content), "a"))
        assert (result[:, 4:] == 255).all()
        assert result[0, 0].tolist() in ([0, 0, 200], [99, 99, 99])


def test_palette_grey_and_one_bit_pictures_become_rgb(tmp_path: Path) -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    cases = [(palette, [10, 20, 30]), (Image.new("L", (4, 4), 77), [77] * 3), (Image.new("1", (4, 4), 1), [255] * 3)]
    for image, colour in cases:
        assert shades(open_picture(written(tmp_path, encoded(image, "PNG")), "a"))[0, 0].tolist() == colour


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_counts(tmp_path: Path, kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (shades(open_picture(written(tmp_path, content), "a")) == (200, 0, 0)).all()


def test_the_camera_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (32, 16), "black")
    image.paste((255, 255, 255), (0, 0, 16, 16))  # white on the left, as stored
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter: what is left comes to the top
    result = shades(open_picture(written(tmp_path, encoded(image, "JPEG", exif=exif, quality=95)), "a"))
    assert result.shape == (32, 16, 3)
    assert result[:12].min() > 200
    assert result[20:].max() < 50


def test_broken_metadata_does_not_cost_the_picture(tmp_path: Path) -> None:
    content = encoded(Image.fromarray(PHOTO), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage")
    assert open_picture(written(tmp_path, content), "a").size == (128, 96)


def test_large_jpegs_come_reduced_but_never_below_the_side_asked_for(tmp_path: Path) -> None:
    file = written(tmp_path, encoded(Image.new("RGB", (1600, 1200), "red"), "JPEG"))
    assert open_picture(file, "a").size == (1600, 1200)
    for least, size in ((300, (400, 300)), (301, (800, 600)), (1000, (1600, 1200)), (9, (200, 150))):
        assert open_picture(file, "a", least_side=least).size == size


# --------------------------------------------------------------------------- lists


LINES = [
    ('{"image": "a.png", "captions": ["a fox", "a red fox"], "image_id": 7}', None),
    ("{not json", "line is not JSON"),
    ('{"image": "a.png", "caption": "cut in the mid', "line is not JSON"),
    ('["a.png", "a fox"]', "not an object"),
    ("null", "not an object"),
    ("", None),
    ('{"caption": "a fox"}', "key missing"),
    ('{"image": "a.png"}', "key missing"),
    ('{"image": 3, "caption": "a fox"}', "wrong type"),
    ('{"image": "a.png", "caption": {"en": "a fox"}}', "wrong type"),
    ('{"image": "a.png", "captions": ["a fox", 3]}', "wrong type"),
    ('{"image": "a.png", "caption": "a fox", "image_id": [1]}', "wrong type"),
    ('{"image": "a.png", "captions": ["a fox"], "clean": ["a fox", "a dog"]}', "wrong type"),
    ('{"image": "a.png", "caption": ""}', "caption empty"),
    ('{"image": "a.png", "caption": " !? "}', "caption empty"),
    ('{"image": "a.png", "captions": []}', "caption empty"),
    ('{"image": "absent.png", "caption": "a fox"}', "picture missing"),
    ('{"image": "a.png", "caption": "half an emoji \\ud83d"}', "not Unicode"),
    ('{"image": "a.png", "caption": "\udcff"}', "line is not UTF-8"),
    ('{"id": "x", "image": "a.png", "caption": "a fox"}', None),
    ('{"id": "x", "image": "a.png", "caption": "a fox"}', "id repeated"),
]


def test_every_broken_line_is_named_by_file_and_line_with_its_reason(tmp_path: Path) -> None:
    written(tmp_path, PNG, "a.png")
    file = tmp_path / "pairs.jsonl"
    file.write_bytes("\n".join(line for line, _ in LINES).encode("utf-8", "surrogateescape"))
    source = open_jsonl(DataConfig(path=str(file), held_out=0.0), "train")
    expected = [(f"{file}:{n}", reason) for n, (_, reason) in enumerate(LINES, start=1) if reason]
    assert [(error.record, error.reason) for error in source.skipped] == expected
    assert [record.id for record in source.records] == [f"{file}:1", "x"]


def test_an_empty_caption_among_others_is_left_out_and_named(tmp_path: Path) -> None:
    written(tmp_path, PNG, "a.png")
    entry = {"image": "a.png", "captions": ["a fox", "...", "a red fox"], "clean": ["one", "two", "three"]}
    file = written(tmp_path, json.dumps(entry).encode(), "pairs.jsonl")
    source = open_jsonl(DataConfig(path=str(file), held_out=0.0), "train")
    assert source.records[0].captions == ("a fox", "a red fox")
    assert source.records[0].clean == ("one", "three")
    assert [str(error).split(" (")[0] for error in source.skipped] == [f"{file}:1, caption 2: caption empty"]


# --------------------------------------------------------------------------- all together


def _folder(folder: Path, good: int) -> Path:
    """Good pictures, and one of each damage, all with captions."""
    files = {f"good{n:02}.png": PNG for n in range(good)}
    files |= {
        "truncated.jpg": JPEG[:900],
        "empty.jpg": b"",
        "page.jpg": b"<html>",
        "bomb.png": png_header(40_000, 9000),
    }
    for name, content in files.items():
        written(folder, content, name)
        (folder / name).with_suffix(".txt").write_text("a picture of noise\n")
    return folder


def test_training_skips_and_counts_broken_pictures(tmp_path: Path) -> None:
    config = DataConfig(source="folder", path=str(_folder(tmp_path, 28)), held_out=0.0, workers=0)
    tokenizer = Tokenizer.train(["a picture of noise"], 60)
    pairs = PairLoader(open_folder(config, "train"), tokenizer, config, 16, 8, seed=0)
    batches = pairs.batches()
    for _ in range(2 * pairs.steps_per_epoch):
        next(batches)
    assert {error.record: error.reason for error in pairs.ledger.bad.values()} == {
        "truncated.jpg": "picture truncated",
        "empty.jpg": "picture empty",
        "page.jpg": "not a picture",
        "bomb.png": "picture too large",
    }


def test_a_given_evaluation_split_tolerates_none(tmp_path: Path) -> None:
    folder = _folder(tmp_path, 3)
    config = DataConfig(source="folder", path=str(folder), test_path=str(folder))
    with pytest.raises(
        ValueError, match="4 of 7 evaluation records cannot be read; evaluation tolerates none"
    ) as caught:
        list(evaluation_items(open_folder(config, "test"), config, 16))
    assert all(name in str(caught.value) for name in ("truncated.jpg", "empty.jpg", "page.jpg", "bomb.png"))
    (folder / "good00.txt").unlink()
    with pytest.raises(ValueError, match=r"1 records of the test split .* evaluation tolerates none") as opened:
        open_folder(config, "test")
    assert "good00.png: picture without text" in str(opened.value)
