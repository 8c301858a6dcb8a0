"""Turns published files into a checkpoint folder or a model, and a run's checkpoint into a published file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from diptych.checkpoints import store
from diptych.checkpoints.convert import Report, absences, counts, from_published, to_published
from diptych.checkpoints.files import save_tensors, save_torch
from diptych.predict import Predictor, is_own, load, make_predictor
from diptych.pretrained.assemble import Assembled, assemble, family_with
from diptych.pretrained.family import Options
from diptych.serialize import from_dict, to_dict
from diptych.writing import UNFINISHED, is_free, whole_file

RELEASED = {"stem": "patch", "norm": "post"}
"""The only values of these fields, wherever they stand, that the released code computes with."""


def convert(files: Sequence[Path | str], folder: Path, options: Options) -> Assembled:
    """Writes the checkpoint that `files` make into `folder`, for `diptych.load` and `init_from`.

    `conversion.json` in the folder says what became of each tensor. Raises ValueError for a folder that holds a run
    already, and where `assemble` does.
    """
    if not is_free(folder / "checkpoints") or (folder / "recipe.json").exists():
        raise ValueError(f"{folder} holds a run already: name another folder")
    assembled = assemble(files, options)
    state = {"step": 0, "epoch": 0.0, "measure": None, "fresh": fresh_parts(assembled.report)}
    recipe, save_tokenizer = to_dict(assembled.recipe), assembled.tokenizer.save
    content = store.CheckpointState(assembled.weights, {}, state, recipe, save_tokenizer)
    with whole_file(folder / "conversion.json") as unfinished:  # its name appears once the checkpoint is there
        unfinished.write_text(json.dumps(asdict(assembled.report), indent=1, ensure_ascii=False), encoding="utf-8")
        store.save_checkpoint(folder / "checkpoints", 0, content)
    return assembled


def _unpublished(config: Any, name: str) -> Iterator[str]:
    """Yields the fields of a config, and of those in it, with values that were never published."""
    for field in fields(config):
        value, place = getattr(config, field.name), f"{name}.{field.name}"
        if is_dataclass(value):
            yield from _unpublished(value, place)
        elif value != RELEASED.get(field.name, value):
            yield f"{place}={value}"


def fresh_parts(report: Report) -> list[str]:
    """Lists the parts of the student that no file held, such as `word_head`, and that are therefore random."""
    inner = r"text\.layers\.\d+\.cross|blocks\.\d+\.\w*ffn"
    parts = (re.match(rf"model\.({inner}|\w+)", name) for name in report.missing)
    return sorted({re.sub(r"\d+", "*", part[1]) for part in parts if part})


def from_files(files: Sequence[Path], options: Options, device: str = "auto") -> Predictor:
    """Makes the model of a published file, or loads a folder of this library. Raises ValueError where `assemble` does,
    and for options of a folder."""
    if len(files) == 1 and is_own(files[0]):
        if options != Options():
            raise ValueError(f"{files[0]} is of this library: it knows its sizes and words, and takes no options")
        return load(files[0], device)
    assembled = assemble(files, options)
    fresh = fresh_parts(assembled.report)
    return make_predictor(assembled.recipe, assembled.tokenizer, assembled.weights, files[0], fresh, device)


def export(run: Path, file: Path) -> dict[str, str]:
    """Writes a run's checkpoint in the released layout. Returns the tensors that have no place in it, and why.

    The file is a torch file with the entry `model`, as released, or a safetensors file if its name ends so. Raises
    ValueError for a model that the released code cannot compute (another stem, other norms), and for an existing file;
    WriteError, with nothing written, if the disk refuses.
    """
    if file.exists():
        raise ValueError(f"{file} is there already: name another file")
    checkpoint = store.load_from(run)
    recipe = from_dict(checkpoint.recipe)
    family = family_with(recipe.model)
    layout = family.released_layout(recipe) if family else None
    if family is None or layout is None:
        raise ValueError(f"{recipe.name} trains what was never released: it has no released layout")
    rules = layout.rules(recipe.model)
    if unknown := [*_unpublished(recipe.model, "model"), *_unpublished(recipe.task, "task")]:
        raise ValueError(
            f"{checkpoint.folder} has no released layout: the released code does not know {' and '.join(unknown)},"
            " which recipes for training small models from random weights set. Name a run of a published size, as of"
            " albef_base or vlmo_base, or write this one with `diptych export RUN --to FOLDER`"
        )
    weights = checkpoint.weights()
    try:
        published = to_published(family.as_released(weights, recipe), rules)
        published |= counts(published, rules)
        published, additions = family.complete(published, recipe)
    except ValueError as error:
        raise ValueError(f"{checkpoint.folder} has no released layout: {error}") from None
    with whole_file(file, file.with_name(f"{UNFINISHED}{file.name}")) as unfinished:
        if file.suffix == ".safetensors":
            save_tensors(published, unfinished)
        else:
            save_torch({"model": published}, unfinished)
    return absences(weights, from_published(published, rules)[0], rules) | additions
