"""Published VLMos against the released code's: the names and shapes of every file, and the folder's five states."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from diptych.catalog import TASKS
from diptych.checkpoints.convert import absences, counts, from_published, to_published
from diptych.models.vlmo import Vlmo
from diptych.pretrained import LAYOUTS, Options, convert, export
from diptych.pretrained.formats import recognise
from diptych.pretrained.vlmo import VlmoFamily
from diptych.pretrained.vlmo_names import INDEX_TABLES
from diptych.schema import Recipe, SpecialIds, VlmoConfig, VqaClosedSetConfig
from diptych.task import Task
from tests.parity.golden import read_tensors
from tests.parity.vlmo.golden import STAGES, manifest

KINDS = {
    "textmlm": "vlmo_language",
    "pretrain": "vlmo",
    "irtr": "vlmo_retrieval",
    "vqa": "vlmo_vqa",
    "nlvr2": "vlmo_nlvr2",
}
"""The released code's name of each stage → ours."""
SPECIAL = SpecialIds(pad=0, unk=100, cls=101, sep=102, mask=103)
"""Of the published vocabulary; no shape depends on them."""
FAMILY = VlmoFamily()
UNREAD = "text_embeddings.position_"

SIZES = {
    "vlmo_base_patch16": VlmoConfig(),
    "vlmo_base_plus_patch16": VlmoConfig(
        width=544, depth=24, heads=16, fusion_start=21, positions="absolute", layer_scale=None
    ),
    "vlmo_large_patch16": VlmoConfig(width=1024, depth=24, heads=16, fusion_start=21),
}
"""The paper's."""


def official(folder: Path) -> dict[str, Any]:
    """What is published; a folder of another set does not say it again."""
    file = folder / "official_checkpoint_keys.json"
    if not file.exists():
        assert manifest(folder)["set"] != "A"
        pytest.skip("only set A lists the published files")
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def numbered(layers: str) -> Iterator[int]:
    first, _, last = layers.partition("..")
    yield from range(int(first), int(last) + 1)


def full_size(told: dict[str, Any], with_tables: bool) -> dict[str, Tensor]:
    """A published file without its data."""
    shapes: dict[str, list[int]] = {}
    for pattern, entry in told["keys"].items():
        for number in numbered(entry.get("layers", "0..0")):
            shapes[pattern.replace("{i}", str(number))] = entry["shape"]
    assert len(shapes) == told["tensors"]
    if with_tables:
        shapes |= told["extra_integer_tables_seen_in_published_files"]
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def build(recipe: Recipe) -> Task:
    """Without data."""
    assert isinstance(recipe.model, VlmoConfig)
    with torch.device("meta"):
        return TASKS[type(recipe.task)](Vlmo(recipe.model), recipe.task, SPECIAL)


def test_every_stage_of_every_size_is_covered(golden_vlmo: Path) -> None:
    found = {(told["arch"], told["stage"]) for told in official(golden_vlmo).values()}
    assert found == {(size, stage) for size in SIZES for stage in KINDS}
    assert set(STAGES) == KINDS.keys()


@pytest.mark.parametrize("with_tables", [True, False])
@pytest.mark.parametrize("stage", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_a_published_file_of_full_size_is_recognised_and_fits_whole(
    golden_vlmo: Path, tmp_path: Path, size: str, stage: str, with_tables: bool
) -> None:
    told = next(told for told in official(golden_vlmo).values() if (told["arch"], told["stage"]) == (size, stage))
    state = full_size(told, with_tables)
    assert recognise(state, LAYOUTS) == KINDS[stage]
    layout = LAYOUTS[KINDS[stage]]
    (tmp_path / "answers.json").write_text(json.dumps([str(number) for number in range(3129)]))
    options = Options(answers=tmp_path / "answers.json")
    recipe = FAMILY.recipe(layout, state)
    assert isinstance(recipe.model, VlmoConfig)
    model = FAMILY.file_model(state, layout, recipe.model, options, ())
    known = SIZES[size]
    assert model == replace(
        recipe.model, width=known.width, depth=known.depth, heads=known.heads, positions=known.positions,
        layer_scale=known.layer_scale, mlp_ratio=4.0, patch_size=16, stem="patch",
        fusion_start=known.depth if stage == "textmlm" else known.fusion_start,
        image_size=told["image_size"], images_per_text=2 if stage == "nlvr2" else 1,
        max_positions=196 if known.positions == "relative" else told["max_text_len"],
    )  # fmt: skip
    recipe = FAMILY.fill_recipe(replace(recipe, model=model), state, options)
    assert recipe.data.max_tokens == told["max_text_len"]
    rules = layout.rules(model)
    ours, report = from_published(state, rules)
    assert report.loaded.keys() | report.dropped.keys() == state.keys()
    wanted = build(recipe).state_dict()
    assert ours.keys() <= wanted.keys()
    assert all(tensor.shape == wanted[name].shape for name, tensor in ours.items())
    assert set(absences(wanted, ours, rules)) == wanted.keys() - ours.keys()
    back = to_published(ours, rules)
    back, _ = FAMILY.complete(back | counts(back, rules), recipe)
    whole = full_size(told, with_tables=True)
    assert {name: tensor.shape for name, tensor in back.items()} == {name: t.shape for name, t in whole.items()}


@pytest.mark.parametrize("stage", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_parameters_are_as_many_as_the_released_ones(golden_vlmo: Path, size: str, stage: str) -> None:
    told = next(told for told in official(golden_vlmo).values() if (told["arch"], told["stage"]) == (size, stage))
    state = full_size(told, with_tables=False)
    counted = sum(tensor.numel() for name, tensor in state.items() if name != "text_embeddings.position_ids")
    assert counted == told["parameters"]


# --------------------------------------------------------------------------- the folder's own


def options(folder: Path, tmp_path: Path) -> Options:
    """What the folder's files cannot tell."""
    sizes = manifest(folder)["config"]
    answers = tmp_path / "answers.json"
    answers.write_text(json.dumps([f"answer {number}" for number in range(sizes["vqa_label_size"])]))
    heads = sizes["num_heads"], sizes["num_heads"]
    return Options(folder, heads=heads, trained_image_size=sizes["img_size"], answers=answers)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("stage", KINDS)
def test_each_stage_loads_whole_and_comes_back_bit_by_bit(
    golden_vlmo: Path, tmp_path: Path, stage: str, suffix: str
) -> None:
    file, relative = (
        golden_vlmo / f"weights_{stage}.safetensors",
        manifest(golden_vlmo)["config"]["relative_position_bias"],
    )
    state = read_tensors(file)
    made = convert([file], tmp_path / "run", options(golden_vlmo, tmp_path))
    assert made.layout is LAYOUTS[KINDS[stage]]
    assert made.report.loaded.keys() | made.report.dropped.keys() == state.keys()
    assert {name for name in made.report.dropped if not name.startswith("text_embeddings.position_ids")} == (
        {"text_embeddings.position_embeddings.weight"} if relative else set()
    )
    assert set(made.report.loaded.values()) | made.report.missing.keys() == made.weights.keys()
    out = tmp_path / f"back.{suffix}"
    left_out = export(tmp_path / "run", out)
    back = load_file(out) if suffix == "safetensors" else torch.load(out, weights_only=True)["model"]
    assert back.keys() == state.keys() | (set(INDEX_TABLES) if relative else set())
    unread = {"text_embeddings.position_embeddings.weight"} if relative else set()
    assert left_out.keys() == made.report.missing.keys() | unread
    for name in state.keys() - unread:
        assert back[name].dtype == state[name].dtype, name
        assert torch.equal(back[name], state[name]), name


@pytest.mark.parametrize("stage", KINDS)
def test_what_comes_back_needs_no_word_about_its_size(golden_vlmo: Path, tmp_path: Path, stage: str) -> None:
    """Its index tables tell."""
    told = options(golden_vlmo, tmp_path)
    first = convert([golden_vlmo / f"weights_{stage}.safetensors"], tmp_path / "run", told)
    export(tmp_path / "run", tmp_path / "out.pth")
    second = convert([tmp_path / "out.pth"], tmp_path / "again", replace(told, trained_image_size=None))
    assert second.recipe == first.recipe
    for name in first.report.loaded.values():
        assert torch.equal(second.weights[name], first.weights[name]), name


def test_the_classes_of_answers_have_the_names_that_are_given(golden_vlmo: Path, tmp_path: Path) -> None:
    file, told = golden_vlmo / "weights_vqa.safetensors", options(golden_vlmo, tmp_path)
    made = convert([file], tmp_path / "run", told)
    assert isinstance(made.recipe.task, VqaClosedSetConfig)
    assert made.recipe.task.answers[1] == "answer 1"
    with pytest.raises(ValueError, match="name a JSON list of them by --answers"):
        convert([file], tmp_path / "other", replace(told, answers=None))
    (tmp_path / "few.json").write_text('["yes"]')
    with pytest.raises(ValueError, match="lists 1 answers, and the file has"):
        convert([file], tmp_path / "other", replace(told, answers=tmp_path / "few.json"))
    (tmp_path / "none.json").write_text('{"yes": 0}')
    with pytest.raises(ValueError, match="no JSON list of answers"):
        convert([file], tmp_path / "other", replace(told, answers=tmp_path / "none.json"))
