"""ALBEF's pre-training as a task: what trains, what a step depends on, what it changes, how losses add up."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from diptych.losses.distillation import mixed_word_loss
from diptych.losses.masked_lm import masked_lm_loss
from diptych.losses.matching import matching_loss
from diptych.types import Progress, Term
from tests import tiny

LATER = Progress(step=3, epoch=2.0, seed=5)
"""After the teacher has been let in."""


@pytest.mark.parametrize(("norm", "stem"), tiny.VARIANTS)
@pytest.mark.parametrize("weights", [w for w in itertools.product((0.0, 1.0), repeat=3) if any(w)], ids=str)
def test_a_term_left_out_freezes_exactly_what_it_alone_reaches(
    weights: tuple[float, float, float], norm: str, stem: str
) -> None:
    """So no trainable parameter is without a gradient, which data-parallel training would not bear."""
    names = dict(zip(("itc", "itm", "mlm"), weights, strict=True))
    task = tiny.pretraining(model={"norm": norm, "stem": stem}, **names)
    trainable = {name for name, weight in task.model.named_parameters() if weight.requires_grad}
    task.model.requires_grad_(True)
    losses = task(tiny.batch(), LATER)
    losses.total.backward()
    reached = {n for n, w in task.model.named_parameters() if w.grad is not None and bool(w.grad.any())}
    assert trainable == reached
    assert set(losses.terms) == {name for name, weight in names.items() if weight}
    assert not any(weight.requires_grad for weight in task.teacher.parameters())


@pytest.mark.parametrize(("norm", "stem"), tiny.VARIANTS)
def test_every_trainable_parameter_gets_a_gradient_when_the_rest_is_frozen(norm: str, stem: str) -> None:
    for weights in itertools.product((0.0, 1.0), repeat=3):
        if any(weights):
            names = dict(zip(("itc", "itm", "mlm"), weights, strict=True))
            task = tiny.pretraining(model={"norm": norm, "stem": stem}, **names)
            task(tiny.batch(), LATER).total.backward()
            assert all((weight.grad is not None) == weight.requires_grad for weight in task.parameters()), names


def numbers(task: torch.nn.Module, batch: object, progress: Progress = LATER) -> dict[str, float]:
    losses = task(batch, progress)
    terms = {name: term.mean.item() for name, (_, term) in losses.terms.items()}
    return terms | {name: term.mean.item() for name, term in losses.measures.items()}


@pytest.mark.parametrize(("norm", "stem"), tiny.VARIANTS)
def test_losses_do_not_depend_on_how_far_texts_are_padded(norm: str, stem: str) -> None:
    task, batch = tiny.pretraining(model={"norm": norm, "stem": stem}), tiny.batch()
    wide = replace(batch, texts=tiny.padded(batch.texts, tiny.POSITIONS))
    assert numbers(task, wide) == pytest.approx(numbers(task, batch), rel=1e-4, abs=1e-6)


def test_draws_are_a_function_of_seed_step_and_micro_batch() -> None:
    task, batch = tiny.pretraining(), tiny.batch()

    def drawn(progress: Progress) -> list[Tensor]:
        made = task.draw(batch, progress)
        return [made.masked_ids, made.labels, made.uniform]

    torch.manual_seed(1)
    first = drawn(LATER)
    state = torch.get_rng_state()
    task.draw(batch, LATER)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert all(map(torch.equal, first, drawn(replace(LATER, epoch=9.0))))
    for other in (replace(LATER, step=4), replace(LATER, seed=6), replace(LATER, micro=1)):
        assert not any(map(torch.equal, first, drawn(other)))


def test_a_forward_changes_nothing() -> None:
    task, batch = tiny.pretraining(model={"dropout": 0.1}), tiny.batch()
    before = {name: value.clone() for name, value in task.state_dict().items()}
    task(batch, LATER).total.backward()
    task.inspect(batch, LATER)
    assert task.training
    assert not task.teacher.training
    after = task.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_only_the_two_hooks_move_state_and_each_its_own() -> None:
    task, batch = tiny.pretraining(), tiny.batch()

    def moved(change: object) -> set[str]:
        before = {name: value.clone() for name, value in task.state_dict().items()}
        change()
        return {name.split(".")[0] for name, value in task.state_dict().items() if not torch.equal(value, before[name])}

    carry = task(batch, LATER).carry
    assert not any(part.requires_grad for part in carry)
    assert moved(task.before_step) == {"teacher"}
    assert moved(lambda: task.after_step([carry])) == {"queue"}
    assert task.queue.ids.tolist() == [13, 101, 102, 10, 11, 12]


def test_words_of_the_teacher_are_computed_only_where_they_count() -> None:
    task, batch = tiny.pretraining(alpha_mlm=0.0), tiny.batch()
    calls = []
    task.teacher.word_head.register_forward_hook(lambda *_: calls.append(1))
    task(batch, LATER)
    assert not calls
    tiny_task = tiny.pretraining()
    tiny_task.teacher.word_head.register_forward_hook(lambda *_: calls.append(1))
    tiny_task(batch, Progress(step=0, epoch=0.0))
    assert not calls
    tiny_task(batch, LATER)
    assert len(calls) == 1


def test_until_fuse_start_only_the_contrast_trains() -> None:
    task, batch = tiny.pretraining(fuse_start=4), tiny.batch()
    alone, whole = task(batch, LATER), task(batch, replace(LATER, step=4))
    assert set(alone.terms) == {"itc"}
    assert set(whole.terms) == {"itc", "itm", "mlm"}
    torch.testing.assert_close(alone.terms["itc"][1].mean, whole.terms["itc"][1].mean)
    alone.total.backward()
    fused = [*task.model.text.layers[2:].parameters(), *task.model.match_head.parameters()]
    assert all(weight.grad is None for weight in fused)
    with pytest.raises(ValueError, match=r"task\.fuse_start=4 trains ITC alone first, but task\.itc is 0"):
        tiny.pretraining(fuse_start=4, itc=0.0)


@pytest.mark.parametrize("fuse_start", [0, 100])
def test_until_teacher_start_the_student_is_its_own_teacher(fuse_start: int) -> None:
    task, batch = tiny.pretraining(teacher_start=4, fuse_start=fuse_start), tiny.batch()
    same = tiny.pretraining(alpha_itc=0.0, alpha_mlm=0.0, fuse_start=fuse_start)
    student = {name: weight for name, weight in same.model.state_dict().items() if name in same.teacher.state_dict()}
    same.teacher.load_state_dict(student)
    asked: list[int] = []
    task.teacher.vision.register_forward_hook(lambda *_: asked.append(1))
    losses, reference = task(batch, LATER), same(batch, LATER)
    torch.testing.assert_close(losses.total, reference.total)
    losses.total.backward()
    reference.total.backward()
    for (name, ours), theirs in zip(task.model.named_parameters(), same.model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    before = task.queue.ids.clone()
    task.after_step([losses.carry])
    assert torch.equal(task.queue.ids, before)
    assert not asked
    task.after_step([task(batch, replace(LATER, step=4)).carry])
    assert asked
    assert set(batch.image_ids.tolist()) <= set(task.queue.ids.tolist())


def test_the_teachers_share_rises_from_teacher_start() -> None:
    task, batch = tiny.pretraining(teacher_start=10, alpha_ramp=2.0), tiny.batch()

    def alpha(step: int) -> float:
        return task(batch, Progress(step, epoch=step / 5)).measures["alpha"].mean.item()

    assert [alpha(step) for step in (0, 9, 10, 15, 20, 50)] == pytest.approx([0, 0, 0, 0.5, 1, 1])


def added(terms: list[Term]) -> Term:
    return Term(torch.stack([term.sum for term in terms]).sum(), torch.stack([term.count for term in terms]).sum())


@pytest.mark.parametrize("cut", [(12,), (1, 11), (5, 0, 7), (3, 3, 3, 3)], ids=str)
def test_matching_and_word_losses_add_up_over_any_cut(cut: tuple[int, ...]) -> None:
    logits, teacher, labels = tiny.uniform(12, 9) * 4, tiny.uniform(12, 9, seed=1) * 4, torch.arange(12) % 9
    pieces = list(zip(logits.split(cut), teacher.split(cut), labels.split(cut), strict=True))

    def mixed(ours: Tensor, theirs: Tensor, answers: Tensor) -> Term:
        return mixed_word_loss(masked_lm_loss(ours, answers), ours, theirs, 0.4)

    for name, loss in {
        "itm": lambda ours, _, answers: matching_loss(ours[:, :2], answers % 2),
        "mlm": lambda ours, _, answers: masked_lm_loss(ours, answers),
        "mixed": mixed,
    }.items():
        whole, parts = loss(logits, teacher, labels), added([loss(*piece) for piece in pieces])
        assert (parts.count.item(), whole.count.item()) == (12, 12), name
        torch.testing.assert_close(parts.sum, whole.sum)
        torch.testing.assert_close(parts.mean, whole.mean)


def test_the_total_is_the_weighted_sum_of_the_terms_and_counts_are_those_of_the_batch() -> None:
    task, batch = tiny.pretraining(itc=2.0, itm=0.5, mlm=3.0), tiny.batch()
    losses = task(batch, LATER)
    means = {name: term.mean.item() for name, (_, term) in losses.terms.items()}
    assert losses.total.item() == pytest.approx(2 * means["itc"] + 0.5 * means["itm"] + 3 * means["mlm"])
    hidden = int((task.draw(batch, LATER).labels >= 0).sum())
    assert {name: term.count.item() for name, (_, term) in losses.terms.items()} == {"itc": 4, "itm": 12, "mlm": hidden}
