"""`init_from`: what was asked for is taken over whole, or the run stops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diptych.checkpoints import store
from diptych.data.tokenizer import Tokenizer
from diptych.models.albef import Albef, AlbefPretraining
from diptych.recipes.albef import albef_tiny
from diptych.recipes.override import override
from diptych.schema import Recipe, SpecialIds
from diptych.train.start import start_from

WORDS = Tokenizer.train(["a red square", "two blue circles"], 60)


def recipe(**changes: object) -> Recipe:
    small = {
        "model.vision": {"image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "heads": 2},
        "model.text": {"width": 16, "layers": 2, "fusion_start": 1, "heads": 2, "intermediate": 16},
        "model.text.vocab_size": WORDS.vocab_size,
        "task.queue_size": 4,
    }
    return override(albef_tiny(), {**small, **{name.replace("__", "."): value for name, value in changes.items()}})


def task(seed: int, config: Recipe) -> AlbefPretraining:
    torch.manual_seed(seed)
    made = AlbefPretraining(Albef(config.model), config.task, SpecialIds(0, 1, 2, 3, 4))
    for weight in made.teacher.parameters():
        weight.data.add_(1)
    return made


@pytest.fixture
def run(tmp_path: Path) -> Path:
    state = store.CheckpointState(task(1, recipe()).state_dict(), {}, {"step": 5, "measure": None}, {}, WORDS.save)
    store.save_checkpoint(tmp_path / "run" / "checkpoints", 5, state)
    return tmp_path / "run"


def test_student_and_teacher_are_taken_over_and_the_queue_is_not(run: Path) -> None:
    old, new = task(1, recipe()).state_dict(), task(2, recipe(task__queue_size=6))
    assert start_from(new, run, WORDS) == run / "checkpoints" / "step-00000005"
    taken = {name: value for name, value in new.state_dict().items() if name.startswith(("model.", "teacher."))}
    assert taken.keys() == {name for name in old if name.startswith(("model.", "teacher."))}
    assert all(torch.equal(value, old[name]) for name, value in taken.items())


def test_what_is_not_found_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere does not exist"):
        start_from(task(2, recipe()), tmp_path / "nowhere", WORDS)


def test_another_size_or_an_absent_part_stops_the_run(run: Path) -> None:
    deeper = recipe(model__vision__depth=2)
    with pytest.raises(ValueError, match=r"is not of this model: missing model\.vision\.blocks\.1\."):
        start_from(task(2, deeper), run, WORDS)
    wider = replace(recipe(), model=replace(recipe().model, embed_dim=64))
    with pytest.raises(ValueError, match=r"the model's is \(64, 16\)"):
        start_from(task(2, wider), run, WORDS)


def test_another_tokenizer_stops_the_run_although_every_shape_fits(run: Path) -> None:
    swapped = Tokenizer((*WORDS.vocabulary[:-2], WORDS.vocabulary[-1], WORDS.vocabulary[-2]))
    with pytest.raises(ValueError, match=r"was trained with another tokenizer: set tokenizer\.vocabulary="):
        start_from(task(2, recipe()), run, swapped)
