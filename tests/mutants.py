"""Damages files in every way that chance finds, and checks that each is read or refused in one sentence.

    python -m tests.mutants --count 5000 --seed 0

Checkpoints, index folders, recipes, shards, lists and published files are changed byte by byte, JSON value by JSON
value, and replaced by what is often saved in their place. Manifests are written anew for most of them, as their author
would. Each mutant has ten seconds of a processor and a gigabyte above what a whole one takes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from diptych import catalog
from diptych.apps.compare.quality import quality
from diptych.apps.doctor import examine
from diptych.apps.doctor import read_run as read_logged_run
from diptych.apps.index import build_index, index_info, open_index
from diptych.apps.index.items import read_items
from diptych.apps.report import collect, write_report
from diptych.apps.report.stages import training_rate, training_stages
from diptych.data.record import BadRecord, Record
from diptych.data.validate import validate
from diptych.predict import Predictor, load
from diptych.predict.kept_vectors import KeptVectors
from diptych.predict.loading import check_model_size
from diptych.pretrained import inspect
from diptych.pretrained.formats import read
from diptych.schema import DataConfig
from diptych.serialize import from_dict, to_dict
from diptych.train.state import check_folder, stored_recipe
from tests.index.sources import CAPTIONS, save_lines, save_pictures
from tests.runs import TEXTS, save_run
from tests.shards import shards

KINDS = ("checkpoint", "recipe", "index", "shards", "list", "published", "run", "table", "kept")
SECONDS, HANGS = 10, 60
"""Processor time of a mutant, and the time on a clock after which its process is ended."""
MEMORY = 1 << 30
"""Bytes that a mutant may take above what a whole file takes."""
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, 10**30, 1e308, float("nan"), "", "a\x1b[2J\x1b]0;b\x07", "../../etc/passwd",
    "/dev/zero", "http://127.0.0.1:9/x", "none", "\ud800", "&a [*a,*a]", [], {}, [[]], [0] * 1000, {"kind": "x"},
    [None, "a", 1],
)  # fmt: skip
REPLACEMENTS = (
    b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", b"<!DOCTYPE html><html></html>",
    b"\x1f\x8b\x08" + bytes(600), bytes(2048), b"[" * 100_000, b'{"a":' * 50_000 + b"1" + b"}" * 50_000, b"{}", b"[]",
    b"null", b"9" * 5000, b'{"a": ' + b"9" * 5000 + b"}", b"\xff\xfe", b"PK\x03\x04", struct.pack("<Q", 2**63) + b"{",
    struct.pack("<Q", 2) + b"{}",
    b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999, 64), }\n",
)  # fmt: skip


# --------------------------------------------------------------------------- what is damaged


@dataclass(frozen=True)
class Kind:
    """A kind of files: whole ones, and what reads them."""

    folder: Path
    read: Callable[[Path], object]
    sealed: str | None = None
    """The file that lists sizes and digests of the others."""


def kinds(place: Path) -> dict[str, Kind]:
    """Makes a whole example of each kind in `place`."""
    run = save_run(place / "run", "retrieval")
    model = load(run, "cpu")
    (checkpoint,) = (run / "checkpoints").iterdir()
    photos = save_pictures(place / "photos", 5)
    lines: list[object] = [{"image": f"{n}.png", "caption": text, "id": f"t{n}"} for n, text in enumerate(CAPTIONS)]
    build_index(place / "index", save_lines(photos / "list.jsonl", lines), model)
    shards(place / "shards", [4, 4])
    (place / "recipe").mkdir()
    shutil.copy(checkpoint / "recipe.json", place / "recipe")
    (place / "published").mkdir()
    torch.save(published_vit(), place / "published" / "vit.pth")
    shutil.copytree(photos, place / "list")
    os.environ["DIPTYCH_CACHE"] = str(place / "kept")
    KeptVectors(model, photos).embed([f"{number}.png" for number in range(5)])
    return {
        "checkpoint": Kind(checkpoint, read_checkpoint, "manifest.json"),
        "recipe": Kind(place / "recipe", lambda folder: read_recipe(folder, model)),
        "index": Kind(place / "index", lambda folder: read_index(folder, model), "index.json"),
        "shards": Kind(place / "shards", read_shards),
        "list": Kind(place / "list", read_list),
        "published": Kind(place / "published", read_published),
        "run": Kind(save_logged_run(place / "logged"), read_run),
        "table": Kind(save_tables(place / "tables"), read_tables),
        "kept": Kind(place / "kept", lambda folder: search_again(folder, photos, model)),
    }


def save_logged_run(folder: Path) -> Path:
    """Writes what the folder of a run holds besides its checkpoints."""
    folder.mkdir()
    recipe = to_dict(catalog.find_recipe("albef_tiny"))
    lines: list[dict[str, Any]] = [
        {
            "step": step, "epoch": step / 100, "pairs": 8 * step, "seconds": step / 10, "lr": 1e-4, "waiting": 0.1,
            "pairs_per_second": 80.0, "gradient_norm": 1.0, "loss": 9.0 - step / 100,
            "losses": {"itc": 3.0, "itm": 0.6, "mlm": 5.4 - step / 100},
            "measures": {"temperature": 0.07, "positive_similarity": 0.5, "other_similarity": 0.1, "alpha": 0.4},
        }
        for step in range(25, 300, 25)
    ]  # fmt: skip
    validation = {"text_to_image.recall@1": 9.5, "mean_recall": 20.1, "chance": 1.0}
    lines.append({"step": 275, "epoch": 2.75, "pairs": 2200, "seconds": 28.0, "validation": validation})
    for name, content in {
        "recipe.json": recipe,
        "start.json": {"from": None, "fresh": {"model": 137}, "untrained": [], "borrowed": []},
        "data.json": [{"since": 0, "place": "scenes", "records": 1000, "skipped": 0, "read": 200, "texts": {
            "texts": 200, "pictures": 200, "distinct": 198, "same_text": 0.01, "commonest": "a dog",
            "commonest_pictures": 2, "unknown": 0.0, "unread": ""}}],
        "eval.json": {"split": "test", "images": 1000, "text_to_image.recall@1": 9.5, "chance": 1.0,
                      "text_to_image.recall@1.interval": [8.0, 11.0]},
        "compute.json": {"steps": 275, "records": 2200, "flops": 1e12, "seconds": 28.0},
    }.items():  # fmt: skip
        (folder / name).write_text(json.dumps(content))
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def save_tables(folder: Path) -> Path:
    """Writes the same table as CSV and Parquet, with paths of pictures and with pictures."""
    import pyarrow
    from pyarrow import parquet

    folder.mkdir()
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 30)).save(picture, "PNG")
    (folder / "a.png").write_bytes(picture.getvalue())
    (folder / "rows.csv").write_text("image,caption\n" + "".join(f'a.png,"{text}, here"\n' for text in CAPTIONS))
    columns = {"image": [{"bytes": picture.getvalue(), "path": "a.png"}] * len(CAPTIONS), "caption": list(CAPTIONS)}
    parquet.write_table(pyarrow.table(columns), folder / "rows.parquet")
    parquet.write_table(pyarrow.table({**columns, "image": ["a.png"] * len(CAPTIONS)}), folder / "paths.parquet")
    return folder


def published_vit() -> dict[str, Any]:
    """A tiny ViT in timm's layout, as a training saved it."""
    width, names = 64, dict[str, torch.Tensor]()
    for block in range(2):
        for name, shape in {
            "norm1.weight": (width,), "norm1.bias": (width,), "norm2.weight": (width,), "norm2.bias": (width,),
            "attn.qkv.weight": (3 * width, width), "attn.qkv.bias": (3 * width,), "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,), "mlp.fc1.weight": (128, width), "mlp.fc1.bias": (128,),
            "mlp.fc2.weight": (width, 128), "mlp.fc2.bias": (width,),
        }.items():  # fmt: skip
            names[f"blocks.{block}.{name}"] = torch.ones(shape)
    names |= {"norm.weight": torch.ones(width), "norm.bias": torch.ones(width), "cls_token": torch.ones(1, 1, width)}
    names |= {"pos_embed": torch.ones(1, 5, width), "patch_embed.proj.weight": torch.ones(width, 3, 8, 8)}
    names |= {"patch_embed.proj.bias": torch.ones(width)}
    state = {f"module.{name}": value for name, value in names.items()}
    return {"model": state, "optimizer": {"state": {0: {"step": 1}}, "param_groups": []}, "epoch": 3}


def read_checkpoint(folder: Path) -> None:
    inspect(folder)
    model = load(folder, "cpu")
    assert torch.isfinite(model.embed_texts(TEXTS)).all()


def read_recipe(folder: Path, model: Predictor) -> None:
    content = (folder / "recipe.json").read_bytes()
    try:
        plain = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError("not JSON, which the reader of the checkpoint says") from None
    recipe = from_dict(plain)
    shapes = {f"model.{name}": tuple(value.shape) for name, value in model.model.state_dict().items()}
    check_model_size(recipe, model.tokenizer, shapes, folder)
    if recipe.data.source != "scenes":
        catalog.open_source(recipe.data, "test")


def read_index(folder: Path, model: Predictor) -> None:
    str(index_info(folder))
    str(open_index(folder, model).search("a boat", k=3))


def read_shards(folder: Path) -> None:
    for source in ("shards", "img2dataset"):
        config = DataConfig(source, str(folder), held_out=0.0, cache=str(folder / "cache"))
        validate(catalog.read_splits(config), config).text()
    listed = catalog.open_source(config, "train", Record)
    for number in range(len(listed)):
        try:
            listed.picture(listed.record(number))
        except BadRecord as error:
            str(error)


def read_list(folder: Path) -> None:
    config = DataConfig("jsonl", str(folder / "list.jsonl"))
    validate(catalog.read_splits(config), config).text()
    read_items(folder / "list.jsonl")


def read_run(folder: Path) -> None:
    diagnosis = examine(read_logged_run(folder), ())
    diagnosis.text(), json.dumps(diagnosis.to_json())
    write_report(folder, collect(folder))
    quality([folder, folder])
    training_stages(folder), training_rate(folder), check_folder(folder, resume=True), stored_recipe(folder)


def read_tables(folder: Path) -> None:
    for name in ("rows.csv", "rows.parquet", "paths.parquet"):
        config = DataConfig("table", str(folder / name), held_out=0.0, cache=str(folder / "cache"))
        validate(catalog.read_splits(config), config).text()


def search_again(folder: Path, photos: Path, model: Predictor) -> None:
    os.environ["DIPTYCH_CACHE"] = str(folder)
    kept = KeptVectors(model, photos)
    kept.embed([path.name for path in sorted(photos.glob("*.png"))])
    for note in kept.notes:
        assert len(note.split()) > 3


def read_published(folder: Path) -> None:
    inspect(folder / "vit.pth")
    read(folder / "vit.pth")


# --------------------------------------------------------------------------- how it is damaged


def damage(folder: Path, sealed: str | None, draw: random.Random) -> str:
    """Changes one or two files of a folder. Returns what was done."""
    done = []
    for _ in range(draw.choice((1, 1, 1, 2))):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        file = draw.choice(files)
        content = file.read_bytes()
        changes = [flipped, cut, spliced, numbered, replaced]
        if file.suffix in (".json", ".jsonl"):
            changes += [odd_value] * 4
        if file.suffix == ".safetensors":
            changes += [odd_header] * 4
        if file.suffix == ".tar":
            changes += [odd_member] * 3
        if file.suffix == ".pth":
            changes += [odd_pickle] * 3
        change = draw.choice(changes)
        file.write_bytes(change(content, draw))
        done.append(f"{file.relative_to(folder)} {change.__name__}")
    if sealed and draw.random() < 0.8:
        seal(folder, sealed)
    return ", ".join(done)


def seal(folder: Path, name: str) -> None:
    """Writes sizes and digests anew, as far as the list of files can be read."""
    try:
        content = json.loads((folder / name).read_bytes())
        listed = content["files"] if name == "index.json" else content
        base = folder / f"generation-{content['generation']:08d}" if name == "index.json" else folder
        for file in [file for file in listed if (base / file).is_file()]:
            data = (base / file).read_bytes()
            listed[file] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (folder / name).write_text(json.dumps(content))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError):
        return


def flipped(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content or b"\0")
    for _ in range(draw.choice((1, 2, 8, 64))):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content) + 1)]


def spliced(content: bytes, draw: random.Random) -> bytes:
    start, stop = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    piece = draw.choice((b"", content[start:stop] * 2, draw.randbytes(draw.randrange(600))))
    return content[:start] + piece + content[stop:]


def numbered(content: bytes, draw: random.Random) -> bytes:
    """Overwrites bytes by a number that means something to many formats."""
    number = draw.choice(
        (b"\xff" * 8, b"\0" * 8, b"\xff\xff\xff\x7f", b"\x80" + bytes(7), b"9" * 11, b"-1", b"\x00\x00\x00\x40")
    )
    start = draw.randrange(len(content) + 1)
    return content[:start] + number + content[start + len(number) :]


def replaced(content: bytes, draw: random.Random) -> bytes:
    return draw.choice(REPLACEMENTS)


def odd_value(content: bytes, draw: random.Random) -> bytes:
    """Puts an odd value somewhere into JSON, or takes something away."""
    lines = content.splitlines() if content.lstrip()[:1] == b"{" and b"\n{" in content.strip() else [content]
    number = draw.randrange(len(lines)) if lines else 0
    try:
        value = json.loads(lines[number])
    except (ValueError, IndexError, RecursionError):
        return flipped(content, draw)
    holders: list[tuple[Any, Any]] = []

    def walk(inner: Any) -> None:
        entries = inner.items() if isinstance(inner, dict) else enumerate(inner) if isinstance(inner, list) else ()
        for key, entry in list(entries):
            holders.append((inner, key))
            walk(entry)

    walk(value)
    if not holders:
        return json.dumps(draw.choice(ODD)).encode()
    holder, key = draw.choice(holders)
    if draw.random() < 0.2:
        del holder[key]
    elif draw.random() < 0.15 and isinstance(holder, dict):
        holder[draw.choice(("", "x", "a\x1b[2J", "../x", "kind"))] = holder.pop(key)
    else:
        holder[key] = draw.choice(ODD)
    lines[number] = json.dumps(value).encode()
    return b"\n".join(lines)


def odd_header(content: bytes, draw: random.Random) -> bytes:
    """Changes the header of a safetensors file, whose length is written anew."""
    length = int.from_bytes(content[:8], "little")
    header = odd_value(content[8 : 8 + length], draw)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def odd_member(content: bytes, draw: random.Random) -> bytes:
    """Changes the size or the type of a member of a tar file, with a right checksum."""
    blocks = [start for start in range(0, len(content), 512) if content[start + 257 : start + 262] == b"ustar"]
    if not blocks:
        return flipped(content, draw)
    start = draw.choice(blocks)
    header = bytearray(content[start : start + 512])
    if draw.random() < 0.6:
        size = draw.choice((-1024, -512, -1, 1, 511, 2**31, 2**40, 2**60, 10**6))
        header[124:136] = (size % (1 << 96)).to_bytes(12, "big") if size < 0 else b"\x80" + size.to_bytes(11, "big")
    else:
        header[156:157] = draw.choice((b"x", b"g", b"L", b"K", b"S", b"2", b"3", b"6", b"V", b"\0"))
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return content[:start] + bytes(header) + content[start + 512 :]


def odd_pickle(content: bytes, draw: random.Random) -> bytes:
    """Saves tensors that claim more than they hold, under odd names and of odd types."""
    try:
        saved = torch.load(io.BytesIO(content), weights_only=True)
        names = list(saved["model"])
    except Exception:  # it is damaged already
        return flipped(content, draw)
    name = draw.choice(names)
    tensor = saved["model"][name]
    if not isinstance(tensor, torch.Tensor) or tensor.numel() > 1_000_000:  # an odd one of an earlier damage
        return flipped(content, draw)
    odd: tuple[Any, ...] = (
        torch.ones(1).expand(2**20, 2**20), torch.ones(0, 2**40), torch.full_like(tensor, float("nan")), tensor.bool(),
        tensor.to(torch.complex64), tensor[..., :1], tensor.to_sparse(), "text", None, 10**30, tensor[None],
    )  # fmt: skip
    if draw.random() < 0.2:
        saved["model"][draw.choice((3, "", "a\x1b[2J", "blocks.99.norm1.weight"))] = saved["model"].pop(name)
    else:
        saved["model"][name] = draw.choice(odd)
    stream = io.BytesIO()
    torch.save(saved, stream)
    return stream.getvalue()


# --------------------------------------------------------------------------- judging


@dataclass
class Outcome:
    """What became of the mutants of each kind."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0
    largest: int = 0

    def __str__(self) -> str:
        names = sorted({kind for kind, _ in self.counts})
        lines = [
            f"{kind:12} {self.counts[kind, 'read']:6} read  {self.counts[kind, 'refused']:6} refused" for kind in names
        ]
        lines.append(f"slowest {self.slowest:.1f} s, largest {self.largest / 1e6:.0f} MB, {len(self.wrong)} wrong")
        return "\n".join([*lines, *self.wrong])


def judge(read: Callable[[Path], object], folder: Path) -> tuple[str, str]:
    """Reads a mutant. Returns `read`, `refused` or `wrong`, and the message."""
    begun, output = time.process_time(), io.StringIO()
    try:
        with redirect_stdout(output), redirect_stderr(output):
            read(folder)
        outcome = "read", ""
    except (ValueError, OSError) as error:
        text = str(error)
        outcome = (
            ("refused", text) if is_sentence(error) else ("wrong", f"no sentence: {type(error).__name__} {text!r}")
        )
    except BaseException:
        outcome = "wrong", traceback.format_exc()
    if (taken := time.process_time() - begun) > SECONDS:
        outcome = "wrong", f"{taken:.0f} s: {outcome[1]}"
    return outcome


def is_sentence(error: Exception) -> bool:
    """Tells whether a message says something: words, and not what Python says of its own affairs."""
    text = str(error)
    own = (UnicodeError, json.JSONDecodeError)
    return len(text.split()) >= 3 and "Traceback" not in text and not isinstance(error, own)


def run(count: int, seed: int = 0, only: str | None = None) -> Outcome:
    """Makes and reads `count` mutants, each by its own number, in processes that end with the first that hangs."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as place:
        known = kinds(Path(place))
        names = [only] if only else list(known)
        for name in names:
            whole = judge(known[name].read, known[name].folder)
            assert whole == ("read", ""), f"a whole {name} is not read: {whole}"
        numbers = list(range(count))
        while numbers:
            numbers = _batch(numbers, seed, names, known, Path(place) / "mutant", outcome)
    return outcome


def _batch(
    numbers: list[int], seed: int, names: list[str], known: Mapping[str, Kind], place: Path, outcome: Outcome
) -> list[int]:
    """Reads mutants in a process of their own. Returns the numbers that are left when it has ended."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(out)
        try:
            _work(numbers, seed, names, known, place, into)
        finally:
            os._exit(0)
    os.close(into)
    done, buffer = 0, b""
    with os.fdopen(out, "rb", buffering=0) as stream:
        while True:
            if not select.select([stream], [], [], HANGS)[0]:
                os.kill(child, signal.SIGKILL)
                break
            if not (chunk := stream.read(1 << 16)):
                break
            buffer += chunk
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                name, verdict, text, taken, memory = json.loads(line)
                done += 1
                outcome.counts[name, verdict] += 1
                outcome.slowest, outcome.largest = max(outcome.slowest, taken), max(outcome.largest, memory)
                if verdict == "wrong":
                    outcome.wrong.append(text)
    os.waitpid(child, 0)
    if done < len(numbers):
        outcome.wrong.append(f"mutant {numbers[done]} of seed {seed} hung or ended its process")
        done += 1
    return numbers[done:]


def _work(numbers: list[int], seed: int, names: list[str], known: Mapping[str, Kind], place: Path, into: int) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2 * MEMORY,) * 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in numbers:
        draw = random.Random(f"{seed} {number}")
        name = names[number % len(names)]
        kind = known[name]
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(kind.folder, place)
        done = damage(place, kind.sealed, draw)
        begun = time.process_time()
        verdict, text = judge(kind.read, place)
        memory = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        if verdict != "wrong" and memory > MEMORY:
            verdict, text = "wrong", f"{memory / 1e6:.0f} MB"
        line = [name, verdict, f"{name} {number} of seed {seed} ({done}): {text}", time.process_time() - begun, memory]
        os.write(into, json.dumps(line).encode() + b"\n")
        if memory > MEMORY:
            return


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS)
    options = parser.parse_args()
    os.environ["DIPTYCH_PLACES"] = ""
    outcome = run(options.count, options.seed, options.kind)
    print(outcome)
    return bool(outcome.wrong)


if __name__ == "__main__":
    sys.exit(main())
