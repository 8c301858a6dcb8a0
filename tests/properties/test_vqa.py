"""Visual question answering: what a result depends on, decoding against plain recomputation, what trains."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.data.answers import answer_vocabulary, encode_answers, score_row, soft_scores
from diptych.data.record import Question
from diptych.data.tokenizer import SPECIAL as SPECIAL_PIECES
from diptych.data.tokenizer import Tokenizer
from diptych.losses.answers import answer_losses, closed_set_loss
from diptych.nn.decoder import QuestionStates
from diptych.nn.packed import PackedSequences
from diptych.serialize import typed
from diptych.tasks import vqa
from diptych.tasks.vqa import Generated, VqaDecoding, ask
from diptych.types import Progress, QuestionBatch, Texts
from tests import tiny

START, LATER = Progress(step=0, epoch=0.0), Progress(step=3, epoch=2.0, seed=5)
"""Before and after the momentum encoder has been let in."""
CANDIDATES = tiny.answers((3, 4, 3, 6, 5, 3, 4, 3), seed=3)
TASKS = {"decoding": tiny.vqa_decoding, "closed_set": tiny.vqa_closed_set}


def asked_of(seed: int = 0) -> QuestionBatch:
    return tiny.questions(tiny.batch(seed=seed))


def only(batch: QuestionBatch, b: int) -> QuestionBatch:
    """One question, with its answers, and no more padding than it needs."""
    mine = batch.answer_of == b
    return QuestionBatch(
        batch.pixels[b : b + 1], trimmed(batch.texts, [b]), batch.image_ids[b : b + 1],
        answers=trimmed(batch.answers, mine.nonzero().flatten()), answer_of=torch.zeros(int(mine.sum())).long(),
        weights=batch.weights[mine], scores=batch.scores[b : b + 1],
    )  # fmt: skip


def trimmed(texts: Texts, which: Any) -> Texts:
    mask = texts.attention_mask[which]
    length = int(mask.sum(1).max())
    return Texts(texts.input_ids[which][:, :length], mask[:, :length])


def widened(batch: QuestionBatch) -> QuestionBatch:
    return replace(
        batch,
        texts=tiny.padded(batch.texts, tiny.POSITIONS),
        answers=tiny.padded(batch.answers, tiny.POSITIONS),
    )


# --------------------------------------------------------------------------- padding and batch mates


@pytest.mark.parametrize("model", tiny.MODELS, ids=str)
@pytest.mark.parametrize("kind", TASKS)
def test_losses_do_not_depend_on_padding_and_add_up_over_single_questions(kind: str, model: dict[str, Any]) -> None:
    task, batch = TASKS[kind](model=model, alpha=0.4), asked_of()
    whole, wide = task(batch, LATER), task(widened(batch), LATER)
    torch.testing.assert_close(wide.total, whole.total)
    each = [task(only(batch, b), LATER).terms["answer"][1] for b in range(len(batch))]
    term = whole.terms["answer"][1]
    torch.testing.assert_close(torch.stack([one.sum for one in each]).sum(), term.sum)
    assert sum(one.count.item() for one in each) == term.count.item() == len(batch)


@pytest.mark.parametrize("model", tiny.MODELS, ids=str)
def test_padding_and_batch_mates_change_no_answer(model: dict[str, Any]) -> None:
    decoding, closed = tiny.vqa_decoding(model=model).eval(), tiny.vqa_closed_set(model=model).eval()
    batch = asked_of()

    def results(given: QuestionBatch, candidates: Texts) -> list[Tensor]:
        ranked, found = decoding.rank(given, candidates, k=5), decoding.generate(given, beams=3)
        return [ranked.index, ranked.score, ranked.probability, found.log_probability, closed.predict(given)]

    together = results(batch, CANDIDATES)
    for ours, theirs in zip(results(widened(batch), tiny.padded(CANDIDATES, tiny.POSITIONS)), together, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    words = decoding.generate(batch, beams=3)
    for b in range(len(batch)):
        for ours, theirs in zip(results(only(batch, b), CANDIDATES), together, strict=True):
            torch.testing.assert_close(ours, theirs[b : b + 1], rtol=1e-4, atol=1e-5)
        assert written(decoding.generate(only(batch, b), beams=3), 0) == written(words, b)


def written(found: Generated, b: int) -> list[list[int]]:
    """The answers to a question, without padding."""
    return [[number for number in ids if number != tiny.SPECIAL.pad] for ids in found.ids[b].tolist()]


# --------------------------------------------------------------------------- decoding


@torch.no_grad()
def following(task: VqaDecoding, asked: QuestionStates, beginning: list[int]) -> Tensor:
    """log P of the word behind a beginning, read anew from its first token; `asked` is of one question."""
    ids = torch.tensor(beginning)
    hidden, _ = task.head(ids, PackedSequences(torch.tensor([len(ids)])), asked, torch.tensor([0]))
    return F.log_softmax(task.head.word_logits(hidden[-1]), dim=0)


def log_probability(task: VqaDecoding, batch: QuestionBatch, answer: list[int]) -> float:
    """Of an answer with its [SEP], word by word."""
    whole, asked = [tiny.SPECIAL.cls, *answer], ask(task.model, batch)
    return sum(following(task, asked, whole[:place])[whole[place]].item() for place in range(1, len(whole)))


def plainly(task: VqaDecoding, batch: QuestionBatch) -> list[int]:
    """Greedy decoding as one would write it down."""
    special, answer, asked = tiny.SPECIAL, list[int](), ask(task.model, batch)
    while special.sep not in answer:
        words = following(task, asked, [special.cls, *answer])
        words[[special.pad, special.unk, special.cls, special.mask]] = -torch.inf
        if not answer:
            words[special.sep] = -torch.inf
        answer.append(int(words.argmax()) if len(answer) + 1 < task.config.max_answer_tokens else special.sep)
    return answer


def eager_to_end(task: VqaDecoding, bonus: float) -> VqaDecoding:
    """The task with [SEP] made likelier, so that answers of several lengths come."""
    with torch.no_grad():
        task.head.word_head.bias[tiny.SPECIAL.sep] += bonus
    return task


@pytest.mark.parametrize("model", tiny.MODELS, ids=str)
@pytest.mark.parametrize("bonus", [-50.0, 0.0, 1.0, 3.0, 50.0])
def test_one_beam_is_greedy(model: dict[str, Any], bonus: float) -> None:
    task, batch = eager_to_end(tiny.vqa_decoding(model=model).eval(), bonus), asked_of()
    found = task.generate(batch, beams=1)
    for b in range(len(batch)):
        answer = plainly(task, only(batch, b))
        assert written(found, b) == [answer]
        assert found.log_probability[b].item() == pytest.approx(log_probability(task, only(batch, b), answer), abs=1e-4)
        limit = task.config.max_answer_tokens
        assert len(answer) == {-50.0: limit, 50.0: 2}.get(bonus, len(answer))


@pytest.mark.parametrize("model", tiny.MODELS, ids=str)
@pytest.mark.parametrize("beams", [2, 5])
def test_probabilities_of_beams_are_those_of_scoring_the_same_answers(model: dict[str, Any], beams: int) -> None:
    lengths = set[int]()
    for bonus in (-2.0, 1.0, 6.0):
        task, batch = eager_to_end(tiny.vqa_decoding(model=model).eval(), bonus), asked_of()
        found = task.generate(batch, beams=beams)
        assert torch.equal(found.log_probability, found.log_probability.sort(dim=1, descending=True).values)
        torch.testing.assert_close(found.probability.log(), found.log_probability)
        for b in range(len(batch)):
            answers = written(found, b)
            assert len({tuple(answer) for answer in answers}) == beams
            for answer, stated in zip(answers, found.log_probability[b].tolist(), strict=True):
                lengths.add(len(answer))
                assert answer[-1] == tiny.SPECIAL.sep
                assert not set(vars(tiny.SPECIAL).values()) & set(answer[:-1])
                given = torch.tensor([[tiny.SPECIAL.cls, *answer]])
                ranked = task.rank(only(batch, b), Texts(given, torch.ones_like(given).bool()))
                assert ranked.score.item() == pytest.approx(stated, abs=1e-4)
                assert log_probability(task, only(batch, b), answer) == pytest.approx(stated, abs=1e-4)
    assert len(lengths) > 1


def test_with_a_beam_for_each_word_one_word_answers_come_in_order_of_probability() -> None:
    task, batch = tiny.vqa_decoding(max_answer_tokens=2).eval(), asked_of()
    words = torch.arange(5, tiny.VOCABULARY)
    special = tiny.SPECIAL
    ids = torch.stack([torch.full_like(words, special.cls), words, torch.full_like(words, special.sep)], dim=1)
    ranked = task.rank(batch, Texts(ids, torch.ones_like(ids).bool()), k=len(words))
    found = task.generate(batch, beams=len(words))
    torch.testing.assert_close(found.log_probability, ranked.score)
    assert torch.equal(found.ids[:, :, 0], words[ranked.index])


def test_beams_find_what_a_search_of_that_width_finds() -> None:
    """Against beam search written down for one question, with nothing remembered between words."""
    task, batch = eager_to_end(tiny.vqa_decoding(max_answer_tokens=4).eval(), 1.0), asked_of()
    special, width = tiny.SPECIAL, 3
    found = task.generate(batch, beams=width)
    for b in range(len(batch)):
        kept: list[tuple[float, list[int]]] = [(0.0, [])]
        asked = ask(task.model, only(batch, b))
        for place in range(task.config.max_answer_tokens):
            grown = [(total, answer) for total, answer in kept if answer[-1:] == [special.sep]]
            for total, answer in [one for one in kept if one not in grown]:
                words = following(task, asked, [special.cls, *answer])
                last = place == task.config.max_answer_tokens - 1
                allowed = [special.sep] if last else [*[special.sep] * (place > 0), *range(5, tiny.VOCABULARY)]
                grown += [(total + words[word].item(), [*answer, word]) for word in allowed]
            kept = sorted(grown, key=lambda one: -one[0])[:width]
        assert written(found, b) == [answer for _, answer in kept]
        assert found.log_probability[b].tolist() == pytest.approx([total for total, _ in kept], abs=1e-4)


# --------------------------------------------------------------------------- ranking


def test_scores_are_what_their_names_say() -> None:
    batch, special = asked_of(), tiny.SPECIAL
    found = {
        name: tiny.vqa_decoding(**changes).eval().rank(batch, CANDIDATES)
        for name, changes in {
            "likelihood": {},
            "mean": {"score": "mean"},
            "released": {"count_first_answer_token_twice": True},
        }.items()
    }
    task = tiny.vqa_decoding().eval()
    for b in range(len(batch)):
        for place, ids in enumerate(CANDIDATES.input_ids.tolist()):
            answer = ids[1 : ids.index(special.sep) + 1]
            likelihood = log_probability(task, only(batch, b), answer)
            first = following(task, ask(task.model, only(batch, b)), [special.cls])[answer[0]].item()
            wanted = {"likelihood": likelihood, "mean": likelihood / len(answer), "released": likelihood + first}
            for name, ranked in found.items():
                score = ranked.score[b][ranked.index[b] == place].item()
                assert score == pytest.approx(wanted[name], abs=1e-4), name
    for ranked in found.values():
        torch.testing.assert_close(ranked.probability.sum(1), torch.ones(len(batch)))
        assert torch.equal(ranked.score, ranked.score.sort(dim=1, descending=True).values)


def test_the_k_likeliest_first_words_are_scored_whole_and_ties_keep_the_lists_order() -> None:
    task, batch, k = tiny.vqa_decoding().eval(), asked_of(), 3
    twice = Texts(*(torch.cat([part, part]) for part in (CANDIDATES.input_ids, CANDIDATES.attention_mask)))
    ranked = task.rank(batch, CANDIDATES, k)
    for b in range(len(batch)):
        first = following(task, ask(task.model, only(batch, b)), [tiny.SPECIAL.cls])[CANDIDATES.input_ids[:, 1]]
        assert set(ranked.index[b].tolist()) == set(first.topk(k).indices.tolist())
    doubled = task.rank(batch, twice, 2 * k)
    assert torch.equal(doubled.index[:, 0::2], ranked.index)
    assert torch.equal(doubled.index[:, 1::2], ranked.index + len(CANDIDATES))
    assert tiny.vqa_decoding(candidates=k).eval().rank(batch, CANDIDATES).index.shape == (len(batch), k)
    assert task.rank(batch, CANDIDATES).index.shape == (len(batch), len(CANDIDATES))


def test_how_many_candidates_a_call_scores_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    task, batch = tiny.vqa_decoding().eval(), asked_of()
    whole = task.rank(batch, CANDIDATES)
    for size in (1, 2 * len(CANDIDATES), 3 * len(CANDIDATES)):
        monkeypatch.setattr(vqa, "CANDIDATES_PER_CALL", size)
        ranked = task.rank(batch, CANDIDATES)
        assert torch.equal(ranked.index, whole.index)
        torch.testing.assert_close(ranked.score, whole.score)


def test_a_questions_states_are_projected_once_for_all_its_answers() -> None:
    task, batch = tiny.vqa_decoding().eval(), asked_of()
    rows: list[int] = []
    for layer in task.head.layers:
        layer.cross.kv.register_forward_hook(lambda _, given, __: rows.append(len(given[0])))
    layers = len(task.head.layers)
    for answer in (
        lambda: task.rank(batch, CANDIDATES),
        lambda: task.generate(batch, beams=4),
        lambda: task.word_logits(task.model, task.head, batch, batch.answers, batch.answer_of),
    ):
        rows.clear()
        answer()
        assert rows == [len(batch)] * layers


# --------------------------------------------------------------------------- training


@pytest.mark.parametrize("alpha", [0.0, 0.4])
@pytest.mark.parametrize("model", tiny.MODELS, ids=str)
@pytest.mark.parametrize("kind", TASKS)
def test_what_trains_is_exactly_what_the_loss_reaches(kind: str, model: dict[str, Any], alpha: float) -> None:
    """So no trainable parameter is without a gradient, which data-parallel training would not bear."""
    task = TASKS[kind](model=model, alpha=alpha)
    trainable = {name for name, weight in task.named_parameters() if weight.requires_grad}
    task.model.requires_grad_(True)
    task(asked_of(), LATER).total.backward()
    reached = {name for name, weight in task.named_parameters() if weight.grad is not None}
    assert trainable == reached
    assert not any(name.startswith("momentum_") for name in trainable)
    assert not [name for name in trainable if not task.get_parameter(name).grad.any()]
    assert {name.split(".")[0] for name in trainable} == {"model", "head"}


@pytest.mark.parametrize("kind", TASKS)
def test_the_momentum_encoder_is_there_only_where_it_counts(kind: str) -> None:
    task, batch = TASKS[kind](alpha=0.4), asked_of()
    alone = TASKS[kind](alpha=0.0)
    assert not any(name.startswith("momentum_") for name in alone.state_dict())
    calls: list[int] = []
    task.momentum_head.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(task(batch, START).total, alone(batch, LATER).total)
    assert not calls
    assert (task(batch, LATER).total - alone(batch, LATER).total).abs() > 1e-3
    assert calls
    assert task(batch, Progress(step=1, epoch=0.5)).measures["alpha"].mean.item() == pytest.approx(0.2)


@pytest.mark.parametrize("kind", TASKS)
def test_only_before_step_moves_state_and_only_momentum_copies(kind: str) -> None:
    task, batch = TASKS[kind](alpha=0.4, momentum=0.75, model={"dropout": 0.1}), asked_of()
    before = {name: value.clone() for name, value in task.state_dict().items()}
    task(batch, LATER).total.backward()
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())
    task.before_step()
    task.after_step(None)
    after = task.state_dict()
    for name, old in before.items():
        new = old
        if name.startswith("momentum_"):
            student = before[name.replace("momentum_head.", "head.").replace("momentum_encoder.", "model.")]
            new = 0.75 * old + 0.25 * student
        torch.testing.assert_close(after[name], new, msg=name)


@pytest.mark.parametrize("kind", TASKS)
def test_the_momentum_encoder_has_dropout_only_as_released(kind: str) -> None:
    for released in (False, True):
        task = TASKS[kind](alpha=0.4, momentum_encoder_dropout=released)
        modes = [part.training for part in (task.momentum_encoder, task.momentum_head)]
        assert modes == [released, released]
        task.eval()
        assert not any(part.training for part in (task.momentum_encoder, task.momentum_head))


def test_the_loss_is_the_weighted_sum_of_answers_over_questions() -> None:
    task, batch = tiny.vqa_decoding(alpha=0.0), asked_of()
    expected = 0.0
    for ids, owner, weight in zip(batch.answers.input_ids.tolist(), batch.answer_of, batch.weights, strict=True):
        answer = ids[1 : ids.index(tiny.SPECIAL.sep) + 1]
        expected -= weight.item() * log_probability(task, only(batch, int(owner)), answer)
    assert task(batch, LATER).total.item() == pytest.approx(expected / len(batch), rel=1e-5)


def test_a_word_is_learnt_from_label_and_momentum_encoder_in_the_shares_of_alpha() -> None:
    logits, momentum_encoder = tiny.uniform(6, 9) * 4, tiny.uniform(6, 9, seed=1) * 4
    labels, answer = torch.arange(6), torch.tensor([0, 0, 2, 2, 2, 1])
    targets = 0.7 * F.one_hot(labels, 9) + 0.3 * momentum_encoder.softmax(1)
    words = torch.stack([-(target * row.log_softmax(0)).sum() for target, row in zip(targets, logits, strict=True)])
    expected = torch.stack([words[:2].sum(), words[5], words[2:5].sum(), torch.zeros(())])
    torch.testing.assert_close(answer_losses(logits, labels, answer, 4, momentum_encoder, 0.3), expected)


def test_the_closed_sets_loss_is_mean_cross_entropy_times_the_number_of_answers() -> None:
    """As VLMo states it; with a momentum encoder, its probabilities are mixed into the scores."""
    logits, scores, momentum_encoder = (
        tiny.uniform(3, 5) * 4 - 2,
        tiny.uniform(3, 5, seed=1),
        tiny.uniform(3, 5, seed=2) * 4,
    )
    plain = F.binary_cross_entropy(logits.sigmoid(), scores) * 5
    torch.testing.assert_close(closed_set_loss(logits, scores).mean, plain)
    mixed = F.binary_cross_entropy(logits.sigmoid(), 0.6 * scores + 0.4 * momentum_encoder.sigmoid()) * 5
    torch.testing.assert_close(closed_set_loss(logits, scores, momentum_encoder, 0.4).mean, mixed)


@pytest.mark.parametrize("kind", TASKS)
def test_a_small_batch_can_be_learnt_by_heart(kind: str) -> None:
    torch.manual_seed(0)
    task, batch = TASKS[kind](alpha=0.0), tiny.questions(tiny.batch(), lengths=(3, 4, 3, 4), owners=(0, 1, 2, 3))
    batch = replace(batch, scores=torch.eye(len(tiny.ANSWERS)), weights=torch.ones(4))
    optimizer = torch.optim.Adam([weight for weight in task.parameters() if weight.requires_grad], lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        task(batch, LATER).total.backward()
        optimizer.step()
    task.eval()
    if kind == "closed_set":
        assert task.predict(batch).argmax(1).tolist() == [0, 1, 2, 3]
        return
    assert task.rank(batch, batch.answers).index[:, 0].tolist() == [0, 1, 2, 3]
    for b, ids in enumerate(batch.answers.input_ids.tolist()):
        assert written(task.generate(batch), b)[0] == ids[1 : ids.index(tiny.SPECIAL.sep) + 1]


# --------------------------------------------------------------------------- answers as data


def asked(*answers: str, weights: tuple[float, ...] = ()) -> Question:
    return Question("q", "p", "?", answers, "p", weights)


def test_the_closed_set_is_chosen_by_frequency_and_not_by_order() -> None:
    questions = [asked("b", "b", "a", "c"), asked("d"), asked("a", "a", "b", "b"), asked("x", weights=(0.5,))]
    for order in itertools.permutations(questions):
        assert answer_vocabulary(order, 4) == ("b", "d", "a", "x")
    assert answer_vocabulary(questions, 99) == ("b", "d", "a", "x", "c")
    for given, size in (([], 3), (questions, 0)):
        with pytest.raises(ValueError, match=f"cannot choose {size} frequent answers"):
            answer_vocabulary(given, size)


def test_soft_scores_are_the_accuracy_over_all_sets_of_annotators_but_one() -> None:
    for agreeing in range(1, 10):
        answers = ["red"] * agreeing + [f"other{n}" for n in range(10 - agreeing)]
        each = [min(1.0, (answers[:n] + answers[n + 1 :]).count("red") / 3) for n in range(10)]
        assert soft_scores(asked(*answers))["red"] == pytest.approx(sum(each) / 10)
    assert soft_scores(asked("red")) == {"red": 1.0}
    assert soft_scores(asked("red", "pink", weights=(0.4, 1.5))) == {"red": 0.4, "pink": 1.0}
    assert score_row({"red": 0.6, "pink": 0.3}, ("blue", "red")) == [0.0, 0.6]


@pytest.mark.parametrize("separator", [False, True])
def test_answers_end_with_sep_whatever_the_tokenizer_does_and_however_they_are_cut(separator: bool) -> None:
    tokenizer = Tokenizer((*SPECIAL_PIECES, "red", "and", "blue"), separator=separator)
    assert encode_answers(["red", "red and blue"], tokenizer) == [[2, 5, 3], [2, 5, 6, 7, 3]]
    assert encode_answers(["red and blue"], tokenizer, max_tokens=4) == [[2, 5, 6, 3]]
    with pytest.raises(ValueError, match="'  ' is no answer: it holds no word"):
        encode_answers(["red", "  "], tokenizer)
    with pytest.raises(ValueError, match="max_tokens is 2"):
        encode_answers(["red"], tokenizer, max_tokens=2)


# --------------------------------------------------------------------------- errors


def test_what_the_user_did_is_said_in_their_words() -> None:
    decoding, closed, batch = tiny.vqa_decoding().eval(), tiny.vqa_closed_set(), asked_of()
    with pytest.raises(ValueError, match="needs questions with weighted answers"):
        decoding(tiny.batch(), START)
    with pytest.raises(ValueError, match="needs questions with weighted answers"):
        decoding(replace(batch, answers=None), START)
    with pytest.raises(ValueError, match="needs questions with scored answers"):
        closed(tiny.batch(), START)
    for scores in (None, torch.zeros(4, 7)):
        with pytest.raises(ValueError, match="a score for each of its 4 answers"):
            closed(replace(batch, scores=scores), START)
    with pytest.raises(ValueError, match=r"task\.answers is empty"):
        tiny.vqa_closed_set(answers=())
    with pytest.raises(ValueError, match=r"task\.max_answer_tokens=1"):
        tiny.vqa_decoding(max_answer_tokens=1)
    for beams in (0, tiny.VOCABULARY - 4):
        with pytest.raises(ValueError, match=f"cannot keep {beams} beams"):
            decoding.generate(batch, beams=beams)
    with pytest.raises(ValueError, match="cannot rank 0 answers"):
        decoding.rank(batch, CANDIDATES, k=0)
    with pytest.raises(ValueError, match="a candidate answer holds no word"):
        decoding.rank(batch, tiny.answers((4, 2)))
    with pytest.raises(ValueError, match="an answer that takes 13 positions is longer than the decoder's 12"):
        decoding.rank(batch, tiny.answers((3, 14)))


def test_a_closed_set_is_read_back_from_json_as_it_was() -> None:
    answers = ["yes", "no", "2", "1e3", "null", "a, b", "[red]"]
    assert typed(tuple[str, ...], answers, "task.answers") == tuple(answers)
    assert typed(tuple[str, ...], "red, dark blue", "task.answers") == ("red", "dark blue")
    with pytest.raises(ValueError, match=r"task\.answers: expected any number of values \(text\), got 3"):
        typed(tuple[str, ...], 3, "task.answers")
