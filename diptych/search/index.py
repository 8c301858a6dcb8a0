"""Finds exact nearest neighbours by cosine similarity, in memory.

Q queries, N candidates, E embedding width, K neighbours, b queries of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 1 << 24
"""Scores that are held at once (64 MiB in fp32); the table of all queries and candidates never is."""


@dataclass(frozen=True)
class Neighbours:
    """The best candidates of each query, the best first; among equal ones, the lower number first."""

    indices: Int[Tensor, "Q K"]
    scores: Float[Tensor, "Q K"]


def top_k(scores: Float[Tensor, "Q N"], k: int) -> Neighbours:
    """Finds the k best candidates of each query in descending order, ties by the lower number. `k` is cut to N.

    `torch.topk` leaves open which of several equal candidates it returns.

    >>> top_k(torch.tensor([[1.0, 3.0, 1.0, 1.0]]), k=3).indices.tolist()
    [[1, 0, 2]]
    """
    k = min(k, scores.shape[1])
    worst = scores.topk(k, dim=1).values[:, -1:]
    above, tied = scores > worst, scores == worst
    room = k - above.sum(dim=1, keepdim=True)
    chosen = above | (tied & (tied.cumsum(dim=1) <= room))
    indices = chosen.nonzero()[:, 1].view(len(scores), k)  # ascending numbers, so that a stable sort settles ties
    values, order = scores.gather(1, indices).sort(dim=1, descending=True, stable=True)
    return Neighbours(indices.gather(1, order), values)


class CosineIndex:
    """Holds candidates that are found by the direction of their vectors.

    >>> index = CosineIndex(torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]))
    >>> index.search(torch.tensor([[0.0, 5.0]]), k=2).indices.tolist()
    [[1, 2]]
    """

    def __init__(self, vectors: Float[Tensor, "N E"]) -> None:
        """Raises ValueError for no vectors, and for vectors that hold NaN or infinity."""
        if len(vectors) == 0:
            raise ValueError("nothing to search in: there is no candidate")
        self.vectors = _directions(vectors, "candidate")

    def __len__(self) -> int:
        return len(self.vectors)

    def blocks(self, queries: Float[Tensor, "Q E"]) -> Iterator[tuple[slice, Float[Tensor, "b N"]]]:
        """Yields the similarities to all candidates, some queries at a time, with the places of these queries."""
        queries = _directions(queries, "query")
        step = max(1, BLOCK // len(self))
        for start in range(0, len(queries), step):
            rows = slice(start, min(start + step, len(queries)))
            yield rows, queries[rows] @ self.vectors.T

    def search(self, queries: Float[Tensor, "Q E"], k: int) -> Neighbours:
        """Finds the k candidates with the highest cosine similarity to each query; all if there are fewer."""
        blocks = [top_k(similarity, k) for _, similarity in self.blocks(queries)]
        if not blocks:
            empty = queries.new_zeros(0, min(k, len(self)))
            return Neighbours(empty.long(), empty)
        return Neighbours(torch.cat([block.indices for block in blocks]), torch.cat([block.scores for block in blocks]))


def _directions(vectors: Float[Tensor, "N E"], name: str) -> Float[Tensor, "N E"]:
    """Normalises vectors to length 1, in fp32."""
    bad = ~vectors.isfinite().all(dim=1)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(f"the vector of {name} {row} is not finite ({int(bad.sum())} of {len(vectors)} are not)")
    return torch.nn.functional.normalize(vectors.float(), dim=1)
