"""Examples for the report, from the results of an evaluation and from a look into a pre-training pass.

I pictures, T texts, B pairs of a batch, R masked words, K best pseudo-targets of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxtyping import Int
from PIL.Image import Image
from torch import Tensor

from diptych.apps.report.data import (
    NegativeExample,
    PseudoTargetExample,
    QueryExample,
    QueryResult,
    TextGuess,
    WordGuess,
)
from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import to_picture
from diptych.schema import Normalise
from diptych.search.rerank import Reranked
from diptych.tasks.albef_pretraining import AlbefInspection
from diptych.tasks.pretraining import DrawnNegatives
from diptych.types import Batch

RESULTS = 5
"""Pictures shown of a query's ranking."""
WORDS = 2
"""Masked words shown of a caption."""


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
    """Shows the first `count` captions with the best pictures of their ranking. `picture` opens picture 0..I-1."""
    ordered = reranked.ordered()
    examples = []
    for text, caption in enumerate(captions[:count]):
        owner = int(image_of_text[text])
        best, cosines = (column[text, :RESULTS].tolist() for column in (ordered.candidates, ordered.similarity))
        matches = [None] * len(best) if ordered.match is None else ordered.match[text, :RESULTS].tolist()
        results = tuple(
            QueryResult(picture(image), image == owner, cosine, match)
            for image, cosine, match in zip(best, cosines, matches, strict=True)
        )
        rank, contrastive_rank = int(ranks[text]), int(contrastive_ranks[text])
        examples.append(QueryExample(caption, results, rank, contrastive_rank, picture(owner), images))
    return tuple(examples)


def negative_examples(
    inspection: DrawnNegatives, batch: Batch, tokenizer: Tokenizer, normalise: Normalise, count: int = 8
) -> tuple[NegativeExample, ...]:
    """Shows the first `count` pairs of a batch with the hard negatives drawn for them."""
    texts = [tokenizer.decode(ids) for ids in batch.texts.input_ids.tolist()]
    pictures = [to_picture(pixels, normalise) for pixels in batch.pixels]
    return tuple(
        NegativeExample(
            picture=pictures[b],
            caption=texts[b],
            negative_caption=texts[int(inspection.negative_text_index[b])],
            caption_probability=float(inspection.negative_text_probability[b]),
            negative_picture=pictures[int(inspection.negative_image_index[b])],
            picture_probability=float(inspection.negative_image_probability[b]),
            batch=len(batch),
        )
        for b in range(min(count, len(batch)))
    )


def pseudo_target_examples(
    inspection: AlbefInspection,
    batch: Batch,
    tokenizer: Tokenizer,
    normalise: Normalise,
    clean: Sequence[str | None],
    count: int = 8,
) -> tuple[PseudoTargetExample, ...]:
    """Shows the first `count` pairs of a batch that have a masked word, with their pseudo-targets.

    `clean[b]` is the caption without the noise put into it, None where there is none.
    """
    texts = [tokenizer.decode(ids) for ids in batch.texts.input_ids.tolist()]
    rows: dict[int, list[int]] = {}
    for row, pair in enumerate(inspection.masked.pair.tolist()):
        rows.setdefault(pair, []).append(row)
    return tuple(
        PseudoTargetExample(
            picture=to_picture(batch.pixels[b], normalise),
            caption=texts[b],
            clean=clean[b],
            words=tuple(_word(inspection, batch, tokenizer, row) for row in rows[b][:WORDS]),
            texts=tuple(
                TextGuess(texts[other], probability, other == b)
                for other, probability in zip(
                    inspection.momentum_texts[b].tolist(),
                    inspection.momentum_text_probabilities[b].tolist(),
                    strict=True,
                )
            ),
        )
        for b in sorted(rows)[:count]
    )


def _word(inspection: AlbefInspection, batch: Batch, tokenizer: Tokenizer, row: int) -> WordGuess:
    ids = batch.texts.input_ids[inspection.masked.pair[row]].tolist()
    place = int(inspection.masked.position[row])
    words, probabilities = inspection.momentum_words[row].tolist(), inspection.momentum_word_probabilities[row].tolist()
    return WordGuess(
        before=tokenizer.decode(ids[:place]),
        label=tokenizer.token(int(inspection.labels[row])),
        after=tokenizer.decode(ids[place + 1 :]),
        guesses=tuple((tokenizer.token(word), share) for word, share in zip(words, probabilities, strict=True)),
    )
