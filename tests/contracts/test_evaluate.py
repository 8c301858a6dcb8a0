"""What a user sees of a trained task: measures, submissions, and a page; here of models that were hardly trained."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.Image import Image as Picture
from PIL.Image import new as new_picture

from diptych.apps.report.run import report
from diptych.catalog import find_recipe
from diptych.cli.main import main
from diptych.data.record import BadRecord, Record
from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import to_picture
from diptych.predict import Predictor
from diptych.recipes.override import override
from diptych.run import train
from diptych.run.splits import RetrievalSplit, read_retrieval
from tests.disk import full_disk

SHRUNK = {
    "model.vision.depth": 1,
    "model.text.layers": 2,
    "model.text.fusion_start": 1,
    "data.scenes.sprites": "shapes",
    "data.scenes.count": 64,
    "data.scenes.evaluation_count": 30,
    "data.workers": 0,
    "evaluation.bootstrap": 20,
    "evaluation.rerank": 8,
    "run.steps": 2,
    "run.batch_size": 8,
    "run.log_every": 1,
    "run.validate_every": 0,
    "run.device": "cpu",
}
RUNS = {"entailment": {}, "grounding": {"task.boxes.layer": 0}, "retrieval": {"task.queue_size": 8}}
ANSWERED, ASKED = 24, 6


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each of `RUNS`."""
    place = tmp_path_factory.mktemp("runs")
    for name, changes in RUNS.items():
        recipe = replace(find_recipe(f"albef_tiny_{name}"), init_from=None)
        train(override(recipe, {**SHRUNK, **changes}), place / name)
    return place


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on questions of which the test split has no answers."""
    place = tmp_path_factory.mktemp("questions")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(place / "a.png")
    lines = [
        {"id": str(n), "image": "a.png", "image_id": f"{n}", "question": f"what is {n % 3}?", "answers": [f"x{n % 3}"]}
        for n in range(ANSWERED)
    ]
    (place / "train.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    bare = [{key: value for key, value in line.items() if key != "answers"} for line in lines[:ASKED]]
    (place / "test.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in bare))
    recipe = replace(find_recipe("albef_tiny_vqa_closed"), init_from=None)
    changes = {"data.source": "jsonl", "data.path": str(place / "train.jsonl")}
    changes["data.test_path"] = str(place / "test.jsonl")
    train(override(recipe, {**SHRUNK, **changes}), place / "run")
    return place / "run"


def test_the_table_says_what_the_json_says(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(runs / "entailment")]) == 0
    table = capsys.readouterr().out
    assert main(["evaluate", str(runs / "entailment"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((runs / "entailment" / "eval.json").read_text())
    low, high = found["accuracy.interval"]
    (line,) = [line for line in table.splitlines() if line.startswith("  Accuracy")]
    assert line.split() == ["Accuracy", f"{found['accuracy']:.1f}", f"{low:.1f}", "…", f"{high:.1f}", "of", "30"]
    assert f"{found['references.commonest']:.1f}" in table
    assert str(runs / "entailment" / "predictions.jsonl") in table


@pytest.mark.parametrize("name", ["entailment", "retrieval"])
@pytest.mark.parametrize("command", ["evaluate", "report"])
def test_measures_that_cannot_be_written_are_printed(
    runs: Path, tmp_path: Path, name: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(runs / name, tmp_path / "run"))
    before = sorted(run.rglob("*"))
    with full_disk():
        assert main([command, str(run)]) == 2
    said = capsys.readouterr()
    assert "%" in said.out if command == "evaluate" else json.loads(said.out)["split"] == "test"
    (line,) = said.err.splitlines()[-1:]
    assert line.startswith(f"diptych: {run}")
    assert line.endswith("could not be written (File too large)")
    assert sorted(run.rglob("*")) == before
    assert main([command, str(run)]) == 0


def test_a_submission_is_what_was_predicted(runs: Path, tmp_path: Path) -> None:
    run, file = runs / "entailment", tmp_path / "submission.jsonl"
    assert main(["evaluate", str(run), "--split", "validation", "--submission", str(file)]) == 0
    said = [json.loads(line) for line in (run / "predictions-validation.jsonl").read_text().splitlines()]
    submitted = [json.loads(line) for line in file.read_text().splitlines()]
    assert submitted == [{"pairID": one["record"], "label": one["said"]} for one in said]
    assert json.loads((run / "eval-validation.json").read_text())["split"] == "validation"


@pytest.mark.parametrize("name", ["grounding", "retrieval"])
def test_a_task_without_a_format_is_refused_before_it_is_measured(
    runs: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / name / "eval.json").unlink(missing_ok=True)
    assert main(["evaluate", str(runs / name), "--submission", str(tmp_path / "x")]) == 2
    assert "question answering, NLVR2 and SNLI-VE have one" in capsys.readouterr().err
    assert not (runs / name / "eval.json").exists()


def test_questions_without_answers_are_answered_and_get_no_score(
    asked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "answers.json"
    assert main(["evaluate", str(asked), "--submission", str(file)]) == 0
    assert "no score" in capsys.readouterr().out
    assert [one["question_id"] for one in json.loads(file.read_text())] == list(range(ASKED))
    assert "accuracy" not in json.loads((asked / "eval.json").read_text())
    page = report(asked).read_text()
    assert page.count("no label") == ASKED
    assert 'id="result"' not in page


def test_a_drawn_share_is_no_submission(asked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", str(asked), "--split", "validation", "--submission", str(tmp_path / "x")]
    assert main(arguments) == 2
    assert "data.validation_path" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "sections"), [("entailment", ("result", "said", "examples")), ("grounding", ("result", "examples"))]
)
def test_a_judged_run_has_a_page(runs: Path, name: str, sections: tuple[str, ...]) -> None:
    page = report(runs / name).read_text()
    for section in (*sections, "run", "training", "recipe"):
        assert f'id="{section}"' in page
    found = json.loads((runs / name / "eval.json").read_text())
    assert f"<strong>{found['accuracy']:.1f}<" in page
    assert page.count("✓ right") + page.count("✗ wrong") == 24
    assert page.count("data:image/") == (48 if name == "grounding" else 24)


def test_recall_is_printed_for_any_split(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(runs / "retrieval"), "--split", "validation"]) == 0
    found = json.loads((runs / "retrieval" / "eval-validation.json").read_text())
    printed = capsys.readouterr().out
    assert found["split"] == "validation"
    assert f"R@10 {found['text_to_image.recall@10']:5.1f}" in printed


def test_a_finetuned_retrieval_run_has_a_page_without_a_look_inside(runs: Path) -> None:
    page = report(runs / "retrieval").read_text()
    assert 'id="retrieval"' in page
    assert 'id="queries"' in page
    assert 'id="negatives"' not in page


def test_a_run_without_metrics_is_refused_before_it_is_measured(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"metrics\.jsonl does not exist"):
        report(tmp_path)


def test_the_same_model_can_be_asked_of_other_data(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs / "entailment"
    assert main(["evaluate", str(run), "data.scenes.evaluation_count=7", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["examples"] == 7
    assert found["changed"] == {"data.scenes.evaluation_count": "7"}
    assert json.loads((run / "eval-changed.json").read_text()) == found
    assert len((run / "predictions-changed.jsonl").read_text().splitlines()) == 7
    assert main(["evaluate", str(runs / "retrieval"), "evaluation.rerank=2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text_to_image.candidates"] == 2


def test_notes_do_not_stand_in_the_json(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Predictor, "missing", lambda self, ability: f"{ability} was not trained")
    assert main(["evaluate", str(runs / "retrieval"), "evaluation.batch_size=4", "--json"]) == 0
    captured = capsys.readouterr()
    assert "text_to_image.candidates" not in json.loads(captured.out)
    assert "nothing is re-ranked: match was not trained\n" in captured.err
    assert "warning: similarity says nothing here: embed was not trained\n" in captured.err


@pytest.mark.parametrize("change", ["model.embed_dim=4", "task.alpha=0.1", "task.answers=a,b", "run.seed=3"])
def test_what_training_settled_cannot_be_changed(runs: Path, change: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(runs / "entailment"), change]) == 2
    assert "was settled by training; what can be changed: data., evaluation." in capsys.readouterr().err


class Album:
    """Five captions of three pictures, which remembers what was opened."""

    skipped = ()

    def __init__(self, broken: tuple[str, ...] = ()) -> None:
        self.broken, self.opened = broken, list[str]()

    def __len__(self) -> int:
        return 5

    def record(self, index: int) -> Record:
        name = ("a", "b", "a", "c", "b")[index]
        return Record(f"line {index}", name, (f"caption {index}",), name)

    def picture(self, record: Record) -> Picture:
        self.opened.append(record.image)
        if record.image in self.broken:
            raise BadRecord(record.id, "not a picture")
        return new_picture("RGB", (8, 8), (10 * ord(record.image) % 256, 0, 0))


def split_of(album: Album, limit: int | None = None) -> RetrievalSplit:
    recipe = override(find_recipe("albef_tiny"), {"model.vision.image_size": 16, "evaluation.batch_size": 2})
    return read_retrieval(recipe, album, Tokenizer.train(["caption"], 40), limit)


def test_captions_of_one_picture_share_it_whatever_lines_they_stand_on() -> None:
    split = split_of(Album())
    assert split.image_of_text.tolist() == [0, 1, 0, 2, 1]
    assert split.captions == tuple(f"caption {index}" for index in range(5))
    assert [len(batch) for batch in split.pictures] == [2, 1]
    assert split_of(Album(), 2).image_of_text.tolist() == [0, 1]


def test_pictures_are_opened_when_they_are_asked_for_and_again_at_each_walk() -> None:
    album = Album()
    split = split_of(album)
    assert album.opened == []
    first, again = list(split.pictures), list(split.pictures)
    assert all(map(torch.equal, first, again))
    assert album.opened == ["a", "b", "c"] * 2
    seen = split.pictures[2]
    assert album.opened[6:] == ["c"]
    assert seen.tobytes() == to_picture(first[1][0], "albef").tobytes()


def test_every_bad_picture_is_named_before_training() -> None:
    split = split_of(Album(broken=("b", "c")))
    with pytest.raises(ValueError, match=r"2 of 3 evaluation records.*\n.*line 1: not a picture\n.*line 3"):
        split.pictures.check()
