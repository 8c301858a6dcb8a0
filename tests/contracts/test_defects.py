"""Defects of the released code: what this library does, and what the released code does.

Each test begins with the defect's number in docs/released_code.md, which also names the tests in other files. Released
behaviour is reached by its field of `Released`, or stated here in a few independent lines where there is no field.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.checkpoints import store
from diptych.data.tokenizer import Tokenizer
from diptych.losses.contrastive import IGNORED_LOGIT, Logits
from diptych.losses.masked_lm import IGNORED, MaskDraws, masked_lm_loss
from diptych.losses.matching import draw_negatives, negative_weights
from diptych.nn.gather import Processes
from diptych.nn.momentum import momentum_copy, move_towards
from diptych.nn.queue import NOBODY, FeatureQueue
from diptych.schema import Released
from diptych.task import Task
from diptych.tasks.albef_pretraining import AlbefPretraining, AlbefTrace
from diptych.tasks.pretraining import hard_negative_weights
from diptych.types import Progress, Texts
from tests import tiny
from tests.traces import traced

LATER = Progress(step=3, epoch=2.0)


def released_weights(logits: Tensor) -> Tensor:
    """The released procedure: softmax over the batch, then the diagonal set to 0."""
    return torch.softmax(logits, dim=1).fill_diagonal_(0)


# --------------------------------------------------------------------------- 1: hard negatives


SURE = torch.tensor([[200.0, 0.0, -1.0], [-150.0, 150.0, -151.0], [0.5, 0.0, 1.0]])
"""Two rows so sure of their pair that nothing else is left of the softmax in fp32."""
OWN = torch.eye(3, dtype=torch.bool)


def test_1_released_weights_vanish_and_cannot_be_drawn_from() -> None:
    weights = negative_weights(SURE, OWN, after_softmax=True)
    assert torch.equal(weights, released_weights(SURE))
    assert weights[:2].sum() == 0
    with pytest.raises(RuntimeError, match="sum of probabilities"):
        torch.multinomial(released_weights(SURE)[0], 1)
    with pytest.raises(
        ValueError, match=r"all negatives of a row have probability 0.*negatives_mask_after_softmax=true"
    ):
        draw_negatives(weights, torch.full((3,), 0.5))


def test_1_positives_that_leave_before_the_softmax_leave_something_to_draw() -> None:
    weights = negative_weights(SURE, OWN)
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    assert weights.diagonal().tolist() == [0, 0, 0]
    odds = torch.tensor([1.0, 1.0, 0.5]).exp()
    torch.testing.assert_close(torch.stack([weights[0, 1], weights[1, 0], weights[2, 0]]), odds / (1 + odds))
    mild = SURE / 100
    after = released_weights(mild)
    torch.testing.assert_close(negative_weights(mild, OWN), after / after.sum(1, keepdim=True))


@pytest.mark.parametrize("after", [False, True])
def test_1_the_field_reaches_the_task(after: bool) -> None:
    task = tiny.pretraining(negatives_mask_after_softmax=after)
    nobody = torch.zeros(3, 3, dtype=torch.bool)
    for_texts, for_images = hard_negative_weights(
        Logits(SURE, SURE.T), OWN, nobody, Processes(3), task.config, task.released
    )
    torch.testing.assert_close(for_images, negative_weights(SURE, OWN, after))
    torch.testing.assert_close(for_texts, negative_weights(SURE.T, OWN, after))


@pytest.mark.parametrize("build", [tiny.pretraining, tiny.vlmo_pretraining])
@pytest.mark.parametrize("ids", [(7,), (7, 7, 7)], ids=["one pair", "one picture"])
def test_1_a_batch_without_any_negative_is_refused_in_words(ids: tuple[int, ...], build: Callable[[], Task]) -> None:
    with pytest.raises(ValueError, match=r"pairs from at least two different pictures\. Use a larger batch"):
        build()(tiny.batch([5] * len(ids), ids), LATER)


# --------------------------------------------------------------------------- 2: false negatives

IDS = (7, 8, 7, 101)
"""Captions 0 and 2 are of one picture; picture 101 also waits in the queue, at place 1."""
SAME = torch.tensor([[0, 0, 1, 0, 0, 0, 0], [0] * 7, [1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1, 0]]).bool()


def trace_of(keep: bool) -> AlbefTrace:
    task, batch = tiny.pretraining(keep_false_negatives=keep), tiny.batch(ids=IDS)
    return traced(task, batch, LATER)[0]


def test_2_other_captions_of_a_picture_leave_contrast_targets_and_negatives() -> None:
    masked, kept = trace_of(keep=False), trace_of(keep=True)
    assert torch.equal(masked.ignored, SAME)
    names = ("image_to_text", "text_to_image", "momentum_image_to_text", "momentum_text_to_image")
    for name in names:
        ours = getattr(masked.similarities, name)
        assert (ours[SAME] == IGNORED_LOGIT).all()
        assert (ours.softmax(1)[SAME] == 0).all()
        assert torch.equal(ours[~SAME], getattr(kept.similarities, name)[~SAME])
    for weights in masked.negative_weights:
        assert (weights[SAME[:, :4]] == 0).all()
        torch.testing.assert_close(weights.sum(1), torch.ones(4))


def test_2_the_released_code_keeps_them_as_negatives() -> None:
    kept = trace_of(keep=True)
    similarities = kept.similarities
    assert not kept.ignored.any()
    assert (similarities.image_to_text[SAME].abs() < 1 / 0.07 + 1e-3).all()
    both_ways = similarities.text_to_image, similarities.image_to_text
    for logits, weights in zip(both_ways, kept.negative_weights, strict=True):
        assert (weights[SAME[:, :4]] > 0).all()
        released = released_weights(logits[:, :4])
        torch.testing.assert_close(weights, released / released.sum(1, keepdim=True))


def test_2_what_is_drawn_shows_another_picture() -> None:
    batch = tiny.batch(ids=IDS)

    def false_share(task: AlbefPretraining) -> float:
        own, false = torch.tensor(IDS), 0
        for step in range(30):
            image, text = traced(task, batch, Progress(step=step, epoch=2.0))[0].negatives
            assert (image != torch.arange(4)).all()
            false += int((own[image] == own).sum() + (own[text] == own).sum())
        return false / 240

    with torch.no_grad():
        assert false_share(tiny.pretraining(hard_negatives=False)) == 0
        # Of three candidates one is false, for half of the captions.
        assert 0.08 < false_share(tiny.pretraining(hard_negatives=False, keep_false_negatives=True)) < 0.26


def test_2_queue_entries_of_unknown_pictures_stay_negatives() -> None:
    """As after loading a published pre-training queue, which has no identities."""
    task, batch = tiny.pretraining(), tiny.batch(ids=IDS)
    task.queue.ids.fill_(NOBODY)
    assert torch.equal(traced(task, batch, LATER)[0].ignored[:, 4:], torch.zeros(4, 3).bool())


# --------------------------------------------------------------------------- 3: the momentum encoder, the draw


@pytest.mark.parametrize("released", [False, True], ids=["repaired", "released"])
def test_3_the_momentum_encoder_has_dropout_only_as_released(released: bool) -> None:
    task, batch = tiny.pretraining(model={"dropout": 0.5}, momentum_encoder_dropout=released), tiny.batch()
    task.eval().train()
    first, second = traced(task, batch, LATER)[0], traced(task, batch, LATER)[0]
    assert torch.equal(first.queue_entries[1], second.queue_entries[1]) is not released
    one, other = first.similarities.text_to_image, second.similarities.text_to_image
    assert not torch.equal(one, other), "the student's dropout stays"
    task.eval()
    first, second = traced(task, batch, LATER)[0], traced(task, batch, LATER)[0]
    assert torch.equal(first.queue_entries[1], second.queue_entries[1])


def test_3_the_momentum_encoder_moves_in_place_to_the_released_values() -> None:
    student = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4))
    ours = momentum_copy(student)
    released = momentum_copy(student)
    tiny.shake(student, 1)
    places = [weight.data_ptr() for weight in ours.parameters()]
    before = [weight.data_ptr() for weight in released.parameters()]
    for _ in range(3):
        move_towards(ours, student, 0.995)
        for slow, fast in zip(released.parameters(), student.parameters(), strict=True):
            slow.data = slow.data * 0.995 + fast.data * (1 - 0.995)
    for our, their in zip(ours.parameters(), released.parameters(), strict=True):
        torch.testing.assert_close(our, their, rtol=1e-6, atol=1e-7)
    assert [weight.data_ptr() for weight in ours.parameters()] == places
    assert [weight.data_ptr() for weight in released.parameters()] != before
    assert not any(weight.requires_grad for weight in ours.parameters())


def test_3_all_rows_at_once_are_drawn_like_row_after_row() -> None:
    torch.manual_seed(0)
    weights, count = released_weights(torch.tensor([[9.0, 1.0, 0.0], [0.3, 0.0, 1.2], [0.0, 0.0, 0.0]])), 2000
    released = torch.stack([torch.multinomial(row, count, replacement=True) for row in weights])
    rows = weights.repeat_interleave(count, 0)
    ours = draw_negatives(rows, tiny.uniform(len(rows))).unflatten(0, (3, count))
    shares = weights / weights.sum(1, keepdim=True)
    for drawn in (ours, released):
        found = torch.stack([(drawn == candidate).float().mean(1) for candidate in range(3)], dim=1)
        assert (found - shares).abs().max() < 4 * 0.5 / count**0.5


# --------------------------------------------------------------------------- 4: the queue


@pytest.mark.parametrize("size", [1, 5, 6])
@pytest.mark.parametrize("batches", [(2, 2, 2), (4, 4), (1, 3, 2, 4, 1), (7,), (3, 13)], ids=str)
def test_4_the_queue_holds_the_newest_entries_of_batches_of_any_size(size: int, batches: tuple[int, ...]) -> None:
    queue, pushed = FeatureQueue(size, 2), list[int]()
    for count in batches:
        new = torch.arange(len(pushed), len(pushed) + count)
        pushed += new.tolist()
        queue.push(new[:, None].expand(-1, 2).float(), -new[:, None].expand(-1, 2).float(), new)
        image, text, ids = queue.entries()
        assert sorted(ids.tolist()) == pushed[-size:]
        assert torch.equal(image, ids[:, None].expand(-1, 2).float())
        assert torch.equal(text, -image)
        assert queue.pointer == len(pushed) % size


def test_4_the_released_queue_takes_divisors_of_its_size_only() -> None:
    ring, pointer = torch.zeros(2, 5), 4  # the released code asserts the divisor; the slice that it writes is why

    with pytest.raises(RuntimeError, match="must match"):
        ring[:, pointer : pointer + 2] = torch.ones(2, 2)


def test_4_without_a_queue_the_batch_is_all_there_is() -> None:
    task, batch = tiny.pretraining(queue_size=0), tiny.batch()
    losses = task(batch, LATER)
    losses.total.backward()
    task.after_step(losses.carry)
    assert losses.total.isfinite()
    assert traced(task, batch, LATER)[0].similarities.image_to_text.shape == (4, 4)


# --------------------------------------------------------------------------- 5: one process, no GPU


def test_5_a_step_needs_neither_gpu_nor_process_group() -> None:
    assert not torch.distributed.is_initialized()
    with pytest.raises(ValueError, match="process group"):
        torch.distributed.barrier()  # the released code calls it, and gathers, in every run
    task = tiny.pretraining()
    task.before_step()
    losses = task(tiny.batch(), LATER)
    losses.total.backward()
    task.after_step(losses.carry)
    assert {weight.device.type for weight in task.parameters()} == {"cpu"}
    assert losses.total.isfinite()


# --------------------------------------------------------------------------- 6: long captions


def test_6_a_caption_that_is_cut_fits_and_an_uncut_one_does_not() -> None:
    tokenizer, caption = Tokenizer.train(["a red fox"], 40), "a red fox " * 10
    model = tiny.albef(vocab_size=tokenizer.vocab_size)

    def given(max_tokens: int | None) -> Texts:
        ids = torch.tensor(tokenizer.encode([caption], max_tokens=max_tokens))
        return Texts(ids, torch.ones_like(ids).bool())

    assert len(model.text_state(given(tiny.POSITIONS)).hidden) == tiny.POSITIONS
    uncut = given(None)  # as released
    with pytest.raises(IndexError):
        model.text.embedding.positions(torch.arange(uncut.input_ids.shape[1]))
    with pytest.raises(ValueError, match="cut texts to that length"):
        model.text_state(uncut)


# --------------------------------------------------------------------------- 13: masking


@pytest.mark.parametrize("build", [tiny.pretraining, tiny.vlmo_pretraining])
def test_13_no_hidden_word_is_a_loss_of_zero_with_finite_gradients(build: Callable[[], Task]) -> None:
    task, batch = build(), tiny.batch(lengths=(1, 1, 1, 1))
    losses = task(batch, LATER)
    losses.total.backward()
    _, mlm = losses.terms["mlm"]
    assert (mlm.count.item(), mlm.mean.item()) == (0, 0)
    assert losses.total.isfinite()
    gradients = [weight.grad for weight in task.parameters() if weight.requires_grad]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert all(term.mean.isfinite() for term in losses.measures.values())
    released = F.cross_entropy(tiny.uniform(3, 9), torch.full((3,), IGNORED))
    assert released.isnan()
    logits, labels = tiny.uniform(3, 9), torch.tensor([4, 0, 8])
    torch.testing.assert_close(masked_lm_loss(logits, labels).mean, F.cross_entropy(logits, labels))


@pytest.mark.parametrize("released", [False, True], ids=["repaired", "released"])
def test_13_special_tokens_are_hidden_only_as_released(released: bool) -> None:
    special = tiny.SPECIAL
    ids = torch.tensor([[special.cls, 9, special.unk, special.mask, special.sep, 11, special.pad, 12]])
    texts = Texts(ids, torch.tensor([[True] * 6 + [False] * 2]))
    every = torch.ones_like(ids).bool()
    task = tiny.pretraining(mask_special_tokens=released)
    masked, labels = task.mask(texts, MaskDraws(every, every, every, ids))
    chosen = [1, 2, 3, 4, 5] if released else [1, 5]
    assert (labels != IGNORED).nonzero()[:, 1].tolist() == chosen
    assert torch.equal(labels[0, chosen], ids[0, chosen])
    assert (masked[0, chosen] == special.mask).all()
    others = [place for place in range(8) if place not in chosen]
    assert torch.equal(masked[0, others], ids[0, others])


# --------------------------------------------------------------------------- 14: strict loading


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape"])
def test_14_a_checkpoint_that_does_not_fit_is_an_error(fault: str, tmp_path: Path) -> None:
    task, state = tiny.pretraining(seed=1), tiny.pretraining(seed=2).state_dict()
    name = "model.vision.blocks.1.qkv.weight"
    faults = {
        "missing": {key: value for key, value in state.items() if key != name},
        "unknown": state | {"model.vision.extra": torch.ones(1)},
        "shape": state | {name: torch.ones(2, 2)},
    }
    before = {key: value.clone() for key, value in task.state_dict().items()}
    with pytest.raises(ValueError, match=r"is not of this model: .*model\.vision\."):
        store.load_into(task, faults[fault], tmp_path)
    assert all(torch.equal(value, before[key]) for key, value in task.state_dict().items()), "nothing half-loaded"


def test_14_as_released_a_vision_encoder_that_failed_to_load_goes_unseen() -> None:
    task, other = tiny.pretraining(seed=1), tiny.pretraining(seed=2).state_dict()
    renamed = {key.replace("model.vision.", "model.visual."): value for key, value in other.items()}
    before = task.model.vision.norm.weight.clone()
    task.load_state_dict(renamed, strict=False)
    assert torch.equal(task.model.vision.norm.weight, before)
    assert torch.equal(task.model.match_head.weight, other["model.match_head.weight"])


# --------------------------------------------------------------------------- the page of the defects


ROOT = Path(__file__).parents[2]


def test_the_page_and_the_fields_of_released_name_each_other_and_their_tests() -> None:
    source, page = (ROOT / "diptych/schema.py").read_text(), (ROOT / "docs/released_code.md").read_text()
    sections = dict(re.findall(r"^## (\d+)\. (.*?)(?=^## |\Z)", page, re.M | re.S))
    assert [int(number) for number in sections] == list(range(1, len(sections) + 1))
    defects = dict(re.findall(r'^    (\w+): .*\n    """Defect (\d+)\.', source, re.M))
    assert set(defects) == set(Released.__dataclass_fields__)
    for field, number in defects.items():
        assert f"released.{field}=" in sections[number], field
    for text in (page, source):
        assert all((ROOT / file).is_file() for file in re.findall(r"tests/\w+(?:/\w+)*\.py", text))
    assert all("Test: `tests/" in section for section in sections.values())
