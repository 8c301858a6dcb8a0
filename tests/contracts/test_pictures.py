"""The same picture in any form is one picture, no file takes more memory than its size, and nothing is passed over in
silence."""

from __future__ import annotations

import base64
import io
import math
import re
import struct
import tarfile
import tracemalloc
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.apps.index.items import read_items
from diptych.data import picture_kinds
from diptych.data.heatmap import BAR, FOUND, scaled_box
from diptych.data.picture_kinds import MAC_FILE, PassedOver, is_picture, passed_over
from diptych.data.picture_sizes import piece_sizes
from diptych.data.pictures import LARGEST_PIXELS, SLOW, open_picture, open_small, to_rgb
from diptych.data.record import BadRecord
from diptych.data.shards.index import Stamp, build_index, read_index
from diptych.data.sources.files import open_layout
from diptych.data.sources.folder import read_folder
from diptych.data.sources.img2dataset import read_img2dataset
from diptych.data.sources.pictures import read_pictures
from diptych.data.validate import validate
from diptych.predict.inputs import as_pictures, as_strings, open_any
from diptych.predict.results import Located
from diptych.schema import DataConfig, GroundingConfig
from diptych.tasks import grounding

PHOTO = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
TURNED = Image.Exif()
TURNED[0x0112] = 6


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def photo(**options: Any) -> bytes:
    return encoded(Image.fromarray(PHOTO), "PNG", **options)


def tiff(width: int, height: int, tile: tuple[int, int], content: bytes) -> bytes:
    """A grey TIFF that consists of one deflated tile."""
    tags = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile[0], 323: tile[1]}
    tags[325] = len(content)
    tags[324] = 8 + 2 + 12 * (len(tags) + 1) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + content


def bmp(width: int, height: int, commands: bytes) -> bytes:
    """A run-length coded grey BMP."""
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(commands), 0, 0, 256, 0)
    head += b"".join(bytes([level] * 3 + [0]) for level in range(256))
    return b"BM" + struct.pack("<IHHI", 14 + len(head) + len(commands), 0, 0, 14 + len(head)) + head + commands


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def avif(items: list[tuple[bytes, list[bytes]]], width: int = 16, height: int = 16) -> bytes:
    """An AVIF of items, each a kind and the parts of its content, whose header says `width` × `height`."""
    entries = [
        box(b"infe", bytes([2, 0, 0, 0]) + struct.pack(">HH4s", number, 0, kind) + b"\0")
        for number, (kind, _) in enumerate(items, 1)
    ]
    ispe = box(b"ispe", bytes(4) + struct.pack(">II", width, height))
    pixi, av1c = box(b"pixi", bytes(4) + bytes([3, 8, 8, 8])), box(b"av1C", bytes([0x81, 0, 0x0C, 0]))
    links = b"".join(struct.pack(">HBBBB", number, 3, 1, 2, 0x83) for number in range(1, len(items) + 1))
    props = box(b"ipco", ispe + pixi + av1c) + box(b"ipma", bytes(4) + struct.pack(">I", len(items)) + links)
    handler = box(b"hdlr", bytes(8) + b"pict" + bytes(13))
    fixed = handler + box(b"pitm", bytes(4) + struct.pack(">H", 1)) + box(b"iprp", props)
    fixed += box(b"iinf", bytes(4) + struct.pack(">H", len(items)) + b"".join(entries))
    begin = box(b"ftyp", b"avif" + bytes(4) + b"avifmif1miaf")

    def whole(data: int) -> bytes:
        places = bytes(4) + b"\x44\0" + struct.pack(">H", len(items))
        for number, (_, parts) in enumerate(items, 1):
            places += struct.pack(">HHH", number, 0, len(parts))
            for part in parts:
                places += struct.pack(">II", data, len(part))
                data += len(part)
        content = b"".join(part for _, parts in items for part in parts)
        return begin + box(b"meta", bytes(4) + fixed + box(b"iloc", places)) + box(b"mdat", content)

    return whole(len(whole(0)) - sum(len(part) for _, parts in items for part in parts))


def coded(image: Image.Image) -> bytes:
    """The AV1 units of a picture, from an AVIF that Pillow writes with its data at the end."""
    content = encoded(image, "AVIF", speed=10)
    return content[content.index(b"mdat") + 4 :]


# --------------------------------------------------------------------------- sizes


def lying() -> dict[str, bytes]:
    wide = Image.new("RGB", (500, 400))
    plain, jp2, units = encoded(wide, "AVIF", speed=10), encoded(wide, "JPEG2000"), coded(wide)
    padding = bytes([15 << 3 | 2]) + b"\xc0\xcf\x49" + bytes(1_206_208)
    true, said = struct.pack(">II", 500, 400), struct.pack(">II", 16, 16)
    return {
        "TIFF": tiff(16, 16, (16384, 16384), zlib.compress(bytes(1000))),
        "AVIF": plain.replace(b"ispe\0\0\0\0" + true, b"ispe\0\0\0\0" + said),
        "JPEG2000": jp2.replace(b"ihdr" + struct.pack(">II", 400, 500), b"ihdr" + said),
        "AVIF in two parts": avif([(b"av01", [units[:6], units[6:]])]),
        "AVIF behind padding": avif([(b"av01", [padding + units])]),
    }


def test_a_file_whose_pieces_are_larger_than_its_header_says_is_refused_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def decode(image: Image.Image) -> None:
        raise AssertionError("decoded")

    files = lying()
    for module in ("ImageFile.ImageFile", "AvifImagePlugin.AvifImageFile", "TiffImagePlugin.TiffImageFile"):
        monkeypatch.setattr(f"PIL.{module}.load", decode)
    for kind, content in files.items():
        with Image.open(io.BytesIO(content)) as image:
            assert image.size == (16, 16)
        with pytest.raises(BadRecord) as caught:
            open_picture(content, kind, most_pixels=10_000)
        assert caught.value.reason == "picture too large", kind
        assert "16 × 16 by its header" in caught.value.detail


def test_an_avif_that_cannot_be_followed_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    units = coded(Image.new("RGB", (30, 20)))
    assert open_picture(avif([(b"av01", [units])], 30, 20), "a").size == (30, 20)
    assert open_picture(avif([(b"av01", [units[:6], units[6:]])], 30, 20), "a").size == (30, 20)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("decoded"))
    monkeypatch.setattr("PIL.AvifImagePlugin.AvifImageFile.load", lambda image: pytest.fail("decoded"))
    whole, many = avif([(b"av01", [units])]), 10_001
    for content in (
        whole[:28] + box(b"free", b"") * many + whole[28:],
        avif([(b"av01", [b"\x7a\0" * many + units])]),
        avif([(b"av01", [units[:2], *[units[2:]] * 101])]),
        avif([(b"av01", [units[:2]])]),
    ):
        with pytest.raises(BadRecord, match="broken"):
            open_picture(content, "a")


def test_the_canvas_of_pictures_that_are_put_together_is_a_piece() -> None:
    image = Image.new("RGB", (16, 16))
    image.format = "AVIF"
    small, large = struct.pack(">4BHH", 0, 0, 0, 0, 500, 400), struct.pack(">4BII", 0, 1, 0, 0, 70_000, 4)
    laid_over = struct.pack(">2B4HHH", 0, 0, 0, 0, 0, 0, 300, 200)
    content = avif([(b"grid", [small]), (b"grid", [large]), (b"iovl", [laid_over])])
    sizes = [(piece.width, piece.height) for piece in piece_sizes(image, io.BytesIO(content))]
    assert sizes == [(500, 400), (70_000, 4), (300, 200)]


@pytest.mark.parametrize("size", [(16_700_000, 1), (1, 16_700_000)])
def test_a_picture_of_one_row_is_refused_before_it_is_decoded(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow fills 255 rows with zeros for four bytes of a BMP, and scaling such a side takes half a gigabyte."""
    honest = open_picture(bmp(8, 2, b"\x03\x07\0\0\0\x02\x02\0\x04\x09\0\0\0\x01"), "a")
    assert np.asarray(honest)[::-1, :, 0].tolist() == [[7, 7, 7, 0, 0, 0, 0, 0], [0, 0, 9, 9, 9, 9, 0, 0]]
    assert open_picture(bmp(65_535, 1, b"\0\x02\0\xff\0\x01"), "a").size == (65_535, 1)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("decoded"))
    with pytest.raises(BadRecord, match=r"too long .*; a side has at most 65,535"):
        open_picture(bmp(*size, b"\0\x02\0\xff\0\x01"), "a")


def test_honest_pieces_are_read() -> None:
    grey = np.arange(256, dtype=np.uint8)[None].repeat(256, 0)
    image = open_picture(tiff(16, 16, (256, 256), zlib.compress(grey.tobytes())), "tile")
    assert image.size == (16, 16)
    assert np.asarray(image)[3, :, 0].tolist() == list(range(16))
    clear = Image.new("RGBA", (300, 200), (9, 9, 9, 100))
    frames = [Image.new("RGB", (300, 200), colour) for colour in ("red", "blue")]
    for content in (
        encoded(clear, "AVIF", speed=10),
        encoded(frames[0], "AVIF", speed=10, save_all=True, append_images=frames[1:]),
        encoded(frames[0], "JPEG2000"),
        encoded(frames[0], "JPEG2000", no_jp2=True),
    ):
        assert open_picture(content, "a").size == (300, 200)


def test_the_limit_is_named_and_can_be_raised() -> None:
    content = photo().replace(struct.pack(">II", 40, 24), struct.pack(">II", LARGEST_PIXELS // 10_000 + 1, 10_000))
    check = zlib.crc32(content[12:29])
    content = content[:29] + struct.pack(">I", check) + content[33:]
    with pytest.raises(BadRecord, match=r"10001 × 10000 pixels; data\.largest_pixels allows 100,000,000"):
        open_picture(content, "a")
    with pytest.raises(BadRecord, match=r"40 × 24 pixels; --pixels allows 100\)"):
        open_picture(photo(), "a", most_pixels=100, limit="--pixels")
    with pytest.raises(BadRecord, match="largest_pixels allows 959"):
        open_any(photo(), 959)
    assert open_any(photo(), 960).size == (40, 24)


def test_a_field_of_the_data_sets_the_limit_for_training_and_validate(tmp_path: Path) -> None:
    for number in range(14):
        side = 40 if number == 3 else 20
        Image.new("RGB", (side, side), (number, 0, 0)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"a fox {number}")
    config = DataConfig(source="folder", path=str(tmp_path), largest_pixels=400)
    check = validate({"train": read_folder(str(tmp_path), config), "validation": empty(), "test": empty()}, config)
    assert [error.reason for error in check.splits[0].bad] == ["picture too large"]
    sources = [open_layout(read_folder, config, split) for split in ("train", "validation", "test")]
    refused = {error.record for source in sources for error in source.skipped}
    for source in sources:
        for index in range(len(source)):
            try:
                source.picture(source.record(index))
            except BadRecord as error:
                refused.add(error.record)
    assert refused == {"3.png"}


def empty() -> Any:
    from diptych.data.sources.listing import SourceListing

    return SourceListing(drawn=True)


def test_a_format_can_be_refused() -> None:
    content = encoded(Image.fromarray(PHOTO), "JPEG2000")
    with pytest.raises(BadRecord, match="format not accepted"):
        open_picture(content, "a", refused=("JPEG2000",))
    assert open_picture(photo(), "a", refused=("JPEG2000",)).size == (40, 24)


@pytest.mark.parametrize("kind", ["I;16", "F", "I"])
def test_grey_values_are_scaled_in_bounded_memory(kind: str) -> None:
    numbers = {"I;16": np.uint16, "F": np.float32, "I": np.int32}[kind]
    values = (np.arange(2000 * 2000, dtype=np.float64).reshape(2000, 2000) % 65536).astype(numbers)
    image = Image.fromarray(values)
    assert image.mode == kind
    tracemalloc.start()
    try:
        result = to_rgb(image)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 60e6  # the whole picture in double precision takes 32 MB, and that takes three of them
    assert np.abs(np.asarray(result)[::100, ::100, 0] - values[::100, ::100] / 257).max() <= 0.51


def test_a_part_of_a_shard_that_is_longer_than_the_shard_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(bytes(100))
    for part in ("0+4611686018427387904", "99999999999999999999+5", "90+20"):
        with pytest.raises(BadRecord):
            open_picture(f"{tmp_path}/a.tar@{part}", "a")


# --------------------------------------------------------------------------- headers


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def directory(entries: list[tuple[int, int, int]], content: bytes) -> bytes:
    """A TIFF directory of entries (tag, type, count). Values of more than four bytes all lie at the same place."""
    at = 8 + 2 + 12 * len(entries) + 4
    fields = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: at, 277: 1, 278: 8, 279: 64}
    packed = b"".join(struct.pack("<HHII", tag, kind, count, fields.get(tag, at)) for tag, kind, count in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4) + content


def grey(entries: list[tuple[int, int, int]], content: bytes) -> bytes:
    """A grey TIFF of 8 × 8 pixels with further entries."""
    plain = [(tag, 4, 1) for tag in (256, 257, 258, 259, 262, 273, 277, 278, 279)]
    return directory(sorted([entry for entry in plain if entry[0] not in [e[0] for e in entries]] + entries), content)


def with_exif(exif: bytes) -> dict[str, bytes]:
    """Pictures with EXIF data of any length. The one of a JPEG is cut into segments."""
    png, jpeg = photo(), encoded(Image.fromarray(PHOTO), "JPEG")
    idat, tables = png.index(b"IDAT") - 4, jpeg.index(b"\xff\xdb")
    parts = [b"Exif\0\0" + exif[start : start + 60_000] for start in range(0, len(exif), 60_000)]
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part for part in parts)
    return {"PNG": png[:idat] + chunk(b"eXIf", exif) + png[idat:], "JPEG": jpeg[:2] + segments + jpeg[tables:]}


MANY = [(40_000 + number, 7, 1_000_000) for number in range(100)]
"""Entries that name the same million bytes."""


def test_values_that_share_their_bytes_take_no_memory() -> None:
    content = bytes(1_000_000)
    honest = [(40_000, 7, 1_000_000), (274, 3, 1)]
    assert open_picture(grey(honest, content), "a").size == (8, 8)
    files = with_exif(directory(MANY, content))
    tracemalloc.start()
    try:
        with pytest.raises(BadRecord, match="directory whose entries claim more than the file can hold"):
            open_picture(grey(MANY, content), "a")
        for kind, file in files.items():  # broken EXIF data do not spoil a picture
            assert open_picture(file, kind).size == (40, 24)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 20e6


@pytest.mark.parametrize("entry", [(274, 5, 2_000), (273, 4, 1_100_000)])
def test_numbers_that_no_encoder_writes_are_not_converted(entry: tuple[int, int, int]) -> None:
    with pytest.raises(BadRecord, match="directory"):
        open_picture(grey([entry], bytes(5_000_000)), "a")


def test_the_orientation_of_a_directory_is_still_read() -> None:
    for kind, file in with_exif(TURNED.tobytes()).items():
        assert open_picture(file, kind).size == (24, 40)


def many_parts() -> dict[str, bytes]:
    png, jpeg, gif = photo(), encoded(Image.fromarray(PHOTO), "JPEG"), encoded(Image.new("P", (8, 8)), "GIF")
    idat, frame = png.index(b"IDAT") - 4, gif.index(b",")
    return {
        "JPEG segments": jpeg[:2] + b"\xff\xe3\0\2" * 30_000 + jpeg[2:],
        "JPEG of FF": jpeg[:2] + b"\xff" * 30_000 + jpeg[2:],
        "JPEG of EXIF": jpeg[:2] + b"\xff\xe1\0\x0aExif\0\0II" * 30_000 + jpeg[2:],
        "PNG chunks": png[:idat] + chunk(b"abCd", b"") * 30_000 + png[idat:],
        "PNG data": png[:idat] + chunk(b"IDAT", b"") * 30_000 + png[idat:],
        "PNG behind the data": png[:-12] + chunk(b"abCd", b"") * 30_000 + png[-12:],
        "GIF comment": gif[:frame] + b"!\xfe" + b"\1a" * 30_000 + b"\0" + gif[frame:],
        "GIF comments": gif[:frame] + b"!\xfe\1a\0" * 30_000 + gif[frame:],
        "PPM comment": b"P6\n#" + b"a" * 30_000 + b"\n8 8 255\n" + bytes(192),
        "PPM blanks": b"P6\n" + b" " * 30_000 + b"8 8 255\n" + bytes(192),
    }


@pytest.mark.parametrize("kind", many_parts())
def test_a_file_of_countless_parts_is_refused_soon(kind: str) -> None:
    with pytest.raises(BadRecord, match=r"^a: picture broken \(it consists of more than 20,000 parts"):
        open_picture(many_parts()[kind], "a")


def test_a_long_comment_and_many_rows_are_read() -> None:
    gif = encoded(Image.new("P", (8, 8)), "GIF", comment=b"a" * 100_000)
    assert open_picture(gif, "a").size == (8, 8)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8))
    for kind in ("PNG", "TIFF", "PPM", "GIF"):
        assert open_picture(encoded(noise, kind), "a").size == (600, 600)
    jpeg = encoded(Image.fromarray(PHOTO), "JPEG", icc_profile=bytes(15_000_000))
    assert open_picture(jpeg, "a").size == (40, 24)


def test_a_jpeg_of_countless_scans_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    jpeg = encoded(Image.fromarray(PHOTO), "JPEG", progressive=True)
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    behind = jpeg + b"\xff\xda" * 200  # as in the film of a motion photo
    assert open_picture(behind, "a").size == (40, 24)
    mark = b"\xff\xfe\x01\x92" + b"\xff\xda" * 200  # in a comment
    assert open_picture(jpeg[:2] + mark + jpeg[2:], "a").size == (40, 24)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("decoded"))
    for read in (open_picture, lambda content, name: open_small(content, name, 8)):
        with pytest.raises(BadRecord, match="more than 100 scans"):
            read(jpeg[:-2] + scan * 100 + jpeg[-2:], "a")


def test_comments_among_the_pixels_of_a_plain_picture_are_bounded() -> None:
    assert open_picture(b"P3 2 1 255\n# a\n1 2 3\n# b\n4 5 6\n", "a").size == (2, 1)
    with pytest.raises(BadRecord, match="more than 1,000 comments"):
        open_picture(b"P3 2 1 255\n" + b"#\n" * 1_001 + b"1 2 3 4 5 6\n", "a")


def test_formats_that_pillow_decodes_in_python_can_be_refused() -> None:
    slow = (b"P3 1 1 255\n1 2 3\n", b"P6 1 1 65535\n" + bytes(6), bmp(8, 1, b"\x08\x07\0\1"))
    for content in slow:
        open_picture(content, "a")
        with pytest.raises(BadRecord, match="in a form that takes too long: send JPEG or PNG"):
            open_picture(content, "a", refused=(SLOW,))
    for kind in ("PPM", "BMP"):
        assert open_picture(encoded(Image.fromarray(PHOTO), kind), "a", refused=(SLOW,)).size == (40, 24)


# --------------------------------------------------------------------------- forms


def test_the_same_picture_in_every_form_has_the_same_pixels(tmp_path: Path) -> None:
    content = photo(exif=TURNED)
    (tmp_path / "a.png").write_bytes(content)
    expected = np.asarray(open_picture(tmp_path / "a.png", "a"))
    assert expected.shape == (40, 24, 3)
    stream = io.BytesIO(content)
    stream.seek(0, 2)  # as after writing
    upright = expected.copy()
    tensor = torch.from_numpy(upright)
    with (tmp_path / "a.png").open("rb") as file, Image.open(tmp_path / "a.png") as opened:
        loaded = opened.copy()
        loaded.load()
        forms: dict[str, Any] = {
            "text": str(tmp_path / "a.png"), "path": tmp_path / "a.png", "bytes": content,
            "bytearray": bytearray(content), "view": memoryview(content), "stream": stream, "file": file,
            "url": "data:image/png;base64," + base64.b64encode(content).decode(), "opened": opened, "copied": loaded,
            "array": upright, "tensor": tensor, "channels": tensor.permute(2, 0, 1),
            "again": open_any(open_any(opened)),
        }  # fmt: skip
        for name, form in forms.items():
            inputs = as_pictures(form)
            assert inputs.single, name
            for _ in range(2):  # a result opens its picture again
                np.testing.assert_array_equal(np.asarray(open_any(inputs.items[0])), expected, err_msg=name)
        assert not as_pictures(list(forms.values())).single
    assert len(as_pictures(np.stack([upright, upright])).items) == 2
    assert as_pictures(np.array(["a.png", "b.png"])).items == ["a.png", "b.png"]
    assert open_any(upright[..., :1]).size == open_any(upright[..., 0]).size == (24, 40)


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (None, "the picture is None, no picture: give a file's path"),
        (math.nan, "the picture is NaN, no picture: give"),
        (["a.png", None], "picture 1 is None, no picture: give"),
        (["a.png", "b.png", float("nan")], "picture 2 is NaN, no picture: give"),
        ([7], "picture 0 is of type int, no picture: give"),
        ({"bytes": b"", "path": "a"}, "the picture is a dict with 'bytes', 'path', no picture: give the value"),
        (io.StringIO("a"), "a file object of text is no picture: open the file with mode 'rb'"),
    ],
)
def test_what_is_no_picture_is_named_in_one_sentence(form: Any, said: str) -> None:
    with pytest.raises(ValueError, match="picture") as caught:
        as_pictures(form)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["a", None], "item 1 of the texts is None, no text"),
        (np.array(["a", math.nan], dtype=object), "item 1 of the texts is NaN, no text"),
        ([["a"]], "item 0 of the texts is of type list, no text"),
        (b"a", "the texts are of type bytes: give a str, or a list of them"),
        ({"a": 1}, "the texts are of type dict: give a str, or a list of them"),
        (SimpleNamespace(columns=["a", "b"]), "a table with the columns a, b is given: name one of them"),
    ],
)
def test_what_is_no_text_is_named_with_its_place(texts: Any, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        as_strings(texts)


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (np.zeros((4, 4, 3), np.float32), "scale floating-point values in 0..1 by 255"),
        (torch.zeros(3, 4, 4), "a tensor of float32 [3, 4, 4] is no picture"),
        ("data:image/png;base64,@@@", "data URL: not a picture (its base64 is broken"),
        ("data:image/svg+xml,<svg/>", "data URL: not a picture (it does not begin with"),
        ("https://example.org/a.png", "addresses are not fetched"),
        (b"<svg xmlns='x'/>", "SVG (a drawing without pixels"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"", "picture empty"),
        ("", "its path is empty"),
        ("file:///home/me/a.png", "give the path itself, without file://"),
        (base64.b64encode(bytes(600)).decode(), "before base64 there must be data:image/jpeg;base64,"),
    ],
)
def test_what_cannot_be_opened_says_what_it_is(form: Any, said: str) -> None:
    with pytest.raises(ValueError, match="picture") as caught:
        open_any(as_pictures(form).items[0])
    assert said in str(caught.value)


# --------------------------------------------------------------------------- what is passed over


def odd_folder(folder: Path) -> Path:
    """A folder with two pictures, and ten files that a person might take for pictures."""
    folder.mkdir()
    for name in ("0.png", "1.JPG", "noextension"):
        Image.fromarray(PHOTO).save(folder / name, "PNG")
    for name in ("a.HEIC", "b.heic", "c.svg", "d.NEF", "e.jxl", "._0.png", ".thumb.jpg"):
        (folder / name).write_bytes(b"\0" * 20)
    for name in ("0.txt", "1.txt", "c.txt", "README"):
        (folder / name).write_text("a fox")
    (folder / "linked").symlink_to(folder.parent)
    return folder


EXPECTED = {"HEIC": 2, "SVG": 1, "camera RAW": 1, "JPEG XL": 1, "side file": 1, "hidden": 1, "without a suffix": 1}


def counted(seen: PassedOver) -> dict[str, int]:
    return {name: sum(n for reason, n in seen.counts.items() if name in reason) for name in EXPECTED | {"linked": 1}}


@pytest.fixture
def no_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_kinds, "reads_heif", lambda: False)


@pytest.mark.usefixtures("no_heif")
def test_what_looks_like_a_picture_and_is_passed_over_is_counted_in_one_line(tmp_path: Path) -> None:
    folder = odd_folder(tmp_path / "photos")
    config = DataConfig(source="folder", path=str(folder))
    listing = read_folder(str(folder), config)
    assert [record.id for record in listing.records] == ["0.png", "1.JPG"]
    assert listing.skipped == []  # c.txt stands beside c.svg
    for seen in (listing.passed_over, read_pictures(str(folder), config).passed_over, read_items(folder).passed_over):
        assert counted(seen) == {**EXPECTED, "linked": 1}
        assert str(seen).startswith("passed over 9: 2 × HEIC (needs pillow-heif: pip install 'diptych[heif]'), ")
        assert "\n" not in str(seen)
    text = validate({"train": listing, "validation": empty(), "test": empty()}, config).text()
    assert f"note: train: {listing.passed_over}" in text


@pytest.mark.usefixtures("no_heif")
def test_tars_follow_the_rule_of_folders(tmp_path: Path) -> None:
    folder = odd_folder(tmp_path / "photos")
    shard = tmp_path / "shards" / "0.tar"
    shard.parent.mkdir()
    with tarfile.open(shard, "w") as archive:
        for file in sorted(folder.iterdir(), key=lambda file: file.name.removeprefix("._")):
            if file.name != "linked":
                archive.add(file, file.name)
    expected = {**EXPECTED, "linked": 0}
    listing = read_img2dataset(str(shard), DataConfig())
    assert [record.id for record in listing.records] == ["0.tar/0", "0.tar/1"]
    assert listing.skipped == []
    assert counted(listing.passed_over) == expected
    index = build_index(shard, str(shard), Stamp.of(shard.stat()))
    assert len(index) == 2
    assert [error.reason for error in index.lost] == ["picture missing"]  # README
    index.write(tmp_path / "index")
    again = read_index(tmp_path / "index")
    assert again is not None
    assert index.passed_over == again.passed_over
    seen = PassedOver()
    seen.counts.update(again.passed_over)
    assert counted(seen) == expected


def test_heic_is_a_picture_where_it_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for installed in (True, False):
        monkeypatch.setattr(picture_kinds, "reads_heif", lambda installed=installed: installed)
        assert is_picture("IMG_0001.HEIC") is installed
        assert (passed_over("IMG_0001.HEIC") is None) is installed
    assert passed_over("photos/._IMG_0001.HEIC") == MAC_FILE


def test_heic_is_read_upright_and_its_true_size_is_checked() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    stream = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (200, 120), "red")).save(stream, exif=TURNED.tobytes())
    content = stream.getvalue()
    assert open_picture(content, "a").size == (120, 200)
    said, true = struct.pack(">II", 16, 16), struct.pack(">II", 200, 120)
    with pytest.raises(BadRecord, match="by its header, and a coded frame of"):
        open_picture(content.replace(b"ispe\0\0\0\0" + true, b"ispe\0\0\0\0" + said), "a", most_pixels=10_000)


# --------------------------------------------------------------------------- drawing


def test_a_large_picture_is_drawn_at_the_size_that_is_looked_at(tmp_path: Path) -> None:
    Image.new("RGB", (1500, 1000), "white").save(tmp_path / "a.jpg", exif=TURNED)  # upright 1000 × 1500
    found = Located("a fox", (500.0, 750.0, 250.0, 300.0), 0.5, np.ones((2, 2), np.float32), tmp_path / "a.jpg")
    drawn = found.draw()
    assert drawn.size == (683, 1024 + BAR)
    x, y, width, height = scaled_box(found.box, (1000, 1500), (683, 1024))
    left, top, right, bottom = round(x), round(y), round(x + width) - 1, round(y + height) - 1
    for place in ((left, top), (right, top), (left, bottom), (right, bottom)):
        assert drawn.getpixel(place) == FOUND
    assert found.draw(300).size == (200, 300 + BAR)
    assert found.draw(None).size == (1000, 1500 + BAR)
    with Image.open(tmp_path / "a.jpg") as opened:
        given = Located(found.phrase, found.box, 0.5, found.heat, opened)
        assert given.draw().size == drawn.size


def test_a_picture_to_look_at_keeps_its_true_size(tmp_path: Path) -> None:
    for size in ((1600, 1200), (1001, 1000), (30, 20), (2000, 3)):
        Image.new("RGB", size).save(tmp_path / "a.jpg", exif=TURNED)
        small, full = open_small(tmp_path / "a.jpg", "a", 100)
        assert full == size[::-1]
        assert max(small.size) == min(100, max(size))


def test_boxes_on_large_pictures_are_found_on_a_smaller_map(monkeypatch: pytest.MonkeyPatch) -> None:
    heat, config = torch.zeros(4, 4), GroundingConfig("itc", layer=1)
    heat[1, 2] = heat[2, 2] = 1.0
    whole = grounding.find_box(heat, (800, 600), (), config)
    offered = [(0.0, 0.0, 200.0, 100.0), (390.0, 140.0, 220.0, 320.0), (100.0, 100.0, 200.0, 100.0)]
    monkeypatch.setattr(grounding, "LARGEST_MAP", 40_000)
    sizes: list[tuple[int, int]] = []
    enlarge = grounding.enlarge
    monkeypatch.setattr(grounding, "enlarge", lambda heat, size: sizes.append(size) or enlarge(heat, size))
    assert np.abs(np.array(grounding.find_box(heat, (800, 600), (), config)) - whole).max() <= 8
    assert grounding.find_box(heat, (800, 600), offered, config) == offered[1]
    assert all(width * height <= 40_000 for width, height in sizes)
