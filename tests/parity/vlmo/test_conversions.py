"""Checkpoints that the released code made fit other models, and those at which it gives up (README section 4)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.checkpoints.convert import from_published
from diptych.data.tokenizer import SPECIAL
from diptych.models.vlmo import Vlmo
from diptych.models.vlmo_weights import fit_state, grid_side
from diptych.nn.relative import resize_table
from diptych.pretrained import Assembled, Options, assemble
from diptych.pretrained.family import numbers
from diptych.pretrained.vlmo_names import INDEX_TABLES, published_rules
from diptych.schema import VlmoConfig
from tests.parity.vlmo.golden import Golden

PRETRAINED = "pretrain_to_vqa_same_resolution"
"""Under which the input of all later cases is stored."""
HEADS = ("vqa_classifier.", "nlvr2_classifier.")
"""New in the receiving model, and not of the checkpoint."""
POSITIONS = "text_embeddings.position_"


class Cases:
    """The folder's conversions."""

    def __init__(self, golden: Path, folder: Path) -> None:
        self.told: dict[str, Any] = json.loads((golden / "conversions.json").read_text())
        self.stored = Golden(golden, "conversions")
        self.folder = folder
        self.relative = self.told["config"]["need_relative_position_embed"]
        words = [*SPECIAL, *(f"w{number}" for number in range(self.told["config"]["vocab_size"] - len(SPECIAL)))]
        (folder / "vocab.txt").write_text("\n".join(words))

    @property
    def names(self) -> list[str]:
        """Of those with a result."""
        return [name for name in self.told if self.stored.keys(f"{name}/output/")]

    def group(self, case: str, part: str) -> dict[str, Tensor]:
        start = f"{case}/{part}/"
        return {key.removeprefix(start): self.stored[key] for key in self.stored.keys(start)}

    def given(self, case: str) -> dict[str, Tensor]:
        """The checkpoint of a case."""
        return self.group(self.told[case].get("input_stored_under", case), "input")

    def output(self, case: str) -> dict[str, Tensor]:
        given = self.given(case)
        return self.group(case, "output") | {
            name: given[name] for name in self.told[case].get("output_equal_to_input", ())
        }

    def assemble(self, state: Mapping[str, Tensor], **options: Any) -> Assembled:
        return self.read(dict(state), **options)

    def read(self, content: Mapping[str, Any], **options: Any) -> Assembled:
        """A file of such content; each its own, since what was read of it stays in it."""
        file = self.folder / f"{len(list(self.folder.iterdir()))}.pth"
        torch.save(content, file)
        heads = self.told["config"]["num_heads"]
        return assemble([file], Options(self.folder / "vocab.txt", heads=(heads, heads), **options))

    def ours(self, state: Mapping[str, Tensor], config: VlmoConfig) -> dict[str, Tensor]:
        return from_published(state, published_rules(config))[0]

    def kept(self, names: Iterable[str]) -> set[str]:
        """Those that we have too: with relative positions, texts have no others, in the released code unread."""
        return {name for name in names if not (self.relative and name.startswith(POSITIONS))}


@pytest.fixture(scope="module")
def cases(golden_vlmo: Path, tmp_path_factory: pytest.TempPathFactory) -> Cases:
    return Cases(golden_vlmo, tmp_path_factory.mktemp("conversions"))


def fused_from(names: Iterable[str], depth: int) -> int:
    """The first layer with a vision-language expert."""
    return min(numbers(names, r"transformer\.blocks\.(\d+)\.mlp_vl\."), default=depth)


def receiving(made: Assembled, output: Mapping[str, Tensor]) -> VlmoConfig:
    """The model that a checkpoint was loaded into."""
    assert isinstance(made.recipe.model, VlmoConfig)
    return replace(
        made.recipe.model,
        fusion_start=fused_from(output, made.recipe.model.depth),
        images_per_text=len(output["token_type_embeddings.weight"]) - 1,
    )


def check_load(cases: Cases, case: str) -> None:
    """A checkpoint as another stage, task or picture size begins with it; what it lacks stays the receiver's."""
    told, before, output = cases.told[case], cases.group(case, "target_before"), cases.output(case)
    given, size = cases.given(case), told["image_size"]
    made = cases.assemble(given, image_size=size, text_length=None if cases.relative else told["max_text_len"])
    model = receiving(made, output)
    receiver, fitted = cases.ours(before, model), fit_state(made.weights, made.recipe.model, model)
    missing = {name for name in made.report.missing if name in receiver} | (receiver.keys() - fitted.keys())
    ours = fitted | {name: receiver[name] for name in missing}
    if case.startswith("beit") and cases.relative:
        rows = (2 * grid_side(model) - 1) ** 2 + 3
        assert not ours["model.positions.table"][rows:].any(), "what texts have of it begins at 0"
        tail = receiver["model.positions.table"][rows:]
        ours["model.positions.table"] = torch.cat([ours["model.positions.table"][:rows], tail])
    expected = cases.ours(without_heads(output), model)
    assert expected.keys() <= ours.keys()
    for name, tensor in expected.items():
        within = 1e-6 if size != cases.told["config"]["img_size"] and "positions" in name else 0.0
        torch.testing.assert_close(ours[name], tensor, atol=within, rtol=within, msg=name)
    lacking = cases.ours({name: output[name] for name in cases.kept(told["missing_keys"])}, model)
    assert missing == lacking.keys()


def without_heads(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith(HEADS)}


def check_stored(cases: Cases, case: str) -> None:
    """What the folder says of a case, by its own tensors."""
    told, given, before, output = (
        cases.told[case],
        cases.given(case),
        cases.group(case, "target_before"),
        cases.output(case),
    )
    for name in told["missing_keys"]:
        assert torch.equal(output[name], before[name]), name
    for name in before.keys() - set(told["missing_keys"]):  # what the receiver had, and was given
        assert before[name].shape == output[name].shape
        assert not torch.equal(before[name], output[name]), name
    if not case.startswith("beit"):
        gone = set(told["unexpected_keys"]) | set(told["dropped_before_load"])
        assert given.keys() - output.keys() == gone & given.keys()
    head = output.keys() - without_heads(output).keys()
    assert bool(head) == any(task in case for task in ("to_vqa", "to_nlvr2")), "heads of tasks begin fresh with us too"
    assert all(output[name].dim() in (1, 2) for name in head)


def check_renaming(cases: Cases, case: str) -> None:
    """The renamed dict of a BEiT, and what of it finds no place."""
    converted, given = cases.group(case, "converted"), cases.given(case)
    dropped = set(cases.told[case]["unexpected_keys"])
    made = cases.assemble(given)
    named = {f"transformer.{name}" for name in made.report.dropped}
    assert {name.replace(".mlp.", ".mlp_imag.").replace(".norm2.", ".norm2_imag.") for name in named} == dropped
    model = made.recipe.model
    assert isinstance(model, VlmoConfig)
    taken = {name: tensor for name, tensor in converted.items() if name not in dropped}
    table = cases.group(case, "target_before").get("relative_position_bias_table")
    for name, tensor in cases.ours(taken, model).items():
        if name == "model.positions.table":
            assert table is not None
            rows = (2 * grid_side(model) - 1) ** 2 + 3
            assert torch.equal(tensor[rows:], table[rows:])
            assert torch.equal(made.weights[name][:rows], tensor[:rows])
        else:
            assert torch.equal(made.weights[name], tensor), name
    for name in dropped:
        assert torch.equal(converted[name], given[name.removeprefix("transformer.")])


def test_every_conversion_gives_what_the_released_code_loads(cases: Cases) -> None:
    assert cases.names
    for case in cases.names:
        check_load(cases, case)
        check_stored(cases, case)
        if cases.group(case, "converted"):
            check_renaming(cases, case)
    assert not cases.stored.unused


def test_wrappers_make_no_difference(cases: Cases) -> None:
    assert cases.told["wrappers"]["identical"]
    state = cases.given(PRETRAINED)
    plain = cases.assemble(state)
    for content in (
        {"state_dict": state, "epoch": 3},
        {"model": state},
        {"module": {f"module.{name}": tensor for name, tensor in state.items()}},
        {"module": state},
    ):
        made = cases.read(content)
        assert made.recipe == plain.recipe
        assert all(torch.equal(tensor, plain.weights[name]) for name, tensor in made.weights.items())


def test_a_file_without_index_tables_fits_a_larger_picture(cases: Cases) -> None:
    case = "fails_or_not/own_checkpoint_without_index_tables_to_larger_image"
    if cases.relative:  # of which alone the released code gives up
        assert "KeyError" in cases.told[case]["error"]
    size = cases.told["config"]["img_size"]
    state = cases.given(PRETRAINED)
    bare = {name: tensor for name, tensor in state.items() if name not in INDEX_TABLES}
    for larger in (name for name in cases.names if "_img" in name):
        wanted = cases.told[larger]["image_size"]
        made = cases.assemble(bare, image_size=wanted, trained_image_size=size)
        whole = cases.assemble(state, image_size=wanted)
        assert all(torch.equal(tensor, whole.weights[name]) for name, tensor in made.weights.items())
    if cases.relative:
        with pytest.raises(ValueError, match="say it with --trained-image-size"):
            cases.assemble(bare)
        with pytest.raises(ValueError, match="do not belong to a grid of"):
            cases.assemble(bare, trained_image_size=5 * size)


def test_text_length_and_picture_size_change_together(cases: Cases) -> None:
    assert "fails_or_not/text_length_and_image_size_change_together" in cases.told
    sizes, state = cases.told["config"], cases.given("textmlm_to_pretrain")
    size, length = 2 * sizes["img_size"], sizes["max_text_len"]
    made = cases.assemble(state, image_size=size, text_length=length)
    model = made.recipe.model
    assert isinstance(model, VlmoConfig)
    assert (model.image_size, model.max_positions, made.recipe.data.max_tokens) == (size, length, length)
    assert f"{size} px" in str(made)
    assert f"{length}" in str(made.resized)
    if cases.relative:
        old, new = sizes["img_size"] // sizes["patch_size"], grid_side(model)
        longest = sizes["max_text_len_of_initckpt"]
        table = resize_table(state["relative_position_bias_table"], old, new, longest, longest)
        assert torch.equal(made.weights["model.positions.table"], resize_table(table, new, new, longest, length))
    else:
        table = state["text_embeddings.position_embeddings.weight"]
        assert torch.equal(made.weights["model.text.positions.weight"], table[:length])
        with pytest.raises(ValueError, match=f"ask for {len(table)} at most"):
            cases.assemble(state, text_length=len(table) + 1)
    student = {name.removeprefix("model."): tensor for name, tensor in made.weights.items()}
    Vlmo(model).load_state_dict(student)
