"""BERT's word prediction head. D width, V vocabulary, R tokens."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.nn.blocks import init_weights


class WordScores(nn.Module):
    """BERT's transform of hidden states before they are compared with words, and a bias for each word."""

    def __init__(self, vocab_size: int, width: int, norm_eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.apply(init_weights)

    def score(self, hidden: Float[Tensor, "*R D"], words: Float[Tensor, "V D"]) -> Float[Tensor, "*R V"]:
        """Scores each word of the table `words` at each token."""
        return F.linear(self.norm(F.gelu(self.dense(hidden))), words, self.bias)


class WordHead(WordScores):
    """BERT's head, tied: its output matrix is the word embedding, which the caller passes."""

    def forward(self, hidden: Float[Tensor, "*R D"], words: Float[Tensor, "V D"]) -> Float[Tensor, "*R V"]:
        return self.score(hidden, words)


class UntiedWordHead(WordScores):
    """The same head with an output matrix of its own, as in VLMo."""

    def __init__(self, vocab_size: int, width: int, norm_eps: float) -> None:
        super().__init__(vocab_size, width, norm_eps)
        self.decoder = nn.Linear(width, vocab_size, bias=False)
        self.decoder.apply(init_weights)

    def forward(self, hidden: Float[Tensor, "*R D"]) -> Float[Tensor, "*R V"]:
        return self.score(hidden, self.decoder.weight)
