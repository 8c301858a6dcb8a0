"""Bytes that processes send, against rings that are walked step by step."""

from __future__ import annotations

import pytest

from diptych.apps.plan import communication as sent


def ring(processes: int, piece: int, rounds: int) -> int:
    """Counts what a process sends if each passes one piece to its neighbour in every round."""
    counts = [0] * processes
    for _ in range(rounds):
        for process in range(processes):
            counts[process] += piece
    assert len(set(counts)) == 1
    return counts[0]


def rounds_until_all_have_all(processes: int) -> int:
    """Rounds of a ring in which each hands on what it got last."""
    held = [{process} for process in range(processes)]
    newest, rounds = list(range(processes)), 0
    while any(len(one) < processes for one in held):
        newest = [newest[process - 1] for process in range(processes)]
        for process, piece in enumerate(newest):
            held[process].add(piece)
        rounds += 1
    return rounds


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_gather_and_reduce_send_what_a_ring_sends(processes: int) -> None:
    whole = 4096 * processes
    walked = ring(processes, whole // processes, rounds_until_all_have_all(processes))
    assert sent.all_gather(whole, processes) == sent.reduce_scatter(whole, processes) == walked
    assert sent.all_reduce(whole, processes) == sent.ddp(whole, processes) == 2 * walked


def test_fsdp_gathers_twice_and_reduces_once_and_ddp_sends_two_thirds_of_it() -> None:
    assert sent.fsdp(800, 800, 0, 4) == 3 * 600
    assert sent.ddp(800, 4) == 2 * 600
    assert sent.fsdp(800, 800, 400, 4) == 3 * 600 + 300


def test_pieces_gather_once_more_each() -> None:
    assert sent.fsdp(800, 800, 0, 4, pieces=3) == 3 * 4 * 600


def test_features_are_two_vectors_a_pair_and_keys_lead_no_gradient() -> None:
    forward = 3 * 2 * 16 * 256 * 4  # of three other processes
    assert sent.features(16, 256, 4, gradient=False) == forward
    assert sent.features(16, 256, 4, branches=2) == 2 * (forward + 2 * forward)


def test_tokens_of_albef_base_are_three_quarters_of_a_megabyte_a_picture() -> None:
    forward_and_back = sent.tokens(1, 257, 768, 2)
    assert forward_and_back == (1 + 2) * 257 * 768 * 4


def test_pictures_as_they_are_grow_with_the_processes_but_one() -> None:
    one = 3 * 224**2 * 4 + 40 * 9
    assert [sent.pixels(16, 224, 40, processes) for processes in (1, 2, 64)] == [0, 16 * one, 63 * 16 * one]
