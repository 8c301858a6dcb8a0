"""Tests `diptych plan`: cards, printed plans, plans that do not fit, and mistakes."""

from __future__ import annotations

import json
from functools import cache

import pytest

from diptych.apps.plan.cards import CARDS, find_card, find_fleet
from diptych.apps.plan.check import RETURNED_MEMORY, in_process
from diptych.apps.plan.predict import Plan, Wish, alternatives, plan
from diptych.catalog import find_recipe
from diptych.cli.main import main
from diptych.recipes.override import override

MICRO = {
    "model.vision.depth": 1, "model.vision.stem": "patch", "model.text.layers": 2, "model.text.fusion_start": 1,
    "model.vision.patch_size": 16, "task.fuse_start": 0, "task.momentum_start": 0, "optim.kind": "adamw",
    "run.batch_size": 8,
}  # fmt: skip
"""Changes to `albef_tiny` that make it quick to count."""


@pytest.fixture(autouse=True)
def small_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts two small sizes, whatever the batch, which takes less time."""
    monkeypatch.setattr("diptych.apps.plan.count.MOST", 8)


@cache
def planned(devices: str = "A100-40G", **changes: object) -> Plan:
    """Plans a small recipe. Dots in a field's name are written as double underscores."""
    fields = MICRO | {name.replace("__", "."): value for name, value in changes.items()}
    return plan(override(find_recipe("albef_tiny"), fields), Wish(find_fleet(devices)))


# --------------------------------------------------------------------------- cards


def test_devices_are_a_number_and_a_card_in_any_case() -> None:
    fleet = find_fleet("8xa100-40g")
    assert (fleet.count, fleet.card, str(fleet)) == (8, CARDS["A100-40G"], "8xA100-40G")
    assert find_fleet("T4").count == 1
    assert find_fleet("this").card is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8xA100-40", r"no card 'A100-40'. Did you mean 'A100-40G'\? Known: V100-16G, .*, or this"),
        ("abacus", "no card 'abacus'. Known: V100-16G"),
        ("0xT4", "one device at least"),
        ("2xthis", "as one process"),
        ("", "is empty"),
    ],
)
def test_devices_that_are_none_are_refused_with_the_known_ones(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_fleet(text)


def test_each_card_names_its_source_and_no_peak_is_one_with_sparsity() -> None:
    for card in CARDS.values():
        assert "NVIDIA" in card.source
        assert card.half >= card.fp32
        assert card.tf32 is None or card.tf32 <= card.half / 2 * 1.01  # tensor cores do half as much in TF32
    assert find_card("h100-80g").half < 1e15


# --------------------------------------------------------------------------- the verb

SAID = [f"{name}={value}" for name, value in MICRO.items()]


def test_the_verb_prints_memory_time_and_where_its_numbers_come_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "albef_tiny", *SAID, "--devices", "2xA100-40G", "--price", "2"]) == 0
    said = capsys.readouterr().out
    for words in ("image encoder", "momentum encoder", "optimiser", "queue", "Bottleneck", "data sheet", "assumed"):
        assert words in said
    assert "Training: 1,000 steps" in said
    assert "Cost:" in said


def test_without_a_price_there_is_no_cost_and_json_holds_the_whole_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "albef_tiny", *SAID, "--devices", "T4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cost"] is None
    assert found["total"] == sum(found["memory"].values())
    assert found["step"] == pytest.approx(sum(found["seconds"].values()))
    assert found["flops"] == sum(part["forward"] + part["backward"] + part["recompute"] for part in found["parts"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--devices", "3xT4"], "run.batch_size=64 cannot be shared equally by 3 devices: set run.batch_size=63"),
        (["--devices", "16xT4"], "several machines of 8, and T4 has no network"),
        (["--devices", "T4", "--check", "1"], "--check runs steps here"),
        (["--devices", "V100-16G", "--tf32"], "V100-16G has no TF32"),
        (["--efficiency", "1.5"], "--efficiency is a share"),
        (["--price", "0"], "--price must be above 0"),
        (["--tokens", "0"], "--tokens must be at least 1"),
        (["optim.kind=muon", "run.parallel=fsdp"], "optim.kind=muon needs whole matrices in each process"),
        (["optim.accumulate=2", "run.batch_size=4", "--check", "1"], "leave optim.accumulate at 1"),
    ],
)
def test_a_mistake_is_said_in_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "albef_tiny", *arguments]) == 2
    captured = capsys.readouterr().err
    assert message in captured
    assert captured.count("\n") == 1


# --------------------------------------------------------------------------- what a plan says


def test_a_plan_that_does_not_fit_says_what_helps_and_the_first_that_fits_does() -> None:
    tight = planned(devices="T4", run__batch_size=16384)
    assert not tight.fits
    assert tight.advice[0].startswith("run.activation_checkpointing=true: ")
    said = next(line for line in tight.advice if line.endswith(": fits"))
    changes = dict(field.split("=") for field in said.partition(":")[0].split())
    again = planned(devices="T4", **{"run.batch_size": 16384} | changes)
    assert again.fits
    assert f"{again.total / 2**30:.1f} GiB" in said


def test_what_is_proposed_trains_with_as_many_pairs_a_step() -> None:
    recipe = find_recipe("albef_base")
    for _, changed in alternatives(recipe, find_fleet("8xT4")):
        assert changed.run.batch_size * changed.optim.accumulate == recipe.run.batch_size


def test_fsdp_is_not_proposed_to_muon_which_it_would_refuse() -> None:
    recipe = find_recipe("albef_base")
    for kind, proposed in (("adamw", True), ("muon", False)):
        changes = [line for line, _ in alternatives(override(recipe, {"optim.kind": kind}), find_fleet("8xT4"))]
        assert ("run.parallel=fsdp" in changes) == proposed


def test_fsdp_cuts_what_lasts_into_equal_parts_and_ddp_does_not() -> None:
    whole, cut = (planned(devices="4xT4", run__parallel=kind) for kind in ("ddp", "fsdp"))
    for name in ("weights", "gradients", "optimiser", "momentum encoder"):
        assert cut.memory[name] == whole.memory[name] // 4
    assert cut.memory["activations"] == whole.memory["activations"]
    assert "gathered weights" in cut.memory


def test_pieces_compute_encoders_and_fusion_again_and_hold_one_piece_at_a_time() -> None:
    whole, cut = planned(run__batch_size=64), planned(run__batch_size=16, optim__accumulate=4)
    assert cut.memory["activations"] < whole.memory["activations"] / 2
    again = {part.name: part.recompute for part in cut.parts}
    forward = {part.name: part.forward for part in cut.parts}
    assert again["image encoder"] == forward["image encoder"] > 0
    assert again["momentum encoder"] == 0


def test_checkpointing_keeps_less_and_computes_blocks_again() -> None:
    plain, saving = (planned(run__activation_checkpointing=on) for on in (False, True))
    assert saving.memory["activations"] < 0.65 * plain.memory["activations"]
    image = {part.name: part for part in saving.parts}["image encoder"]
    assert 0.5 * image.forward < image.recompute < image.forward  # the stem is no block


def test_beginnings_without_fusion_and_momentum_encoder_shorten_the_training() -> None:
    late, never = planned(task__fuse_start=1900), planned()
    assert late.step == never.step
    assert late.total_seconds is not None
    assert never.total_seconds is not None
    assert late.total_seconds < never.total_seconds


def test_muon_needs_less_memory_for_its_state_and_more_time_than_adamw() -> None:
    adamw, muon = planned(), planned(optim__kind="muon")
    assert 0.5 < muon.memory["optimiser"] / adamw.memory["optimiser"] < 0.8
    assert muon.seconds["optimiser and momentum encoder"] > adamw.seconds["optimiser and momentum encoder"]


def test_planned_memory_is_that_of_a_process_that_takes_the_step() -> None:
    recipe = override(find_recipe("albef_tiny"), MICRO | {"run.batch_size": 64})
    found = planned(run__batch_size=64)
    assert found.total == pytest.approx(in_process("memory", recipe, 25, 1, RETURNED_MEMORY)["bytes"], rel=0.1)
