"""Single cases for the report, from what evaluation and the pre-training task give.

I pictures, T texts, B pairs of a batch, R hidden words, K answers of the teacher kept for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from PIL.Image import Image
from torch import Tensor

from diptych.apps.report.data import NegativeExample, QueryExample, Shown, TeacherExample, TextGuess, WordGuess
from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import to_picture
from diptych.schema import Normalise
from diptych.search.rerank import Reranked
from diptych.types import Batch, TokenPositions

FOUND = 5
"""Pictures shown for a query."""
WORDS = 2
"""Hidden words shown of a caption."""


@runtime_checkable
class Negatives(Protocol):
    """The negatives that one pre-training pass of B pairs has drawn. Texts and images are counted within the batch."""

    @property
    def negative_text_index(self) -> Int[Tensor, "B"]:
        """The wrong caption drawn for each picture."""
        ...

    @property
    def negative_text_probability(self) -> Float[Tensor, "B"]: ...

    @property
    def negative_image_index(self) -> Int[Tensor, "B"]:
        """The wrong picture drawn for each caption."""
        ...

    @property
    def negative_image_probability(self) -> Float[Tensor, "B"]: ...


@runtime_checkable
class Inspection(Negatives, Protocol):
    """What a look into a pass with a momentum teacher shows."""

    @property
    def masked(self) -> TokenPositions:
        """The hidden words; `pair` counts texts of the batch."""
        ...

    @property
    def labels(self) -> Int[Tensor, "R"]: ...

    @property
    def teacher_words(self) -> Int[Tensor, "R K"]: ...

    @property
    def teacher_word_probabilities(self) -> Float[Tensor, "R K"]: ...

    @property
    def teacher_texts(self) -> Int[Tensor, "B K"]:
        """The captions of the batch that the teacher finds most fitting for each picture."""
        ...

    @property
    def teacher_text_probabilities(self) -> Float[Tensor, "B K"]: ...


def query_examples(
    captions: Sequence[str],
    image_of_text: Int[Tensor, "T"],
    ranks: Int[Tensor, "T"],
    contrastive_ranks: Int[Tensor, "T"],
    reranked: Reranked,
    picture: Callable[[int], Image],
    images: int,
    count: int = 12,
) -> tuple[QueryExample, ...]:
    """The first `count` captions with the pictures found. `picture` gives a test picture by its number in 0..I-1."""
    ordered = reranked.ordered()
    found = []
    for text, caption in enumerate(captions[:count]):
        owner = int(image_of_text[text])
        best, cosines = (column[text, :FOUND].tolist() for column in (ordered.candidates, ordered.similarity))
        matches = [None] * len(best) if ordered.match is None else ordered.match[text, :FOUND].tolist()
        each = zip(best, cosines, matches, strict=True)
        shown = tuple(Shown(picture(i), i == owner, cosine, match) for i, cosine, match in each)
        rank, first = int(ranks[text]), int(contrastive_ranks[text])
        found.append(QueryExample(caption, shown, rank, first, picture(owner), images))
    return tuple(found)


def negative_examples(
    seen: Negatives, batch: Batch, tokenizer: Tokenizer, normalise: Normalise, count: int = 8
) -> tuple[NegativeExample, ...]:
    """The first `count` pairs of a batch with the negatives drawn for them."""
    texts = [tokenizer.decode(ids) for ids in batch.texts.input_ids.tolist()]
    pictures = [to_picture(pixels, normalise) for pixels in batch.pixels]
    return tuple(
        NegativeExample(
            picture=pictures[b],
            caption=texts[b],
            negative_caption=texts[int(seen.negative_text_index[b])],
            caption_probability=float(seen.negative_text_probability[b]),
            negative_picture=pictures[int(seen.negative_image_index[b])],
            picture_probability=float(seen.negative_image_probability[b]),
            batch=len(batch),
        )
        for b in range(min(count, len(batch)))
    )


def teacher_examples(
    seen: Inspection,
    batch: Batch,
    tokenizer: Tokenizer,
    normalise: Normalise,
    clean: Sequence[str | None],
    count: int = 8,
) -> tuple[TeacherExample, ...]:
    """The first `count` pairs of a batch that have a hidden word, with what the teacher says of them.

    `clean[b]` is the caption without the noise put into it, None where there is none.
    """
    texts = [tokenizer.decode(ids) for ids in batch.texts.input_ids.tolist()]
    rows: dict[int, list[int]] = {}
    for row, pair in enumerate(seen.masked.pair.tolist()):
        rows.setdefault(pair, []).append(row)
    return tuple(
        TeacherExample(
            picture=to_picture(batch.pixels[b], normalise),
            caption=texts[b],
            clean=clean[b],
            words=tuple(_word(seen, batch, tokenizer, row) for row in rows[b][:WORDS]),
            texts=tuple(
                TextGuess(texts[other], probability, other == b)
                for other, probability in zip(
                    seen.teacher_texts[b].tolist(), seen.teacher_text_probabilities[b].tolist(), strict=True
                )
            ),
        )
        for b in sorted(rows)[:count]
    )


def _word(seen: Inspection, batch: Batch, tokenizer: Tokenizer, row: int) -> WordGuess:
    ids = batch.texts.input_ids[seen.masked.pair[row]].tolist()
    place = int(seen.masked.position[row])
    guesses = zip(seen.teacher_words[row].tolist(), seen.teacher_word_probabilities[row].tolist(), strict=True)
    return WordGuess(
        before=tokenizer.decode(ids[:place]),
        label=tokenizer.token(int(seen.labels[row])),
        after=tokenizer.decode(ids[place + 1 :]),
        guesses=tuple((tokenizer.token(word), probability) for word, probability in guesses),
    )
