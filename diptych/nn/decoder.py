"""A causal BERT that answers (ALBEF §5, VQA): each row reads the rows before it, then the states of its question.

Q questions, T their longest states, G answers, t rows of each that were read before, L longest new part, N new rows
packed, D width, E = 2D keys and values side by side, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.nn.attention import attend
from diptych.nn.blocks import TextBlock, init_weights, stacked
from diptych.nn.embeddings import WordEmbedding
from diptych.nn.fused_norm import norm_mlp
from diptych.nn.packed import Layout, Packed
from diptych.nn.words import WordHead
from diptych.schema import DecoderConfig


@dataclass(frozen=True)
class Asked:
    """The states of questions, padded: what answers are read from."""

    rows: Float[Tensor, "Q T D"]
    mask: Bool[Tensor, "Q T"]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, cut: slice) -> Asked:
        return Asked(self.rows[cut], self.mask[cut])


@dataclass(frozen=True)
class Memory:
    """Keys and values that a layer has made: the next row costs one row. Those of a question stand there once."""

    own: Float[Tensor, "G t E"]
    question: Float[Tensor, "Q T E"]

    def __getitem__(self, cut: slice) -> Memory:
        """Of some questions, where each has one answer."""
        return Memory(self.own[cut], self.question[cut])

    def follow(self, parent: Int[Tensor, "G2"]) -> Memory:
        """For answers that go on from the answers `parent`."""
        return Memory(self.own[parent], self.question)


@dataclass(frozen=True)
class AnswerFrame:
    """How the new rows of a layer hang together; made once, used by all layers."""

    layout: Layout
    """By answer."""
    by_question: Layout
    visible: Bool[Tensor, "Q T"]
    keys: Int[Tensor, "N"] | None = None
    """Of each row, for dropout."""


class DecoderBlock(TextBlock):
    """BERT's layer with cross-attention, whose rows do not see what follows them."""

    def forward(  # type: ignore[override]  # the same parameters for another layer
        self, hidden: Float[Tensor, "N D"], frame: AnswerFrame, question: Float[Tensor, "Q T D"], past: Memory | None
    ) -> tuple[Float[Tensor, "N D"], Memory]:
        """The layer's output at the new rows, and what it remembers."""
        pre = self.norm_place == "pre"
        mixed, own = self._look_back(self.attention_norm(hidden) if pre else hidden, frame.layout, past)
        hidden = self._add(hidden, mixed, self.attention_norm, frame.keys, 0)
        made = self.cross.kv(question) if past is None else past.question
        mixed = self._read(self.cross_norm(hidden) if pre else hidden, frame, made)
        hidden = self._add(hidden, mixed, self.cross_norm, frame.keys, 1)
        mixed = norm_mlp(hidden, self.mlp_norm, self.fc1, self.fc2) if pre else self.fc2(F.gelu(self.fc1(hidden)))
        return self._add(hidden, mixed, self.mlp_norm, frame.keys, 2), Memory(own, made)

    def _look_back(
        self, hidden: Float[Tensor, "N D"], layout: Layout, past: Memory | None
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "G K 2*D"]]:
        """Self-attention to the rows so far; padding stands behind all rows, so that causality hides it too."""
        width = hidden.shape[-1]
        query, own = layout.pad(self.attention.qkv(hidden)).split([width, 2 * width], dim=-1)
        if past is not None:
            own = torch.cat([past.own, own], dim=1)
        key, value = own.chunk(2, dim=-1)
        dropout = self.attention.dropout if self.training else 0.0
        mixed = attend(query, key, value, self.attention.heads, dropout=dropout, causal=True)
        return self.attention.out(layout.unpad(mixed)), own

    def _read(
        self, hidden: Float[Tensor, "N D"], frame: AnswerFrame, question: Float[Tensor, "Q T E"]
    ) -> Float[Tensor, "N D"]:
        """Cross-attention. All rows of a question's answers are its queries: nothing is copied for each answer."""
        key, value = question.chunk(2, dim=-1)
        query = frame.by_question.pad(self.cross.q(hidden))
        dropout = self.cross.dropout if self.training else 0.0
        mixed = attend(query, key, value, self.cross.heads, frame.visible, dropout)
        return self.cross.out(frame.by_question.unpad(mixed))


class AnswerDecoder(nn.Module):
    """Word by word, the distribution of an answer given its question's states."""

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
        packed: Packed,
        asked: Asked,
        question_of: Int[Tensor, "G"],
        past: Sequence[Memory] = (),
    ) -> tuple[Float[Tensor, "N D"], tuple[Memory, ...]]:
        """The states of new rows, of which G answers have `packed.lengths` each, and what to go on from.

        `question_of` leads from an answer to its question. `past` is what a call for the rows before has given;
        each answer had as many.

        Raises ValueError for an answer longer than the position table.
        """
        behind = past[0].own.shape[1] if past else 0
        length = behind + packed.layout.length
        if length > self.config.max_positions:
            raise ValueError(
                f"an answer that takes {length} positions is longer than the decoder's {self.config.max_positions}"
            )
        hidden = self.embedding(ids, packed.position + behind, packed.row_keys)
        by_question = Layout.of(question_of[packed.sequence], len(asked))
        frame = AnswerFrame(packed.layout, by_question, asked.mask, packed.row_keys)
        kept = list[Memory]()
        for number, layer in enumerate(self.layers):
            hidden, memory = layer(hidden, frame, asked.rows, past[number] if past else None)
            kept.append(memory)
        return self.norm(hidden), tuple(kept)

    def word_logits(self, hidden: Float[Tensor, "*R D"]) -> Float[Tensor, "*R V"]:
        """Scores of each word as the one that follows."""
        return self.word_head(hidden, self.embedding.words.weight).float()
