"""Recipes build; overrides are typed and strict; a recipe survives its way to JSON."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch

from diptych.catalog import LAYOUTS, MODELS, RECIPES, SOURCES, TASKS, find_recipe, open_source
from diptych.data.record import Question
from diptych.data.sources.files import FileSource
from diptych.models.albef import Albef
from diptych.recipes.override import override, parse_assignments
from diptych.run.splits import with_answers
from diptych.schema import (
    DataConfig,
    EntailmentConfig,
    GroundingTrainingConfig,
    Nlvr2Config,
    Recipe,
    RetrievalConfig,
    RunConfig,
    SpecialIds,
    TaskConfig,
    TextAssignmentConfig,
    VqaClosedSetConfig,
    VqaDecoderConfig,
)
from diptych.serialize import from_dict, to_dict
from diptych.tasks.albef_pretraining import AlbefPretraining
from diptych.train.optim import build_optimizer, learning_rate
from diptych.train.state import Plan


def tiny() -> Recipe:
    return find_recipe("albef_tiny")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds_its_model_task_and_optimiser(name: str) -> None:
    recipe = with_answers(find_recipe(name), FileSource((Question("1", "1.jpg", "Who?", ("you", "me"), "1.jpg"),)))
    with torch.device("meta"):
        task = TASKS[type(recipe.task)](
            MODELS[type(recipe.model)](recipe.model), recipe.task, SpecialIds(0, 1, 2, 3, 4)
        )
    assert recipe.name == name
    assert build_optimizer(task, recipe.optim).param_groups
    assert Plan.of(recipe, steps_per_epoch=1000).steps > recipe.schedule.warmup_steps


@pytest.mark.parametrize(
    ("name", "task", "lr", "epochs", "batch", "size"),
    [
        ("retrieval_coco", RetrievalConfig, (1e-5, 1e-6), 5 * 5, 32, 384),
        ("retrieval_flickr", RetrievalConfig, (1e-5, 1e-6), 10 * 5, 32, 384),
        ("entailment", EntailmentConfig, (2e-5, 1e-6), 5, 32, 384),
        ("vqa", VqaDecoderConfig, (2e-5, 1e-6), 8, 32, 384),
        ("vqa_closed", VqaClosedSetConfig, (2e-5, 1e-6), 8, 32, 384),
        ("assignment", TextAssignmentConfig, (2e-5, 1e-5), 1, 64, 256),
        ("nlvr2", Nlvr2Config, (2e-5, 1e-6), 10, 16, 384),
        ("grounding", GroundingTrainingConfig, (1e-5, 1e-6), 5, 32, 384),
    ],
)
def test_the_base_recipes_have_the_released_settings(
    name: str, task: type, lr: tuple[float, float], epochs: int, batch: int, size: int
) -> None:
    """REFERENCE's table. Karpathy's files give a picture once an epoch, with one of its five captions."""
    recipe = find_recipe(f"albef_base_{name}")
    assert recipe.optim.accumulate == 8, "GPUs"
    rates = [learning_rate(s, recipe.optim.lr, recipe.schedule, 1000, 100) for s in range(1000)]
    assert (rates[0], rates[-1]) == pytest.approx(lr)
    assert rates == sorted(rates, reverse=True)
    assert type(recipe.task) is task
    assert (recipe.run.epochs, recipe.run.batch_size, recipe.model.vision.image_size) == (epochs, batch, size)
    assert recipe.model.images_per_text == 1 + (task in (Nlvr2Config, TextAssignmentConfig))
    assert recipe.optim.weight_decay == 0.02
    if task is not TextAssignmentConfig:
        assert recipe.task.alpha == 0.4
        assert recipe.data.crop == ((1, 1) if task is GroundingTrainingConfig else (0.5, 1))


@pytest.mark.parametrize(
    ("name", "task", "lr", "head_lr", "run", "size"),
    [
        ("base_vqa_closed", VqaClosedSetConfig, 3e-5, 20, (None, 10, 128), 480),
        ("base_plus_vqa_closed", VqaClosedSetConfig, 3e-5, 20, (None, 10, 128), 480),
        ("large_vqa_closed", VqaClosedSetConfig, 1.5e-5, 20, (None, 10, 128), 480),
        ("base_nlvr2", Nlvr2Config, 5e-5, 1, (None, 10, 128), 384),
        ("base_plus_nlvr2", Nlvr2Config, 3e-5, 1, (None, 10, 128), 384),
        ("large_nlvr2", Nlvr2Config, 3e-5, 1, (None, 10, 128), 384),
        ("base_retrieval_coco", RetrievalConfig, 3e-5, 1, (3000, 30, 3072), 384),
        ("base_retrieval_flickr", RetrievalConfig, 3e-5, 1, (1500, 30, 3072), 384),
        ("base_plus_retrieval_coco", RetrievalConfig, 3e-5, 1, (3000, 30, 3072), 384),
        ("base_plus_retrieval_flickr", RetrievalConfig, 3e-5, 1, (1500, 30, 3072), 384),
        ("large_retrieval_coco", RetrievalConfig, 2e-5, 1, (3000, 30, 3072), 384),
        ("large_retrieval_flickr", RetrievalConfig, 2e-5, 1, (1500, 30, 3072), 384),
    ],
)
def test_vlmos_recipes_have_the_released_settings(
    name: str, task: type, lr: float, head_lr: float, run: tuple[int | None, int, int], size: int
) -> None:
    """REFERENCE's second table. Retrieval is a dual encoder's; no task has a teacher."""
    recipe = find_recipe(f"vlmo_{name}")
    assert type(recipe.task) is task
    assert (recipe.optim.lr, recipe.optim.head_lr, recipe.optim.accumulate) == (lr, head_lr, 1)
    assert (recipe.run.steps, recipe.run.epochs, recipe.run.batch_size) == run
    assert (recipe.model.image_size, recipe.task.alpha) == (size, 0)
    assert recipe.model.images_per_text == 1 + (task is Nlvr2Config)
    assert replace(recipe.model, image_size=224, images_per_text=1) == find_recipe(recipe.init_from[5:]).model
    if task is RetrievalConfig:
        assert (recipe.task.keys, recipe.task.itm, recipe.evaluation.rerank) == ("batch", 0, 0)
    else:
        assert recipe.task.head == "gelu"


def test_an_override_knows_the_fields_of_the_recipes_own_model() -> None:
    albef, vlmo = tiny(), find_recipe("vlmo_tiny")
    assert override(albef, {"model.vision.drop_path": "0.3"}).model.vision.drop_path == 0.3
    assert override(vlmo, {"model.drop_path": "0.3"}).model.drop_path == 0.3
    with pytest.raises(
        ValueError, match=r"unknown name 'drop_path' in 'model'\. Did you mean model\.vision\.drop_path\?"
    ):
        override(albef, {"model.drop_path": "0.3"})
    with pytest.raises(
        ValueError, match=r"unknown name 'vision' in 'model'\. .*Known there: attention, depth, drop_path, dropout,"
    ):
        override(vlmo, {"model.vision.drop_path": "0.3"})
    with pytest.raises(ValueError, match=r"'drop_path'\. Did you mean model\.drop_path\?"):
        override(vlmo, {"drop_path": "0.3"})


def test_the_base_recipe_has_the_size_that_the_paper_states() -> None:
    with torch.device("meta"):
        model = Albef(find_recipe("albef_base").model)
    assert sum(weight.numel() for weight in model.parameters()) == pytest.approx(210e6, rel=0.01)  # ALBEF: 210 M


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_says_command_cost_and_expected_result(name: str) -> None:
    text = RECIPES[name].__doc__ or ""
    assert all(word in text for word in ("Command:", "Cost:", "Expected:"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_json(name: str) -> None:
    assert from_dict(to_dict(find_recipe(name))) == find_recipe(name)


@pytest.mark.parametrize("kind", get_args(TaskConfig))
def test_a_recipe_of_any_task_survives_json(kind: type) -> None:
    recipe = replace(tiny(), task=kind())
    assert from_dict(to_dict(recipe)) == recipe


def test_a_task_is_of_a_known_kind_and_of_pre_training_where_none_is_named() -> None:
    plain = to_dict(replace(tiny(), task=RetrievalConfig()))
    assert plain["task"]["kind"] == "RetrievalConfig"
    plain["task"]["kind"] = "RetreivalConfig"
    with pytest.raises(ValueError, match=r"task\.kind: expected one of AlbefPretrainConfig, .*got 'RetreivalConfig'"):
        from_dict(plain)
    assert "kind" not in to_dict(tiny())["task"]


def test_catalog_entries_are_what_their_names_say() -> None:
    assert set(SOURCES) == {"scenes", "texts", "shards", "mix", *LAYOUTS}
    assert {"folder", "jsonl", "albef", "karpathy", "vqa", "refcoco"} <= set(LAYOUTS)
    assert MODELS[type(tiny().model)] is Albef
    assert TASKS[type(tiny().task)] is AlbefPretraining
    with pytest.raises(ValueError, match=r"no data\.source 'foldr'\. Did you mean 'folder'\? Known: scenes, "):
        open_source(replace(tiny().data, source="foldr"), "train")
    with pytest.raises(ValueError, match=r"no recipe 'albef_tny'\. Did you mean 'albef_tiny'\?"):
        find_recipe("albef_tny")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("data.path", "photos", "photos"),
        ("data.path", "123", "123"),
        ("data.path", "none", None),
        ("run.steps", "none", None),
        ("run.steps", "7", 7),
        ("optim.lr", "3e-4", 3e-4),
        ("optim.lr", "1", 1.0),
        ("data.crop", "0.5,1", (0.5, 1.0)),
        ("data.crop", "[0.5, 1]", (0.5, 1.0)),
        ("data.randaugment", "(0, 0)", (0, 0)),
        ("run.tensorboard", "true", True),
        ("run.precision", "bf16", "bf16"),
        ("data.scenes.sprites", "shapes", "shapes"),
        ("model.vision.depth", "3", 3),
    ],
)
def test_typed_text_becomes_the_declared_type(name: str, text: str, value: object) -> None:
    found: object = override(tiny(), {name: text})
    for part in name.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


def test_python_values_and_groups_are_taken_too() -> None:
    recipe = override(tiny(), {"data.crop": (0.3, 1.0), "optim": {"lr": 0.1}, "schedule": '{"warmup_steps": 3}'})
    assert (recipe.data.crop, recipe.optim.lr, recipe.schedule.warmup_steps) == ((0.3, 1.0), 0.1, 3)
    assert recipe.optim == replace(tiny().optim, lr=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data.pth": "x"},
            r"unknown name 'pth' in 'data'\. Did you mean data\.path\? Known there: .*bad_share, .*crop, ",
        ),
        ({"steps": "3"}, r"unknown name 'steps'\. Did you mean run\.steps\? Known there: .*data, evaluation, "),
        ({"data.scenes.sizee": "3"}, r"unknown name 'sizee' in 'data\.scenes'\. Did you mean data\.scenes\.size\?"),
        ({"optim": {"lrr": 1}}, r"unknown name 'lrr' in 'optim'\. Did you mean optim\.lr\?"),
        ({"run.steps": "many"}, r"run\.steps: expected int or none, got 'many'"),
        ({"run.steps": 2.5}, r"run\.steps: expected int or none, got 2\.5"),
        ({"run.precision": "fp16"}, r"run\.precision: expected one of fp32, bf16, got 'fp16'"),
        ({"data.crop": "0.5"}, r"data\.crop: expected 2 values \(float, float\), got '0\.5'"),
        ({"run.tensorboard": "maybe"}, r"run\.tensorboard: expected true or false, got 'maybe'"),
        ({"optim": "fast"}, r"optim is a group of fields: name one of them, as in optim\.FIELD=VALUE"),
        ({"optim.lr.base": "1"}, r"optim\.lr is a value \(float\) and has no field 'base'"),
    ],
)
def test_a_wrong_override_says_what_is_known_or_expected(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        override(tiny(), changes)


def test_assignments_have_three_spellings() -> None:
    given = parse_assignments(["a.b=1", "--c.d=x=y", "--e", "--f"])
    assert given == {"a.b": "1", "c.d": "x=y", "e": "--f"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos"], "'photos' is no override: write name=value"),
        (["--data.path"], "--data.path needs a value"),
        (["a=1", "--a=2"], "a is given twice"),
    ],
)
def test_a_wrong_assignment_is_an_error(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_assignments(arguments)


def test_a_stored_recipe_must_be_complete_known_and_typed() -> None:
    """Complete but for fields with a default, which those stored before there was such a field lack."""
    stored = to_dict(override(tiny(), {"run.seed": 7, "run.steps": 3}))
    older = {**stored, "run": {key: value for key, value in stored["run"].items() if key != "seed"}}
    assert from_dict(older) == override(tiny(), {"run.seed": RunConfig().seed, "run.steps": 3})
    assert from_dict({key: value for key, value in stored.items() if key != "data"}).data == DataConfig()
    with pytest.raises(ValueError, match="recipe: missing name, task"):
        from_dict({key: value for key, value in stored.items() if key not in ("name", "task")})
    with pytest.raises(ValueError, match=r"unknown name 'sed' in 'run'"):
        from_dict({**stored, "run": {**stored["run"], "sed": 1}})
    with pytest.raises(ValueError, match=r"run\.seed: expected int, got 'x'"):
        from_dict({**stored, "run": {**stored["run"], "seed": "x"}})
    with pytest.raises(ValueError, match="run: expected the fields steps, "):
        from_dict({**stored, "run": 3})


def test_a_list_can_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "answers.json"
    file.write_text('["yes", "no", "light, gray"]')
    recipe = override(find_recipe("albef_tiny_vqa"), {"task.answers": f"@{file}"})
    assert isinstance(recipe.task, VqaDecoderConfig)
    assert recipe.task.answers == ("yes", "no", "light, gray")
    file.write_text('{"yes": 1}')
    with pytest.raises(ValueError, match=r"task\.answers: expected any number of values"):
        override(recipe, {"task.answers": f"@{file}"})
    with pytest.raises(ValueError, match=r"task\.answers: .*gone\.json could not be read as JSON"):
        override(recipe, {"task.answers": f"@{tmp_path / 'gone.json'}"})
