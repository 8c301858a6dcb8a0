"""ALBEF's lists of all five tasks as the released data sets read them: every entry of `datasets.json`.

Two differences are ours and on purpose (docs/decisions.md, 30). The released code keeps an entry whose text is empty
after the clean-up; ours skips it and names it. So every test compares the other entries, and asserts that exactly the
empty ones are skipped. And pictures are told apart by name, not by a running number.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diptych.data.cleanup import clean_caption, clean_question
from diptych.data.picture_kinds import SUFFIXES
from diptych.data.record import ENTAILMENT_LABELS, AnyRecord, Entailment, PairStatement, Question, Record, Referring
from diptych.data.sources.albef import read_albef
from diptych.data.sources.listing import SourceListing, each
from diptych.schema import DataConfig

WORDS = DataConfig().max_words
TEST_QUESTION_WORDS = 50
"""What the released code leaves of a question at test; in training it leaves WORDS."""
Entry = dict[str, Any]


@dataclass
class Lists:
    """A case's lists, and what our reader makes of them."""

    folder: Path
    kind: type[AnyRecord]
    entries: list[Entry]
    names: list[str]
    """Each entry's name in messages: FILE[INDEX]."""
    found: SourceListing

    def kept(self, released: Sequence[str]) -> list[int]:
        """Returns the places of the entries that have text, and asserts that exactly the others are skipped.

        `released`: the text of each entry after the released clean-up.
        """
        empty = [name for name, text in zip(self.names, released, strict=True) if not text]
        assert self.skipped == empty
        return [place for place, text in enumerate(released) if text]

    @property
    def skipped(self) -> list[str]:
        """The names of what was skipped, which may only be for an empty text."""
        assert {error.reason for error in self.found.skipped} <= {f"{self.kind.text_name} empty"}
        return [error.record for error in self.found.skipped]

    @property
    def records(self) -> list[Any]:
        assert all(isinstance(record, self.kind) for record in self.found.records)
        return list(self.found.records)

    def image(self, path: str) -> str:
        """A picture's path as its list spells it."""
        return Path(path).relative_to(self.folder).as_posix()


@pytest.fixture
def cases(golden_albef: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((golden_albef / "datasets.json").read_text())
    return content


def read(folder: Path, case: dict[str, Any], kind: type[AnyRecord]) -> Lists:
    """Reads the case's lists, written as files beside pictures of the names that they hold."""
    lists = case["files"] if "files" in case else [case["file"]]
    for entry in (entry for entries in lists for entry in entries):
        for name in entry.get("images") or [entry["image"]]:
            # Entailment's names lack the suffix, and may have a point of their own.
            file = folder / (name if Path(name).suffix.lower() in SUFFIXES else f"{name}.jpg")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4)).save(file)
    paths = [folder / f"{number}.json" for number in range(len(lists))]
    for path, entries in zip(paths, lists, strict=True):
        path.write_text(json.dumps(entries))
    named = [
        (f"{path}[{n}]", entry) for path, entries in zip(paths, lists, strict=True) for n, entry in enumerate(entries)
    ]
    found = each(read_albef)(",".join(map(str, paths)), DataConfig(source="albef"))
    return Lists(folder, kind, [entry for _, entry in named], [name for name, _ in named], found)


def numbered(names: Sequence[str]) -> list[int]:
    """Each name as the number of its first appearance, as the released code numbers pictures."""
    first = list(dict.fromkeys(names))
    return [first.index(name) for name in names]


def test_retrieval_training_has_the_released_texts_and_identities(tmp_path: Path, cases: dict[str, Any]) -> None:
    items = cases["retrieval_train"]["items"]
    lists = read(tmp_path, cases["retrieval_train"], Record)
    identities = [str(entry["image_id"]) for entry in lists.entries]
    assert numbered(identities) == [number for _, number in items]
    kept = lists.kept([text for text, _ in items])
    ours = [(clean_caption(record.captions[0], WORDS), record.image_id) for record in lists.records]
    assert ours == [(items[place][0], identities[place]) for place in kept]


def test_retrieval_evaluation_has_the_released_texts_of_each_picture(tmp_path: Path, cases: dict[str, Any]) -> None:
    """A picture without any text is skipped as a whole, else each of its empty captions is."""
    case = cases["retrieval_eval"]
    lists = read(tmp_path, case, Record)
    owned = [case["img2txt"][str(number)] for number in range(len(case["image"]))]
    assert {str(text): number for number, texts in enumerate(owned) for text in texts} == case["txt2img"]
    assert case["image"] == [entry["image"] for entry in lists.entries]
    texts = [[case["text"][text] for text in of_one] for of_one in owned]
    ours = [
        (lists.image(record.image), [clean_caption(text, WORDS) for text in record.captions])
        for record in lists.records
    ]
    kept = [[text for text in of_one if text] for of_one in texts]
    assert ours == [(image, some) for image, some in zip(case["image"], kept, strict=True) if some]
    empty: list[str] = []
    for name, of_one in zip(lists.names, texts, strict=True):
        lost = [f"{name}, caption {number}" for number, text in enumerate(of_one, start=1) if not text]
        empty += lost if any(of_one) else [name]
    assert lists.skipped == empty


def test_entailment_has_the_released_texts_and_classes(tmp_path: Path, cases: dict[str, Any]) -> None:
    items, lists = cases["ve"]["items"], read(tmp_path, cases["ve"], Entailment)
    kept = lists.kept([text for text, _ in items])
    ours = [
        [clean_caption(record.hypothesis, WORDS), ENTAILMENT_LABELS.index(record.label)] for record in lists.records
    ]
    assert ours == [items[place] for place in kept]


def test_statements_about_pairs_have_the_released_texts_and_classes(tmp_path: Path, cases: dict[str, Any]) -> None:
    items, lists = cases["nlvr"]["items"], read(tmp_path, cases["nlvr"], PairStatement)
    kept = lists.kept([text for text, _ in items])
    records = lists.records
    assert [[clean_caption(record.statement, WORDS), int(record.label)] for record in records] == [
        items[place] for place in kept
    ]
    images = [[lists.image(image) for image in record.images] for record in records]
    assert images == [lists.entries[place]["images"] for place in kept]


def test_questions_for_training_have_the_released_answers_and_weights(tmp_path: Path, cases: dict[str, Any]) -> None:
    case = cases["vqa_train"]
    items, lists = case["items"], read(tmp_path, case, Question)
    kept = lists.kept([question for question, _, _ in items])
    ours = [
        [clean_question(q.question, WORDS), [f"{a}[SEP]" for a, _ in q.targets], [w for _, w in q.targets]]
        for q in lists.records
    ]
    assert ours == [items[place] for place in kept]
    flat = case["collated"]
    ends = np.cumsum(flat["n"])
    spans = [slice(end - count, end) for end, count in zip(ends, flat["n"], strict=True)]
    assert [question for question, _, _ in ours] == [flat["questions"][place] for place in kept]
    assert [answers for _, answers, _ in ours] == [flat["answers"][spans[place]] for place in kept]
    weights = [np.array(weights, dtype=np.float32).tolist() for _, _, weights in ours]
    assert weights == [flat["weights"][spans[place]] for place in kept]
    assert ends[-1] == len(flat["answers"]) == len(flat["weights"])


def test_questions_for_the_test_have_the_released_texts_and_numbers(tmp_path: Path, cases: dict[str, Any]) -> None:
    items, lists = cases["vqa_test"]["items"], read(tmp_path, cases["vqa_test"], Question)
    kept = lists.kept([question for question, _ in items])
    ours = [[clean_question(q.question, TEST_QUESTION_WORDS), int(q.id.removeprefix("vg/"))] for q in lists.records]
    assert ours == [items[place] for place in kept]


def test_phrases_have_the_released_texts_identities_and_numbers(tmp_path: Path, cases: dict[str, Any]) -> None:
    case = cases["grounding"]
    lists = read(tmp_path, case, Referring)
    images = [entry["image"] for entry in lists.entries]
    assert numbered(images) == [number for _, number in case["train_items"]]
    kept = lists.kept([text for text, _ in case["train_items"]])
    phrases = lists.records
    texts = [clean_caption(record.phrase, WORDS) for record in phrases]
    assert texts == [case["train_items"][place][0] for place in kept]
    assert [record.image_id for record in phrases] == [images[place] for place in kept]
    ours = [[text, int(record.ref_id)] for text, record in zip(texts, phrases, strict=True)]
    assert ours == [case["test_items"][place] for place in kept]


def test_every_case_is_compared(cases: dict[str, Any]) -> None:
    compared = {"retrieval_train", "retrieval_eval", "ve", "nlvr", "vqa_train", "vqa_test", "grounding"}
    assert set(cases) == compared
