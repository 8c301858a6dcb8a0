"""Every task from every layout that it is published in, by the commands: train with validation, evaluate, resume."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diptych.checkpoints import store
from diptych.cli.main import main
from diptych.data.record import ENTAILMENT_LABELS
from tests.layouts import (
    karpathy,
    lines,
    nlvr2_line,
    picture,
    refcoco,
    vqa_annotations,
    vqa_questions,
    write,
)

NUMBERS = {"train": range(6), "validation": range(6, 9), "test": range(9, 12)}
"""The number of images in each split."""
PATHS = {"train": "data.path", "validation": "data.validation_path", "test": "data.test_path"}
SMALL: dict[str, Any] = {
    "model.vision": {"image_size": 24, "patch_size": 8, "width": 16, "depth": 1, "heads": 2},
    "model.text": {"width": 16, "layers": 2, "fusion_start": 1, "heads": 2, "intermediate": 16, "max_positions": 40},
    "model.embed_dim": 8,
    "run": {"steps": 2, "batch_size": 3, "log_every": 1, "validate_every": 2, "threads": 1, "device": "cpu"},
    "optim.accumulate": 2,
    "evaluation": {"rerank": 2, "batch_size": 4, "bootstrap": 20},
    "data.workers": 0,
}
QUEUE = {"task.queue_size": 8}
TASKS: dict[str, dict[str, Any]] = {
    "retrieval_coco": QUEUE,
    "retrieval_flickr": QUEUE,
    "entailment": {},
    "vqa": {"task.decoder": {"layers": 1, "heads": 2, "intermediate": 16, "max_positions": 40}},
    "vqa_closed": {},
    "assignment": {},
    "nlvr2": {},
    "grounding": QUEUE | {"task.boxes.layer": 1},
}
"""Settings that make each recipe's task small too."""

# --------------------------------------------------------------------------- data

DataFields = dict[str, Any]
"""The settings that name the data."""
Entry = Callable[[int], dict[str, Any]]


def listed(folder: Path, source: str, entry: Entry) -> DataFields:
    """Writes a list for each split, with entries about numbered images beside it."""
    for number in (number for numbers in NUMBERS.values() for number in numbers):
        picture(folder / f"{number}.jpg", 20 * number)
    listing = write if source == "albef" else lines
    files = {split: listing(folder / f"{split}.json", [entry(n) for n in ns]) for split, ns in NUMBERS.items()}
    return {"data.source": source} | {PATHS[split]: str(file) for split, file in files.items()}


def caption(n: int) -> dict[str, Any]:
    return {"image": f"{n}.jpg", "caption": f"a fox, number {n}", "image_id": str(n)}


def hypothesis(n: int) -> dict[str, Any]:
    return {"image": f"{n}.jpg", "hypothesis": "a fox sleeps", "label": ENTAILMENT_LABELS[n % 3]}


def snli_ve(n: int) -> dict[str, Any]:
    line = {"captionID": f"{n}.jpg#0", "Flickr30K_ID": str(n), "sentence1": "a premise", "pairID": f"{n}.jpg#0r1n"}
    return line | {"gold_label": ENTAILMENT_LABELS[n % 3], "sentence2": "a fox sleeps"}


def question(n: int) -> dict[str, Any]:
    return {"id": str(n), "image": f"{n}.jpg", "question": "how many?", "answers": ["two"] * 7 + ["2"] * 3}


def albef_question(n: int) -> dict[str, Any]:
    genome = {"dataset": "vg", "answer": "red"}
    return {"image": f"{n}.jpg", "question": "how many?", "question_id": n} | (
        genome if n < 2 else {"dataset": "vqa", "answer": ["two"] * 7 + ["2"] * 3}
    )


def statement(n: int) -> dict[str, Any]:
    return {"images": [f"{n}.jpg", f"{n}.jpg"], "statement": "both are red", "label": n % 2 == 0}


def phrase(n: int) -> dict[str, Any]:
    return {"image": f"{n}.jpg", "phrase": "the fox", "box": [0, 0, 3, 2], "proposals": [[0, 0, 3, 2], [3, 2, 3, 2]]}


def karpathys(folder: Path, coco: bool) -> DataFields:
    file = karpathy(folder, coco, ["train"] * 4 + ["restval" if coco else "train"] * 2 + ["val"] * 3 + ["test"] * 3)
    return {"data.source": "karpathy", "data.path": str(file), "data.root": str(folder / "images")}


def vqa(folder: Path) -> DataFields:
    numbers = {split: [100 * n for n in ns] for split, ns in NUMBERS.items()}
    train, validation = (
        f"{vqa_questions(folder, subset, chosen)},{vqa_annotations(folder, subset, chosen)}"
        for subset, chosen in (("train2014", numbers["train"]), ("val2014", numbers["validation"]))
    )
    paths = {"data.path": train, "data.validation_path": validation, "data.test_path": validation}
    return {"data.source": "vqa", "data.root": str(folder / "images")} | paths


def nlvr2(folder: Path) -> DataFields:
    data: DataFields = {"data.source": "nlvr2", "data.root": str(folder / "images")}
    for split, (name, place, directory) in {
        "train": ("train", "train/53", {"directory": 53}),
        "validation": ("dev", "dev", {}),
        "test": ("test1", "test1", {}),
    }.items():
        entries = []
        for n in NUMBERS[split]:
            for side in (0, 1):
                picture(folder / f"images/{place}/{name}-{n}-0-img{side}.png", n)
            entries.append(nlvr2_line(f"{name}-{n}-0-0", label=str(n % 2 == 0), **directory))
        data[PATHS[split]] = str(lines(folder / f"{name}.json", list(entries)))
    return data


def refcocos(folder: Path) -> DataFields:
    place = refcoco(folder, ["train"] * 6 + ["val"] * 3 + ["testA"] + ["testB"] * 2)
    write(place / "dets.json", {str(n): [[n, 0.5, 2, 3, 0.9], [0, 0, 6, 4, 0.1]] for n in range(12)})
    return {"data.source": "refcoco", "data.path": str(place), "data.root": str(folder / "images")}


DATA: dict[str, dict[str, Callable[[Path], DataFields]]] = {
    "retrieval_coco": {"karpathy": lambda folder: karpathys(folder, coco=True)},
    "retrieval_flickr": {
        "karpathy": lambda folder: karpathys(folder, coco=False),
        "albef": lambda folder: listed(folder, "albef", caption),
        "jsonl": lambda folder: listed(folder, "jsonl", caption),
    },
    "entailment": {
        "snli_ve": lambda folder: listed(folder, "snli_ve", snli_ve),
        "albef": lambda folder: listed(
            folder, "albef", lambda n: {"image": str(n), "sentence": "a fox", "label": ENTAILMENT_LABELS[n % 3]}
        ),
        "jsonl": lambda folder: listed(folder, "jsonl", hypothesis),
    },
    "vqa": {
        "vqa": vqa,
        "albef": lambda folder: listed(folder, "albef", albef_question),
        "jsonl": lambda folder: listed(folder, "jsonl", question),
    },
    "vqa_closed": {"vqa": vqa, "albef": lambda folder: listed(folder, "albef", albef_question)},
    "assignment": {
        "albef": lambda folder: listed(folder, "albef", caption),
        "jsonl": lambda folder: listed(folder, "jsonl", caption),
    },
    "nlvr2": {
        "nlvr2": nlvr2,
        "albef": lambda folder: listed(
            folder,
            "albef",
            lambda n: {"images": [f"{n}.jpg"] * 2, "sentence": "both are red", "label": str(n % 2 == 0)},
        ),
        "jsonl": lambda folder: listed(folder, "jsonl", statement),
    },
    "grounding": {"refcoco": refcocos, "jsonl": lambda folder: listed(folder, "jsonl", phrase)},
}
CASES = [(task, layout) for task, layouts in DATA.items() for layout in layouts]

# --------------------------------------------------------------------------- commands


def train(task: str, folder: Path, start: Path, data: DataFields, **more: Any) -> int:
    """Trains a recipe with small sizes and returns the exit status."""
    dotted = {name.replace("__", "."): value for name, value in more.items()}
    changes = SMALL | TASKS[task] | {"init_from": str(start)} | data | dotted
    return main(["train", f"albef_base_{task}", "--folder", str(folder), *assignments(changes)])


def assignments(changes: DataFields) -> list[str]:
    """Writes settings as a user types them."""
    return [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in changes.items()]


def read_evaluation(run: Path) -> dict[str, Any]:
    """Reads `eval.json`."""
    content: dict[str, Any] = json.loads((run / "eval.json").read_text())
    return content


def predictions(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    newest = store.latest(run / "checkpoints")
    assert newest is not None
    return store.load(newest).weights()


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pre-trains at a smaller image size, for fine-tuning to start from."""
    folder = tmp_path_factory.mktemp("start")
    words = ["a fox sleeps number how many two 2 red are both", "the what is net fox one"]
    data = listed(folder, "jsonl", lambda n: caption(n) | {"caption": words[n % 2]})
    changes = SMALL | data | QUEUE | {"model.vision": {**SMALL["model.vision"], "image_size": 16}}
    changes["run"] = {**SMALL["run"], "steps": 1, "validate_every": 0}
    assert main(["train", "albef_base", "--folder", str(folder / "run"), *assignments(changes)]) == 0
    return folder / "run"


# --------------------------------------------------------------------------- from start to end


@pytest.mark.parametrize(("task", "layout"), CASES)
def test_a_task_trains_and_is_measured_from_a_published_layout(
    task: str, layout: str, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(task, run, start, DATA[task][layout](tmp_path / "data")) == 0
    assert "resized: " in capsys.readouterr().out, "positions, from 16 pixels to 24"
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sum("validation" in line for line in log) == 1
    assert main(["evaluate", str(run)]) == 0
    if task.startswith("retrieval"):
        assert 0 <= read_evaluation(run)["text_to_image.recall@1"] <= 100
        return
    records = 6 if layout == "refcoco" else 3
    assert 0 <= read_evaluation(run)["accuracy"] <= 100
    assert read_evaluation(run)["examples"] == len({prediction["record"] for prediction in predictions(run)}) == records
    assert len(predictions(run)) == records


def test_a_killed_run_of_a_task_ends_with_the_same_weights_when_resumed(start: Path, tmp_path: Path) -> None:
    """It also does where the checkpoint that it started from is gone."""
    run, gone = tmp_path / "run", shutil.copytree(start, tmp_path / "start")
    assert train("vqa_closed", run, gone, vqa(tmp_path), run__steps=3, run__checkpoint_every=1) == 0
    shutil.rmtree(gone)
    whole, newest = weights(run), store.latest(run / "checkpoints")
    assert newest is not None
    shutil.rmtree(newest)
    before = weights(run)
    assert main(["resume", str(run)]) == 0
    again = weights(run)
    assert all(torch.equal(again[name], value) for name, value in whole.items())
    assert not all(torch.equal(before[name], value) for name, value in whole.items())


def test_nlvr2_goes_on_where_text_assignment_ended(start: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "assignment", tmp_path / "nlvr2"
    assert train("assignment", first, start, listed(tmp_path / "pairs", "albef", caption), run__validate_every=0) == 0
    still = {"optim.lr": 0.0, "schedule.min_lr": 0.0}
    assert train("nlvr2", second, first, nlvr2(tmp_path / "nlvr2_data") | still) == 0
    learnt, taken = weights(first), weights(second)
    assert all(torch.equal(taken[name], learnt[name]) for name in taken if name.startswith("model."))
    assert main(["evaluate", str(second)]) == 0
    assert read_evaluation(second).keys() >= {"accuracy", "consistency"}


@pytest.mark.parametrize("task", ["vqa", "vqa_closed"])
def test_the_answers_of_the_training_data_stand_in_the_runs_recipe(task: str, start: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    data = listed(tmp_path / "data", "albef", albef_question)
    assert train(task, run, start, data, run__steps=1, run__validate_every=0) == 0
    newest = store.latest(run / "checkpoints")
    assert newest is not None
    for recipe in (json.loads((run / "recipe.json").read_text()), store.load(newest).recipe):
        assert recipe["task"]["answers"] == ["two", "2", "red"], "four of seven tenths and three tenths, two of a half"


# --------------------------------------------------------------------------- without labels


def unanswered(n: int) -> dict[str, Any]:
    return {key: value for key, value in question(n).items() if key != "answers"}


def test_questions_that_nobody_answered_are_answered_but_not_scored(start: Path, tmp_path: Path) -> None:
    run, numbers = tmp_path / "run", [100 * n for n in NUMBERS["test"]]
    data = vqa(tmp_path) | {"data.test_path": str(vqa_questions(tmp_path, "test2015", numbers))}
    assert train("vqa", run, start, data, run__steps=1, run__validate_every=0) == 0
    assert main(["evaluate", str(run)]) == 0
    assert "accuracy" not in read_evaluation(run)
    assert [prediction["record"] for prediction in predictions(run)] == [str(n) for n in numbers]
    assert {prediction["said"] for prediction in predictions(run)} <= {"net", "a net"}


def unlabelled_pair(n: int) -> dict[str, Any]:
    return nlvr2_line(f"train-{n}-0-0", label="-")


@pytest.mark.parametrize(
    ("task", "source", "entry", "changes", "message"),
    [
        ("vqa_closed", "jsonl", unanswered, {}, "cannot choose 3129 frequent answers: the training questions have 0"),
        ("vqa", "jsonl", unanswered, {"task.answers": ["two"], "run.validate_every": 0}, "answer missing"),
        ("vqa", "jsonl", unanswered, {"task.answers": ["two"]}, "the validation split has no labels"),
        ("grounding", "albef", lambda n: {"image": f"{n}.jpg", "text": "fox", "ref_id": n}, {}, "split has no labels"),
        ("entailment", "snli_ve", lambda n: snli_ve(n) | {"gold_label": "-"}, {}, "the annotators did not agree"),
        ("nlvr2", "nlvr2", unlabelled_pair, {}, "label unknown"),
        ("nlvr2", "jsonl", caption, {}, "data.source=jsonl holds captions; this task needs statements about pairs"),
    ],
)
def test_data_without_what_a_task_learns_from_is_refused_in_words(
    task: str, source: str, entry: Entry, changes: DataFields, message: str, start: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert train(task, tmp_path / "run", start, listed(tmp_path / "data", source, entry) | changes) == 2
    assert message in capsys.readouterr().err
