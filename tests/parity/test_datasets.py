"""ALBEF's lists of all five tasks as the released data sets read them: every entry of `datasets.json`.

Two differences are ours and on purpose: an entry whose text is empty after the clean-up is skipped and named, and
pictures are told apart by name, not by a running number.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diptych.data.cleanup import clean_caption, clean_question
from diptych.data.record import ENTAILMENT_LABELS, Entailment, PairStatement, Question, Record, Referring
from diptych.data.sources.albef import read_albef
from diptych.data.sources.listing import SourceListing, each
from diptych.schema import DataConfig

WORDS = DataConfig().max_words
TEST_QUESTION_WORDS = 50
"""What the released code leaves of a question at test; in training it leaves WORDS."""


@pytest.fixture
def cases(golden_albef: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((golden_albef / "datasets.json").read_text())
    return content


def read(folder: Path, case: dict[str, Any]) -> SourceListing:
    """The case's lists, written as files beside pictures of the names that they hold."""
    lists = case["files"] if "files" in case else [case["file"]]
    for entry in (entry for entries in lists for entry in entries):
        for name in entry.get("images") or [entry["image"]]:
            file = folder / (name if Path(name).suffix else f"{name}.jpg")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4)).save(file)
    paths = [folder / f"{number}.json" for number in range(len(lists))]
    for path, entries in zip(paths, lists, strict=True):
        path.write_text(json.dumps(entries))
    return each(read_albef)(",".join(map(str, paths)), DataConfig(source="albef"))


def numbered(names: Sequence[str]) -> list[int]:
    """Each name as the number of its first appearance, as the released code numbers pictures."""
    first = list(dict.fromkeys(names))
    return [first.index(name) for name in names]


def _not_empty(case: dict[str, Any]) -> list[Any]:
    return [item for item in case["items"] if item[0]]


def test_retrieval_training_has_the_released_texts_and_identities(tmp_path: Path, cases: dict[str, Any]) -> None:
    case = cases["retrieval_train"]
    found = read(tmp_path, case)
    ours = [(clean_caption(r.captions[0], WORDS), r.image_id) for r in found.records if isinstance(r, Record)]
    entries = [entry for entries in case["files"] for entry in entries]
    assert numbered([entry["image_id"] for entry in entries]) == [number for _, number in case["items"]]
    theirs = [(text, entry["image_id"]) for entry, (text, _) in zip(entries, case["items"], strict=True) if text]
    assert ours == theirs
    empty = sum(not text for text, _ in case["items"])
    assert [error.reason for error in found.skipped] == ["caption empty"] * empty


def test_retrieval_evaluation_has_the_released_texts_of_each_picture(tmp_path: Path, cases: dict[str, Any]) -> None:
    case = cases["retrieval_eval"]
    found = read(tmp_path, case)
    ours = {
        Path(record.image).name: [clean_caption(text, WORDS) for text in record.captions] for record in found.records
    }
    texts = {case["image"][int(n)]: [case["text"][t] for t in of] for n, of in case["img2txt"].items()}
    assert all(int(t) in case["img2txt"][str(n)] for t, n in case["txt2img"].items())
    assert ours == {name: kept for name, all_of in texts.items() if (kept := [text for text in all_of if text])}
    assert len(found.skipped) == case["text"].count("") - sum(
        len(all_of) - 1 for all_of in texts.values() if not any(all_of)
    )


def test_entailment_has_the_released_texts_and_classes(tmp_path: Path, cases: dict[str, Any]) -> None:
    found = read(tmp_path, cases["ve"])
    assert all(isinstance(record, Entailment) for record in found.records)
    ours = [[clean_caption(r.hypothesis, WORDS), ENTAILMENT_LABELS.index(r.label)] for r in found.records]
    assert ours == _not_empty(cases["ve"])


def test_statements_about_pairs_have_the_released_texts_and_classes(tmp_path: Path, cases: dict[str, Any]) -> None:
    found = read(tmp_path, cases["nlvr"])
    assert all(isinstance(record, PairStatement) for record in found.records)
    ours = [[clean_caption(r.statement, WORDS), int(r.label)] for r in found.records]
    assert ours == _not_empty(cases["nlvr"])
    names = [entry["images"] for entries in cases["nlvr"]["files"] for entry in entries]
    assert [[Path(image).name for image in record.images] for record in found.records] == names


def test_questions_for_training_have_the_released_answers_and_weights(tmp_path: Path, cases: dict[str, Any]) -> None:
    case = cases["vqa_train"]
    questions = [record for record in read(tmp_path, case).records if isinstance(record, Question)]
    ours = [
        [clean_question(q.question, WORDS), [f"{a}[SEP]" for a, _ in q.targets], [w for _, w in q.targets]]
        for q in questions
    ]
    assert ours == case["items"]
    flat = case["collated"]
    assert [question for question, _, _ in ours] == flat["questions"]
    assert [answer for _, answers, _ in ours for answer in answers] == flat["answers"]
    weights = np.array([weight for _, _, weights in ours for weight in weights], dtype=np.float32)
    assert weights.tolist() == flat["weights"]
    assert [len(answers) for _, answers, _ in ours] == flat["n"]


def test_questions_for_the_test_have_the_released_texts_and_numbers(tmp_path: Path, cases: dict[str, Any]) -> None:
    found = read(tmp_path, cases["vqa_test"])
    ours = [[clean_question(q.question, TEST_QUESTION_WORDS), int(q.id.removeprefix("vg/"))] for q in found.records]
    assert ours == cases["vqa_test"]["items"]


def test_phrases_have_the_released_texts_identities_and_numbers(tmp_path: Path, cases: dict[str, Any]) -> None:
    case = cases["grounding"]
    phrases = [record for record in read(tmp_path, case).records if isinstance(record, Referring)]
    texts = [clean_caption(record.phrase, WORDS) for record in phrases]
    identities = numbered([record.image_id for record in phrases])
    assert [list(item) for item in zip(texts, identities, strict=True)] == case["train_items"]
    assert [[text, int(record.ref_id)] for text, record in zip(texts, phrases, strict=True)] == case["test_items"]


def test_every_case_is_compared(cases: dict[str, Any]) -> None:
    compared = {"retrieval_train", "retrieval_eval", "ve", "nlvr", "vqa_train", "vqa_test", "grounding"}
    assert set(cases) == compared
