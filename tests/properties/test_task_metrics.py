"""Accuracy, VQA accuracy and NLVR2's measures against brute force and other libraries."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix

from diptych.metrics.accuracy import accuracy, estimate
from diptych.metrics.nlvr2 import nlvr2_accuracy
from diptych.metrics.vqa import CONTRACTIONS, answer_score, normalise_answer, vqa_accuracy

CLASSES = ("contradiction", "neutral", "entailment")

class_numbers = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30)
answers = st.lists(st.sampled_from(["red", "blue", "dark red", "2", "no"]), min_size=4, max_size=12)

# --------------------------------------------------------------------------- accuracy


@given(class_numbers)
@settings(max_examples=50, deadline=None)
def test_accuracy_and_counts_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    predictions, labels = torch.tensor(pairs).T
    measured = accuracy(predictions, labels, CLASSES, resamples=10)
    table = confusion_matrix(labels, predictions, labels=range(3))
    assert measured.overall.value == pytest.approx(100 * accuracy_score(labels, predictions))
    assert measured.overall.count == len(pairs)
    for place, name in enumerate(CLASSES):
        found = measured.classes[name]
        assert found.labelled == table[place].sum()
        assert found.predicted == table[:, place].sum()
        assert found.right == table[place, place]


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ([0, 1], [0, -1], "the label of example 1 is -1, which is no class: 0 to 2 are contradiction, neutral"),
        ([3, 1], [0, 1], "the prediction of example 0 is 3, which is no class"),
        ([], [], "holds no example"),
    ],
)
def test_what_is_no_class_is_named(predictions: list[int], labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        accuracy(torch.tensor(predictions).long(), torch.tensor(labels).long(), CLASSES)


def test_copies_within_a_group_do_not_narrow_the_interval() -> None:
    values = (np.random.default_rng(0).random(40) < 0.6).astype(float)
    copied = np.repeat(values, 5)
    pictures = [f"picture {n}" for n in np.repeat(np.arange(40), 5)]
    plain, grouped, naive = estimate(values), estimate(copied, pictures), estimate(copied)
    assert grouped.interval == pytest.approx(plain.interval)
    assert grouped.value == pytest.approx(plain.value)
    assert naive.interval.high - naive.interval.low < 0.6 * (plain.interval.high - plain.interval.low)


def test_the_interval_has_the_width_of_the_normal_approximation() -> None:
    values = np.repeat([1.0, 0.0], [700, 300])
    found = estimate(values, resamples=4000).interval
    half = 1.96 * 100 * (0.7 * 0.3 / 1000) ** 0.5
    assert found == pytest.approx((70 - half, 70 + half), abs=0.3)


def test_groups_must_be_one_a_value() -> None:
    with pytest.raises(ValueError, match="3 values, but 2 groups"):
        estimate(np.ones(3), ["a", "b"])


# --------------------------------------------------------------------------- VQA


@pytest.mark.parametrize("normalisation", ["released", "intended"])
@given(answers, st.sampled_from(["red", "the dark red", "two", "green"]))
@settings(max_examples=50, deadline=None)
def test_the_score_is_the_mean_over_all_sets_that_leave_one_person_out(
    normalisation: str, humans: list[str], prediction: str
) -> None:
    plain = {"the dark red": "dark red", "two": "2"}.get(prediction, prediction)
    sets = list(itertools.combinations(humans, len(humans) - 1))
    expected = sum(min(1.0, others.count(plain) / 3) for others in sets) / len(sets)
    assert answer_score(prediction, humans, normalisation) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "human", "released"),
    [
        ("two", "two", 0.0),  # only the prediction becomes 2
        ("2", "two", 0.0),
        ("a dog", "the dog", 0.0),
        ("dog", "the dog", 0.0),
        ("dont know", "dont know", 0.0),
        ("Red", "Red", 0.0),
        ("stop sign", "stop-sign", 0.0),  # all agree, so that not even punctuation is processed
        ("2", "2", 1.0),
        ("two", "2", 1.0),
        ("Stop-sign!\n", "stop sign", 1.0),
    ],
)
def test_as_released_one_side_is_normalised_and_as_intended_both(prediction: str, human: str, released: float) -> None:
    assert answer_score(prediction, [human] * 10, "released") == released
    assert answer_score(prediction, [human] * 10, "intended") == 1.0


def test_as_released_peoples_punctuation_goes_where_they_disagree() -> None:
    assert answer_score("stop sign", ["stop-sign"] * 9 + ["sign"], "released") == 1.0


@given(st.text(alphabet="ab 1,.-'!\t\nTtheo", max_size=12))
@settings(max_examples=100, deadline=None)
def test_as_intended_what_everybody_said_is_right(text: str) -> None:
    assert answer_score(text, [text] * 10, "intended") == 1.0


def test_contractions_lead_to_spellings_that_are_kept() -> None:
    for bare, spelling in CONTRACTIONS.items():
        assert normalise_answer(bare) == spelling
        if bare != "somebody'd":
            assert normalise_answer(spelling) == spelling
    assert normalise_answer("well shed were hell") == "well shed were hell"


@pytest.mark.parametrize("normalisation", ["released", "intended"])
def test_a_single_persons_answer_is_right_or_wrong(normalisation: str) -> None:
    assert answer_score("Two!", ["2"], normalisation) == 1.0
    assert answer_score("3", ["2"], normalisation) == 0.0


def test_types_part_the_questions() -> None:
    predictions = ["2", "red", "3", "yes", "blue"]
    humans = [["2"] * 10, ["red"] * 2 + ["blue"] * 8, ["4"] * 10, ["yes"] * 10, ["blue"] * 10]
    measured = vqa_accuracy(
        predictions, humans, question_types=["how", "what", "how", "is", "what"], answer_types=["n", "o", "n", "y", "o"]
    )
    assert measured.questions.tolist() == pytest.approx([100, 60, 0, 100, 100])
    assert {name: one.value for name, one in measured.question_types.items()} == pytest.approx(
        {"how": 50, "what": 80, "is": 100}
    )
    assert {name: one.count for name, one in measured.answer_types.items()} == {"n": 2, "o": 2, "y": 1}
    assert measured.overall.value == pytest.approx(72)
    low, high = measured.question_types["what"].interval
    assert (low, high) == pytest.approx((60, 100))


def test_questions_of_one_picture_are_resampled_together() -> None:
    predictions, humans = ["red"] * 40, [["red"] * 10, ["blue"] * 10] * 20
    alone = vqa_accuracy(predictions, humans).overall.interval
    paired = vqa_accuracy(predictions, humans, groups=[place // 2 for place in range(40)]).overall.interval
    assert paired == pytest.approx((50, 50))  # each picture has one right and one wrong
    assert alone.high - alone.low > 20


@pytest.mark.parametrize(
    ("predictions", "humans", "message"),
    [
        (["red"], [["red"] * 3], "one human answer, or of at least 4, not with .*; repeat the answers"),
        (["red"], [[]], r"not with \[\]"),
        (["red"], ["crimson"], "or of at least 4, not with 'crimson'"),
        (["red", "blue"], [["red"] * 10], "2 predictions, but 1 answers"),
        ([], [], "holds no example"),
    ],
)
def test_what_cannot_be_scored_is_an_error(predictions: list[str], humans: list[list[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vqa_accuracy(predictions, humans)


# --------------------------------------------------------------------------- NLVR2


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_a_statement_is_consistent_if_no_pair_of_it_is_wrong(examples: list[tuple[int, bool]]) -> None:
    names = [f"statement {number}" for number, _ in examples]
    right = torch.tensor([value for _, value in examples])
    measured = nlvr2_accuracy(right, names, resamples=10)
    wrong = {number for number, value in examples if not value}
    asked = {number for number, _ in examples}
    assert measured.consistency.value == pytest.approx(100 * (1 - len(wrong) / len(asked)))
    assert measured.consistency.count == len(asked)
    assert measured.accuracy.value == pytest.approx(100 * np.mean([value for _, value in examples]))


def test_both_intervals_resample_statements() -> None:
    statements = [f"{place // 4}" for place in range(400)]
    right = torch.tensor([place // 4 % 2 == 0 for place in range(400)])  # pairs of a statement fail together
    measured = nlvr2_accuracy(right, statements)
    assert measured.accuracy.interval == pytest.approx(measured.consistency.interval)
    assert measured.accuracy.interval.high - measured.accuracy.interval.low > 15  # 400 single examples: 10


def test_statements_must_be_one_an_example() -> None:
    with pytest.raises(ValueError, match="2 values, but 1 groups"):
        nlvr2_accuracy(torch.tensor([True, False]), ["a"])
