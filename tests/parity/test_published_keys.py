"""Names of published checkpoints against the released code's: `official_keys_fullsize`, `loading_maps`, `state`."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from diptych.catalog import TASKS
from diptych.checkpoints.convert import Alias, Rule, absences, counts, find_rule, from_published, to_published
from diptych.models.albef import Albef, repeat_fusion_layers, start_of_answer_decoder
from diptych.pretrained import LAYOUTS, Options, convert
from diptych.pretrained.albef import config_from_shapes, make_task_config
from diptych.pretrained.formats import recognise, spell
from diptych.schema import AlbefConfig, SpecialIds, VisionConfig
from diptych.task import Task
from diptych.train.start import start_from
from tests.parity.golden import albef_config, read_tensors, special_ids

KINDS = {
    "pretrain": "pretraining",
    "retrieval": "retrieval",
    "ve": "entailment",
    "vqa": "vqa",
    "nlvr": "nlvr2",
    "pretrain_nlvr": "text_assignment",
}
"""The golden folder's name of each kind → ours."""
SPECIAL = SpecialIds(pad=0, unk=100, cls=101, sep=102, mask=103)
"""Of the published vocabulary; no shape depends on them."""


def full_size(folder: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What the folder says of a published file, and its tensors without data."""
    told = json.loads((folder / "official_keys_fullsize.json").read_text())[kind]
    tensors: dict[str, Tensor] = {}
    for entry in told["keys"]:
        first, last = entry.get("i", (0, 0))
        for number in range(first, last + 1):
            name = entry["key"].replace("{i}", str(number))
            tensors[name] = torch.empty(entry["shape"], device="meta")
    return told, tensors


def build(kind: str, config: AlbefConfig, state: dict[str, Tensor], special: SpecialIds) -> Task:
    """The task of the kind, as large as the state."""
    task = make_task_config(LAYOUTS[KINDS[kind]].task, state, config)
    return TASKS[type(task)](Albef(config), task, special)


def test_every_kind_of_file_is_covered(golden_albef: Path) -> None:
    assert set(json.loads((golden_albef / "official_keys_fullsize.json").read_text())) == set(KINDS)
    assert {path.stem for path in (golden_albef / "state").iterdir()} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_published_file_of_full_size_is_recognised_and_fits_whole(golden_albef: Path, kind: str) -> None:
    told, state = full_size(golden_albef, kind)
    assert len(state) == told["entries"]
    assert recognise(state, LAYOUTS) == KINDS[kind]
    layout = LAYOUTS[KINDS[kind]]
    config = config_from_shapes(spell(state, layout), layout.images_per_text, AlbefConfig())
    assert config == AlbefConfig(
        vision=replace(VisionConfig(), image_size=told["image_res"]), images_per_text=layout.images_per_text
    )
    rules = layout.rules(config)
    ours, report = from_published(state, rules)
    assert report.loaded.keys() | report.dropped.keys() == state.keys()
    with torch.device("meta"):
        task = build(kind, config, state, SPECIAL)
    wanted = task.state_dict()
    assert ours.keys() <= wanted.keys()
    assert all(tensor.shape == wanted[name].shape for name, tensor in ours.items())
    assert set(absences(wanted, ours, rules)) == wanted.keys() - ours.keys()
    back = to_published(ours, rules)
    back |= counts(back, rules)
    assert {name: tensor.shape for name, tensor in back.items()} == {name: t.shape for name, t in state.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_ties_buffers_and_parameter_counts_are_the_released_ones(golden_albef: Path, kind: str) -> None:
    told, state = full_size(golden_albef, kind)
    layout = LAYOUTS[KINDS[kind]]
    config = config_from_shapes(spell(state, layout), layout.images_per_text, AlbefConfig())
    rules = layout.rules(config)
    ours, report = from_published(state, rules)
    second = {name for name in state if isinstance(_rule(name, rules), Alias)}
    assert {frozenset(group) for group in told["tied"]} == {
        frozenset({name, report.dropped[name].removeprefix("second name of ")}) for name in second
    }
    with torch.device("meta"):
        task = build(kind, config, state, SPECIAL)
    parameters = {name for name, _ in task.named_parameters()}
    stored = {name for name in state if name not in second and name not in told["buffers"]}
    assert {report.loaded[name] for name in stored} == parameters & ours.keys()
    assert all(report.loaded.get(name) not in parameters for name in told["buffers"])
    counted = {name: state[name].numel() for name in stored}
    assert sum(counted.values()) == told["parameters_all"]
    assert sum(count for name, count in counted.items() if not _momentum(name)) == told["parameters_online"]


def _rule(name: str, rules: list[Rule]) -> Rule:
    found = find_rule(name, rules)
    assert found is not None
    return found[0]


def _momentum(name: str) -> bool:
    return name.partition(".")[0].endswith("_m")


# --------------------------------------------------------------------------- what fine-tuning starts with

MAPS = ("pretrain->retrieval", "pretrain->ve", "pretrain->vqa", "pretrain->pretrain_nlvr", "pretrain_nlvr->nlvr")


def test_every_loading_map_is_covered(golden_albef: Path) -> None:
    assert set(json.loads((golden_albef / "loading_maps.json").read_text())) == set(MAPS)


def tables(folder: Path, kind: str) -> tuple[AlbefConfig, list[Rule]]:
    """The tiny model of a kind, and its table."""
    layout = LAYOUTS[KINDS[kind]]
    config = replace(albef_config(folder), images_per_text=layout.images_per_text)
    return config, list(layout.rules(config))


def started(folder: Path, state: dict[str, Tensor], source: str, target: str) -> dict[str, Tensor]:
    """What a task of the target kind takes of a source state, under the target's published names."""
    ours, _ = from_published(state, tables(folder, source)[1])
    config, rules = tables(folder, target)
    known = repeat_fusion_layers(ours, config) | start_of_answer_decoder(ours, config)
    wanted = build(target, config, read_tensors(folder / "state" / f"{target}.safetensors"), special_ids(folder))
    taken = {name: known[name] for name in wanted.state_dict() if name in known}
    published = to_published(taken, rules)
    return published | counts(published, rules)


@dataclass(frozen=True)
class LoadingMap:
    """A conversion as the folder tells it, with the states on both sides."""

    source: str
    target: str
    told: dict[str, Any]
    state: dict[str, Tensor]
    """The source's."""
    whole: dict[str, Tensor]
    """The target's."""
    unfit: frozenset[str]
    """The answer decoder's projections to keys and values, where images and texts differ in width; else nothing.

    In pre-training they read image tokens, in the decoder question states. Of unequal widths, the released loader would
    fail at their matrices. Ours starts these projections fresh and loads all else.
    """

    @classmethod
    def read(cls, folder: Path, name: str) -> LoadingMap:
        told = json.loads((folder / "loading_maps.json").read_text())[name]
        source, _, target = name.partition("->")
        state, whole = (read_tensors(folder / "state" / f"{kind}.safetensors") for kind in (source, target))
        config = albef_config(folder)
        unequal = config.vision.width != config.text.width
        unfit = frozenset(key for key in whole if unequal and CROSS_PROJECTION.match(key))
        for key in unfit & told["map"].keys():
            fits = whole[key].shape == state[told["map"][key]].shape
            assert fits == key.endswith(".bias"), key
        return cls(source, target, told, state, whole, unfit)

    @property
    def loaded(self) -> dict[str, str]:
        """The target's names → the source's, of all that fits."""
        return {ours: theirs for ours, theirs in self.told["map"].items() if ours not in self.unfit}


CROSS_PROJECTION = re.compile(r"text_decoder(_m)?\..*\.crossattention\.self\.(key|value)\.")


@pytest.mark.parametrize("name", MAPS)
def test_fine_tuning_starts_with_what_the_released_code_loads(golden_albef: Path, name: str) -> None:
    """All of it, except for exactly the projections of cross-attention that do not fit."""
    loading = LoadingMap.read(golden_albef, name)
    found = started(golden_albef, loading.state, loading.source, loading.target)
    assert found.keys() == loading.loaded.keys()
    for ours, theirs in loading.loaded.items():
        assert torch.equal(found[ours], loading.state[theirs]), ours
        assert found[ours].shape == loading.whole[ours].shape, ours
    assert loading.whole.keys() - found.keys() == set(loading.told["not_loaded"]) | loading.unfit


@pytest.mark.parametrize("name", MAPS)
def test_what_the_released_code_ignores_changes_nothing(golden_albef: Path, name: str) -> None:
    loading = LoadingMap.read(golden_albef, name)
    source, target, told, state = loading.source, loading.target, loading.told, loading.state
    ignored = state.keys() - set(told["map"].values())
    # Some maps name the momentum text encoder as the released code respells it before it drops it.
    respelled = {key for key in told["ignored"] if key not in state} | (ignored - set(told["ignored"]))
    assert all(key.startswith("text_encoder_m.") for key in respelled)
    rules = tables(golden_albef, source)[1]
    second = {key: rule for key in ignored if isinstance(rule := _rule(key, rules), Alias)}
    before = started(golden_albef, state, source, target)
    for key in ignored - second.keys():
        state[key] = state[key] + (0 if key.endswith("position_ids") else 1)
    for key, rule in second.items():
        found = find_rule(key, rules)
        assert found is not None
        state[key] = state[rule.of.format(**found[2])]
    after = started(golden_albef, state, source, target)
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


@pytest.mark.parametrize("name", MAPS)
def test_a_run_that_starts_from_the_file_begins_with_what_the_released_code_loads(
    golden_albef: Path, tmp_path: Path, name: str
) -> None:
    """All of it, except for exactly the projections of cross-attention that do not fit: these start fresh."""
    loading = LoadingMap.read(golden_albef, name)
    save_file(loading.state, tmp_path / "file.safetensors")
    config, rules = tables(golden_albef, loading.target)
    heads = config.vision.heads, config.text.heads
    made = convert([tmp_path / "file.safetensors"], tmp_path / "run", Options(golden_albef / "vocab.txt", heads=heads))
    task = build(loading.target, config, loading.whole, special_ids(golden_albef))
    start = start_from(task, tmp_path / "run", made.tokenizer)
    found = to_published(task.state_dict(), rules)
    found |= counts(found, rules)
    for ours, theirs in loading.loaded.items():
        if "queue" not in ours:  # features of other pictures: ours starts empty (train/start.py)
            assert torch.equal(found[ours], loading.state[theirs]), ours
    fresh = to_published({name: task.state_dict()[name] for name in start.fresh if ".cross.kv." in name}, rules)
    assert fresh.keys() == loading.unfit
