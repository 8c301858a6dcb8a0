"""VQA accuracy of stored predictions equals the released evaluation's, overall, by type and by question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from diptych.metrics.vqa import VqaAccuracy, process_punctuation, process_words, vqa_accuracy

ROUNDED = 0.005 + 1e-9
"""The stored percentages have two places."""
STEPS = {
    "punctuation": process_punctuation,
    "digit_article": process_words,
    "both": lambda text: process_words(process_punctuation(text)),
}


@pytest.fixture
def stored(golden_albef: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((golden_albef / "vqa_eval.json").read_text())
    return found


def measure(stored: dict[str, Any], normalisation: str) -> tuple[list[int], VqaAccuracy]:
    annotations = stored["annotations"]["annotations"]
    answered = {result["question_id"]: result["answer"] for result in stored["results"]}
    numbers = [one["question_id"] for one in annotations]
    assert sorted(numbers) == sorted(answered) == sorted(one["question_id"] for one in stored["questions"]["questions"])
    return numbers, vqa_accuracy(
        [answered[number] for number in numbers],
        [[human["answer"] for human in one["answers"]] for one in annotations],
        normalisation,
        question_types=[one["question_type"] for one in annotations],
        answer_types=[one["answer_type"] for one in annotations],
        groups=[one["image_id"] for one in annotations],
    )


def test_accuracies_equal_the_released_ones(stored) -> None:
    numbers, measured = measure(stored, "released")
    expected = stored["expected"]
    found = {
        "overall": measured.overall.value,
        "perQuestionType": {name: one.value for name, one in measured.question_types.items()},
        "perAnswerType": {name: one.value for name, one in measured.answer_types.items()},
        "perQuestion": dict(zip(map(str, numbers), measured.questions.tolist(), strict=True)),
    }
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value == pytest.approx(expected[name], abs=ROUNDED), name


def test_each_step_of_the_normalisation_equals_the_released_one(stored) -> None:
    for case in stored["strings"]:
        assert {name: step(case["in"]) for name, step in STEPS.items()} == {name: case[name] for name in STEPS}
        assert case.keys() == {"in", *STEPS}


def test_nothing_else_is_stored(stored) -> None:
    assert stored.keys() == {"annotations", "questions", "results", "expected", "strings"}


def test_as_intended_the_most_frequent_human_answer_scores_at_least_its_exact_matches(stored) -> None:
    for one in stored["annotations"]["annotations"]:
        humans = [human["answer"] for human in one["answers"]]
        most = max(humans, key=humans.count)
        share = humans.count(most)
        least = 100 * (share * min(3, share - 1) + (len(humans) - share) * min(3, share)) / (3 * len(humans))
        assert vqa_accuracy([most], [humans], "intended").overall.value >= least - 1e-9
