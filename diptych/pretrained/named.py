"""Gets published weights by their names: from the cache, or from where their authors put them.

`DIPTYCH_WEIGHTS` (default: `weights` in the library's cache folder) holds NAME/FILE as published. It can be shared, and
filled by hand on a machine without a network; FILE alone, without its folder, is found too.

FILE.origin.json     where a fetched file came from, its size and its SHA-256
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diptych.cache import cache_folder
from diptych.checkpoints import store
from diptych.checkpoints.files import PUBLISHED_FILES, fingerprint
from diptych.data.tokenizer import VOCABULARY_FILE, Tokenizer
from diptych.predict import Predictor
from diptych.predict import load as load_folder
from diptych.pretrained import exchange
from diptych.pretrained.assemble import LAYOUTS, family_of
from diptych.pretrained.family import Options
from diptych.pretrained.fetch import Unavailable, fetch, finish, is_partly_here, locked, set_aside
from diptych.pretrained.formats import read, recognise, spell
from diptych.pretrained.published import HUB, JOIN, PUBLISHED, STARTS, Published, nearest, part, parts
from diptych.reading import expand_home
from diptych.schema import AlbefConfig, Recipe
from diptych.serialize import from_dict

ORIGIN = ".origin.json"
NEVER_FUSED = "text.layers.*.cross"
"""The untrained part by which start weights are told from a model: none of them looks at images."""
FOLDER, MIRROR = "DIPTYCH_WEIGHTS", "DIPTYCH_WEIGHTS_MIRROR"
"""Environment variables: the cache, and an address below which NAME/FILE is looked for before all others."""
SMALL = 1 << 26
"""Bytes that any published file may have."""
GENERAL = (*PUBLISHED_FILES, VOCABULARY_FILE, "tokenizer_config.json", "config.json")
"""Names of files that many weights have, which are therefore looked for in their own folders only."""


def load(
    path: str | Path, device: str = "auto", largest_pixels: int | None = None, precision: str = "fp32"
) -> Predictor:
    """Loads the model of a run (its best checkpoint, otherwise its latest) or of a checkpoint folder, ready to use.

    A path that does not exist may be a name of published weights (`diptych weights` lists them), such as `albef-4m`:
    they are fetched once, checked, and converted. What looks like `owner/name` is taken for a checkpoint folder on the
    Hugging Face Hub, as `diptych export RUN --push` puts them there. A task's head is loaded too; its momentum encoder
    and its queue are not. `largest_pixels` replaces the recipe's `data.largest_pixels` where pictures are given.
    `precision` is fp32, bf16, int8 (on CPUs), or auto, which takes the fastest here that loses little and says why in
    the model's `precision_note`.

    Raises ValueError for a folder without a checkpoint, a damaged one, weights that do not fit the recipe,
    published weights that cannot be had, and a precision that the device lacks.
    """
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"load takes the path of a run or a checkpoint, or a name, and {path!r} is neither")
    return load_folder(locate(path), device, largest_pixels, precision)


def locate(name: str | Path) -> Path:
    """Returns the folder of a model: that of a run as it is; for published weights, that of their checkpoint.

    `name` may join start weights, as in `deit-base+bert-base`. Weights that are not here are fetched and converted.
    Raises ValueError for weights that cannot be had or are not what their name says, and for a mistyped name.
    """
    text, path = str(name), Path(name)
    if not text:
        raise ValueError("no model is named: give a run's folder, one of its checkpoints, or the name of weights")
    if "://" in text:
        raise ValueError(f"{text}: addresses are not fetched. Give a folder, or OWNER/NAME on the Hugging Face Hub")
    if path.exists():
        return path
    entries = parts(text)
    if entries is None:
        _check_spelling(text)
        return path
    files = [get(entry) for entry in entries]
    words = _words(entries, files)
    key = hashlib.sha256("\n".join(map(_identity, [*files, words])).encode()).hexdigest()[:12]
    folder = cache_folder() / "converted" / f"{text}-{key}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if not folder.exists():
            unfinished = folder.with_name(f"{folder.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            try:
                exchange.convert(files, unfinished, Options(words))
                unfinished.rename(folder)
            except ValueError as error:
                raise ValueError(_with_needs(f"{text}: {error}", entries)) from error
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def with_start(recipe: Recipe) -> Recipe:
    """Returns the recipe with encoders as its start weights have them, where these never were one model.

    A ViT and a BERT differ from the recipe's in details, such as DINOv2's layer scale: the model is built as they are,
    for the recipe's image size and with its rates of dropout. Raises ValueError for an image size that the patches do
    not divide.
    """
    if recipe.init_from is None or not isinstance(recipe.model, AlbefConfig):
        return recipe
    checkpoint = store.load_from(locate(recipe.init_from))
    origin = from_dict(checkpoint.recipe).model
    if NEVER_FUSED not in checkpoint.state.get("fresh", ()) or not isinstance(origin, AlbefConfig):
        return recipe
    vision, text, fresh = recipe.model.vision, recipe.model.text, checkpoint.state["fresh"]
    if "vision" not in fresh:
        vision = replace(origin.vision, image_size=vision.image_size, drop_path=vision.drop_path)
    if "text" not in fresh:
        start = (text if text.layers == origin.text.layers else origin.text).fusion_start
        dropout, attention_dropout = text.dropout, text.attention_dropout
        text = replace(origin.text, fusion_start=start, dropout=dropout, attention_dropout=attention_dropout)
    if rest := vision.image_size % vision.patch_size:
        below = vision.image_size - rest
        raise ValueError(
            f"{recipe.init_from} has patches of {vision.patch_size} px, which do not divide {vision.image_size} px: "
            f"set model.vision.image_size={below} or {below + vision.patch_size}"
        )
    return replace(recipe, model=replace(recipe.model, vision=vision, text=text))


def resolve(files: Sequence[Path | str], options: Options) -> tuple[list[Path], Options]:
    """Returns the files that names of published weights stand for, beside files that are named by their paths.

    The options get the vocabulary of the named weights, unless they or a folder among `files` have one.
    """
    paths: list[Path] = []
    named: list[Published] = []
    words: Path | None = None
    for file in files:
        entries = None if Path(file).exists() else parts(str(file))
        if entries is None:
            if not Path(file).exists():
                _check_spelling(str(file))
            paths.append(Path(file))
        else:
            named += entries
            paths += (found := [get(entry) for entry in entries])
            words = words or _words(entries, found)
    if options.vocabulary is not None:
        return paths, replace(options, vocabulary=vocabulary(options.vocabulary))
    own = any((path / VOCABULARY_FILE).is_file() for path in map(Path, files))
    return paths, options if own or words is None else replace(options, vocabulary=words)


def from_pretrained(
    *files: Path | str,
    vocabulary: Path | str | None = None,
    image_size: int | None = None,
    heads: tuple[int, int] | None = None,
    text_length: int | None = None,
    trained_image_size: int | None = None,
    answers: Path | str | None = None,
    device: str = "auto",
) -> Predictor:
    """Makes the model of a published file, ready to use, and writes nothing but what it has to fetch.

    `files` are paths or names of published weights (`diptych weights` lists them). It also takes a folder that
    `diptych export` wrote, or the Hugging Face Hub's name of one, as `diptych.load` does. The options are for other
    files: `vocabulary` is a vocab.txt, a folder that holds one, or the name of a BERT. Positions are resized to
    `image_size` and, of a VLMo, to `text_length`. `heads` are those of image and text encoder, where they are not 64
    wide. `trained_image_size` is that of a VLMo's relative positions, where the file does not tell it. `answers` is a
    JSON list for a VLMo fine-tuned for VQA. Raises ValueError where `assemble` does, and for weights that cannot be
    had.
    """
    options = Options(
        vocabulary, image_size, heads,
        text_length=text_length, trained_image_size=trained_image_size, answers=answers,
    )  # fmt: skip
    paths, options = resolve(files, options)
    return exchange.from_files(paths, options, device)


def vocabulary(name: str | Path) -> Path:
    """Returns the vocab.txt of a BERT's name, or the path as it is. Raises ValueError where it cannot be had."""
    entry = None if Path(name).exists() else PUBLISHED.get(str(name))
    if entry is None or not entry.text:
        return Path(name)
    folders = [place.rpartition("/")[0] for place in entry.places]
    files = [_get(entry, [f"{folder}/{file}" for folder in folders], check=False) for file in entry.text]
    return files[0]


def get(entry: Published) -> Path:
    """Returns the file of published weights, which is fetched if it is not here, and checked.

    Raises ValueError saying what was tried and what came back, or what another file holds.
    """
    if entry.text:
        vocabulary(entry.name)
    if entry.layouts == STARTS:  # what tells how a model of the Hub is computed
        folder = entry.places[0].rpartition("/")[0]
        with contextlib.suppress(ValueError):  # not every repository has it
            _get(entry, [f"{folder}/config.json"], check=False)
    return _get(entry, entry.places)


def here(entry: Published) -> Path | None:
    """Returns the file of published weights if it is in the cache."""
    return _here(entry, [place.rpartition("/")[2] for place in entry.places])


def weights_folder() -> Path:
    """Returns the cache of published files: `DIPTYCH_WEIGHTS`, or `weights` in the library's cache folder."""
    folder = os.environ.get(FOLDER)
    return expand_home(folder) if folder else cache_folder() / "weights"


def partly_here(entry: Published) -> int:
    """Returns the bytes that an unfinished fetch has left of published weights."""
    return max(is_partly_here(weights_folder() / entry.name / place.rpartition("/")[2]) for place in entry.places)


def verify(entry: Published, file: Path) -> str:
    """Reads a whole file again and says that it is as it was fetched. Raises ValueError where it is not."""
    _check(entry, file)
    found, origin = fingerprint(file), _origin(file)
    if origin is None:
        _write_origin(file, "", found)
        return "what it should be; nothing says where it came from"
    if found["sha256"] != origin["sha256"]:
        raise ValueError(f"{file} is not what was fetched (its SHA-256 is another): remove it, and fetch it again")
    return "as it was fetched"


# --------------------------------------------------------------------------- fetching


def _get(entry: Published, places: Sequence[str], check: bool = True) -> Path:
    """Returns one file of published weights, fetched if it is not here. `check`: it must hold the weights."""
    names = [place.rpartition("/")[2] for place in places]
    if (file := _here(entry, names)) is not None:
        if check:
            _check(entry, file)
        return file
    failures: list[str] = []
    for address, name in _addresses(entry, places):
        file = weights_folder() / entry.name / name
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with locked(file):
                if not file.exists():  # another process may have fetched it meanwhile
                    fetch(address, file, max(2 * entry.bytes, SMALL), f"{entry.name}/{name}")
                    _accept(entry, file, check, address)
            return file
        except Unavailable as error:
            failures.append(f"{address}: {error}")
        except OSError as error:
            raise ValueError(
                f"{entry.name} is not in {weights_folder()}, where nothing can be written ({error.strerror}): name "
                f"another folder by {FOLDER}, or put {address} there as {entry.name}/{name}"
            ) from None
    raise ValueError(_by_hand(entry, places, failures))


def _addresses(entry: Published, places: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields the addresses to try, each with the name of its file: the mirror first, if there is one."""
    names = [place.rpartition("/")[2] for place in places]
    if mirror := os.environ.get(MIRROR):
        yield from ((f"{mirror.rstrip('/')}/{entry.name}/{name}", name) for name in dict.fromkeys(names))
    yield from ((address_of(place), name) for place, name in zip(places, names, strict=True))


def address_of(place: str) -> str:
    """Returns the address of a place, also of one on the Hugging Face Hub, whose address `HF_ENDPOINT` may change."""
    if not place.startswith(HUB):
        return place
    from huggingface_hub import hf_hub_url

    owner, name, file = place.removeprefix(HUB).split("/", 2)
    return hf_hub_url(f"{owner}/{name}", file)


def _accept(entry: Published, file: Path, check: bool, address: str) -> None:
    """Gives a fetched file its name if it is what was wanted. Raises Unavailable, saying what it is instead."""
    part = file.with_name(f"{file.name}.part")
    try:
        if check:
            _check(entry, part)
        elif file.suffix == ".txt":
            Tokenizer.from_vocabulary(part)
        else:
            json.loads(part.read_text(encoding="utf-8"))
    except ValueError as error:
        reason = str(error).replace(str(part), "the file")
        raise Unavailable(f"{reason} (set aside as {set_aside(file)})") from None
    found = fingerprint(part)
    if check and not found["sha256"].startswith(entry.sha256):
        raise Unavailable(f"the file is damaged, or another one (set aside as {set_aside(file)})")
    finish(file)
    _write_origin(file, address, found)


def _by_hand(entry: Published, places: Sequence[str], failures: Sequence[str]) -> str:
    """Says that weights cannot be had, what was tried, how to fetch them by hand, and where to put them."""
    file = weights_folder() / entry.name / places[0].rpartition("/")[2]
    tried = "\n".join(f"  {failure}" for failure in failures)
    return (
        f"{entry.name} ({file.name}) cannot be had. Tried:\n{tried}\n"
        f"By hand, on any machine: curl -L -C - -o {file.name} {address_of(places[0])}\n"
        f"Then put it here, and the name works: {file}\n"
        f"{FOLDER} names another folder, and {MIRROR} an address of your own that has {entry.name}/{file.name}."
    )


# --------------------------------------------------------------------------- the cache


def _here(entry: Published, names: Sequence[str]) -> Path | None:
    """Returns the first of the files that the cache holds: in the folder of the weights, or beside the folders.

    A BERT may also lie in a folder that is named as on the Hub, as a clone of it does, or in the Hub's own cache.
    """
    top = weights_folder()
    repositories = [place.removeprefix(HUB).split("/")[:2] for place in entry.places if place.startswith(HUB)]
    for name in names:
        folders = [top / entry.name, *(top / repository for _, repository in repositories)]
        for folder in folders if name in GENERAL else [*folders, top]:
            if (folder / name).is_file():
                return folder / name
    return next(filter(None, (_in_hub_cache("/".join(repo), name) for repo in repositories for name in names)), None)


def _in_hub_cache(repository: str, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(repository, name)
    return Path(cached) if isinstance(cached, str) else None


def _check(entry: Published, file: Path) -> None:
    """Raises ValueError for a file that does not hold what its name promises, saying what it holds."""
    origin = _origin(file)
    if origin is not None and origin["bytes"] != file.stat().st_size:
        raise ValueError(
            f"{file} has {file.stat().st_size:,} bytes, and {origin['bytes']:,} were fetched: it is damaged. "
            "Remove it, and fetch it again"
        )
    tensors = read(file, shapes_only=True).tensors
    layout = LAYOUTS[kind] if (kind := recognise(tensors, LAYOUTS)) in entry.layouts else None
    if layout is None:
        promised = " or ".join(LAYOUTS[name].title for name in entry.layouts)
        raise ValueError(f"{file} is not {entry.name} ({promised}): it holds {_described(kind, tensors)}")
    name, shape = entry.telling
    if not name:
        return
    found = tuple(spell(tensors, layout)[name].shape) if name in spell(tensors, layout) else None
    if found != shape:
        has = f"its {name} is {_times(found)}" if found else f"it has no {name}"
        raise ValueError(
            f"{file} is not {entry.name}, where {name} is {_times(shape)}: {has}. It holds {_described(kind, tensors)}"
        )


def _described(kind: str, tensors: Any) -> str:
    """Describes the tensors of a file in a sentence."""
    layout = LAYOUTS[kind]
    try:
        lines = family_of(layout).describe_file(spell(tensors, layout), layout)
    except ValueError:
        lines = []
    return f"{layout.title} ({'; '.join(' '.join(line.split()) for line in lines)})" if lines else layout.title


def _times(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


def _origin(file: Path) -> dict[str, Any] | None:
    """Reads what was written down of a fetched file."""
    try:
        origin = json.loads(file.with_name(f"{file.name}{ORIGIN}").read_text())
        return origin if isinstance(origin["bytes"], int) and isinstance(origin["sha256"], str) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_origin(file: Path, address: str, found: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # a shared cache may be read-only
        file.with_name(f"{file.name}{ORIGIN}").write_text(json.dumps({"from": address, **found}, indent=1))


def _identity(file: Path) -> str:
    """Tells one version of a file from another, without reading all of it."""
    state, origin = file.stat(), _origin(file)
    return f"{file.name} {origin['sha256'] if origin else (state.st_size, state.st_mtime_ns)}"


def _words(entries: Sequence[Published], files: Sequence[Path]) -> Path:
    """Returns the vocabulary of weights: that of the text encoder among them, or the one of all released models."""
    for entry, file in zip(entries, files, strict=True):
        if entry.text:
            return vocabulary(entry.name)
        if entry.layouts == STARTS and recognise(read(file, shapes_only=True).tensors, LAYOUTS) == "bert":
            folder = entry.places[0].rpartition("/")[0]
            with contextlib.suppress(ValueError):  # BERTs without it are uncased
                _get(entry, [f"{folder}/tokenizer_config.json"], check=False)
            return _get(entry, [f"{folder}/{VOCABULARY_FILE}"], check=False)
    return vocabulary(entries[0].vocabulary)


def _check_spelling(name: str) -> None:
    """Raises ValueError for what is meant as a name of published weights and is none.

    That is what is nearly a name, what joins names by a plus sign, and what begins as a name does or has a prefix.
    """
    known = "`diptych weights` lists the published weights"
    if near := nearest(name):
        raise ValueError(f"{name} does not exist. Did you mean {near}? {known}")
    pieces = name.split(JOIN)
    unknown = [piece for piece in pieces if part(piece) is None]
    if 0 < len(unknown) < len(pieces):
        raise ValueError(
            f"{name}: {' and '.join(unknown)} is neither published weights nor OWNER/NAME on a hub. {known}"
        )
    if match := re.fullmatch(r"(\w{2,})(?:-[\w.-]*|:(.*))", name):
        if match[2] is not None:
            raise ValueError(f"{name}: names have no prefix {match[1]}:. Weights on the Hub are OWNER/NAME; {known}")
        if match[1].lower() in {entry.partition("-")[0] for entry in PUBLISHED}:
            raise ValueError(f"{name} is neither a folder nor the name of published weights: {known}")


def _with_needs(message: str, entries: Sequence[Published]) -> str:
    needs = [entry.needs for entry in entries if entry.needs]
    return f"{message} (it needs {'; '.join(needs)})" if needs else message
