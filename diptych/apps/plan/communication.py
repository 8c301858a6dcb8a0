"""Bytes that a process sends in a step, by their purpose. A process receives as many.

W processes have b pairs each, G = W·b. In a ring, each process sends (W − 1)/W · n bytes to gather or to reduce-scatter
n bytes; an all-reduce is both, one after the other. This module imports no torch.
"""

from __future__ import annotations

FP32 = 4
"""Bytes of a number. Gradients, features and encoded tokens are exchanged in fp32."""


def all_gather(whole: int, processes: int) -> int:
    """Counts the bytes to give every process all `whole` bytes, of which each has its share."""
    return whole * (processes - 1) // processes


def reduce_scatter(whole: int, processes: int) -> int:
    """Counts the bytes to sum `whole` bytes of every process and give each its share of the sum."""
    return whole * (processes - 1) // processes


def all_reduce(whole: int, processes: int) -> int:
    """Counts the bytes to sum `whole` bytes of every process and give each the whole sum."""
    return reduce_scatter(whole, processes) + all_gather(whole, processes)


def ddp(gradients: int, processes: int) -> int:
    """Counts the bytes to average gradients, which happens once a step, whatever number of pieces it has."""
    return all_reduce(gradients, processes)


def fsdp(weights: int, gradients: int, momentum_encoder: int, processes: int, pieces: int = 1) -> int:
    """Counts the bytes to gather weights forward and backward, and to reduce-scatter gradients.

    The momentum encoder is gathered once. A step in several pieces computes encoders and fusion twice for each piece.
    """
    forwards = 1 if pieces == 1 else 2
    gathered = (1 + forwards) * all_gather(weights, processes) + all_gather(momentum_encoder, processes)
    return pieces * (gathered + reduce_scatter(gradients, processes))


def features(pairs: int, width: int, processes: int, branches: int = 1, gradient: bool = True) -> int:
    """Counts the bytes to gather image and text features for ITC, and to sum their gradients (nn/gather.py).

    `pairs` are those of one process and step. ALBEF's keys come from its momentum encoder and have no gradient.
    """
    whole = 2 * branches * processes * pairs * width * FP32
    return all_gather(whole, processes) + gradient * all_reduce(whole, processes)


def tokens(pairs: int, rows: int, width: int, processes: int) -> int:
    """Counts the bytes to gather encoded tokens with their gradients, so that any may be a hard negative of any.

    `rows` are the tokens of an image and of its text together.
    """
    whole = processes * pairs * rows * width * FP32
    return all_gather(whole, processes) + all_reduce(whole, processes)


def pixels(pairs: int, image_size: int, text_length: int, processes: int) -> int:
    """Counts the bytes to gather pictures and texts themselves, which VLMo embeds again. They have no gradient."""
    whole = processes * pairs * (3 * image_size**2 * FP32 + text_length * 9)  # an id takes 8 bytes, its mask 1
    return all_gather(whole, processes)
