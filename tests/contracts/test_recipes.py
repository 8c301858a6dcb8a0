"""Recipes build; overrides are typed and strict; a recipe survives its way to JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, get_args

import pytest
import torch

from diptych.catalog import LAYOUTS, MODELS, RECIPES, SOURCES, TASKS, find_recipe, open_source
from diptych.data.record import Question
from diptych.data.sources.files import FileSource
from diptych.models.albef import Albef
from diptych.recipes.describe import describe
from diptych.recipes.override import override, parse_assignments
from diptych.run.splits import with_answers
from diptych.schema import (
    ALBEF_AS_RELEASED,
    VLMO_AS_RELEASED,
    AddedTaskConfig,
    AlbefConfig,
    DataConfig,
    EntailmentConfig,
    GroundingTrainingConfig,
    Nlvr2Config,
    Recipe,
    Released,
    RetrievalConfig,
    RunConfig,
    SpecialIds,
    TaskConfig,
    TextAssignmentConfig,
    VlmoConfig,
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
    """REFERENCE's second table. Retrieval is a dual encoder's; no task has a momentum encoder."""
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
def test_the_layer_that_finds_boxes_exists(name: str) -> None:
    recipe = find_recipe(name)
    if not isinstance(recipe.task, GroundingTrainingConfig):
        return
    boxes, model = recipe.task.boxes, recipe.model
    if isinstance(model, AlbefConfig):
        layers = range(model.vision.depth) if boxes.mode == "itc" else range(model.text.fusion_start, model.text.layers)
    else:
        assert isinstance(model, VlmoConfig)
        layers = range(model.depth)
    assert boxes.layer == "all" or boxes.layer in layers


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
        ("run.trackers", "wandb", ("wandb",)),
        ("run.trackers", "tensorboard,mlflow", ("tensorboard", "mlflow")),
        ("run.trackers", "", ()),
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
        ({"run.trackers": "comet"}, r"run\.trackers: expected any number of values .*wandb.*, got 'comet'"),
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


# --------------------------------------------------------------------------- behaviour of the released code


def test_released_is_none_all_or_single_fields() -> None:
    albef, vlmo = tiny(), find_recipe("vlmo_tiny")
    assert albef.released == vlmo.released == Released()
    assert override(albef, {"released": "all"}).released == ALBEF_AS_RELEASED
    everything = override(vlmo, {"released": "all"})
    assert everything.released == VLMO_AS_RELEASED
    assert override(everything, {"released": "none"}) == vlmo
    changes = {"released": "all", "released.keep_padding": "false"}
    assert override(albef, changes).released == replace(ALBEF_AS_RELEASED, keep_padding=False)
    assert override(albef, {"released": '{"decay": "albef"}'}).released == Released(decay="albef")
    assert override(find_recipe("visual_tokenizer_tiny"), {"released": "all"}).released == Released()
    with pytest.raises(ValueError, match="released is a group of fields"):
        override(albef, {"released": "some"})
    with pytest.raises(ValueError, match=r"unknown name 'keep_paddings' in 'released'\. Did you mean .*keep_padding\?"):
        override(albef, {"released.keep_paddings": "true"})


def test_all_that_was_released_is_in_one_system_or_the_other() -> None:
    set_somewhere = {
        name for system in (ALBEF_AS_RELEASED, VLMO_AS_RELEASED) for name, value in asdict(system).items() if value
    }
    assert set_somewhere == set(Released.__dataclass_fields__)


PAIRS, TASKS_WITH_MOMENTUM = (
    ("albef_tiny", "vlmo_tiny"),
    ("", "_retrieval", "_entailment", "_nlvr2", "_vqa", "_vqa_closed"),
)
EARLIER: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    *((name, {"task.negatives_mask": "after"}, {"negatives_mask_after_softmax": True}) for name in PAIRS),
    ("albef_tiny_retrieval", {"task.negatives_mask": "after"}, {"negatives_mask_after_softmax": True}),
    ("albef_tiny_grounding", {"task.negatives_mask": "after"}, {"negatives_mask_after_softmax": True}),
    *((name, {"task.false_negatives": "keep"}, {"keep_false_negatives": True}) for name in PAIRS),
    ("albef_tiny_assignment", {"task.false_negatives": "keep"}, {"keep_false_negatives": True}),
    *(
        (f"albef_tiny{task}", {"task.teacher_dropout": True}, {"momentum_encoder_dropout": True})
        for task in TASKS_WITH_MOMENTUM
    ),
    ("albef_tiny", {"task.mask_special_tokens": True}, {"mask_special_tokens": True}),
    *(
        (name, {"task.masking": "released"}, {"masking_of_padding": True})
        for name in ("vlmo_tiny", "vlmo_tiny_language")
    ),
    ("vlmo_tiny", {"task.gather": "released"}, {"gather_without_gradient": True}),
    ("vlmo_tiny", {"task.temperature_bounds": None}, {"unbounded_temperature": True}),
    *((name, {"model.keep_padding": True}, {"keep_padding": True}) for name in PAIRS),
    ("albef_tiny_grounding", {"task.boxes.average": "batch"}, {"heat_map_averages_padding": True}),
    ("albef_tiny_grounding", {"task.boxes.iou": "released"}, {"iou_in_whole_pixels": True}),
    ("albef_tiny_vqa", {"task.score": "released"}, {"count_first_answer_token_twice": True}),
    ("albef_tiny", {"data.flip_directional": True}, {"flip_directional_texts": True}),
    ("albef_tiny", {"data.augmentation": "released"}, {"autocontrast_overflow": True, "sharpness_overflow": True}),
    ("albef_tiny", {"optim.decay": "released"}, {"decay": "albef"}),
    ("vlmo_tiny", {"optim.decay": "released_vlmo"}, {"decay": "vlmo"}),
    ("vlmo_tiny", {"optim.adam": "released_vlmo"}, {"adam_decays_after_update": True}),
    ("albef_tiny", {"schedule.kind": "released", "schedule.warmup_epochs": 3}, {"schedule_by_epoch": True}),
]
"""Recipes with fields as earlier versions wrote them, and the fields of `released` that say the same."""


def as_stored_earlier(recipe: Recipe, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe as an earlier version stored it: nothing was called `released`."""
    stored = to_dict(recipe)
    del stored["released"]
    for name, value in fields.items():
        *groups, key = name.split(".")
        group = stored
        for part in groups:
            group = group[part]
        group[key] = value
    return stored


@pytest.mark.parametrize(("name", "earlier", "released"), EARLIER)
def test_earlier_names_of_released_behaviour_mean_the_same_when_stored_and_when_typed(
    name: str, earlier: dict[str, Any], released: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = find_recipe(name)
    expected = replace(recipe, released=Released(**released))
    if "schedule.kind" in earlier:
        expected = replace(expected, schedule=replace(expected.schedule, warmup_steps=300))
    assert from_dict(as_stored_earlier(recipe, earlier)) == expected
    assert not capsys.readouterr().err
    typed = {
        key: str(value).lower() if isinstance(value, bool | None) else str(value) for key, value in earlier.items()
    }
    for changes in (typed, earlier):
        assert override(recipe, changes) == expected
        note = capsys.readouterr().err
        assert note.startswith("note: ")
        assert all(key in note for key in earlier)
        assert all(f"released.{key}=" in note for key in released)


def test_renamed_fields_and_values_keep_their_earlier_names(capsys: pytest.CaptureFixture[str]) -> None:
    albef, retrieval = tiny(), find_recipe("albef_tiny_retrieval")
    stored = as_stored_earlier(albef, {"task.teacher_start": 7})
    del stored["task"]["momentum_start"]
    assert from_dict(stored) == override(albef, {"task.momentum_start": 7})
    assert from_dict(as_stored_earlier(retrieval, {"task.keys": "teacher"})) == retrieval
    assert not capsys.readouterr().err
    assert override(albef, {"task.teacher_start": "7"}) == from_dict(stored)
    assert override(retrieval, {"task.keys": "teacher"}) == retrieval
    notes = capsys.readouterr().err.splitlines()
    assert notes == [
        "note: task.teacher_start=7 is now written task.momentum_start=7",
        "note: task.keys=teacher is now written task.keys=momentum",
    ]
    with pytest.raises(ValueError, match=r"task\.keys: expected one of momentum, batch, got 'pupil'"):
        override(retrieval, {"task.keys": "pupil"})


def test_earlier_names_with_the_repaired_values_change_nothing() -> None:
    for name, changes in {
        "albef_tiny": {
            "task.negatives_mask": "before", "task.false_negatives": "mask", "task.teacher_dropout": False,
            "task.mask_special_tokens": False, "model.keep_padding": False, "data.flip_directional": False,
            "data.augmentation": "repaired", "optim.decay": "repaired", "optim.adam": "torch",
            "schedule.warmup_epochs": 20,
        },
        "vlmo_tiny": {"task.masking": "repaired", "task.gather": "gradient", "task.temperature_bounds": [0.001, 0.5]},
        "albef_tiny_grounding": {"task.boxes.average": "text", "task.boxes.iou": "continuous"},
    }.items():  # fmt: skip
        recipe = find_recipe(name)
        assert from_dict(as_stored_earlier(recipe, changes)) == override(recipe, changes) == recipe


def test_a_field_that_could_say_released_takes_that_back_with_another_value() -> None:
    """As it did when one field held both; unless the changes speak of `released` themselves."""
    vqa = override(find_recipe("albef_tiny_vqa"), {"task.score": "released"})
    assert override(vqa, {"task.score": "mean"}).released == Released()
    kept = override(vqa, {"task.score": "mean", "released.count_first_answer_token_twice": "true"})
    assert kept.released.count_first_answer_token_twice
    by_epoch = override(tiny(), {"schedule.kind": "released"})
    assert (by_epoch.schedule.kind, by_epoch.schedule.warmup_steps) == ("cosine", 2000)
    assert override(by_epoch, {"schedule.warmup_epochs": "1"}).schedule.warmup_steps == 100
    assert override(by_epoch, {"schedule.kind": "linear"}).released == Released()
    assert override(tiny(), {"schedule.warmup_epochs": "1"}) == tiny(), "which only the released schedule ever read"


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("albef_tiny_entailment", {"task.negatives_mask": "after"}, r"unknown name 'negatives_mask' in 'task'"),
        ("albef_tiny", {"task.gather": "released"}, r"unknown name 'gather' in 'task'"),
        ("albef_tiny", {"task.temperature_bounds": "none"}, r"task\.temperature_bounds: expected 2 values"),
        ("albef_tiny", {"task.negatives_mask": "behind"}, r"task\.negatives_mask: expected one of before, after, got"),
        (
            "albef_tiny",
            {"task.teacher_dropout": "often"},
            r"task\.teacher_dropout: expected true or false",
        ),
        ("albef_tiny", {"schedule.kind": "releasd"}, r"schedule\.kind: expected one of cosine, linear, "),
    ],
)
def test_an_earlier_name_is_as_strict_as_it_was(name: str, changes: dict[str, str], message: str) -> None:
    recipe = find_recipe(name)
    with pytest.raises(ValueError, match=message):
        override(recipe, changes)
    with pytest.raises(ValueError, match=message):
        from_dict(as_stored_earlier(recipe, changes))


def test_a_task_of_ones_own_may_call_its_fields_as_it_likes() -> None:
    @dataclass(frozen=True)
    class OwnConfig(AddedTaskConfig):
        masking: str = "none"

    recipe = replace(tiny(), task=OwnConfig())
    assert override(recipe, {"task.masking": "released"}).task == OwnConfig("released")


@pytest.mark.parametrize("name", RECIPES)
def test_every_field_of_a_recipe_is_described(name: str) -> None:
    recipe = find_recipe(name)
    described = {dotted: text for field in fields(recipe) for dotted, text in describe(recipe, field.name)}
    assert not [dotted for dotted, text in described.items() if not text]
    assert described.keys() >= {"optim.lr", "data.scenes.noise", "released.flip_directional_texts"}


def test_a_description_is_that_of_the_field_and_a_wrong_name_is_answered_with_the_nearest() -> None:
    ((name, text),) = describe(tiny(), "task.fuse_start")  # of the base class of both systems' pre-training
    assert name == "task.fuse_start"
    assert text.startswith("Optimiser steps during which only ITC trains.")
    with pytest.raises(ValueError, match=r"Did you mean task\.fuse_start\?"):
        list(describe(tiny(), "task.fuse_strat"))
    with pytest.raises(ValueError, match=r"'task\.itc' is a single value"):
        list(describe(tiny(), "task.itc.weight"))
