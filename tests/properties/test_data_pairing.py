"""Tests that nothing is paired by position or by name without a check, and that what could be meant twice is named."""

from __future__ import annotations

import gzip
import json
import re
import tarfile
import zlib
from pathlib import Path
from typing import Any

import pytest

from diptych.catalog import open_source, read_splits
from diptych.data.record import BadRecord, Picture
from diptych.data.shards.index import Stamp, build_index, read_index
from diptych.data.sources.conceptual import read_conceptual
from diptych.data.sources.folder import read_folder
from diptych.data.sources.img2dataset import read_img2dataset
from diptych.data.sources.jsonl import read_jsonl
from diptych.data.sources.sbu import read_sbu
from diptych.data.validate import validate
from diptych.schema import DataConfig
from tests.layouts import lines, picture, write
from tests.shards import jpeg, pair, tar


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))


def config(**changes: Any) -> DataConfig:
    return DataConfig(**{"held_out": 0.0, "workers": 0, "lanes": 1, **changes})


# --------------------------------------------------------------------------- rows and numbered pictures


def conceptual(folder: Path, first: str, count: int = 6, begin: int = 0) -> Path:
    """A TSV with a first line of its own, and pictures that are numbered from `begin`."""
    for number in range(count):
        picture(folder / f"images/{number + begin}.jpg", number)
    rows = [f"caption {number}\thttp://example.org/{number}.jpg" for number in range(count)]
    return write(folder / "list.tsv", first + "\n".join(rows) + "\n")


@pytest.mark.parametrize("first", ["", "caption\turl\n", "\ufeffCaption\tURL\n", "alt_text\timage_url\r\n"])
def test_a_header_row_is_not_counted_as_a_row(tmp_path: Path, first: str) -> None:
    listing = read_conceptual(str(conceptual(tmp_path, first)), config())
    assert [(Path(record.image).stem, record.captions) for record in listing.records] == [
        (str(number), (f"caption {number}",)) for number in range(6)
    ]
    assert listing.skipped == []
    assert any("by their number alone" in note for note in listing.notes)
    assert any("names the columns" in note for note in listing.notes) == bool(first)


def test_a_first_row_that_may_be_either_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"list\.tsv:1: the first row .* has no address\. Remove it if it names"):
        read_conceptual(str(conceptual(tmp_path, "Bildtext\tOrt\n")), config())


@pytest.mark.parametrize(
    "row",
    ["caption,url", "", "  ", "# CC3M", "caption", "caption\turl\tlabels", "\tcaption\turl", "a fox\thttp://a\tx"],
)
@pytest.mark.parametrize("place", [0, 3])
def test_a_row_that_programs_count_or_not_is_refused_where_only_numbers_pair(
    tmp_path: Path, row: str, place: int
) -> None:
    file = conceptual(tmp_path, "")
    rows = file.read_text().splitlines()
    write(file, "\n".join([*rows[:place], row, *rows[place:]]) + "\n")
    with pytest.raises(ValueError, match=rf"list\.tsv:{place + 1}: the (first )?row .* Remove it if it names"):
        read_conceptual(str(file), config())


def test_a_row_that_may_not_count_harms_no_pair_that_is_proven_or_before_it(tmp_path: Path) -> None:
    file = conceptual(tmp_path, "")
    file.write_text(file.read_text() + "\n\n")
    assert len(read_conceptual(str(file), config()).records) == 6
    file.write_text("\n" + file.read_text())
    for number in range(6):
        check = zlib.crc32(f"http://example.org/{number}.jpg".encode())
        (tmp_path / f"images/{number}.jpg").rename(tmp_path / f"images/{number + 1}_{check}.jpg")
    listing = read_conceptual(str(file), config())
    assert [record.captions for record in listing.records] == [(f"caption {number}",) for number in range(6)]


def test_empty_lines_at_the_end_hide_no_counting_from_one(tmp_path: Path) -> None:
    file = conceptual(tmp_path, "", begin=1)
    file.write_text(file.read_text() + "\n\n")
    with pytest.raises(ValueError, match="no picture has 0: "):
        read_conceptual(str(file), config())


@pytest.mark.parametrize(("first", "why"), [("caption\turl\n", "the header row was counted"), ("", "began at 1")])
def test_pictures_that_are_counted_from_one_are_refused(tmp_path: Path, first: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"no picture has 0: .*{why}"):
        read_conceptual(str(conceptual(tmp_path, first, begin=1)), config())


def test_a_row_without_exactly_one_address_is_no_pair(tmp_path: Path) -> None:
    file = conceptual(tmp_path, "", count=3)
    file.write_text(file.read_text() + "1.jpg#0\ta fox\nhttp://a/1.jpg\thttp://a/2.jpg\n")
    listing = read_conceptual(str(file), config())
    assert [(error.reason, error.detail.partition(",")[0]) for error in listing.skipped] == [
        ("row wrong", "no address"),
        ("row wrong", "two addresses"),
    ]
    assert any("list.tsv:4 on, the pairs are wrong if" in note for note in listing.notes)


def test_columns_of_sbu_that_are_exchanged_are_refused(tmp_path: Path) -> None:
    urls = write(tmp_path / "urls.txt", "http://a/1.jpg\nhttp://a/2.jpg\n")
    captions = write(tmp_path / "captions.txt", "a fox\na dog\n")
    with pytest.raises(ValueError, match="only 0 of 2 addresses are addresses"):
        read_sbu(f"{captions},{urls}", config())
    with pytest.raises(ValueError, match="only 0 of 2 captions are captions"):
        read_sbu(f"{urls},{urls}", config())


@pytest.mark.parametrize("caption", ["{}.jpg", "http://example.org/{}"])
def test_captions_that_are_paths_or_addresses_are_refused(tmp_path: Path, caption: str) -> None:
    for number in range(4):
        picture(tmp_path / f"{number}.jpg")
    entries: list[object] = [{"image": f"{number}.jpg", "caption": caption.format(number)} for number in range(4)]
    settings = config(source="jsonl", path=str(lines(tmp_path / "list.jsonl", entries)))
    with pytest.raises(ValueError, match="4 of 4 captions are no texts but paths or addresses"):
        open_source(settings, "train")
    with pytest.raises(ValueError, match="4 of 4 captions are no texts but paths or addresses"):
        read_splits(settings)


# --------------------------------------------------------------------------- names of members


def versions(count: int) -> list[tuple[str, bytes]]:
    """Samples a0.v1, a0.v2, a1.v1 and so on, of which the number is their shade and in their text."""
    members = []
    for number in range(count):
        key = f"a{number // 2}.v{number % 2 + 1}"
        members += [(f"{key}.png", jpeg(number)), (f"{key}.txt", f"number {number}".encode())]
    return members


def shown(source: Any) -> list[tuple[str, int]]:
    """The caption of each record and the shade of its picture."""
    records = [source.record(index) for index in range(len(source))]
    return [(record.captions[0], source.picture(record).getpixel((3, 3))[0]) for record in records]


@pytest.mark.parametrize("layout", ["shards", "img2dataset"])
def test_names_with_dots_are_split_where_samples_stay_whole(
    tmp_path: Path, layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tar(tmp_path / "versions.tar", versions(8))
    tar(tmp_path / "views.tar", [
        (f"{number}.{name}", content)
        for number in range(3)
        for name, content in (("rgb.jpg", jpeg(number)), ("txt", f"number {number}".encode()))
    ])  # fmt: skip
    settings = config(source=layout, path=str(tmp_path / "versions.tar"))
    assert shown(open_source(settings, "train")) == [(f"number {number}", number) for number in range(8)]
    assert "up to the last dot" in capsys.readouterr().err
    settings = config(source=layout, path=str(tmp_path / "views.tar"))
    assert shown(open_source(settings, "train")) == [(f"number {number}", number) for number in range(3)]


def test_the_field_decides_instead_and_an_index_by_another_rule_is_not_used(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", versions(8))
    settings = config(source="shards", path=str(tmp_path / "a.tar"))
    assert len(open_source(settings, "train")) == 8
    by_first = config(source="shards", path=str(tmp_path / "a.tar"), sample_names="first_dot")
    source = open_source(by_first, "train")
    assert len(source) == 4
    with pytest.raises(BadRecord, match="sample ambiguous"):
        source.record(0)
    index = read_index(tmp_path / "a.tar.index")
    assert index is not None
    assert (index.naming, index.chosen) == ("first_dot", False)
    assert len(open_source(settings, "train")) == 8


def test_an_index_of_an_earlier_version_gives_no_wrong_text(tmp_path: Path) -> None:
    file = tar(tmp_path / "a.tar", versions(4))
    index = build_index(file, str(file), Stamp.of(file.stat()), "first_dot")
    index.write(tmp_path / "a.tar.index")
    place = tmp_path / "a.tar.index"
    head, rest = place.read_bytes().split(b"\n", 1)
    old = {key: value for key, value in json.loads(head).items() if key not in ("naming", "chosen")}
    place.write_bytes(json.dumps(old).encode().ljust(len(head)) + b"\n" + rest)
    source = open_source(config(source="shards", path=str(file), bad_share=1.0), "train")
    assert len(source) == 2
    with pytest.raises(BadRecord, match=r"sample ambiguous \(it has several members \.txt: remove the shard's \.index"):
        source.record(0)


def test_of_two_pictures_the_one_that_is_named_as_the_text_is_described(tmp_path: Path) -> None:
    def sample(key: str, *names: str) -> list[tuple[str, bytes]]:
        pictures = [(f"{key}.{name}", jpeg(place)) for place, name in enumerate(names)]
        return [*pictures, (f"{key}.txt", b"a fox")]

    tar(
        tmp_path / "a.tar", [*sample("1", "seg.png", "jpg"), *sample("2", "jpg", "png"), *sample("3", "a.jpg", "b.jpg")]
    )
    source = open_source(config(source="shards", path=str(tmp_path / "a.tar")), "train")
    assert source.picture(source.record(0)).getpixel((3, 3)) == (1, 1, 1)
    for index in (1, 2):
        with pytest.raises(BadRecord, match="sample ambiguous"):
            source.record(index)
    listing = read_img2dataset(str(tar(tmp_path / "b.tar", sample("2", "jpg", "png"))), config())
    assert [error.reason for error in listing.skipped] == ["sample ambiguous"]
    both = open_source(config(source="pictures", path=str(tmp_path / "b.tar")), "train", Picture)
    assert len(both) == 2


def test_pictures_without_texts_are_all_read(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", [member for member in versions(8) if member[0].endswith(".png")])
    assert len(open_source(config(source="shards", path=str(tmp_path / "a.tar")), "train", Picture)) == 8


def test_members_that_do_not_stand_together_are_named_once_with_the_way_out(tmp_path: Path) -> None:
    members = [member for number in range(30) for member in pair(number)]
    apart = sorted(members[:60], key=lambda member: member[0].rpartition(".")[2])
    file = tar(tmp_path / "a.tar", [*apart, *members[60:]])
    settings = config(source="shards", path=str(file))
    source = open_source(settings, "train")
    assert len(source) == 10
    (error,) = source.skipped
    assert (error.reason, error.count) == ("members apart", 20)
    assert "tar --sort=name" in error.detail
    check = validate(read_splits(settings), settings)
    assert not check.ready
    assert "20 × members apart" in check.text()
    assert len(read_img2dataset(str(file), config()).records) == 30


# --------------------------------------------------------------------------- texts of other systems


def test_backslashes_of_windows_lead_to_their_pictures(tmp_path: Path) -> None:
    picture(tmp_path / "photos/a.jpg")
    entries: list[object] = [{"image": "photos\\a.jpg", "caption": "a fox"}, {"image": "photos\\b.jpg", "caption": "b"}]
    listing = read_jsonl(str(lines(tmp_path / "list.jsonl", entries)), config())
    assert [(record.image, record.image_id) for record in listing.records] == [
        (str(tmp_path / "photos/a.jpg"), "photos/a.jpg")
    ]
    assert [error.reason for error in listing.skipped] == ["picture missing"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_texts_in_utf_16_are_named_and_never_read_as_letters_with_zeros(tmp_path: Path, encoding: str) -> None:
    picture(tmp_path / "photos/a.jpg")
    (tmp_path / "photos/a.txt").write_bytes("a fox\r\n".encode(encoding))
    (error,) = read_folder(str(tmp_path / "photos"), config()).skipped
    assert error.reason == "text is not UTF-8"
    assert "UTF-16" in error.detail
    (tmp_path / "list.jsonl").write_bytes('{"image": "photos/a.jpg", "caption": "a fox"}\r\n'.encode(encoding))
    with pytest.raises(ValueError, match=r"list\.jsonl is UTF-16, .*Save it as UTF-8"):
        read_jsonl(str(tmp_path / "list.jsonl"), config())


def test_other_encodings_and_ends_of_lines_are_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_bytes("ein Gebäude".encode("cp1252"))
    (error,) = read_folder(str(tmp_path), config()).skipped
    assert error.reason == "text is not UTF-8"
    assert "cp1252" in error.detail
    file = write(tmp_path / "list.jsonl", "")
    file.write_bytes(b'{"image": "a.jpg", "caption": "a"}\r{"image": "a.jpg", "caption": "b"}\r')
    with pytest.raises(ValueError, match="end with CR alone"):
        read_jsonl(str(file), config())


# --------------------------------------------------------------------------- what a tar holds


@pytest.mark.parametrize("source", ["shards", "img2dataset", "auto"])
@pytest.mark.parametrize(
    ("suffix", "content"),
    [("json", {"text": "a fox"}), ("json", {"captions": ["a fox"]}), ("caption", "a fox")],
    ids=["text", "captions", "member"],
)
def test_the_caption_of_a_sample_may_stand_under_other_usual_names(
    tmp_path: Path, source: str, suffix: str, content: Any
) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    members = [(f"{n}.{s}", c) for n in range(3) for s, c in (("jpg", jpeg(n)), (suffix, text.encode()))]
    parts = read_splits(config(source=source, path=str(tar(tmp_path / "a.tar", members))))
    assert [record.captions for record in parts["train"].records] == [("a fox",)] * 3


def test_a_sample_without_a_caption_says_what_it_has_instead(tmp_path: Path) -> None:
    shard = tar(tmp_path / "a.tar", [("0.jpg", jpeg(0)), ("0.json", b'{"title": "a fox"}'), ("1.jpg", jpeg(1))])
    listing = read_img2dataset(str(shard), config())
    assert [error.detail for error in listing.skipped] == [
        "no .txt, and none of caption, captions, text in the .json, which has ['title']",
        "no .txt and no .json beside the picture",
    ]


def test_two_pictures_of_a_sample_are_named_by_their_names(tmp_path: Path) -> None:
    shard = tar(tmp_path / "a.tar", [("0.jpg", jpeg(0)), ("0.png", jpeg(1)), ("0.txt", b"a fox")])
    assert read_img2dataset(str(shard), config()).skipped[0].detail == "its text may describe any of 0.jpg, 0.png"


@pytest.mark.parametrize("source", ["shards", "img2dataset"])
def test_links_in_a_tar_are_counted_with_the_way_to_pack_it(tmp_path: Path, source: str) -> None:
    shard = tar(tmp_path / "a.tar", [*pair(0), *pair(1), ("2.txt", b"a fox")])
    with tarfile.open(shard, "a") as archive:
        link = tarfile.TarInfo("2.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "0.jpg"
        archive.addfile(link)
    parts = read_splits(config(source=source, path=str(shard)))
    assert len(parts["train"].records) == 2
    assert str(parts["train"].passed_over) == (
        "passed over 1: 1 × link in a tar (pack it with `tar --hard-dereference -h`)"
    )


def test_a_tar_of_our_own_entries_of_any_task_is_recognised(tmp_path: Path) -> None:
    entry = json.dumps({"question": "what?", "answers": ["fox"]}).encode()
    shard = tar(tmp_path / "data/a.tar", [("0.jpg", jpeg(0)), ("0.json", entry)])
    for path in (shard, shard.parent):
        parts = read_splits(config(source="auto", path=str(path)))
        assert [record.question for record in parts["train"].records] == ["what?"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gzip.compress(b"a" * 9999, mtime=0), "compressed with gzip: unpack it first"),
        (b"PK\x03\x04" + bytes(600), "a ZIP archive: unpack it first"),
        (b"<html>not found</html>", "a web page and not the file itself"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer and not the file itself"),
        (bytes(10240), "filled with zeros"),
    ],
    ids=["gzip", "zip", "page", "pointer", "zeros"],
)
@pytest.mark.parametrize("name", ["a.tar", "a.jsonl", "a.csv", "a.txt"])
def test_what_must_be_fetched_or_unpacked_first_is_told_by_its_beginning(
    tmp_path: Path, content: bytes, words: str, name: str
) -> None:
    file = tmp_path / "data" / name
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{file} is {words}")):
        read_splits(config(source="auto", path=str(file)))
    if name != "a.tar":  # a folder with such a name is read as shards, which name their own faults
        with pytest.raises(ValueError, match=re.escape(f"it holds {file}, which is {words}")):
            read_splits(config(source="auto", path=str(file.parent)))


# --------------------------------------------------------------------------- folders and lists of names


def test_of_two_pictures_with_the_number_of_a_row_none_is_guessed(tmp_path: Path) -> None:
    file = conceptual(tmp_path, "")
    picture(tmp_path / "small/00002.jpg", 99)
    listing = read_conceptual(str(file), config())
    assert [(error.reason, error.detail) for error in listing.skipped] == [
        ("sample ambiguous", "images/2.jpg and small/00002.jpg have the number of the row")
    ]
    assert len(listing.records) == 5


@pytest.mark.parametrize("name", ["{stem}.caption", "{stem}.jpg.txt", "{stem}.TXT"])
def test_texts_beside_pictures_may_have_other_usual_names(tmp_path: Path, name: str) -> None:
    for number in range(3):
        picture(tmp_path / f"{number}.jpg", number)
        write(tmp_path / name.format(stem=number), f"number {number}")
    listing = read_folder(str(tmp_path), config())
    assert [(Path(r.image).name, r.captions) for r in listing.records] == [
        (f"{n}.jpg", (f"number {n}",)) for n in range(3)
    ]
    assert not listing.skipped
    assert read_splits(config(source="auto", path=str(tmp_path)))["train"].records == listing.records


@pytest.mark.parametrize("before", ["\n", "\ufeff\r\n \t\r\n", "\n" * 100])
def test_blank_lines_before_a_caption_hide_it_not(tmp_path: Path, before: str) -> None:
    picture(tmp_path / "a.png", 1)
    write(tmp_path / "a.txt", before + "a fox\n")
    picture(tmp_path / "b.png", 2)
    write(tmp_path / "b.txt", "\n" * 100_000)
    listing = read_folder(str(tmp_path), config())
    assert [record.captions[0].strip() for record in listing.records] == ["a fox"]
    assert [error.reason for error in listing.skipped] == ["caption empty"]
    assert listing.notes == []


def test_what_stands_beside_several_pictures_or_texts_is_said(tmp_path: Path) -> None:
    for file in ("a.jpg", "a.png", "b.jpg"):
        picture(tmp_path / file, 1)
    for file in ("a.txt", "b.txt", "b.caption"):
        write(tmp_path / file, f"text of {file}")
    listing = read_folder(str(tmp_path), config())
    assert [record.captions for record in listing.records] == [("text of a.txt",)] * 2 + [("text of b.txt",)]
    assert "1 texts such as b.caption are not read" in listing.notes[0]
    assert "read for each of them: a.txt for a.jpg and a.png" in listing.notes[1]


def test_metadata_in_json_beside_pictures_is_recognised(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / f"{number}.jpg", number)
        write(tmp_path / f"{number}.json", json.dumps({"caption": f"number {number}"}))
    assert len(read_splits(config(source="auto", path=str(tmp_path)))["train"].records) == 3
    with pytest.raises(ValueError, match=r"Read it with data.source=img2dataset"):
        read_splits(config(source="folder", path=str(tmp_path)))


def test_a_list_of_names_of_pictures_is_no_file_of_texts(tmp_path: Path) -> None:
    file = write(tmp_path / "trainImages.txt", "".join(f"{number}.jpg\n" for number in range(9)))
    with pytest.raises(ValueError, match=r"holds no texts: 9 of its first lines are paths or addresses, such as 0.jpg"):
        read_splits(config(source="texts", path=str(file)))


@pytest.mark.parametrize("between", [" ", "  ", ": ", " - ", " => ", "=", "\n", "\n\n"])
@pytest.mark.parametrize("source", ["auto", "texts"])
def test_lines_that_begin_with_names_of_pictures_are_no_texts(tmp_path: Path, source: str, between: str) -> None:
    file = write(tmp_path / "list.txt", "".join(f"photos/{n}.jpg{between}a red fox\n" for n in range(9)))
    with pytest.raises(ValueError, match=r"9 of (its|the) first .*'photos/0.jpg.* with a tab"):
        read_splits(config(source=source, path=str(file)))


def test_texts_about_pictures_are_texts(tmp_path: Path) -> None:
    texts = [f"the file {n}.jpg shows a fox" for n in range(20)] + ["fox.jpg is a name"]
    file = write(tmp_path / "list.txt", "\n".join(texts))
    assert sum(map(len, read_splits(config(source="texts", path=str(file))).values())) == 21


def test_pictures_that_lie_elsewhere_are_found_for_the_message(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / f"data/photos/{number}.jpg", number)
    inside = [{"image": f"{number}.jpg", "caption": "a fox"} for number in range(3)]
    away = [{"image": f"/elsewhere/{number}.jpg", "caption": "a fox"} for number in range(3)]
    for entries, words in (
        (inside, f"They are in {tmp_path}/data/photos: set data.root={tmp_path}/data/photos"),
        (away, f"Files of these names are in {tmp_path}/data/photos. These paths are absolute"),
    ):
        settings = config(source="jsonl", path=str(lines(tmp_path / "data/list.jsonl", entries)))
        assert words in validate(read_splits(settings), settings).text()
        with pytest.raises(ValueError, match=re.escape(words)):
            open_source(settings, "train")


@pytest.mark.parametrize("slash", ["/", "\\"])
@pytest.mark.parametrize("folder", ["annotations", "a"])
@pytest.mark.parametrize("form", ["csv", "jsonl", "json", "coco"])
def test_paths_that_start_above_their_list_are_found_or_answered_with_the_root(
    tmp_path: Path, form: str, folder: str, slash: str
) -> None:
    names = [f"photos{slash}{number}.jpg" for number in range(4)]
    for number in range(4):
        picture(tmp_path / f"photos/{number}.jpg", number)
    entries = [{"image": name, "caption": "a fox"} for name in names]
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    content: dict[str, object] = {
        "csv": "image,caption\n" + "".join(f"{name},a fox\n" for name in names),
        "jsonl": "\n".join(map(json.dumps, entries)),
        "json": entries,
        "coco": {"images": images, "annotations": [{"image_id": n, "caption": "a fox"} for n in range(4)]},
    }
    file = write(tmp_path / folder / f"list.{form.replace('coco', 'json')}", content[form])
    settings = config(source="auto", path=str(file))
    if form in ("csv", "coco"):
        assert len(open_source(settings, "train")) == 4
    else:
        assert f"They are in {tmp_path}: set data.root={tmp_path}" in validate(read_splits(settings), settings).text()
        assert len(open_source(config(source="auto", path=str(file), root=str(tmp_path)), "train")) == 4


@pytest.mark.parametrize("path", ["", "photos"])
def test_a_metadata_file_whose_paths_start_above_it_is_answered_with_the_way_out(tmp_path: Path, path: str) -> None:
    for number in range(4):
        picture(tmp_path / f"photos/{number}.jpg", number)
    rows = "".join(f"photos/{number}.jpg,a fox\n" for number in range(4))
    file = write(tmp_path / "photos/metadata.csv", "file_name,text\n" + rows)
    settings = config(source="folder", path=str(tmp_path / path))
    words = (
        f"There is {tmp_path}/photos/0.jpg, but the paths in a metadata file start from its own folder. Read it with"
    )
    assert f"{words} data.source=table data.path={file}" in validate(read_splits(settings), settings).text()
    assert len(open_source(config(source="table", path=str(file)), "train")) == 4


@pytest.mark.parametrize(("label", "why"), [(1, "data sets number the labels differently"), ("-", "did not agree")])
def test_labels_of_entailment_are_words_in_any_case(tmp_path: Path, label: Any, why: str) -> None:
    picture(tmp_path / "a.jpg", 1)
    entries = [{"image": "a.jpg", "hypothesis": f"{n}", "label": v} for n, v in enumerate(["Neutral", "ENTAILMENT "])]
    file = lines(tmp_path / "list.jsonl", [*entries, {"image": "a.jpg", "hypothesis": "x", "label": label}])
    listing = read_jsonl(str(file), config())
    assert [record.label for record in listing.records] == ["neutral", "entailment"]
    assert why in listing.skipped[0].detail
