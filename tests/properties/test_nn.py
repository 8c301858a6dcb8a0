"""Building blocks against their definitions: fused sublayers, packed sequences, the draw of negatives, maps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from diptych.losses.matching import draw_negatives
from diptych.nn.attention import attend, attend_with_map
from diptych.nn.fused_norm import norm_linear, norm_mlp
from diptych.nn.packed import PackedSequences, PaddedGrid
from tests.tiny import shake, uniform

# --------------------------------------------------------------------------- fused sublayers


def parts(dtype: torch.dtype) -> tuple[nn.LayerNorm, nn.Linear, nn.Linear]:
    """Layers with an epsilon that shows, no weights of 1 and no biases of 0."""
    torch.manual_seed(0)
    made = nn.LayerNorm(6, eps=0.1), nn.Linear(6, 10), nn.Linear(10, 6)
    for seed, part in enumerate(made):
        shake(part, seed)
        part.to(dtype)
    return made


def fused(kind: str, x: Tensor, norm: nn.LayerNorm, fc1: nn.Linear, fc2: nn.Linear) -> Tensor:
    return norm_linear(x, norm, fc1.weight, fc1.bias) if kind == "linear" else norm_mlp(x, norm, fc1, fc2)


def plain(kind: str, x: Tensor, norm: nn.LayerNorm, fc1: nn.Linear, fc2: nn.Linear) -> Tensor:
    return fc1(norm(x)) if kind == "linear" else fc2(F.gelu(fc1(norm(x))))


def rows(dtype: torch.dtype, contiguous: bool = True) -> Tensor:
    """Tokens [2, 5, 6] of unequal size and mean."""
    shape = (2, 5, 6) if contiguous else (6, 5, 2)
    x = (uniform(*shape, seed=4) * 3 + 1).to(dtype)
    return (x if contiguous else x.transpose(0, 2)).detach().requires_grad_()


def results(function: object, kind: str, x: Tensor, made: tuple[nn.Module, ...], autocast: bool) -> list[Tensor]:
    """Returns the output, and the gradients of a weighted sum of it by x and every parameter that is reached."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = function(kind, x, *made)
    wanted = [p for part in (made[:2] if kind == "linear" else made) for p in part.parameters() if p.requires_grad]
    loss = (out * uniform(*out.shape, seed=5).to(out.dtype)).sum()
    return [out, *torch.autograd.grad(loss, [x, *wanted] if x.requires_grad else wanted)]


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_fused_sublayers_are_the_plain_ones_in_values_and_gradients(kind: str, contiguous: bool) -> None:
    for dtype, within in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        x, made = rows(dtype, contiguous), parts(dtype)
        ours, theirs = (results(f, kind, x, made, False) for f in (fused, plain))
        assert len(ours) == (6 if kind == "linear" else 8)
        torch.testing.assert_close(ours, theirs, rtol=within, atol=within)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_gradients_of_fused_sublayers_are_the_numerical_ones(kind: str) -> None:
    made = parts(torch.float64)
    parameters = [p for part in made for p in part.parameters()]
    assert torch.autograd.gradcheck(lambda x, *_: fused(kind, x, *made), (rows(torch.float64), *parameters))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_under_autocast_fused_sublayers_are_near_the_exact_ones(kind: str, dtype: torch.dtype) -> None:
    x, made = rows(dtype), parts(torch.float32)
    ours = results(fused, kind, x, made, True)
    exact = results(plain, kind, x.detach().float().requires_grad_(), made, False)
    assert ours[0].dtype == torch.bfloat16
    assert ours[1].dtype == dtype
    assert all(gradient.dtype == torch.float32 for gradient in ours[2:])
    for our, their in zip(ours, exact, strict=True):
        assert (our.float() - their).norm() < 0.02 * their.norm()


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_frozen_parts_of_fused_sublayers_get_no_gradient_and_change_no_other(kind: str) -> None:
    x, made = rows(torch.float32), parts(torch.float32)
    every = results(fused, kind, x, made, False)
    made[0].requires_grad_(False)
    some = results(fused, kind, x, made, False)
    torch.testing.assert_close(some, [*every[:2], *every[4:]])
    fixed = results(fused, kind, x.detach(), made, False)
    torch.testing.assert_close(fixed, [every[0], *every[4:]])
    with torch.no_grad():
        assert torch.equal(fused(kind, x, *made), every[0])


@pytest.mark.parametrize("frozen", [(0, 1), (2,), (0, 1, 2)], ids=str)
def test_frozen_layers_cost_no_products_for_gradients_that_nobody_wants(frozen: tuple[int, ...]) -> None:
    x, made = rows(torch.float32), parts(torch.float32)
    every = results(fused, "mlp", x, made, False)
    for index in frozen:
        made[index].requires_grad_(False)
    kept = [2 + 2 * part + i for part in range(3) if part not in frozen for i in (0, 1)]
    torch.testing.assert_close(results(fused, "mlp", x, made, False), [*every[:2], *(every[i] for i in kept)])
    counts = {}
    for function in (fused, plain):
        loss = function("mlp", x, *made).sum()
        with FlopCounterMode(display=False) as counter:
            loss.backward()
        counts[function] = counter.get_total_flops()
    assert 0 < counts[fused] < 1.05 * counts[plain]  # folding a norm costs one product with a vector


# --------------------------------------------------------------------------- attention


@pytest.mark.parametrize("queries", [1, 3, None])
def test_attention_with_its_map_gives_the_same_and_the_map_is_what_it_is_computed_from(queries: int | None) -> None:
    query, key, value = uniform(2, 5, 8, seed=1), uniform(2, 7, 8, seed=2), uniform(2, 7, 8, seed=3)
    out, attention_map = attend_with_map(query.requires_grad_(), key, value, 2, queries)
    torch.testing.assert_close(out, attend(query, key, value, 2))
    assert attention_map.shape == (2, 2, queries or 5, 6)
    by_map = torch.autograd.grad(out[:, : queries or 5].sum(), attention_map)[0]
    expected = value[:, 1:].unflatten(-1, (2, 4)).sum(-1).transpose(1, 2)[:, :, None].expand_as(by_map)
    torch.testing.assert_close(by_map, expected)


def test_masked_keys_weigh_nothing() -> None:
    query, key, value = uniform(2, 5, 8, seed=1), uniform(2, 7, 8, seed=2), uniform(2, 7, 8, seed=3)
    mask = torch.arange(7) < torch.tensor([[4], [7]])
    out = attend(query, key, value, 2, mask)
    torch.testing.assert_close(out[:1], attend(query[:1], key[:1, :4], value[:1, :4], 2))
    torch.testing.assert_close(out[1:], attend(query[1:], key[1:], value[1:], 2))


# --------------------------------------------------------------------------- packed sequences


@st.composite
def grouped(draw: st.DrawFn) -> tuple[list[int], int]:
    groups = draw(st.integers(1, 5))
    return draw(st.lists(st.integers(0, groups - 1), min_size=1, max_size=20)), groups


@given(grouped())
def test_a_grid_puts_each_token_behind_the_earlier_ones_of_its_group(case: tuple[list[int], int]) -> None:
    group, groups = case
    grid = PaddedGrid.of(torch.tensor(group), groups)
    expected = [[n for n, g in enumerate(group) if g == which] for which in range(groups)]
    length = max(map(len, expected))
    assert (grid.groups, grid.length) == (groups, length)
    marks = torch.arange(1, len(group) + 1)
    assert grid.pad(marks).tolist() == [[n + 1 for n in row] + [0] * (length - len(row)) for row in expected]
    mask = grid.mask()
    assert (grid.pad(marks) > 0).equal(torch.ones(groups, length, dtype=torch.bool) if mask is None else mask)
    odd = marks % 2 == 1
    assert grid.mask(odd).equal(grid.pad(marks) % 2 == 1)


@given(grouped())
def test_tokens_come_back_from_their_grid_and_so_do_gradients(case: tuple[list[int], int]) -> None:
    grid = PaddedGrid.of(torch.tensor(case[0]), case[1])
    rows = uniform(len(case[0]), 2, 3).requires_grad_()
    back = grid.unpad(grid.pad(rows))
    assert torch.equal(back, rows)
    weights = uniform(*rows.shape, seed=1)
    assert torch.equal(torch.autograd.grad((back * weights).sum(), rows)[0], weights)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.data())
def test_packed_sequences_are_what_lists_of_lists_are(lengths: list[int], data: st.DataObject) -> None:
    packed = PackedSequences(torch.tensor(lengths))
    sequences = [[100 * s + p for p in range(length)] for s, length in enumerate(lengths)]
    rows = torch.tensor([row for sequence in sequences for row in sequence])
    assert torch.equal(packed.sequence_ids * 100 + packed.position_ids, rows)
    assert rows[packed.starts].tolist() == [sequence[0] for sequence in sequences]
    assert torch.equal(packed.grid.pad(rows), PaddedGrid.of(packed.sequence_ids, len(lengths)).pad(rows))
    assert (packed.grid.index is None) == (len(set(lengths)) == 1)
    which = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=8))
    chosen, taken = packed.select(torch.tensor(which))
    assert chosen.lengths.tolist() == [lengths[s] for s in which]
    assert rows[taken].tolist() == [row for s in which for row in sequences[s]]


# --------------------------------------------------------------------------- the draw of negatives


@given(
    st.lists(st.sampled_from([0.0, 1e-30, 0.2, 1.0, 3e8]), min_size=1, max_size=7).filter(any),
    st.sampled_from([0.0, 1e-9, 0.3, 0.5, 1 - 2**-24, 1.0]),
)
def test_a_candidate_of_weight_zero_is_never_drawn(weights: list[float], uniform: float) -> None:
    drawn = int(draw_negatives(torch.tensor([weights]), torch.tensor([uniform])))
    assert weights[drawn] > 0


def test_negatives_are_drawn_as_often_as_their_weights_say() -> None:
    """Evenly spread numbers fall into each share in proportion, to one draw exactly."""
    weights, count = torch.tensor([0.0, 0.5, 0.125, 0.0, 0.375, 0.0]), 8000
    spread = (torch.arange(count) + 0.5) / count
    drawn = draw_negatives(3 * weights.expand(count, -1), spread)
    assert torch.bincount(drawn, minlength=6).tolist() == (weights * count).tolist()


def test_each_row_is_drawn_from_its_own_weights() -> None:
    assert draw_negatives(torch.eye(5), uniform(5)).tolist() == [0, 1, 2, 3, 4]


def test_weights_that_are_not_finite_draw_any_candidate_and_the_loss_says_so() -> None:
    """A rate that explodes makes similarities NaN. The loop then reports the loss with its step."""
    drawn = draw_negatives(torch.tensor([[torch.nan, torch.nan, torch.nan], [0.0, 1.0, 0.0]]), torch.tensor([0.3, 0.3]))
    assert 0 <= int(drawn[0]) < 3
    assert int(drawn[1]) == 1
