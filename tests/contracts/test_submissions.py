"""Submission files: what servers read, and what is refused before a file exists."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest

from diptych.data.submissions import write_nlvr2, write_snli_ve, write_vqa

PAIRS = ["4705552913.jpg#2r1n", "4705552913.jpg#2r1e"]
IDENTIFIERS = ["test1-0-0-0", "test1-0-1-0", "test1-1-0-1"]


def test_vqa_results_are_a_json_list_in_the_expected_order(tmp_path: Path) -> None:
    write_vqa(tmp_path / "vqa.json", [("12", "dark red"), (7, 'the "café"')], [7, "12"])
    assert json.loads((tmp_path / "vqa.json").read_text()) == [
        {"question_id": 7, "answer": 'the "café"'},
        {"question_id": 12, "answer": "dark red"},
    ]


def test_nlvr2_predictions_are_lines_of_identifier_and_label(tmp_path: Path) -> None:
    write_nlvr2(tmp_path / "nlvr2.csv", zip(reversed(IDENTIFIERS), [True, "False", "True"], strict=True), IDENTIFIERS)
    assert (tmp_path / "nlvr2.csv").read_bytes() == b"test1-0-0-0,True\ntest1-0-1-0,False\ntest1-1-0-1,True\n"
    with (tmp_path / "nlvr2.csv").open(newline="") as file:
        assert [row[0] for row in csv.reader(file)] == IDENTIFIERS


def test_snli_ve_predictions_are_json_lines(tmp_path: Path) -> None:
    write_snli_ve(tmp_path / "ve.jsonl", dict(zip(PAIRS, ["neutral", "entailment"], strict=True)).items(), PAIRS)
    assert [json.loads(line) for line in (tmp_path / "ve.jsonl").read_text().splitlines()] == [
        {"pairID": PAIRS[0], "label": "neutral"},
        {"pairID": PAIRS[1], "label": "entailment"},
    ]


def test_ids_that_a_split_lists_twice_are_written_once(tmp_path: Path) -> None:
    write_vqa(tmp_path / "vqa.json", [(7, "red")], [7, 7])
    assert len(json.loads((tmp_path / "vqa.json").read_text())) == 1


@pytest.mark.parametrize(
    ("answers", "expected", "message"),
    [
        ([(1, "red")], [1, 2, 3], r"  2 without a prediction, of 3 expected ids: 2, 3$"),
        ([(1, "red")], range(1, 10), r"  8 without a prediction, of 9 expected ids: 2, 3, 4, 5, 6, and 3 more$"),
        ([(1, "red"), ("1", "blue"), (2, "red")], [1, 2], r"  1 predicted more than once: 1$"),
        ([(1, "red"), (2, "red")], [1], r"  1 not among the expected ids: 2$"),
        ([(1, " ")], [1], r"  1 whose prediction is not a non-empty text: 1 \(' '\)$"),
        ([("q1", "red")], [1], "question id 'q1' is not a whole number"),
        ([(True, "red")], [1], "question id True is not a whole number"),
        ([(-1, "red")], [-1], "question id -1 is not a whole number"),
        ([(1, "red")], [], "no ids are expected: give those of the split"),
    ],
)
def test_what_a_vqa_server_would_refuse_is_named_and_nothing_written(
    answers, expected, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        write_vqa(tmp_path / "vqa.json", answers, expected)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("label", ["true", "1", "", "entailment"])
def test_nlvr2_knows_two_labels(label: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"1 whose prediction is not True or False: test1-0-0-0 \('{label}'\)$"):
        write_nlvr2(tmp_path / "nlvr2.csv", [("test1-0-0-0", label)], ["test1-0-0-0"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("label", ["Neutral", "2", "-", "True"])
def test_snli_ve_knows_three_labels(label: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"1 whose prediction is not contradiction, neutral, entailment: {PAIRS[0]}"):
        write_snli_ve(tmp_path / "ve.jsonl", [(PAIRS[0], label)], PAIRS[:1])
    assert not list(tmp_path.iterdir())


def test_all_faults_are_named_at_once(tmp_path: Path) -> None:
    labels = [("a", "neutral"), ("a", "neutral"), ("x", "maybe")]
    with pytest.raises(ValueError, match="not fit to be submitted") as caught:
        write_snli_ve(tmp_path / "ve.jsonl", labels, ["a", "b"])
    assert str(caught.value).splitlines()[1:] == [
        "  1 without a prediction, of 2 expected ids: b",
        "  1 predicted more than once: a",
        "  1 not among the expected ids: x",
        "  1 whose prediction is not contradiction, neutral, entailment: x ('maybe')",
    ]


@pytest.mark.parametrize(("owner", "step"), [(os, "fsync"), (Path, "replace")])
def test_a_write_that_fails_leaves_the_older_file_and_nothing_else(
    owner: object, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "vqa.json"
    write_vqa(path, [(1, "red")], [1])
    before = path.read_bytes()
    assert list(tmp_path.iterdir()) == [path]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(owner, step, full)
    with pytest.raises(ValueError, match=r"vqa\.json could not be written .*No space left"):
        write_vqa(path, [(1, "blue")], [1])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_made_and_one_that_cannot_be_made_is_an_error_in_words(tmp_path: Path) -> None:
    write_vqa(tmp_path / "new" / "vqa.json", [(1, "red")], [1])
    assert (tmp_path / "new" / "vqa.json").is_file()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="could not be written"):
        write_vqa(tmp_path / "file" / "vqa.json", [(1, "red")], [1])
