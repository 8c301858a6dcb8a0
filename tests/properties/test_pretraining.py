"""Pre-training of both systems as a task: what trains, what a step depends on, what it changes, how losses add up."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.losses.distillation import distilled_loss
from diptych.losses.masked_lm import masked_lm_loss
from diptych.losses.matching import match_labels, matching_loss
from diptych.nn.gather import Processes
from diptych.tasks.albef_pretraining import AlbefPretraining
from diptych.tasks.pretraining import Draws, draw_fused
from diptych.types import Batch, Progress, Term, Texts
from tests import tiny

LATER = Progress(step=3, epoch=2.0, seed=5)
"""After the momentum encoder has been let in."""

Build = Callable[..., Any]
ALBEF: dict[str, Build] = {
    f"albef {norm} {stem}": partial(tiny.pretraining, model={"norm": norm, "stem": stem})
    for norm, stem in tiny.VARIANTS
}
VLMO: dict[str, Build] = {
    "vlmo": tiny.vlmo_pretraining,
    "vlmo absolute conv": partial(
        tiny.vlmo_pretraining, model={"positions": "absolute", "layer_scale": None, "stem": "conv", "text_norm": False}
    ),
    "vlmo main": partial(tiny.vlmo_pretraining, itc_branches="main"),
    "vlmo vl": partial(tiny.vlmo_pretraining, itc_branches="vl"),
    "vlmo one expert": partial(tiny.vlmo_pretraining, model={"experts": "one"}, itc_branches="main"),
    "vlmo separate attention": partial(tiny.vlmo_pretraining, model={"attention": "separate"}),
    "vlmo separate attention, vl": partial(tiny.vlmo_pretraining, model={"attention": "separate"}, itc_branches="vl"),
    "vlmo without fusion experts": partial(tiny.vlmo_pretraining, model={"fusion_start": 4}, itc_branches="main"),
}


def over(builds: dict[str, Build]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("build", builds.values(), ids=builds)


EACH = over(ALBEF | VLMO)
BOTH = over({"albef": tiny.pretraining, "vlmo": tiny.vlmo_pretraining})
WEIGHTS = [
    dict(zip(("itc", "itm", "mlm"), weights, strict=True))
    for weights in itertools.product((0.0, 1.0), repeat=3)
    if any(weights)
]


@EACH
@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_a_term_left_out_freezes_exactly_what_it_alone_reaches(weights: dict[str, float], build: Build) -> None:
    """So no trainable parameter is without a gradient, which data-parallel training would not bear."""
    task = build(**weights)
    trainable = {name for name, weight in task.model.named_parameters() if weight.requires_grad}
    task.model.requires_grad_(True)
    losses = task(tiny.batch(), LATER)
    losses.total.backward()
    reached = {n for n, w in task.model.named_parameters() if w.grad is not None and bool(w.grad.any())}
    assert trainable == reached
    assert set(losses.terms) == {name for name, weight in weights.items() if weight}
    frozen = {name for name, weight in task.named_parameters() if not weight.requires_grad}
    assert frozen == {name for name, _ in task.named_parameters() if name.startswith("momentum_encoder.")}


@EACH
def test_every_trainable_parameter_gets_a_gradient_when_the_rest_is_frozen(build: Build) -> None:
    for weights in WEIGHTS:
        task = build(**weights)
        task(tiny.batch(), LATER).total.backward()
        assert all((weight.grad is not None) == weight.requires_grad for weight in task.parameters()), weights


def numbers(task: torch.nn.Module, batch: object, progress: Progress = LATER) -> dict[str, float]:
    losses = task(batch, progress)
    terms = {name: term.mean.item() for name, (_, term) in losses.terms.items()}
    return terms | {name: term.mean.item() for name, term in losses.measures.items()}


@EACH
def test_losses_do_not_depend_on_how_far_texts_are_padded(build: Build) -> None:
    task, batch = build(), tiny.batch()
    wide = replace(batch, texts=tiny.padded(batch.texts, tiny.POSITIONS))
    assert numbers(task, wide) == pytest.approx(numbers(task, batch), rel=1e-4, abs=1e-6)


def taken(batch: Batch, draws: Draws, pairs: Tensor) -> tuple[Batch, Draws]:
    """Some pairs of a batch, in any order, with the negatives that were drawn for them, which are among them."""
    texts = Texts(batch.texts.input_ids[pairs], batch.texts.attention_mask[pairs])
    place = torch.full((len(batch),), -1).scatter(0, pairs, torch.arange(len(pairs)))
    assert draws.negative_image is not None
    assert draws.negative_text is not None
    negatives = place[draws.negative_image[pairs]], place[draws.negative_text[pairs]]
    assert all(bool((one >= 0).all()) for one in negatives)
    part = Draws(draws.masked_ids[pairs], draws.labels[pairs], draws.uniform[:, pairs], *negatives)
    return Batch(batch.pixels[pairs], texts, batch.image_ids[pairs]), part


def terms_of(task: Any, batch: Batch, draws: Draws) -> dict[str, Term]:
    """ITM and MLM with these draws."""
    losses = task(batch, LATER, draws)
    return {name: losses.terms[name][1] for name in ("itm", "mlm")}


@BOTH
@pytest.mark.parametrize("cut", [[[3, 0, 2, 1]], [[0, 1], [2, 3]], [[1, 0], [3, 2]]], ids=str)
def test_matching_and_words_do_not_depend_on_batch_mates(build: Build, cut: list[list[int]]) -> None:
    """Shuffled or cut into micro-batches, the terms of the same pairs with the same draws add up to the same."""
    task, batch = build(), tiny.batch()
    drawn = task.draw(batch, LATER)
    negatives = torch.tensor([1, 0, 3, 2]), torch.tensor([1, 0, 3, 2])
    draws = Draws(drawn.masked_ids, drawn.labels, drawn.uniform, *negatives)
    whole = terms_of(task, batch, draws)
    parts = [terms_of(task, *taken(batch, draws, torch.tensor(pairs))) for pairs in cut]
    for name, term in whole.items():
        torch.testing.assert_close(added([part[name] for part in parts]).mean, term.mean)


@BOTH
def test_draws_are_a_function_of_seed_step_and_micro_batch(build: Build) -> None:
    task, batch = build(), tiny.batch()

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
    for other in (replace(LATER, step=4), replace(LATER, seed=6)):
        assert not any(map(torch.equal, first, drawn(other)))


@BOTH
def test_a_forward_changes_nothing(build: Build) -> None:
    task, batch = build(model={"dropout": 0.1}), tiny.batch()
    before = {name: value.clone() for name, value in task.state_dict().items()}
    task(batch, LATER).total.backward()
    task.inspect(batch, LATER)
    assert task.training
    assert all(part.training == (name != "momentum_encoder") for name, part in task.named_children())
    after = task.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@BOTH
def test_a_look_inside_shows_the_negatives_with_their_probabilities(build: Build) -> None:
    task, batch = build(), tiny.batch(ids=(10, 11, 10, 13))
    seen = task.inspect(batch, LATER)
    same = batch.image_ids[:, None] == batch.image_ids[None]
    here = torch.arange(len(batch))
    for drawn, probability in (
        (seen.negative_text_index, seen.negative_text_probability),
        (seen.negative_image_index, seen.negative_image_probability),
    ):
        assert not bool(same[here, drawn].any())
        assert bool(((probability > 0) & (probability <= 1)).all())
    uniform = build(hard_negatives=False).inspect(batch, LATER)
    assert uniform.negative_text_probability.tolist() == pytest.approx([1 / 2, 1 / 3, 1 / 2, 1 / 3])


def test_only_the_two_hooks_move_state_and_each_its_own() -> None:
    task, batch = tiny.pretraining(), tiny.batch()

    def moved(change: object) -> set[str]:
        before = {name: value.clone() for name, value in task.state_dict().items()}
        change()
        return {name.split(".")[0] for name, value in task.state_dict().items() if not torch.equal(value, before[name])}

    carry = task(batch, LATER).carry
    assert not any(part.requires_grad for part in carry)
    assert moved(task.before_step) == {"momentum_encoder"}
    assert moved(lambda: task.after_step(carry)) == {"queue"}
    assert task.queue.ids.tolist() == [13, 101, 102, 10, 11, 12]


def test_words_of_the_momentum_encoder_are_computed_only_where_they_count() -> None:
    task, batch = tiny.pretraining(alpha_mlm=0.0), tiny.batch()
    calls = []
    task.momentum_encoder.word_head.register_forward_hook(lambda *_: calls.append(1))
    task(batch, LATER)
    assert not calls
    tiny_task = tiny.pretraining()
    tiny_task.momentum_encoder.word_head.register_forward_hook(lambda *_: calls.append(1))
    tiny_task(batch, Progress(step=0, epoch=0.0))
    assert not calls
    tiny_task(batch, LATER)
    assert len(calls) == 1


@BOTH
def test_until_fuse_start_only_the_contrast_trains(build: Build) -> None:
    task, batch = build(fuse_start=4), tiny.batch()
    alone, whole = task(batch, LATER), task(batch, replace(LATER, step=4))
    assert set(alone.terms) == {"itc"}
    assert set(whole.terms) == {"itc", "itm", "mlm"}
    torch.testing.assert_close(alone.terms["itc"][1].mean, whole.terms["itc"][1].mean)
    alone.total.backward()
    unreached = {name for name, weight in build(itm=0.0, mlm=0.0).named_parameters() if not weight.requires_grad}
    assert {name for name, weight in task.named_parameters() if weight.grad is None} == unreached
    with pytest.raises(ValueError, match=r"task\.fuse_start=4 trains ITC alone first, but task\.itc is 0"):
        build(fuse_start=4, itc=0.0)


@BOTH
def test_fused_pairs_are_a_share_of_the_batch_with_the_terms_that_they_have_in_the_whole(build: Build) -> None:
    whole, half, batch = build(), build(fused_share=0.5), tiny.batch()
    losses, traces = half(batch, LATER), []
    rows = half.draw(batch, LATER).some
    assert rows.tolist() in ([0, 2], [1, 3])
    whole(batch, LATER, trace=traces)
    (trace,) = traces
    judged = trace.match_logits.unflatten(0, (3, len(batch)))[:, rows].flatten(0, 1)
    torch.testing.assert_close(losses.terms["itm"][1].mean, matching_loss(judged, match_labels(2, rows.device)).mean)
    said = torch.isin(whole.draw(batch, LATER).masked_tokens()[0].pair, rows)
    words = masked_lm_loss(trace.word_logits[said], trace.labels[said])
    if isinstance(half, AlbefPretraining):
        momentum_words = trace.momentum_word_logits[said]
        words = distilled_loss(words, trace.word_logits[said], momentum_words, half.config.alpha_mlm)
    torch.testing.assert_close(losses.terms["mlm"][1].mean, words.mean)
    torch.testing.assert_close(losses.terms["itc"][1].mean, whole(batch, LATER).terms["itc"][1].mean)
    half(batch, LATER, trace=traces)
    torch.testing.assert_close(traces[1].match_logits, trace.match_logits)
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match=rf"task\.fused_share={share}: choose a share above 0 and at most 1"):
            build(fused_share=share)


@pytest.mark.parametrize(("share", "sizes"), [(0.25, {4}), (0.3, {4, 5}), (0.9, {14, 15}), (0.01, {1})])
def test_each_pair_is_fused_as_often_as_any_other_however_processes_cut_the_batch(
    share: float, sizes: set[int]
) -> None:
    config, cpu = tiny.pretraining(fused_share=share).config, torch.device("cpu")

    def drawn(processes: Processes, seed: int) -> list[int]:
        return draw_fused(config, processes, torch.Generator().manual_seed(seed), cpu).tolist()

    counts = Counter[int]()
    for seed in range(400):
        alone = drawn(Processes(16), seed)
        assert len(alone) in sizes
        counts.update(alone)
        for rank, start in ((0, 0), (1, 10)):
            part = [row + start for row in drawn(Processes((10, 6)[rank], rank, (10, 6)), seed)]
            assert part == ([row for row in alone if start <= row < start + (10, 6)[rank]] or [start])
    if share > 0.01:
        expected = 400 * share
        assert all(abs(counts[row] - expected) < 5 * (expected * (1 - share)) ** 0.5 for row in range(16))


@pytest.mark.parametrize("fuse_start", [0, 100])
def test_until_momentum_start_the_model_is_its_own_momentum_encoder(fuse_start: int) -> None:
    task, batch = tiny.pretraining(momentum_start=4, fuse_start=fuse_start), tiny.batch()
    same = tiny.pretraining(alpha_itc=0.0, alpha_mlm=0.0, fuse_start=fuse_start)
    student = {
        name: weight for name, weight in same.model.state_dict().items() if name in same.momentum_encoder.state_dict()
    }
    same.momentum_encoder.load_state_dict(student)
    asked: list[int] = []
    task.momentum_encoder.vision.register_forward_hook(lambda *_: asked.append(1))
    losses, reference = task(batch, LATER), same(batch, LATER)
    torch.testing.assert_close(losses.total, reference.total)
    losses.total.backward()
    reference.total.backward()
    for (name, ours), theirs in zip(task.model.named_parameters(), same.model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    before = task.queue.ids.clone()
    task.after_step(losses.carry)
    assert torch.equal(task.queue.ids, before)
    assert not asked
    task.after_step(task(batch, replace(LATER, step=4)).carry)
    assert asked
    assert set(batch.image_ids.tolist()) <= set(task.queue.ids.tolist())


def test_the_weight_of_pseudo_targets_rises_from_momentum_start() -> None:
    task, batch = tiny.pretraining(momentum_start=10, alpha_ramp=2.0), tiny.batch()

    def alpha(step: int) -> float:
        return task(batch, Progress(step, epoch=step / 5)).measures["alpha"].mean.item()

    assert [alpha(step) for step in (0, 9, 10, 15, 20, 50)] == pytest.approx([0, 0, 0, 0.5, 1, 1])


def added(terms: list[Term]) -> Term:
    return Term(torch.stack([term.sum for term in terms]).sum(), torch.stack([term.count for term in terms]).sum())


@pytest.mark.parametrize("cut", [(12,), (1, 11), (5, 0, 7), (3, 3, 3, 3)], ids=str)
def test_matching_and_word_losses_add_up_over_any_cut(cut: tuple[int, ...]) -> None:
    logits, momentum_encoder, labels = tiny.uniform(12, 9) * 4, tiny.uniform(12, 9, seed=1) * 4, torch.arange(12) % 9
    pieces = list(zip(logits.split(cut), momentum_encoder.split(cut), labels.split(cut), strict=True))

    def mixed(ours: Tensor, theirs: Tensor, answers: Tensor) -> Term:
        return distilled_loss(masked_lm_loss(ours, answers), ours, theirs, 0.4)

    for name, loss in {
        "itm": lambda ours, _, answers: matching_loss(ours[:, :2], answers % 2),
        "mlm": lambda ours, _, answers: masked_lm_loss(ours, answers),
        "mixed": mixed,
    }.items():
        whole, parts = loss(logits, momentum_encoder, labels), added([loss(*piece) for piece in pieces])
        assert (parts.count.item(), whole.count.item()) == (12, 12), name
        torch.testing.assert_close(parts.sum, whole.sum)
        torch.testing.assert_close(parts.mean, whole.mean)


@BOTH
def test_the_total_is_the_weighted_sum_of_the_terms_and_counts_are_those_of_the_batch(build: Build) -> None:
    task, batch = build(itc=2.0, itm=0.5, mlm=3.0), tiny.batch()
    losses = task(batch, LATER)
    means = {name: term.mean.item() for name, (_, term) in losses.terms.items()}
    assert losses.total.item() == pytest.approx(2 * means["itc"] + 0.5 * means["itm"] + 3 * means["mlm"])
    hidden = int((task.draw(batch, LATER).labels >= 0).sum())
    assert {name: term.count.item() for name, (_, term) in losses.terms.items()} == {"itc": 4, "itm": 12, "mlm": hidden}
