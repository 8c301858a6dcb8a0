"""What is settled before a task is trained: its folder, its words, its answers, what it is validated on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diptych.catalog import find_recipe
from diptych.data.record import Question, Referring
from diptych.recipes.override import override
from diptych.run import train
from diptych.run import training as training_room
from diptych.run import validation as validation_room
from diptych.run.evaluation import changed
from diptych.run.splits import with_answers
from diptych.run.training import make_tokenizer
from diptych.run.validation import make_validation
from diptych.schema import Recipe
from diptych.train.log import CHANCE
from tests import tiny
from tests.properties.test_task_evaluation import RECORDS, TOKENIZER, Shown, always, judged

ASKED = tuple(replace(record, answers=("zebu", "zebu", "yes")) for record in RECORDS["vqa"])


def recipe(name: str = "albef_tiny_vqa_closed", **changes: Any) -> Recipe:
    return override(find_recipe(name), {name.replace("__", "."): value for name, value in changes.items()})


def test_a_folder_in_use_is_refused_before_any_data_is_opened(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text("{}")
    nowhere = recipe(data__source="folder", data__path=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="already holds a run"):
        train(nowhere, tmp_path)
    with pytest.raises(ValueError, match="holds no run to resume"):
        train(nowhere, tmp_path / "new", resume=True)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("name", "positions"), [("albef_tiny", 512), ("vlmo_tiny", 64)])
@pytest.mark.parametrize("field", ["max_tokens", "max_tokens_evaluation"])
def test_texts_longer_than_the_models_positions_stop_a_run_before_its_data_is_opened(
    name: str, positions: int, field: str, tmp_path: Path
) -> None:
    nowhere: dict[str, Any] = {"data__source": "folder", "data__path": str(tmp_path / "nowhere")}
    long = recipe(name, **{f"data__{field}": positions + 1}, **nowhere)
    with pytest.raises(
        ValueError, match=rf"data\.{field}={positions + 1}: .* of {positions} tokens\. Set data\.{field}="
    ):
        train(long, tmp_path / "run")
    with pytest.raises(ValueError, match="nowhere"):
        train(recipe(name, **{f"data__{field}": positions}, **nowhere), tmp_path / "run")
    with pytest.raises(ValueError, match=rf"data\.{field}={positions + 1}"):
        changed(find_recipe(name), {f"data.{field}": positions + 1})


def test_the_words_of_answers_are_learnt_too() -> None:
    unasked = tuple(replace(record, answers=()) for record in ASKED)
    answers_too, without = (make_tokenizer(recipe(), Shown(some)) for some in (ASKED, unasked))
    assert len(answers_too.pieces("zebu")) == 1
    assert len(without.pieces("zebu")) > 1


def test_settings_of_a_tokenizer_that_is_taken_from_another_run_are_named() -> None:
    asked = recipe(init_from="runs/a", tokenizer__size=300, tokenizer__separator=True)
    assert list(training_room._unused_settings(asked, TOKENIZER, size=2000)) == [
        "tokenizer.size=300 has no effect: the tokenizer of runs/a is taken as it is",
        "tokenizer.separator=true has no effect: the tokenizer of runs/a is taken as it is",
    ]
    for size in (2000, TOKENIZER.vocab_size):
        assert not list(training_room._unused_settings(recipe(tokenizer__size=size), TOKENIZER, size=2000))


@pytest.mark.parametrize("name", ["albef_tiny_vqa", "albef_tiny_vqa_closed"])
def test_answers_to_choose_from_are_those_of_the_training_data_unless_some_are_given(name: str) -> None:
    source = Shown(ASKED)
    assert with_answers(recipe(name), source).task.answers == ("zebu", "yes")  # type: ignore[union-attr]
    assert with_answers(recipe(name, task__answer_count=1), source).task.answers == ("zebu",)  # type: ignore[union-attr]
    given = recipe(name, task__answers=["no"])
    assert with_answers(given, source) is given
    other = recipe("albef_tiny_entailment")
    assert with_answers(other, Shown(RECORDS["entailment"])) is other


def test_validation_is_the_task_s_own_measure_of_the_first_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation_room, "open_split", lambda recipe, split: Shown(RECORDS["vqa"]))
    task = always("red")
    few = recipe(run__validation_items=3, model__vision__image_size=tiny.SIDE, data__workers=0)
    validation = make_validation(few, task, TOKENIZER, Shown(()))
    assert validation is not None
    evaluation = judged(task, RECORDS["vqa"][:3])
    expected = evaluation.scores
    measures = {name: score.value for name, score in expected.items()}
    chance = max(guess.value for guess in evaluation.references.values())
    assert validation.measure() == pytest.approx(measures | {CHANCE: chance})
    assert expected[validation.maximise].value == pytest.approx(100 / 3), "the third question's answer is red"


@pytest.mark.parametrize("kind", ["vqa", "grounding"])
def test_validation_without_labels_is_refused_before_training(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def hidden(record: Question | Referring) -> Question | Referring:
        return replace(record, answers=()) if isinstance(record, Question) else replace(record, box=None)

    monkeypatch.setattr(validation_room, "open_split", lambda recipe, split: Shown(tuple(map(hidden, RECORDS[kind]))))
    name = {"vqa": "albef_tiny_vqa", "grounding": "albef_tiny_grounding"}[kind]
    with pytest.raises(ValueError, match=r"no labels: name another, or set run\.validate_every=0"):
        make_validation(recipe(name), tiny.retrieval(), TOKENIZER, Shown(()))
    assert make_validation(recipe(name, run__validate_every=0), tiny.retrieval(), TOKENIZER, Shown(())) is None
