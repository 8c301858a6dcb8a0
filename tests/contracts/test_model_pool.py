"""Which of several models is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diptych.catalog import abilities
from diptych.predict import ModelPool
from tests.runs import save_family, save_run


@pytest.fixture(scope="module", params=["albef", "vlmo"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family(tmp_path_factory.mktemp("pool") / "run", request.param)


def test_a_run_brings_the_runs_of_its_tasks_and_each_is_asked_for_its_own(family: Path) -> None:
    pool = ModelPool.load([family], device="cpu")
    assert [Path(one.name).name for one in pool.models] == [
        "run", "entailment", "grounding", "nlvr2", "retrieval", "vqa", "vqa_closed",
    ]  # fmt: skip
    own = {ability: Path(pool.find(ability).name).name for ability in abilities()}
    assert own == {
        "embed": "retrieval", "match": "retrieval", "entail": "entailment", "answer": "vqa", "compare": "nlvr2",
        "locate": "grounding",
    }  # fmt: skip
    assert [Path(name).name for name in pool.abilities()["answer"]] == ["vqa", "vqa_closed"]
    assert pool.find("answer", f"{family.as_posix()}/tasks/vqa_closed").name.endswith("vqa_closed")


def test_every_ability_that_is_said_to_be_there_is(family: Path) -> None:
    asked = {
        "embed": lambda model: model.embed_images(family.parent / "picture.png"),
        "match": lambda model: model.match(family.parent / "picture.png", "a boat"),
        "entail": lambda model: model.entail(family.parent / "picture.png", "a boat"),
        "answer": lambda model: model.answer(family.parent / "picture.png", "how many"),
        "compare": lambda model: model.compare(*[family.parent / "picture.png"] * 2, "a boat"),
        "locate": lambda model: model.locate(family.parent / "picture.png", "a boat"),
    }
    assert asked.keys() == abilities().keys()
    from PIL import Image

    Image.new("RGB", (20, 20), "red").save(family.parent / "picture.png")
    for one in ModelPool.load([family], device="cpu").models:
        for ability, ask in asked.items():
            if (why := one.predictor.missing(ability)) is None:
                ask(one.predictor)
            else:
                with pytest.raises(ValueError) as refused:  # noqa: PT011 - the message is compared
                    ask(one.predictor)
                assert str(refused.value) == why


def test_a_missing_ability_names_what_to_train(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", "pretraining")
    (run / "eval.json").write_text(json.dumps({"images": 3}))
    pool = ModelPool.load([run], device="cpu")
    assert pool.models[0].measured == {"images": 3}
    assert pool.abilities()["entail"] == ()
    with pytest.raises(ValueError, match="not trained for hypotheses: train albef_tiny_entailment"):
        pool.find("entail")
    with pytest.raises(ValueError, match="no model 'nobody' here"):
        pool.find("match", "nobody")
    with pytest.raises(ValueError, match="not trained for questions"):
        pool.find("answer", run.as_posix())


def test_no_run_and_one_given_twice_are_said(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", "pretraining")
    with pytest.raises(ValueError, match="no run given"):
        ModelPool.load([])
    with pytest.raises(ValueError, match="is given twice"):
        ModelPool.load([run, run])


def test_a_task_run_without_a_checkpoint_is_left_out(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", "pretraining")
    (run / "tasks/vqa/checkpoints").mkdir(parents=True)
    assert len(ModelPool.load([run], device="cpu").models) == 1
