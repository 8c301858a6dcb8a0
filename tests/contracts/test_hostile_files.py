"""Files that somebody made to deceive: what they state is checked, what is read is bounded, what is printed escaped."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import resource
import shutil
import struct
import tarfile
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import diptych
from diptych import catalog
from diptych.apps.index.folder import FolderStore
from diptych.apps.index.index import index_info
from diptych.checkpoints.tensors import read_header
from diptych.cli.main import main
from diptych.data import parquet_pages, tables
from diptych.data.entries import from_entry
from diptych.data.files import json_lines
from diptych.data.parquet_pages import largest_page
from diptych.data.pictures import open_picture
from diptych.data.record import BadRecord
from diptych.data.sources.recognise import look_at
from diptych.data.sources.table import _captions
from diptych.data.tables import _converted_bytes, open_table
from diptych.data.tar import is_tar, tar_members
from diptych.data.tokenizer import Tokenizer
from diptych.pretrained import inspect
from diptych.pretrained.formats import read
from diptych.printable import printable
from diptych.reading import disguise, parse_json
from diptych.run.evaluation import open_task
from diptych.schema import DataConfig
from tests.layouts import picture
from tests.mutants import published_vit
from tests.runs import save_run
from tests.shards import pair, shard, tar

GIGABYTE = 1 << 20
"""In the unit of ru_maxrss."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint."""
    run = save_run(tmp_path_factory.mktemp("whole"), "pretraining")
    return next((run / "checkpoints").iterdir())


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def seal(folder: Path) -> Path:
    """Writes the manifest as the author of the files would."""
    files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    files.pop("manifest.json", None)
    listed = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in sorted(files.items())
    }
    (folder / "manifest.json").write_text(json.dumps(listed))
    return folder


def with_json(folder: Path, name: str, change: Callable[[Any], Any]) -> Path:
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(change(content) or content))
    return seal(folder)


def refusal(folder: Path) -> str:
    """The sentence with which a checkpoint is refused, for little memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"\w+ \w+") as refused:
        diptych.load(folder, "cpu")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GIGABYTE
    message = str(refused.value)
    assert "\n" not in message
    assert len(message) < 2000
    return message


# --------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model.text.width", 3 * 2**18, "is not of this model"),
        ("model.text.width", 2**20, "3 heads for a width of 1048576"),
        ("model.text.layers", 10**6, "too few for the 1,000,000 layers"),
        ("model.text.layers", 99, "describes far more|is not of this model"),
        ("model.vision.depth", 10**12, "too few for the 1,000,000,000,000 layers"),
        ("model.text.max_positions", 10**9, "is not of this model"),
        ("model.vision.image_size", 10**6, "is not of this model|multiple"),
        ("model.embed_dim", 10**12, "is not of this model|can be built"),
        ("model.text.heads", 0, "no model that can be built"),
        ("model.text.width", -5, "no model that can be built"),
        ("model.vision.patch_size", 0, "no model that can be built"),
        ("model.text.width", 10**400, "too large a number"),
        ("optim.betas", "[&a [1,1], *a]", "optim.betas: expected 2 values"),
        ("optim.betas", "!!python/object/apply:os.system [ls]", "optim.betas: expected 2 values"),
        ("task.kind", "os.system", "expected one of"),
        ("task.kind", ["a"], "expected one of"),
        ("model", [[[]]], "expected the fields"),
    ],
)
def test_a_recipe_of_impossible_sizes_is_refused_before_memory_is_taken(
    copy: Path, field: str, value: Any, message: str
) -> None:
    *above, last = field.split(".")

    def change(recipe: dict[str, Any]) -> None:
        for name in above:
            recipe = recipe[name]
        recipe[last] = value

    with_json(copy, "recipe.json", change)
    assert re.search(message, refusal(copy))


def test_a_queue_that_the_file_does_not_hold_is_bounded(copy: Path) -> None:
    with_json(copy, "recipe.json", lambda recipe: recipe["task"].update(queue_size=10**12))
    diptych.load(copy, "cpu")  # which needs no queue
    with pytest.raises(ValueError, match=r"is not of this model: queue\."):
        open_task(copy)


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, 8, "does not fit its place"),
        ({"a": {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}, 8, "does not fit its place"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, 8, "does not fit its place"),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, 8, "does not describe 'a'"),
        ({"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}}, 8, "does not describe 'a'"),
        ({"a": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}, 8, "does not describe 'a'"),
        ({"a": 1}, 8, "does not describe 'a'"),
        ({"a\x1b[2J": None}, 8, "does not describe 'a\\\\x1b"),
        (b'{"a":{},"a":{}}', 8, "names something twice"),
        (b'{"a":' * 5000, 8, "nested too deeply|not JSON"),
        (b'{"a":' + b"9" * 5000 + b"}", 8, "damaged"),
        (b"{" + b" " * (9 << 20) + b"}", 8, "more than 8,388,608"),
        ({f"{number}": {} for number in range(20_001)}, 8, "20,001 tensors, more than 20,000"),
    ],
)
def test_a_header_is_checked_before_it_is_believed(tmp_path: Path, header: Any, data: int, message: str) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))
    with pytest.raises(ValueError, match=message):
        read_header(file)
    with pytest.raises(ValueError, match="is damaged, or no safetensors file"):
        read(file)


def test_a_header_says_what_the_library_reads(whole: Path) -> None:
    file = next(whole.glob("weights*.safetensors"))
    state = load_file(file)
    assert {name: (stated.dtype, stated.shape) for name, stated in read_header(file).items()} == {
        name: (value.dtype, tuple(value.shape)) for name, value in state.items()
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: torch.full_like(value, float("nan")), "tensors hold numbers that are not finite"),
        (lambda value: value / 0, "tensors hold numbers that are not finite"),
        (lambda value: value.to(torch.complex64), "is of torch.complex64, the model's of torch.float32"),
        (lambda value: value.bool(), "is of torch.bool, the model's of torch.float32"),
    ],
)
def test_numbers_with_which_nothing_can_be_computed_are_said(
    copy: Path, change: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    file = next(copy.glob("weights*.safetensors"))
    state = load_file(file)
    save_file({name: change(value) if value.is_floating_point() else value for name, value in state.items()}, file)
    assert message in refusal(seal(copy))


def test_half_precision_is_loaded(copy: Path) -> None:
    file = next(copy.glob("weights*.safetensors"))
    state = load_file(file)
    save_file({name: value.half() if value.is_floating_point() else value for name, value in state.items()}, file)
    diptych.load(seal(copy), "cpu")


@pytest.mark.parametrize("name", ["../../../../etc/passwd", "/dev/zero", "/etc/passwd", "tokenizer/../../x"])
def test_a_manifest_names_files_of_its_folder_only(copy: Path, name: str) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {name: {"bytes": 0, "sha256": ""}}))
    assert "does not list what was written" in refusal(copy)


@pytest.mark.parametrize("name", ["state.json", "tokenizer/tokenizer.json", "tokenizer/vocab.txt", "manifest.json"])
def test_a_pipe_among_the_files_is_refused_and_not_waited_for(copy: Path, name: str) -> None:
    (copy / name).unlink()
    seal(copy)
    if name == "manifest.json":
        (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises((ValueError, OSError), match=r"does not list|no regular file|holds no checkpoint|no vocabulary"):
        diptych.load(copy, "cpu")


@pytest.mark.parametrize("name", ["state.json", "recipe.json", "manifest.json", "tokenizer/tokenizer.json"])
@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"null",
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"9" * 5000,
        b'{"step": "x"}',
        b'{"fresh": [1]}',
    ],
)
def test_json_of_a_checkpoint_is_an_object_or_refused(copy: Path, name: str, content: bytes) -> None:
    (copy / name).write_bytes(content)
    if name != "manifest.json":
        seal(copy)
    assert refusal(copy)


# --------------------------------------------------------------------------- tars


def resized(content: bytes, block: int, size: int) -> bytes:
    """A tar whose header at a block states another size."""
    header = bytearray(content[512 * block : 512 * (block + 1)])
    header[124:136] = (size % (1 << 96)).to_bytes(12, "big") if size < 0 else b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return content[: 512 * block] + bytes(header) + content[512 * (block + 1) :]


@pytest.mark.parametrize("size", [-512, -1024, -2048, -(2**62), 2**40, 2**60])
@pytest.mark.parametrize("source", ["shards", "img2dataset"])
def test_a_member_of_impossible_size_ends_the_reading(tmp_path: Path, size: int, source: str) -> None:
    file = shard(tmp_path / "a.tar", range(6))
    content = file.read_bytes()
    blocks = [place for place in range(len(content) // 512) if content[512 * place + 257 :][:5] == b"ustar"]
    for block in (blocks[0], blocks[4]):
        file.write_bytes(resized(content, block, size))
        with pytest.raises(tarfile.TarError):
            list(tar_members(file))
    splits = catalog.read_splits(DataConfig(source, str(file), held_out=0.0, cache=str(tmp_path / "cache")))
    lost = [str(error) for listing in splits.values() for error in listing.skipped]
    assert any("shard broken" in message for message in lost)


def test_headers_that_describe_a_member_are_bounded(tmp_path: Path) -> None:
    for kind, size in ((tarfile.XHDTYPE, 3 << 30), (tarfile.GNUTYPE_LONGNAME, 2 << 20), (tarfile.XGLTYPE, 2 << 20)):
        header = tarfile.TarInfo("x")
        header.type, header.size = kind, size
        file = tmp_path / "a.tar"
        with file.open("wb") as stream:
            stream.write(header.tobuf(tarfile.GNU_FORMAT))
            stream.truncate(512 + size + 10_240)
        with pytest.raises(tarfile.ReadError, match=f"a header of {size:,} bytes"):
            list(tar_members(file))


def test_what_a_tar_is_is_told_without_reading_on(tmp_path: Path) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 3 << 30
    file = tmp_path / "a.tar"
    with file.open("wb") as stream:
        stream.write(header.tobuf(tarfile.GNU_FORMAT))
        stream.truncate(4 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    look = look_at(str(file), DataConfig("shards", str(file)))
    assert look is not None
    assert look.kind == "tar"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    assert not is_tar(bytes(512))
    assert not is_tar(b"a text")


def test_sparse_members_and_links_are_no_content(tmp_path: Path) -> None:
    file = tar(tmp_path / "a.tar", pair(1))
    header = bytearray(tarfile.TarInfo("s.png").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[483:495] = b"\x80" + (2**40).to_bytes(11, "big")
    header[386:410] = b"%011o\0" % 0 * 2
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    file.write_bytes(bytes(header) + file.read_bytes())
    assert [member.name for member in tar_members(file)] == [name for name, _ in pair(1)]


def test_a_long_name_is_still_read(tmp_path: Path) -> None:
    name = "folder/" * 60 + "0.png"
    file = tmp_path / "a.tar"
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(file, "w", format=form) as archive:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
        assert [member.name for member in tar_members(file)] == [name]


@pytest.mark.parametrize(
    "content",
    [
        b"1" * (1 << 20), b"20 comment=" + b"1" * 5000 + b"\n", b"6 aaaa" * 100_000 + b"=\n", b"9 a=b\n", b"0 a=b\n",
        b"-6 a=b\n", b"6 aaaa\n", b"\xd9\xa6 a=b\n", b"7 a=b\nx", b" a=b\n", b"6a=bc\n",
    ],
)  # fmt: skip
def test_a_pax_header_that_is_none_is_not_parsed(tmp_path: Path, content: bytes) -> None:
    """Python before 3.11.10 takes quadratic time for digits, and a copy of the header for each record of the third."""
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, len(content)
    whole = tar(tmp_path / "a.tar", pair(1)).read_bytes()
    file = tmp_path / "b.tar"
    file.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512) + whole)
    begun = time.process_time()
    with pytest.raises(tarfile.ReadError, match="a pax header"):
        list(tar_members(file))
    assert time.process_time() - begun < 5


def test_a_part_of_a_shard_lies_within_it(tmp_path: Path) -> None:
    file = shard(tmp_path / "a.tar", range(2))
    for part in ("0+4611686018427387904", "99999999999999999999+5", "9" * 5000 + "+1", "0+400000"):
        with pytest.raises(BadRecord):
            open_picture(f"{file}@{part}", "r")


# --------------------------------------------------------------------------- lists


def reason_of(value: Any, name: str) -> str:
    """Why a line is no record, or "good"."""
    try:
        if isinstance(value, BadRecord):
            raise value
        from_entry(value, name)
    except BadRecord as error:
        return error.reason if len(str(error)) < 1000 else "a long message"
    return "good"


def test_a_number_of_thousands_of_digits_spoils_its_own_line_only(tmp_path: Path) -> None:
    file = tmp_path / "list.jsonl"
    entry = '{"image": "a.png", "phrase": "a", "box": [%s, 0, 1, 1]}'
    file.write_text("\n".join(entry % number for number in ("1", "9" * 5000, "9" * 400, "NaN", "2")))
    seen = []
    for number, (name, value) in enumerate(json_lines(file), start=1):
        assert name == f"{file}:{number}"
        seen.append(reason_of(value, name))
    assert seen == ["good", "line is not JSON", "box wrong", "box wrong", "good"]


def test_a_line_without_end_is_named_and_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diptych.data.files.LARGEST_LINE", 1000)
    file = tmp_path / "list.jsonl"
    file.write_text('{"a": 1}\n{"a": "' + "b" * 5000 + '"}\n{"a": 2}\n' + "c" * 1001)
    values = [value if isinstance(value, dict) else value.reason for _, value in json_lines(file)]
    assert values == [{"a": 1}, "line too long", {"a": 2}, "line too long"]


@pytest.mark.parametrize("text", ["9" * 5000, "[" * 100_000, "{", ""])
def test_json_is_parsed_or_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_json(text)


# --------------------------------------------------------------------------- indexes


@pytest.mark.parametrize("name", ["/dev/zero", "../../../../../../dev/zero", "pipe"])
def test_an_index_reads_no_file_but_its_own(tmp_path: Path, name: str) -> None:
    generation = tmp_path / "generation-00000001"
    generation.mkdir()
    os.mkfifo(generation / "pipe")
    about = {"maker": {"name": "/m", "digest": "0"}, "width": 4, "wanted": "exact", "roots": [], "complete": True}
    manifest = {"format": 1, "generation": 1, "about": about, "files": {name: {"bytes": 0, "sha256": ""}}}
    (tmp_path / "index.json").write_text(json.dumps(manifest | {"tables": {"picture": {"count": 0}}}))
    with pytest.raises(ValueError, match=r"is damaged|cannot be read"):
        FolderStore(tmp_path)
    with pytest.raises(ValueError, match=r"is damaged|cannot be read"):
        index_info(tmp_path)


# --------------------------------------------------------------------------- told by the first bytes

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 345\n"
DISGUISES = [
    (LFS, "git-lfs pointer"),
    (b"\n<!DOCTYPE html>\n<html><head></head></html>", "a web page"),
    (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a web page"),
    (gzip.compress(b"a" * 100, mtime=0), "compressed with gzip"),
    (b"\x28\xb5\x2f\xfd" + bytes(20), "compressed with zstd"),
    (b"\xfd7zXZ\x00" + bytes(20), "compressed with xz"),
    (b"BZh9" + bytes(20), "compressed with bzip2"),
    (b"", "empty"),
    (bytes(2000), "filled with zeros"),
]


@pytest.mark.parametrize(("content", "kind"), DISGUISES)
def test_a_file_is_told_by_its_first_bytes_wherever_it_is_opened(
    copy: Path, tmp_path: Path, content: bytes, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kind in str(disguise(content))
    for name in ("model.pth", "model.safetensors", "pytorch_model.bin"):
        (tmp_path / name).write_bytes(content)
        assert main(["inspect", str(tmp_path / name)]) == 2
        said = capsys.readouterr().err
        assert kind in said
        assert said.count("\n") == 1
    weights = next(copy.glob("weights*.safetensors"))
    weights.write_bytes(content)
    assert kind in refusal(copy)  # the manifest has another size
    assert kind in refusal(seal(copy))
    (tmp_path / "a.tar").write_bytes(content)
    if any(content) or not content:  # zeros are an archive without members
        with pytest.raises(tarfile.TarError, match=kind):
            list(tar_members(tmp_path / "a.tar"))
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(ValueError, match=kind):
        Tokenizer.from_vocabulary(tmp_path / "vocab.txt")
    if content:
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(BadRecord, match=f"not a picture.*{kind}"):
            open_picture(tmp_path / "a.png", "r")


@pytest.mark.parametrize(("content", "kind"), DISGUISES[:4])
def test_a_list_that_is_none_is_told_by_its_first_bytes(tmp_path: Path, content: bytes, kind: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content.lstrip())
    try:
        (_, error), *_ = json_lines(tmp_path / "a.jsonl")
    except ValueError as refusal_of_all:
        error = refusal_of_all
    assert isinstance(error, ValueError)
    assert kind in str(error)


# --------------------------------------------------------------------------- prefixes of training's tools


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"model": {f"module._orig_mod.{name}": value for name, value in state.items()}},
        lambda state: {"state_dict": {f"model.{name}": value for name, value in state.items()}, "epoch": 3},
        lambda state: {"state_dict": {f"model._orig_mod.{name}": value for name, value in state.items()}},
        lambda state: {name.replace("blocks.", "blocks._orig_mod."): value for name, value in state.items()},
        lambda state: {f"_fsdp_wrapped_module.{name}": value for name, value in state.items()},
        lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {0: {}}, "param_groups": [{}]}},
        lambda state: {"net": state, "optimizer": {"state": {}, "param_groups": []}, "args": Namespace(lr=0.1)},
        lambda state: {"model": state, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}, "epoch": 1},
        lambda state: {"net": state, "scaler": {"scale": torch.ones(1)}, "rng_state": torch.zeros(8)},
        lambda state: {f"base_model.model.{name}": value for name, value in state.items()},
        lambda state: {
            "state_dict": {**{f"model.{name}": value for name, value in state.items()}, "loss.weight": torch.ones(1)}
        },
    ],
)
def test_what_tools_of_training_put_around_a_state_is_taken_off(tmp_path: Path, wrap: Callable[..., Any]) -> None:
    state = {name.removeprefix("module."): value for name, value in published_vit()["model"].items()}
    torch.save(state, tmp_path / "plain.pth")
    torch.save(wrap(state), tmp_path / "wrapped.pth")
    plain, wrapped = read(tmp_path / "plain.pth"), read(tmp_path / "wrapped.pth")
    assert plain.tensors.keys() == wrapped.tensors.keys()
    assert all(torch.equal(value, wrapped.tensors[name]) for name, value in plain.tensors.items())
    assert inspect(tmp_path / "wrapped.pth").splitlines()[2:] == inspect(tmp_path / "plain.pth").splitlines()[2:]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        *DISGUISES,
        (b'{"error": "Access to this model is restricted"}\n', 'text, which begins with \'{"error"'),
        ("Zugriff verweigert: prüfen Sie den Schlüssel\n".encode(), "text, which begins with 'Zugriff"),
        (b"PK\x03\x04" + bytes(range(256)) * 9, "cut off"),
        (b"\x80\x02}q\x00." + bytes(99), "is a file, not a run's folder: `diptych convert"),
    ],
)
@pytest.mark.parametrize("verb", ["search", "index", "embed", "evaluate", "export", "serve", "train", "audit"])
def test_a_file_in_the_place_of_a_run_is_said_to_be_what_it_is(
    tmp_path: Path, content: bytes, words: str, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file, pictures = tmp_path / "model.pth", str(tmp_path / "pictures")
    file.write_bytes(content)
    picture(tmp_path / "pictures/a.png", 0)
    arguments = {
        "search": [file, "a fox", "--images", pictures], "index": ["build", pictures, "--model", file, "--at", "x"],
        "embed": [file, pictures, "--to", tmp_path / "v.npy"], "evaluate": [file], "serve": [file, "--port", "0"],
        "export": [file, "--to", tmp_path / "out"],
        "train": ["albef_tiny_retrieval", f"init_from={file}", "run.steps=1", "--folder", tmp_path / "run"],
        "audit": ["audit", "pictures", pictures, "--model", file, "--to", tmp_path / "audit"],
    }  # fmt: skip
    assert main(["data" if verb == "audit" else verb, *map(str, arguments[verb])]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "does not exist" not in said
    assert said.count("\n") == 1
    if "convert" not in words:
        assert main(["convert", str(file), "--to", str(tmp_path / "out")]) == 2
        assert words in capsys.readouterr().err


def test_a_file_of_a_checkpoint_leads_to_its_folder(copy: Path, tmp_path: Path) -> None:
    assert f"name its folder, {copy}" in refusal(next(copy.glob("weights*.safetensors")))
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "pytorch_model.bin").write_bytes(b"")
    assert "holds published weights, not a run: `diptych convert" in refusal(tmp_path / "hub")


def test_what_stands_beside_a_model_is_said(tmp_path: Path) -> None:
    state = {name.removeprefix("module."): value for name, value in published_vit()["model"].items()}
    lightning = {f"model.{name}": value for name, value in state.items()} | {"loss.weight": torch.ones(1)}
    torch.save({"state_dict": lightning, "epoch": 1}, tmp_path / "a.pth")
    assert "beside epoch, loss.weight" in inspect(tmp_path / "a.pth")


def test_two_states_in_a_file_are_named(tmp_path: Path) -> None:
    torch.save({"student": {"a": torch.ones(1)}, "teacher": {"a": torch.ones(1)}}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="under student, teacher"):
        read(tmp_path / "a.pth")


@pytest.mark.parametrize("tensor", [torch.ones(1).expand(2**20, 2**20), torch.ones(0, 2**40), torch.eye(3).to_sparse()])
def test_a_tensor_of_a_torch_file_has_its_numbers_there(tmp_path: Path, tensor: torch.Tensor) -> None:
    torch.save({"a": tensor}, tmp_path / "a.pth")
    for shapes_only in (True, False):
        with pytest.raises(ValueError, match=r"a is no plain tensor|damaged"):
            read(tmp_path / "a.pth", shapes_only)


# --------------------------------------------------------------------------- what is printed


@pytest.mark.parametrize(
    ("raw", "safe"),
    [
        ("a\x1b]0;title\x07b", "a\\x1b]0;title\\x07b"),
        ("a\rb\nc", "a\\x0db\\x0ac"),
        ("a\u202egpj.exe", "a\\u202egpj.exe"),
        ("a\udcff", "a\\udcff"),
        ("ä 犬 🐕", "ä 犬 🐕"),
        ("s3://me:secret@host/x", "s3://me:***@host/x"),
        ("https://ghp_token@host/x", "https://***@host/x"),
        ("https://h/x.tar?X-Amz-Signature=abc&n=1", "https://h/x.tar?X-Amz-Signature=***&n=1"),
        ("https://h/x.tar?sv=1&sig=abc", "https://h/x.tar?sv=1&sig=***"),
        ("sftp://me@host/x", "sftp://me@host/x"),
    ],
)
def test_names_are_printed_so_that_a_terminal_shows_them(raw: str, safe: str) -> None:
    assert printable(raw) == safe
    assert printable(safe) == safe
    assert str(BadRecord(raw, "picture missing")) == f"{safe}: picture missing"


def test_a_long_address_is_escaped_in_linear_time() -> None:
    begun = time.process_time()
    printable("http://a/?" + "token" * 200_000)
    assert time.process_time() - begun < 2


def test_commands_print_escaped_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\x1b[2Jb"
    assert main(["inspect", str(tmp_path / name)]) == 2
    assert main(["data", "validate", "folder", str(tmp_path / name)]) == 2
    (tmp_path / name).mkdir()
    (tmp_path / name / "c\x1b[2J.png").write_bytes(b"")
    (tmp_path / name / "c\x1b[2J.txt").write_text("a boat")
    with suppress(SystemExit):
        main(["data", "validate", "folder", str(tmp_path / name)])
    assert main(["data", "validate", "shards", "https://me:secret@127.0.0.1:9::x/a.tar"]) == 2
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err
    assert "secret" not in printed.out + printed.err
    assert "\\x1b[2J" in printed.err


# --------------------------------------------------------------------------- tables


@pytest.mark.parametrize("nested", [False, True])
def test_a_value_that_parquet_holds_once_for_many_rows_is_not_copied_for_each(tmp_path: Path, nested: bool) -> None:
    """A file of a few kilobytes would otherwise take gigabytes."""
    import pyarrow
    from pyarrow import parquet

    picture = pyarrow.array([bytes(16_000_000)], pyarrow.binary())
    if nested:
        picture = pyarrow.StructArray.from_arrays([picture], ["bytes"])
    columns = {"image": pyarrow.chunked_array([picture] * 60), "caption": ["a boat"] * 60}
    file = tmp_path / "rows.parquet"
    parquet.write_table(
        pyarrow.table(columns), file, compression="zstd", use_dictionary=[f"image{'.bytes' * nested}"],
        dictionary_pagesize_limit=1 << 30,
        write_statistics=False,
    )  # fmt: skip
    assert file.stat().st_size < 100_000
    before, largest = pyarrow.total_allocated_bytes(), 0
    table = open_table(file)
    for _, row in table.rows():
        assert not isinstance(row, BadRecord)
        assert len(row["image"]["bytes"] if nested else row["image"]) == 16_000_000
        largest = max(largest, pyarrow.total_allocated_bytes() - before)
    assert largest < 200_000_000
    assert {len(row["image"]["bytes"] if nested else row["image"]) for row in table.first_rows()} == {64}


def save_wide(file: Path, captions: list[Any], dictionary: bool = False, version: str = "1.0", **options: Any) -> Path:
    """Saves a table whose captions are long and take little in the file."""
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"image": ["a.png"] * len(captions), "caption": captions})
    parquet.write_table(
        table, file, compression="zstd", use_dictionary=dictionary, dictionary_pagesize_limit=1 << 30,
        write_statistics=False, data_page_version=version, **options,
    )  # fmt: skip
    assert file.stat().st_size < 100_000
    return file


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [False, True])
def test_a_page_of_parquet_is_bounded_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dictionary: bool, version: str
) -> None:
    import pyarrow

    file = save_wide(tmp_path / "rows.parquet", ["a" * 4_000_000], dictionary, version)
    with file.open("rb") as stream:
        assert largest_page(file, pyarrow.parquet.ParquetFile(stream).metadata) == pytest.approx(4_000_000, abs=100)
    assert len(next(open_table(file).rows())[1]["caption"]) == 4_000_000  # type: ignore[index]
    monkeypatch.setattr(parquet_pages, "LARGEST_PAGE", 3_000_000)
    before = pyarrow.total_allocated_bytes()
    with pytest.raises(
        ValueError, match=r"rows.parquet holds 4,000,\d* bytes in one page, .*, and at most 3,000,000 are"
    ):
        open_table(file)
    assert pyarrow.total_allocated_bytes() - before < 1_000_000


def test_few_wide_values_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow

    texts = [chr(97 + number) * 10_000_000 for number in range(20)]
    file = save_wide(tmp_path / "rows.parquet", texts, write_batch_size=1)
    before, largest = pyarrow.total_allocated_bytes(), 0
    monkeypatch.setattr(tables, "TOGETHER", 30_000_000)
    for _, row in open_table(file).rows():
        assert len(row["caption"]) == 10_000_000  # type: ignore[index]
        largest = max(largest, pyarrow.total_allocated_bytes() - before)
    assert largest < 100_000_000  # of 200 MB


def test_a_row_that_holds_a_value_many_times_is_left_out(tmp_path: Path) -> None:
    file = save_wide(tmp_path / "rows.parquet", [["a boat"], ["b" * 5_000_000] * 200, ["a fox"]], dictionary=True)
    rows = [row for _, row in open_table(file).rows()]
    assert [isinstance(row, BadRecord) for row in rows] == [False, True, False]
    assert "holds more than 268,435,456 bytes" in str(rows[1])


def test_lists_of_a_row_group_are_bounded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [[chr(97 + number) * 1_000_000] for number in range(8)]
    whole, parts = tmp_path / "whole.parquet", tmp_path / "parts.parquet"
    save_wide(whole, texts, write_batch_size=1)
    save_wide(parts, texts, write_batch_size=1, row_group_size=2)
    monkeypatch.setattr(parquet_pages, "LARGEST_PAGE", 3_000_000)
    with pytest.raises(ValueError, match="smaller row groups"):
        open_table(whole)
    assert [row["caption"] for _, row in open_table(parts).rows()] == texts  # type: ignore[index]


def test_values_that_stand_for_many_are_measured() -> None:
    import pyarrow

    words = pyarrow.array(["a", "bcd", None, "bcd"]).dictionary_encode()
    numbers = pyarrow.array([7, 8, 8]).dictionary_encode()
    assert _converted_bytes(words) == 7
    assert _converted_bytes(numbers) == numbers.nbytes
    assert _converted_bytes(pyarrow.ListArray.from_arrays([0, 2, 4], words)) == 7
    assert _converted_bytes(pyarrow.ListArray.from_arrays([0, 2, 4], words).slice(1)) == 3
    assert _converted_bytes(pyarrow.StructArray.from_arrays([words], ["raw"])) == 7


@pytest.mark.parametrize("content", ["[]", "{}", '{"splits": null}', '{"splits": [5]}', "[" * 100_000, "{"])
def test_a_saved_data_set_that_lists_no_splits_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset_dict.json").write_text(content)
    with pytest.raises(ValueError, match=re.escape("dataset_dict.json is damaged")):
        catalog.read_splits(DataConfig("datasets", str(tmp_path)))


def test_what_arrow_does_on_broken_files_is_told_with_the_files_name(tmp_path: Path) -> None:
    import pyarrow

    (tmp_path / "state.json").write_text("{}")
    for name, columns in {"a": ["image", "caption"], "b": ["other"]}.items():
        table = pyarrow.table({column: ["a.png"] for column in columns})
        with pyarrow.ipc.new_stream(str(tmp_path / f"{name}.arrow"), table.schema) as stream:
            stream.write_table(table)
    config = DataConfig("datasets", str(tmp_path))
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path} is broken")):
        catalog.read_splits(config)
    (tmp_path / "a.arrow").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match=re.escape("a.arrow is no whole file of Arrow")):
        catalog.read_splits(config)


@pytest.mark.parametrize("column", ["plain", "dictionary"])
@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
def test_an_arrow_stream_that_would_have_to_be_unpacked_is_refused(
    tmp_path: Path, column: str, compression: str | None
) -> None:
    """4 kB may hold a gigabyte, which would be unpacked as a whole."""
    import pyarrow

    (tmp_path / "state.json").write_text("{}")
    captions = pyarrow.array([f"a fox beside {number} cars" for number in range(9)])
    if column == "dictionary":
        captions = captions.dictionary_encode()
    table = pyarrow.table({"image": [f"{number}.png" for number in range(9)], "caption": captions})
    options = pyarrow.ipc.IpcWriteOptions(compression=compression)
    with pyarrow.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema, options=options) as stream:
        stream.write_table(table)
    config = DataConfig("datasets", str(tmp_path))
    if compression is None:
        listing = next(iter(catalog.read_splits(config).values()))
        assert {error.reason for error in listing.skipped} == {"picture missing"}, "it was read"
        return
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'a.arrow'} is compressed")):
        catalog.read_splits(config)


def test_texts_of_a_table_that_nobody_can_decode_are_left_out(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    wrong = pyarrow.array([b"a fox", b"\xff\xfe", b"a boat"]).cast(pyarrow.string(), safe=False)
    parquet.write_table(pyarrow.table({"image": ["a.png", "b.png", "c.png"], "caption": wrong}), tmp_path / "t.parquet")
    rows = [row for _, row in open_table(tmp_path / "t.parquet").rows()]
    assert [isinstance(row, BadRecord) for row in rows] == [False, True, False]


def test_marks_that_stay_open_are_looked_after_a_bounded_number_of_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = b"image,caption\n" + b"a.png,a boat\n" * 300
    spanning = b'b.png,"a boat\nat sea"\n'
    (tmp_path / "rows.csv").write_bytes(plain + spanning + b'a.png,"a\n' * 1_000)
    table, split, tried = open_table(tmp_path / "rows.csv"), tables._split, 0

    def counted(text: str, separator: str) -> list[str] | None:
        nonlocal tried
        tried += 1
        return split(text, separator)

    monkeypatch.setattr(tables, "_split", counted)
    rows = [row for _, row in table.rows()]
    assert rows[300] == {"image": "b.png", "caption": "a boat\nat sea"}
    assert len(rows) == 1_301
    assert all(isinstance(row, BadRecord) for row in rows[301:])
    assert tried < 10_000  # fifty times a thousand without a bound


def test_rows_and_tables_of_countless_columns_are_named(tmp_path: Path) -> None:
    plain = b"image,caption\n" + b"a.png,a boat\n" * 3
    (tmp_path / "row.csv").write_bytes(plain + b"a," * 5_000 + b"\n" + b"a.png,a fox\n")
    rows = [row for _, row in open_table(tmp_path / "row.csv").rows()]
    assert [isinstance(row, BadRecord) for row in rows] == [False] * 3 + [True, False]
    assert "5,001 columns; at most 4,096 are read" in str(rows[3])
    (tmp_path / "all.csv").write_bytes(
        b",".join(b"c%d" % number for number in range(5_000)) + b"\n" + b"a," * 4_999 + b"a\n"
    )
    (tmp_path / "all.jsonl").write_text(json.dumps({f"k{number}": 1 for number in range(5_000)}) + "\n{}\n")
    for name in ("all.csv", "all.jsonl"):
        with pytest.raises(ValueError, match=r"all\.(csv is no table|jsonl is JSON lines, of more than 4,096 columns)"):
            open_table(tmp_path / name).first_rows()


def test_of_large_values_only_the_beginning_is_looked_at(tmp_path: Path) -> None:
    row = {
        "image": "a.png",
        "caption": "a" * 100_000,
        "list": [0] * 100_000,
        "object": {str(n): n for n in range(9_000)},
    }
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 2)
    first, _ = open_table(tmp_path / "rows.jsonl").first_rows()
    assert [len(first[name]) for name in row] == [5, 4_096, 4_096, 0]


def test_a_cell_that_is_nested_without_end_is_a_text(tmp_path: Path) -> None:
    assert _captions("[" * 100_000, "caption", "a row") == ["[" * 100_000]
