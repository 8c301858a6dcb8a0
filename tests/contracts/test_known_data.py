"""A run knows its data: what stands out in them is said at the start, and other data than before are named."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from PIL import Image

from diptych.apps import doctor
from diptych.apps.doctor.data import texts
from diptych.checkpoints import store
from diptych.cli.main import main
from diptych.data.profile import DataProfile
from diptych.data.record import BadRecord, Question
from diptych.data.tokenizer import SPECIAL, Tokenizer
from diptych.logged import read_data
from diptych.recipes.override import override
from diptych.run import train
from diptych.run.known_data import describe, note_data, warnings_about
from diptych.run.splits import open_split, warn_of_faults, with_answers
from diptych.run.training import make_tokenizer
from diptych.schema import AlbefPretrainConfig, DataConfig, EntailmentConfig, Recipe, RetrievalConfig, VqaDecoderConfig
from diptych.serialize import to_dict
from tests.runs import recipe_of, save_run


def photos(folder: Path, captions: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    for number, caption in enumerate(captions):
        Image.new("RGB", (8, 8), (number, 7, 7)).save(folder / f"{number:03}.png")
        (folder / f"{number:03}.txt").write_text(caption, encoding="utf-8")
    return folder


def recipe_on(folder: Path) -> Recipe:
    return replace(
        recipe_of(AlbefPretrainConfig(queue_size=4)), data=DataConfig(source="folder", path=str(folder), held_out=0.0)
    )


DIFFERENT = [f"a fox number {number}" for number in range(8)]
WORDS = Tokenizer.train([*DIFFERENT, "another text", "a red fox", "a boat"], 200)


def described(recipe: Recipe, tokenizer: Tokenizer = WORDS) -> DataProfile:
    return describe(recipe, open_split(recipe, "train"), tokenizer)


def test_words_that_the_vocabulary_does_not_know_are_said(tmp_path: Path) -> None:
    recipe = recipe_on(photos(tmp_path / "zh", [f"红色圆形{number}" for number in "abcd"]))
    (warning,) = warnings_about(described(recipe, Tokenizer([*SPECIAL, "fox"])), recipe)
    assert warning.startswith("the vocabulary does not know 100.0% of the word pieces ([UNK]), as in '红色圆形a'")
    assert "tokenizer.vocabulary" in warning
    own = Tokenizer.train([f"红色圆形{number}" for number in "abcd"], 100)
    assert list(warnings_about(described(recipe, own), recipe)) == []


def test_few_texts_for_many_pictures_are_said_where_they_are_each_others_negatives(tmp_path: Path) -> None:
    recipe = recipe_on(photos(tmp_path / "c", ["a red fox"] * 4 + ["a boat"] * 4))
    profile = described(recipe)
    (warning,) = warnings_about(profile, recipe)
    assert warning.startswith("8 pictures share 2 different texts, such as 'a boat' (4 pictures): 42.9% of the pairs")
    assert "set task.ignore_true_texts=true" in warning
    assert list(warnings_about(profile, override(recipe, {"task.ignore_true_texts": True}))) == []
    assert list(warnings_about(profile, replace(recipe, task=EntailmentConfig()))) == []
    (without_field,) = warnings_about(profile, replace(recipe, task=RetrievalConfig()))
    assert "ignore_true_texts" not in without_field
    same = described(recipe_on(photos(tmp_path / "same", ["a boat"] * 4)))
    assert "all 4 pictures have the same text" in next(warnings_about(same, recipe))


def test_other_data_are_named_and_moved_ones_are_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, first = tmp_path / "run", photos(tmp_path / "first", DIFFERENT)
    note_data(run, described(recipe_on(first)), recipe_on(first), 0)
    moved = photos(tmp_path / "moved", DIFFERENT)
    note_data(run, described(recipe_on(moved)), recipe_on(moved), 10)
    assert capsys.readouterr().err == ""
    texts_changed = photos(tmp_path / "texts", [*DIFFERENT[:-1], "another text"])
    note_data(run, described(recipe_on(texts_changed)), recipe_on(texts_changed), 20)
    said = capsys.readouterr().err
    assert said.startswith("warning: these are other data than the run had up to step 20")
    assert "other texts or labels. It goes on" in said
    fewer = photos(tmp_path / "fewer", [*DIFFERENT[:-2], "another text"])
    note_data(run, described(recipe_on(fewer)), recipe_on(fewer), 30)
    assert "8 records before, 7 now" in capsys.readouterr().err
    Image.new("RGB", (90, 70)).save(fewer / "003.png")
    note_data(run, described(recipe_on(fewer)), recipe_on(fewer), 40)
    assert "other pictures. It goes on" in capsys.readouterr().err
    assert [entry["since"] for entry in read_data(run)] == [0, 10, 20, 30, 40]


def test_a_damaged_data_json_costs_nothing(tmp_path: Path) -> None:
    run, folder = tmp_path / "run", photos(tmp_path / "first", DIFFERENT)
    run.mkdir()
    for content in ("", "[1]", '[{"since": 0}]', "{}"):
        (run / "data.json").write_text(content)
        note_data(run, described(recipe_on(folder)), recipe_on(folder), 5)
        assert read_data(run)[-1]["records"] == 8


def test_the_doctor_names_what_makes_learning_impossible(tmp_path: Path) -> None:
    folder = photos(tmp_path / "c", ["红色"] * 4 + ["绿色"] * 4)
    recipe = recipe_on(folder)
    tokenizer = Tokenizer([*SPECIAL, "fox"])
    entries = [{"since": 0, **described(recipe, tokenizer).to_json()}]
    other = photos(tmp_path / "other", DIFFERENT)
    run = doctor.Run(tmp_path, recipe, (), (), None, {}, tuple(entries))
    assert [(one.name, one.level) for one in texts(run)] == [("texts", "wrong"), ("texts", "wrong")]
    entries.append({"since": 7, **described(recipe_on(other)).to_json()})
    known, changed = texts(replace(run, data=tuple(entries)))
    assert (known.level, changed.name, changed.level) == ("fine", "data", "note")
    assert "from step 7 on the run has other data" in changed.what
    assert list(texts(replace(run, data=()))) == [], "earlier versions did not count"


def test_a_run_goes_on_where_its_data_have_moved_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = photos(tmp_path / "old", DIFFERENT)
    small = {"run.steps": 2, "run.batch_size": 4, "run.validate_every": 0, "run.checkpoint_every": 1, "data.workers": 0}
    run = train(override(recipe_on(old), small), tmp_path / "run")
    old.rename(tmp_path / "new")
    assert main(["resume", str(run)]) == 2
    assert f"diptych resume {run} data.path=NEW" in capsys.readouterr().err
    assert main(["resume", str(run), "optim.lr=1"]) == 2
    assert "optim.lr was settled when the run began" in capsys.readouterr().err
    assert main(["resume", str(run), f"data.path={tmp_path / 'new'}"]) == 0
    assert "other data" not in capsys.readouterr().err
    assert json.loads((run / "recipe.json").read_text())["data"]["path"] == str(tmp_path / "new")
    checkpoint = store.load_from(run)
    assert checkpoint.recipe["data"]["path"] == str(tmp_path / "new"), "an evaluation finds the data too"
    moved = override(recipe_on(old), small | {"data.path": str(tmp_path / "new")})
    assert checkpoint.recipe["model"] == json.loads(json.dumps(to_dict(moved)))["model"]


def test_images_that_are_both_trained_on_and_measured_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen, new = photos(tmp_path / "seen", DIFFERENT), photos(tmp_path / "new", DIFFERENT[:4])
    some = tmp_path / "some.jsonl"
    files = [seen / "000.png", seen / "001.png", new / "002.png", new / "003.png"]
    some.write_text("".join(json.dumps({"image": str(file), "caption": "a fox"}) + "\n" for file in files))
    small = {"run.steps": 2, "run.batch_size": 4, "run.validate_every": 2, "evaluation.rerank": 0, "data.workers": 0}
    listed = {"data.source": "jsonl", "data.path": str(tmp_path / "all.jsonl")}
    (tmp_path / "all.jsonl").write_text(
        "".join(json.dumps({"image": str(file), "caption": "a fox"}) + "\n" for file in sorted(seen.glob("*.png")))
    )
    recipe = override(recipe_on(seen), small | listed | {"data.validation_path": str(some)})
    run = train(recipe, tmp_path / "run")
    said = capsys.readouterr().out
    assert "warning: 2 of the 4 validation images are training images, so that it measures memory, too" in said
    assert main(["evaluate", str(run), f"data.test_path={tmp_path / 'all.jsonl'}"]) == 0
    assert "warning: data.test_path is the training data, which the model has seen" in capsys.readouterr().out
    assert main(["evaluate", str(run), f"data.test_path={some}"]) == 0
    assert "warning: data.test_path" not in capsys.readouterr().out


def test_training_says_what_validation_of_the_data_would_refuse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = photos(tmp_path / "seen", DIFFERENT)
    told = [
        {"image": str(file), "hypothesis": "a fox", "label": "neutral", "split": split}
        for number, file in enumerate(sorted(seen.glob("*.png")))
        for split in (("train", "test") if number < 3 else ("train",))
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))
    (tmp_path / "test.jsonl").write_text(json.dumps({**told[0], "id": "t"}) + "\n")
    data = DataConfig(source="jsonl", path=str(tmp_path / "a.jsonl"), held_out=0.0)
    recipe = replace(recipe_of(EntailmentConfig()), data=data)
    for named, count in ((recipe, 3), (override(recipe, {"data.test_path": str(tmp_path / "test.jsonl")}), 1)):
        warn_of_faults(named, open_split(named, "train"))
        said = capsys.readouterr().out
        assert "warning: the training data: all 8 records are labelled neutral: nothing can be learnt from them" in said
        assert f"warning: {count} of the {count} test images are training images" in said


def test_a_query_that_the_vocabulary_does_not_know_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos(tmp_path / "photos", DIFFERENT[:2])
    run = save_run(tmp_path / "run", "pretraining")
    assert main(["search", str(run), "a red 圆形", "--images", str(tmp_path / "photos"), "--device", "cpu"]) == 0
    assert "words the model cannot read: 圆形" in capsys.readouterr().out
    assert main(["search", str(run), "a red fox", "--images", str(tmp_path / "photos"), "--device", "cpu"]) == 0
    assert "cannot read" not in capsys.readouterr().out


@dataclass(frozen=True)
class Streamed:
    """Serves questions, of which every second one turns out to be broken when it is read."""

    skipped: tuple[BadRecord, ...] = ()

    def __len__(self) -> int:
        return 8

    def record(self, index: int) -> Question:
        if index % 2:
            raise BadRecord(f"q{index}", "picture missing")
        return Question(f"q{index}", None, f"which number is n{index}", (str(index % 4), "\u200b"), f"p{index}")


def test_answers_and_vocabulary_are_derived_from_accepted_records_alone() -> None:
    recipe = recipe_of(VqaDecoderConfig(inference="rank"))
    filled = with_answers(recipe, Streamed()).task
    assert isinstance(filled, VqaDecoderConfig)
    assert filled.answers == ("0", "2")
    known = make_tokenizer(recipe, Streamed())
    assert {"n6", "which"} <= set(known.vocabulary)
    assert "n7" not in known.vocabulary
    with pytest.raises(ValueError, match=r"task\.answers holds ' ', which is no answer"):
        with_answers(override(recipe, {"task.answers": ["red", " "]}), Streamed())
