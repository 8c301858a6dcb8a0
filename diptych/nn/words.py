"""Word prediction, BERT's. D width, V vocabulary, R rows."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.nn.blocks import init_weights


class WordScores(nn.Module):
    """What BERT does to rows before it compares them with words, and the words' biases."""

    def __init__(self, vocab_size: int, width: int, norm_eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.apply(init_weights)

    def score(self, rows: Float[Tensor, "*R D"], words: Float[Tensor, "V D"]) -> Float[Tensor, "*R V"]:
        return F.linear(self.norm(F.gelu(self.dense(rows))), words, self.bias)


class WordHead(WordScores):
    """BERT's word prediction; its matrix is the word table."""

    def forward(self, rows: Float[Tensor, "*R D"], words: Float[Tensor, "V D"]) -> Float[Tensor, "*R V"]:
        return self.score(rows, words)


class OwnWordHead(WordScores):
    """The same with a matrix of its own, as VLMo has it."""

    def __init__(self, vocab_size: int, width: int, norm_eps: float) -> None:
        super().__init__(vocab_size, width, norm_eps)
        self.decoder = nn.Linear(width, vocab_size, bias=False)
        self.decoder.apply(init_weights)

    def forward(self, rows: Float[Tensor, "*R D"]) -> Float[Tensor, "*R V"]:
        return self.score(rows, self.decoder.weight)
