"""The visual tokenizer: pictures as codes, and back."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.models.visual_tokenizer import VisualTokenizer
from diptych.nn.gather import Processes
from diptych.schema import VisualTokenizerConfig, VisualTokenizerTrainingConfig
from diptych.tasks.visual_tokenizer import (
    VisualTokenizerTraining,
    gumbel_softmax,
    perplexity,
    temperature_at,
    unevenness,
    use_of,
)
from diptych.types import PictureBatch, Progress

CONFIG = VisualTokenizerConfig(image_size=16, patch_size=4, codes=12, code_width=8, width=32, residual_blocks=1)
COLOURS = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1], [-1, -1, -1], [1, 1, 1]])


def tokenizer(**changes: int) -> VisualTokenizer:
    torch.manual_seed(0)
    return VisualTokenizer(replace(CONFIG, **changes))


def squares(count: int, seed: int = 0) -> PictureBatch:
    """Pictures whose patches are of one colour each."""
    which = torch.randint(len(COLOURS), (count, 4, 4), generator=torch.Generator().manual_seed(seed))
    pixels = COLOURS[which].permute(0, 3, 1, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)
    return PictureBatch(pixels, torch.arange(count))


def test_a_picture_has_its_likeliest_codes() -> None:
    model, pixels = tokenizer(), squares(3).pixels
    codes = model.codes(pixels)
    assert codes.shape == (3, 4, 4)
    assert torch.equal(model.logits(pixels).gather(1, codes[:, None])[:, 0], model.logits(pixels).amax(1))


def test_a_mixture_of_one_code_alone_is_that_code() -> None:
    model = tokenizer()
    codes = torch.arange(16).view(1, 4, 4) % 12
    weights = F.one_hot(codes, 12).movedim(-1, 1).float()
    assert torch.allclose(model.paint(weights), model.paint_codes(codes), atol=1e-6)
    assert model.paint(weights).shape == (1, 3, 16, 16)


def test_another_size_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"pixels \(8, 8\) are not 16 × 16"):
        tokenizer().logits(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 6}, "a power of two from 2 on, not 6"),
        ({"patch_size": 1}, "a power of two from 2 on, not 1"),
        ({"image_size": 18}, "18 is not a multiple of patch_size 4"),
        ({"width": 30}, "a multiple of 8, not 30"),
    ],
)
def test_sizes_that_cannot_be_are_errors(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokenizer(**changes)


def test_the_relaxation_draws_codes_as_often_as_their_scores_say() -> None:
    scores = torch.tensor([1.0, 0.0, -1.0, 0.5])
    drawn = gumbel_softmax(scores.view(1, 4, 1, 1).expand(1, 4, 200, 200), 0.01, [3])
    assert torch.allclose(drawn.sum(1), torch.ones(1, 200, 200), atol=1e-5)
    assert torch.allclose(use_of(drawn.argmax(1), 4), scores.softmax(0), atol=0.01)
    assert (drawn.amax(1) > 0.95).float().mean() > 0.95, "at a low temperature a draw is nearly one code"


def test_the_relaxation_is_a_function_of_its_seed() -> None:
    scores = torch.zeros(2, 3, 4, 4)
    torch.manual_seed(0)
    one = gumbel_softmax(scores, 1.0, range(len(scores)))
    assert torch.equal(one, gumbel_softmax(scores, 1.0, range(len(scores))))
    assert not torch.equal(one, gumbel_softmax(scores, 1.0, range(1, 1 + len(scores))))


def test_the_temperature_falls_in_equal_ratios_and_stays() -> None:
    config = VisualTokenizerTrainingConfig(temperature=(1.0, 0.25), anneal_steps=4)
    found = [temperature_at(step, config) for step in (0, 2, 4, 100)]
    assert found == pytest.approx([1.0, 0.5, 0.25, 0.25])


def test_uneven_use_costs_from_nothing_to_the_logarithm_of_the_codebook() -> None:
    one_for_all = torch.zeros(2, 6, 3, 3)
    one_for_all[:, 0] = 50.0
    each_its_own = 50.0 * F.one_hot(torch.arange(18).view(2, 3, 3) % 6, 6).movedim(-1, 1).float()
    assert float(unevenness(one_for_all, Processes(len(one_for_all)))) == pytest.approx(math.log(6), abs=1e-4)
    assert float(unevenness(each_its_own, Processes(len(each_its_own)))) == pytest.approx(0, abs=1e-5)


def test_perplexity_is_the_number_of_codes_where_all_are_used_alike() -> None:
    assert float(perplexity(use_of(torch.arange(8), 20))) == pytest.approx(8, rel=1e-5)
    assert float(perplexity(use_of(torch.zeros(8, dtype=torch.long), 20))) == pytest.approx(1)


def test_unlike_patches_have_unlike_codes_before_training() -> None:
    """Without the spread of the first scores, six colours share two or three codes."""
    assert len(tokenizer().codes(squares(8).pixels).unique()) >= 5


def trained(steps: int, kl: float) -> tuple[VisualTokenizerTraining, Tensor]:
    task = VisualTokenizerTraining(tokenizer(), VisualTokenizerTrainingConfig(anneal_steps=steps, kl=kl))
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    for step in range(steps):
        losses = task(squares(16, seed=step), Progress(step, 0.0))
        losses.total.backward()
        optimizer.step()
        optimizer.zero_grad()
    return task, losses.total


def test_it_learns_to_give_pictures_back_by_many_codes() -> None:
    task, _ = trained(120, kl=0.1)
    unseen = squares(32, seed=10_000)
    made = task.predict(unseen)
    variance = unseen.pixels.var(dim=(0, 2, 3)).mean()
    assert made.error.mean() < 0.3 * variance
    assert perplexity(use_of(made.codes, 12)) > 5


def test_every_parameter_learns_and_draws_are_a_function_of_the_progress() -> None:
    task = VisualTokenizerTraining(tokenizer(), VisualTokenizerTrainingConfig(kl=0.1))
    losses = [task(squares(4), Progress(step, 0.0)).total for step in (1, 1, 2)]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]
    losses[0].backward()
    assert not [name for name, weight in task.named_parameters() if weight.grad is None]


def test_without_its_weight_the_use_of_codes_is_no_term() -> None:
    task = VisualTokenizerTraining(tokenizer(), VisualTokenizerTrainingConfig(kl=0.0))
    assert set(task(squares(2), Progress(0, 0.0)).terms) == {"reconstruction"}
