"""Bytes that a process sends in a step, by what they are for. A process receives as many.

W processes, b pairs of each, G = W·b. Rings: to gather or to reduce-scatter n bytes, each process sends (W − 1)/W · n;
an all-reduce is both, one after the other. This module imports no torch.
"""

from __future__ import annotations

FP32 = 4
"""Bytes of a number. Gradients, features and encoded tokens are exchanged in fp32."""


def all_gather(whole: int, processes: int) -> int:
    """Each process has its share of `whole` bytes, and all want it all."""
    return whole * (processes - 1) // processes


def reduce_scatter(whole: int, processes: int) -> int:
    """Each process has `whole` bytes to be added up, and wants its share of the sum."""
    return whole * (processes - 1) // processes


def all_reduce(whole: int, processes: int) -> int:
    """Each process has `whole` bytes to be added up, and wants all of the sum."""
    return reduce_scatter(whole, processes) + all_gather(whole, processes)


def ddp(gradients: int, processes: int) -> int:
    """The gradients' mean, once a step however many pieces it has."""
    return all_reduce(gradients, processes)


def fsdp(weights: int, gradients: int, teacher: int, processes: int, pieces: int = 1) -> int:
    """Weights gathered on the way there and on the way back, the teacher's once; gradients reduced to their shares.

    Of a step in several pieces, encoders and fusion are computed twice, each piece for itself.
    """
    forwards = 1 if pieces == 1 else 2
    gathered = (1 + forwards) * all_gather(weights, processes) + all_gather(teacher, processes)
    return pieces * (gathered + reduce_scatter(gradients, processes))


def features(pairs: int, width: int, processes: int, branches: int = 1, gradient: bool = True) -> int:
    """Image and text features of all processes, for the contrast; on the way back, what all ask of each (nn/gather.py).

    `pairs`: of one process and step. ALBEF's keys come from its teacher and have no gradient.
    """
    whole = 2 * branches * processes * pairs * width * FP32
    return all_gather(whole, processes) + gradient * all_reduce(whole, processes)


def tokens(pairs: int, rows: int, width: int, processes: int) -> int:
    """Encoded tokens of all processes with their gradient, so that any may be a hard negative of any.

    `rows`: of an image, and of its text.
    """
    whole = processes * pairs * rows * width * FP32
    return all_gather(whole, processes) + all_reduce(whole, processes)


def pixels(pairs: int, image_size: int, text_length: int, processes: int) -> int:
    """Pictures and texts of all processes as they are, where they are cheap to embed again (VLMo): no gradient."""
    whole = processes * pairs * (3 * image_size**2 * FP32 + text_length * 9)  # an id takes 8 bytes, its mask 1
    return all_gather(whole, processes)
