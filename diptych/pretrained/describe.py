"""Describes checkpoints in words, for `diptych inspect`."""

from __future__ import annotations

from pathlib import Path

import torch

from diptych.checkpoints import store
from diptych.pretrained.assemble import LAYOUTS, family_of, family_with
from diptych.pretrained.formats import in_one_sentence, read, recognise, spell
from diptych.serialize import from_dict


def inspect(path: Path) -> str:
    """Describes a file, a folder in the Hugging Face layout, a run or a checkpoint. Reads only the shapes."""
    is_run = path.is_dir() and ((path / "checkpoints").is_dir() or (path / store.MANIFEST).is_file())
    with in_one_sentence(path):
        return _inspect_run(path) if is_run else _inspect_file(path)


def _inspect_file(path: Path) -> str:
    contents = read(path, shapes_only=True)
    layout = LAYOUTS[recognise(contents.tensors, LAYOUTS)]
    state = spell(contents.tensors, layout)
    beside = f", beside {', '.join(contents.beside)}" if contents.beside else ""
    wrapping = f'under "{contents.wrapper}"' if contents.wrapper else "bare"
    lines = [f"{contents.file}: {layout.title}", f"  holds    {len(state)} tensors, {wrapping}{beside}"]
    lines += family_of(layout).describe_file(state, layout)
    return "\n".join([*lines, f"  can      {'; '.join(layout.able)}"])


def _inspect_run(path: Path) -> str:
    checkpoint = store.load_from(path)
    recipe, fresh = from_dict(checkpoint.recipe), checkpoint.state.get("fresh", [])
    stored = checkpoint.stored("weights")
    state = {name: torch.empty(stored.shape(name), device="meta") for name in stored.names}
    family = family_with(recipe.model)
    layout = family.released_layout(recipe) if family else None
    lines = [
        f"{checkpoint.folder}: a checkpoint of diptych",
        f"  holds    {len(state)} tensors of {recipe.name} with {type(recipe.task).__name__}, "
        f"step {checkpoint.state['step']}",
    ]
    lines += family.describe_run(recipe, state) if family else []
    lines += [f"  random   {', '.join(fresh)}"] if fresh else []
    lines += [f"  can      {'; '.join(layout.able)}"] if layout else []
    return "\n".join(lines)
