"""Published files to a checkpoint folder or to a model, and a run's checkpoint to a published file."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from diptych.checkpoints import store
from diptych.checkpoints.convert import Report, absences, counts, from_published, to_published
from diptych.predict import Predictor, is_own, load, make_predictor
from diptych.pretrained.assemble import Assembled, assemble, family_with
from diptych.pretrained.family import Options
from diptych.serialize import from_dict, to_dict


def convert(files: Sequence[Path | str], folder: Path, options: Options) -> Assembled:
    """Writes the checkpoint that `files` make into `folder`, for `diptych.load` and `init_from`; and the whole report.

    Raises ValueError for a folder that holds a checkpoint already, and as `assemble` does.
    """
    if (folder / "checkpoints").exists() or (folder / "recipe.json").exists():
        raise ValueError(f"{folder} holds a run already: name another folder")
    made = assemble(files, options)
    state = {"step": 0, "epoch": 0.0, "measure": None, "fresh": fresh_parts(made.report)}
    content = store.CheckpointState(made.weights, {}, state, to_dict(made.recipe), made.tokenizer.save)
    store.save_checkpoint(folder / "checkpoints", 0, content)
    (folder / "conversion.json").write_text(json.dumps(asdict(made.report), indent=1, ensure_ascii=False))
    return made


def fresh_parts(report: Report) -> list[str]:
    """Parts of the student that no file brought, such as `word_head`: random."""
    inner = r"text\.layers\.\d+\.cross|blocks\.\d+\.\w*ffn"
    parts = (re.match(rf"model\.({inner}|\w+)", name) for name in report.missing)
    return sorted({re.sub(r"\d+", "*", part[1]) for part in parts if part})


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
    """The model of a published file, ready to use; nothing is written.

    A folder that `diptych export` wrote, or the Hugging Face Hub's name of one, is taken too, as by `diptych.load`; the
    options are for other layouts.

    `vocabulary`: a vocab.txt or a folder that holds one. `image_size`, and a VLMo's `text_length`: positions are
    resized to them. `heads` of image and text encoder, where they are not 64 wide. `trained_image_size`: what a VLMo's
    relative positions are for, where the file does not tell. `answers` of a VLMo's VQA: a JSON list.
    Raises ValueError as `assemble` does.
    """
    options = Options(
        vocabulary, image_size, heads,
        text_length=text_length, trained_image_size=trained_image_size, answers=answers,
    )  # fmt: skip
    if len(files) == 1 and is_own(files[0]):
        if options != Options():
            raise ValueError(f"{files[0]} is of this library: it knows its sizes and words, and takes no options")
        return load(files[0], device)
    made = assemble(files, options)
    fresh = fresh_parts(made.report)
    return make_predictor(made.recipe, made.tokenizer, made.weights, Path(files[0]), fresh, device)


def export(run: Path, file: Path) -> dict[str, str]:
    """Writes a run's checkpoint in the released layout; returns what it has no place for, and why.

    A torch file with the entry `model`, as released, or bare safetensors if `file` is called so. Raises ValueError
    for a model that the released code cannot compute (another stem, other norms), and for a file that is there.
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
    weights = checkpoint.weights()
    try:
        published = to_published(family.released(weights, recipe), rules)
        published |= counts(published, rules)
        published, told = family.completed(published, recipe)
    except ValueError as error:
        raise ValueError(f"{checkpoint.folder} has no released layout: {error}") from None
    unfinished = file.with_name(f"{file.name}.unfinished")
    if file.suffix == ".safetensors":
        save_file({name: tensor.clone() for name, tensor in published.items()}, unfinished)
    else:
        torch.save({"model": published}, unfinished)
    unfinished.replace(file)
    return absences(weights, from_published(published, rules)[0], rules) | told
