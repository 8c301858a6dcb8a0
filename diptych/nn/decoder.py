"""The answer decoder of VQA (ALBEF §5): a causal BERT that cross-attends to the fused states of a question.

Q questions, T their longest states, G answers, t earlier tokens of each answer, L longest new part, N new tokens,
packed, D width, E = 2D keys and values side by side, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diptych.nn.attention import attend
from diptych.nn.blocks import TextBlock, TextLayout, init_weights, stacked
from diptych.nn.embeddings import WordEmbedding
from diptych.nn.packed import PackedSequences, PaddedGrid
from diptych.nn.words import WordHead
from diptych.schema import DecoderConfig


@dataclass(frozen=True)
class QuestionStates:
    """The fused states of questions, padded: what the decoder cross-attends to."""

    hidden: Float[Tensor, "Q T D"]
    mask: Bool[Tensor, "Q T"]

    def __len__(self) -> int:
        return len(self.hidden)

    def __getitem__(self, cut: slice) -> QuestionStates:
        return QuestionStates(self.hidden[cut], self.mask[cut])


@dataclass(frozen=True)
class KeyValueCache:
    """Keys and values of one layer: those of the answers' earlier tokens, and those of each question once."""

    own: Float[Tensor, "G t E"]
    question: Float[Tensor, "Q T E"]

    def __getitem__(self, cut: slice) -> KeyValueCache:
        """Cuts out some questions, where each has one answer."""
        return KeyValueCache(self.own[cut], self.question[cut])

    def select(self, parent: Int[Tensor, "G2"]) -> KeyValueCache:
        """Gives the cache of answers that continue the answers `parent`."""
        return KeyValueCache(self.own[parent], self.question)


class DecoderBlock(TextBlock):
    """BERT's layer with causal self-attention and cross-attention."""

    def forward(  # type: ignore[override]  # the same parameters for another layer
        self,
        hidden: Float[Tensor, "N D"],
        layout: TextLayout,
        question: Float[Tensor, "Q T D"],
        cache: KeyValueCache | None,
    ) -> tuple[Float[Tensor, "N D"], KeyValueCache]:
        """Returns the output at the new tokens, and the cache with their keys and values appended."""
        normed = self._before(hidden, self.attention_norm)
        attended, own = self._causal_attention(normed, layout.grid, cache)
        hidden = self._add(hidden, attended, self.attention_norm, layout.rng_keys, 0)
        key_value = self.cross.kv(question) if cache is None else cache.question
        assert layout.by_source is not None
        normed = self._before(hidden, self.cross_norm)
        attended = self.cross(normed, layout.by_source, key_value, layout.source_mask)
        hidden = self._add(hidden, attended, self.cross_norm, layout.rng_keys, 1)
        return self._feed_forward(hidden, layout.rng_keys), KeyValueCache(own, key_value)

    def _causal_attention(
        self, hidden: Float[Tensor, "N D"], grid: PaddedGrid, cache: KeyValueCache | None
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "G K 2*D"]]:
        """Attends to the tokens so far. Padding stands behind all tokens, so that causality masks it as well."""
        width = hidden.shape[-1]
        query, key_value = grid.pad(self.attention.qkv(hidden)).split([width, 2 * width], dim=-1)
        if cache is not None:
            key_value = torch.cat([cache.own, key_value], dim=1)
        key, value = key_value.chunk(2, dim=-1)
        dropout = self.attention.dropout if self.training else 0.0
        mixed = attend(query, key, value, self.attention.heads, dropout=dropout, causal=True)
        return self.attention.out(grid.unpad(mixed)), key_value


class AnswerDecoder(nn.Module):
    """Predicts an answer word by word, given the fused states of its question."""

    def __init__(self, config: DecoderConfig, vocab_size: int, pad_id: int, width: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = WordEmbedding(
            vocab_size, pad_id, config.max_positions, width, config.norm_eps, config.norm, config.dropout
        )
        self.layers = stacked(
            DecoderBlock(
                width, config.heads, config.intermediate, config.norm_eps, config.norm, config.dropout,
                config.attention_dropout, image_width=width,
            )
            for _ in range(config.layers)
        )  # fmt: skip
        self.norm = nn.LayerNorm(width, eps=config.norm_eps) if config.norm == "pre" else nn.Identity()
        self.word_head = WordHead(vocab_size, width, config.norm_eps)
        self.layers.apply(init_weights)

    def forward(
        self,
        ids: Int[Tensor, "N"],
        packed: PackedSequences,
        questions: QuestionStates,
        question_of: Int[Tensor, "G"],
        caches: Sequence[KeyValueCache] = (),
    ) -> tuple[Float[Tensor, "N D"], tuple[KeyValueCache, ...]]:
        """Returns the hidden states of the new tokens and the cache of each layer to continue with.

        Each of the G answers has `packed.lengths` new tokens; `question_of` is its question. `caches` is what the call
        for the earlier tokens returned; each answer had the same number of them.

        Raises ValueError for an answer longer than the position table.
        """
        before = caches[0].own.shape[1] if caches else 0
        length = before + packed.max_seqlen
        if length > self.config.max_positions:
            raise ValueError(
                f"an answer that takes {length} positions is longer than the decoder's {self.config.max_positions}"
            )
        hidden = self.embedding(ids, packed.position_ids + before, packed.token_rng_keys)
        by_question = PaddedGrid.of(question_of[packed.sequence_ids], len(questions))
        layout = TextLayout(
            packed.grid, rng_keys=packed.token_rng_keys, by_source=by_question, source_mask=questions.mask
        )
        extended = list[KeyValueCache]()
        for number, layer in enumerate(self.layers):
            hidden, cache = layer(hidden, layout, questions.hidden, caches[number] if caches else None)
            extended.append(cache)
        return self.norm(hidden), tuple(extended)

    def word_logits(self, hidden: Float[Tensor, "*R D"]) -> Float[Tensor, "*R V"]:
        """Scores each word as the next one."""
        return self.word_head(hidden, self.embedding.words.weight).float()
