"""Dropout by counting: as random as it must be, and a function of (seed, step, sample, layer) alone."""

from __future__ import annotations

import itertools

import pytest
import torch

from diptych.models.albef import ImageState
from diptych.nn.counter_rng import branches_kept, derived, dropout, keep_mask, sample_keys
from diptych.nn.packed import TextState
from diptych.types import Texts
from tests import tiny

KEYS = sample_keys(3, 0, 512)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_entries_are_dropped_as_often_as_asked_and_the_mean_is_kept(probability: float) -> None:
    made = dropout(torch.ones(512, 301), probability, True, KEYS, layer_id=7)
    assert (made == 0).double().mean().item() == pytest.approx(probability, abs=0.005)
    assert made.mean().item() == pytest.approx(1.0, abs=0.02)
    assert len(made.unique()) == 2


def test_draws_of_tokens_columns_layers_and_steps_do_not_resemble_each_other() -> None:
    """The share of equal entries of two unlike draws at a half is a half."""
    stays = keep_mask(64, 0.5, KEYS, 0)[0]
    others = [stays.roll(1, 0), stays.roll(1, 1), stays.roll(4, 1), keep_mask(64, 0.5, KEYS, 1)[0]]
    others += [
        keep_mask(64, 0.5, sample_keys(4, 0, 512), 0)[0],
        keep_mask(64, 0.5, sample_keys(3, 1, 512), 0)[0].roll(3, 0),
    ]
    for other in others:
        assert (stays == other).double().mean().item() == pytest.approx(0.5, abs=0.015)


def test_keys_of_samples_are_the_same_wherever_a_share_begins_and_never_meet() -> None:
    assert torch.equal(sample_keys(3, 100, 50), KEYS[100:150])
    everyone = torch.cat([KEYS, derived(KEYS, 0), derived(KEYS, 1), sample_keys(4, 0, 512)])
    assert len(everyone.unique()) == len(everyone)


def test_the_gradient_is_that_of_what_stayed() -> None:
    x = torch.randn(8, 6, requires_grad=True)
    made = dropout(x, 0.5, True, KEYS[:8], 0)
    made.sum().backward()
    assert torch.equal(x.grad == 0, made == 0)
    assert torch.equal(dropout(x, 0.5, False, KEYS[:8], 0), x)


def test_branches_are_left_out_as_often_as_asked() -> None:
    keys = sample_keys(0, 0, 20_000)
    stays = branches_kept(0.3, len(keys), keys, 2, keys.device)
    assert (~stays).double().mean().item() == pytest.approx(0.3, abs=0.01)


def encoded(system: str, rows: list[int]) -> tuple[TextState, ImageState]:
    """Encodes some of a batch, in this order, in training mode."""
    model = tiny.any_model(system=system, dropout=0.3).train()
    batch = tiny.batch()
    keys = sample_keys(5, 0, len(batch))[rows]
    texts = Texts(batch.texts.input_ids[rows], batch.texts.attention_mask[rows], keys)
    return model.text_state(texts), model.image_state(batch.pixels[rows], rng_keys=keys)


@pytest.mark.parametrize("system", ["albef", "vlmo"])
def test_what_a_text_loses_does_not_depend_on_its_batch_mates_or_their_order(system: str) -> None:
    whole = encoded(system, [0, 1, 2, 3])[0]
    for rows in itertools.chain(([row] for row in range(4)), ([3, 1],)):
        some = encoded(system, list(rows))[0]
        for place, row in enumerate(rows):
            torch.testing.assert_close(some[place : place + 1].hidden, whole[row : row + 1].hidden)
    assert torch.equal(whole.hidden, encoded(system, [0, 1, 2, 3])[0].hidden)


def test_a_pair_loses_the_same_wherever_it_stands_and_other_than_its_text_in_other_pairs() -> None:
    model = tiny.albef(dropout=0.3).train()
    texts, images = encoded("albef", [0, 1, 2, 3])
    where = torch.tensor([0, 1, 2, 1]), torch.tensor([0, 1, 2, 3])
    pooled = model.fuse(texts, images, *where).pooled
    again = model.fuse(texts, images, where[0].flip(0), where[1].flip(0)).pooled.flip(0)
    torch.testing.assert_close(pooled, again)
    alike = ImageState(images.tokens[1:2].expand(2, -1, -1), rng_keys=images.rng_keys[:2])
    same_text = model.fuse(texts, alike, torch.tensor([0, 0]), torch.tensor([0, 1])).pooled
    assert not torch.allclose(same_text[0], same_text[1])
