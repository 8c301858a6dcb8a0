"""Relative position biases: a learnt number for each layer, head and relative position of query and key (VLMo, BEiT).

The rows of the table, for a grid of S × S patches and texts of at most L tokens, with D = (2S − 1)² + 3:
  0 … D − 4            a patch to a patch, by their offset: rows, then columns, each from −(S − 1) on
  D − 3, D − 2, D − 1  the image's class token to a patch, a patch to the class token, the class token to itself
  D, D + 1             text to image, image to text
  D + 2 … D + 2L − 2   a word to a word, by the key's distance behind the query, from −(L − 2) on
  the last three       [CLS] to a word, a word to [CLS], [CLS] to itself

S patches a side, L longest text, T = S² + 1 image tokens, Q = K = text tokens + T, E rows of the table, C columns
(layers × heads), N points of an axis.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 3
"""Rows for a class token: as the query, as the key, as both."""


def entry_count(side: int, max_text: int) -> int:
    """Counts the rows of the table: D + 2 + 2L."""
    return _image_entries(side) + 2 + 2 * max_text


def max_text_of(entries: int, side: int) -> int:
    """Finds the longest text, L, that a table of `entries` rows serves. Raises ValueError if there is none."""
    longest, rest = divmod(entries - entry_count(side, 0), 2)
    if rest or longest < 2:
        raise ValueError(f"{entries} relative positions do not belong to a grid of {side} × {side} patches and a text")
    return longest


def _image_entries(side: int) -> int:
    return (2 * side - 1) ** 2 + CLASSES


class RelativePositions(nn.Module):
    """Looks up the bias of every attention score, for all layers at once (VLMo §3.1)."""

    def __init__(self, side: int, max_text: int, layers: int, heads: int) -> None:
        super().__init__()
        if max_text < 2:
            raise ValueError(f"max_positions must be at least 2, [CLS] and a word, not {max_text}")
        self.side, self.max_text, self.layers, self.heads = side, max_text, layers, heads
        self.table = nn.Parameter(torch.zeros(entry_count(side, max_text), layers * heads))

    def forward(self, text_length: int, side: int | None) -> Float[Tensor, "layers heads Q K"]:
        """Returns the biases among `text_length` text tokens, [CLS] first, then a class token and side² patches.

        `text_length` 0: no text; `side` None: no image. Raises ValueError for longer texts and other sides than the
        table is for.
        """
        if text_length > self.max_text:
            raise ValueError(
                f"a text of {text_length} tokens is longer than the model's {self.max_text} positions: "
                "cut texts to that length"
            )
        if side not in (None, self.side):
            raise ValueError(
                f"a picture of {side} × {side} patches has no relative positions in a model for "
                f"{self.side} × {self.side}: build it with another image_size, to which they are resized at loading"
            )
        assert text_length or side is not None, "neither text nor image"
        index = relative_index(text_length, side, self.side, self.max_text, str(self.table.device))
        bias = self.table.t().index_select(1, index.flatten())
        return bias.unflatten(1, index.shape).unflatten(0, (self.layers, self.heads))


@lru_cache(maxsize=64)
def relative_index(
    text_length: int, side: int | None, table_side: int, max_text: int, device: str
) -> Int[Tensor, "Q K"]:
    """Returns the table's row for each query and key: text tokens, then image tokens (side None: no image)."""
    text_to_image = _image_entries(table_side)
    image_to_text = text_to_image + 1
    text = _text_index(text_length, max_text) + image_to_text + 1
    if side is None:
        return text.to(device)
    image = _image_index(side)
    to_image = text.new_full((len(text), len(image)), text_to_image)
    to_text = text.new_full((len(image), len(text)), image_to_text)
    return torch.cat([torch.cat([text, to_image], 1), torch.cat([to_text, image], 1)]).to(device)


def _image_index(side: int) -> Int[Tensor, "T T"]:
    """Returns the table's rows among an image's tokens."""
    row, column = torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)
    down, across = (axis[:, None] - axis[None, :] + side - 1 for axis in (row, column))  # offsets, from 0 on
    return _with_class(down * (2 * side - 1) + across, _image_entries(side) - CLASSES)


def _text_index(length: int, max_text: int) -> Int[Tensor, "L L"]:
    """Returns the rows among a text's tokens, counted from the first row of texts. No text has no [CLS] either."""
    if not length:
        return torch.zeros(0, 0, dtype=torch.long)
    position = torch.arange(length - 1)
    return _with_class(position[None, :] - position[:, None] + max_text - 2, 2 * max_text - CLASSES)


def _with_class(index: Int[Tensor, "N N"], first: int) -> Int[Tensor, "M M"]:
    """Puts a class token in front, whose three rows of the table begin at `first`."""
    index = F.pad(index, (1, 0, 1, 0))
    index[0], index[:, 0], index[0, 0] = first, first + 1, first + 2
    return index


# --------------------------------------------------------------------------- resizing


def resize_table(
    table: Float[Tensor, "E C"], old_side: int, new_side: int, old_text: int, new_text: int
) -> Float[Tensor, "E2 C"]:
    """Resizes the table to another grid, another longest text, or both.

    Patch offsets are interpolated. Distances of words are kept, cut, or extended by repeating the outermost. The other
    rows are kept.
    """
    if len(table) != entry_count(old_side, old_text):
        raise ValueError(f"{len(table)} relative positions are not those of side {old_side} and text {old_text}")
    offsets, words = (2 * old_side - 1) ** 2, 2 * old_text - CLASSES
    grid, fixed, distances, classes = table.split([offsets, CLASSES + 2, words, CLASSES])
    return torch.cat([_resize_grid(grid, old_side, new_side), fixed, _resize_distances(distances, new_text), classes])


def _resize_distances(distances: Float[Tensor, "N C"], max_text: int) -> Float[Tensor, "M C"]:
    """Cuts or extends the distances of words to those within texts of at most `max_text` tokens."""
    old, new = len(distances) // 2, max_text - 2
    return distances[torch.arange(-new, new + 1, device=distances.device).clamp(-old, old) + old]


def _resize_grid(grid: Float[Tensor, "N C"], old_side: int, new_side: int) -> Float[Tensor, "M C"]:
    """Interpolates the patch offsets. Near ones keep their values; far ones are spread out, the farther the wider."""
    if old_side == new_side:
        return grid
    points = 2 * old_side - 1
    axis = _stretched(old_side, new_side)
    offsets = torch.arange(-(new_side - 1), new_side, dtype=torch.float64).clamp(axis[0], axis[-1])
    weights = spline_weights(axis, offsets).to(grid.device)
    square = grid.double().unflatten(0, (points, points))
    return torch.einsum("ij,kl,jlc->ikc", weights, weights, square).flatten(0, 1).to(grid.dtype)


def _stretched(old_side: int, new_side: int) -> Float[Tensor, "N"]:
    """Places the old offsets among the new ones: 0, 1, 1 + q, 1 + q + q² …, mirrored.

    The outermost old offset falls on the outermost new one, as far as q within [1.01, 1.5] allows. As released, q is
    found by halving that interval down to 1e-6, which shows in the fifth digit of the table.
    """
    low, high, powers = 1.01, 1.5, torch.arange(old_side - 1, dtype=torch.float64)
    while high - low > 1e-6:
        ratio = (low + high) / 2
        low, high = (low, ratio) if (ratio**powers).sum() > new_side - 1 else (ratio, high)
    positive = (ratio**powers).cumsum(0)
    return torch.cat([-positive.flip(0), positive.new_zeros(1), positive])


def spline_weights(points: Float[Tensor, "N"], queries: Float[Tensor, "M"]) -> Float[Tensor, "M N"]:
    """Returns the weight of each point's value at each query: a cubic spline, not-a-knot at both ends.

    Through three points or fewer it is the one polynomial.
    """
    degree = min(3, len(points) - 1)
    ends = degree + 1
    knots = torch.cat([points[:1].expand(ends), points[2:-2], points[-1:].expand(ends)])
    return torch.linalg.solve(_b_splines(knots, degree, points), _b_splines(knots, degree, queries), left=False)


def _b_splines(knots: Float[Tensor, "K"], degree: int, at: Float[Tensor, "M"]) -> Float[Tensor, "M N"]:
    """Evaluates each B-spline of the knots at each point of `at`, by the recursion of Cox and de Boor."""
    count = len(knots) - degree - 1
    interval = torch.bucketize(at, knots[degree + 1 : count], right=True) + degree
    basis = F.one_hot(interval, len(knots) - 1).to(knots.dtype)
    for order in range(1, degree + 1):
        width = knots[order:] - knots[:-order]
        share = torch.where(width > 0, (at[:, None] - knots[:-order]) / width, 0.0)
        basis = share[:, :-1] * basis[:, :-1] + (1 - share[:, 1:]) * basis[:, 1:]
    return basis
