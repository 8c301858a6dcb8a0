"""Masked language modelling (MLM): which words to hide, and the loss at the hidden ones.

B texts, L padded length, W longest text there may be, R hidden words, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.schema import LanguageStageConfig, SpecialIds, VlmoPretrainConfig
from diptych.seeds import seed_of
from diptych.types import Progress, Term, Texts, TokenPositions

IGNORED = -100
"""The label of a position that is not predicted."""


@dataclass(frozen=True)
class MaskDraws:
    """The random part of masking, one draw a position."""

    select: Bool[Tensor, "B L"]
    replace: Bool[Tensor, "B L"]
    randomise: Bool[Tensor, "B L"]
    words: Int[Tensor, "B L"]

    @classmethod
    def make(
        cls, texts: int, length: int, probability: float, vocab_size: int, generator: torch.Generator
    ) -> MaskDraws:
        """A share selected; of these 80 % replaced by [MASK], half of the rest randomised (ALBEF §3.2)."""
        select, replace, randomise = torch.rand(3, texts, length, generator=generator)
        words = torch.randint(vocab_size, (texts, length), generator=generator)
        return cls(select < probability, replace < 0.8, randomise < 0.5, words)


def mask_words(
    ids: Int[Tensor, "B L"], maskable: Bool[Tensor, "B L"], mask_id: int, draws: MaskDraws
) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B L"]]:
    """Ids with words hidden, and labels (the original id where hidden, IGNORED elsewhere)."""
    selected = draws.select & maskable
    labels = ids.masked_fill(~selected, IGNORED)
    masked = torch.where(selected & draws.replace, mask_id, ids)
    masked = torch.where(selected & ~draws.replace & draws.randomise, draws.words, masked)
    return masked, labels


# --------------------------------------------------------------------------- whole words


MOST_HIDDEN = 512
"""Tokens of a text that are hidden at most, as released."""


MaskingConfig = LanguageStageConfig | VlmoPretrainConfig
"""What says which share is hidden, of what, and whether by whole words."""


@dataclass(frozen=True)
class WordDraws:
    """The random part of whole-word masking, one draw a position."""

    order: Float[Tensor, "B W"]
    """In 0..1. Words are hidden in the order of their first tokens' numbers, or single tokens below the share."""
    replace: Bool[Tensor, "B W"]
    randomise: Bool[Tensor, "B W"]
    words: Int[Tensor, "B W"]

    @classmethod
    def make(cls, rows: range, width: int, vocab_size: int, seed: int) -> WordDraws:
        """The draws of rows of a global batch: row by row the same, whichever rows are drawn together."""
        # A counter-based generator gives four numbers a count, and each position of each row has its own count.
        generator = np.random.Generator(np.random.Philox(key=seed, counter=rows.start * width))
        order, replace, randomise, words = torch.from_numpy(generator.random((len(rows), width, 4))).unbind(2)
        return cls(order.float(), replace < 0.8, randomise < 0.5, (words * vocab_size).long())


class WordMasking(nn.Module):
    """Hides words of texts as a recipe says, by draws that depend on nothing but their place in the training."""

    continues: Tensor

    def __init__(self, config: MaskingConfig, special: SpecialIds, vocab_size: int, width: int) -> None:
        """`width`: the longest text there may be."""
        super().__init__()
        self.config, self.special, self.vocab_size, self.width = config, special, vocab_size, width
        table = torch.zeros(vocab_size, dtype=torch.bool)
        table[list(special.continuing)] = True
        self.register_buffer("continues", table, persistent=False)

    def draw(self, size: int, progress: Progress, first_row: int = 0) -> WordDraws:
        """For `size` texts, which are rows `first_row` and on of the global batch."""
        seed = seed_of(progress.seed, "words", progress.step)
        return WordDraws.make(range(first_row, first_row + size), self.width, self.vocab_size, seed)

    def forward(self, texts: Texts, draws: WordDraws) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B L"]]:
        """Ids with words hidden, and labels (the original id where hidden, IGNORED elsewhere).

        Raises ValueError for texts longer than there may be.
        """
        width, ids, mask = self.width, texts.input_ids, texts.attention_mask
        if ids.shape[1] > width and mask[:, width:].any():
            longest = int(mask.sum(1).max())
            raise ValueError(f"a text has {longest} tokens; the model takes {width}: set data.max_tokens={width}")
        own = Texts(ids[:, :width], mask[:, :width])
        masked, labels = whole_word_mask(own, draws, self.special, self.continues, self.config)
        padding = ids[:, width:]
        return torch.cat([masked, padding], 1), torch.cat([labels, torch.full_like(padding, IGNORED)], 1)


def whole_word_mask(
    texts: Texts, draws: WordDraws, special: SpecialIds, continues: Bool[Tensor, "V"], config: MaskingConfig
) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B L"]]:
    """Ids with a share of the tokens hidden, and labels. Special tokens and padding are never hidden.

    `continues`: which pieces continue a word. With `config.whole_words` all pieces of a word are hidden or none, and so
    many words as fit into the share; a text that has a word has a hidden one. `config.masking="released"` takes the
    share of the padded length W, where [PAD] and [UNK] are words that are drawn in vain, and hides no word that is
    longer than the share: none at all in some texts.
    """
    device, length = texts.input_ids.device, texts.input_ids.shape[1]
    replace, randomise, words = (x[:, :length].to(device) for x in (draws.replace, draws.randomise, draws.words))
    order, released = draws.order.to(device), config.masking == "released"
    ids = texts.input_ids.masked_fill(~texts.attention_mask, special.pad)
    plain = ~_is_any(ids, special.pad, special.unk, special.cls, special.sep, special.mask)
    if not config.whole_words:
        maskable = ~_is_any(ids, special.pad, special.cls, special.sep) if released else plain
        select = order[:, :length] < config.mask_probability
        return mask_words(texts.input_ids, maskable, special.mask, MaskDraws(select, replace, randomise, words))
    if released:
        padded = F.pad(ids, (0, order.shape[1] - length), value=special.pad)
        candidates = ~_is_any(padded, special.cls, special.sep)
        share = torch.full_like(padded[:, 0], order.shape[1])
        select = _choose(padded, candidates, continues, order, _targets(share, config), first_always=False)[:, :length]
    else:
        targets = _targets(plain.sum(1), config)
        select = _choose(ids, plain, continues, order[:, :length], targets, first_always=True)
    return mask_words(texts.input_ids, plain, special.mask, MaskDraws(select, replace, randomise, words))


def _is_any(ids: Int[Tensor, "B L"], *wanted: int) -> Bool[Tensor, "B L"]:
    return torch.isin(ids, torch.tensor(wanted, device=ids.device))


def _targets(tokens: Int[Tensor, "B"], config: MaskingConfig) -> Int[Tensor, "B"]:
    """How many of so many tokens are hidden."""
    share = (tokens.cpu().double() * config.mask_probability).round().long()
    return share.clamp(1, MOST_HIDDEN).to(tokens.device)


def _choose(
    ids: Int[Tensor, "B L"],
    candidates: Bool[Tensor, "B L"],
    continues: Bool[Tensor, "V"],
    order: Float[Tensor, "B L"],
    targets: Int[Tensor, "B"],
    first_always: bool,
) -> Bool[Tensor, "B L"]:
    """Words in their order while they fit into the targets; one that does not fit is passed over."""
    starts = candidates & ~(continues[ids] & F.pad(candidates[:, :-1], (1, 0)))
    word = (starts.cumsum(1) - 1).clamp(min=0)
    lengths = torch.zeros_like(ids).scatter_add_(1, word, candidates.long())
    place = torch.full_like(order, torch.inf)
    place.scatter_reduce_(1, word, order.masked_fill(~starts, torch.inf), "amin")
    ranking = place.argsort(dim=1, stable=True)
    hidden, taken = torch.zeros_like(targets), []
    for number, length in enumerate(lengths.gather(1, ranking).unbind(1)):
        fits = hidden + length <= targets
        taken.append(fits | (number == 0) if first_always else fits)
        hidden = hidden + length * taken[-1]
    chosen = torch.zeros_like(candidates).scatter_(1, ranking, torch.stack(taken, 1))
    return chosen.gather(1, word) & candidates


# --------------------------------------------------------------------------- the loss


def hidden_words(labels: Int[Tensor, "B L"]) -> tuple[TokenPositions, Int[Tensor, "R"]]:
    """Where words are hidden, `pair` counting texts, and which."""
    where = (labels != IGNORED).nonzero()
    rows = TokenPositions(where[:, 0], where[:, 1])
    return rows, labels[rows.pair, rows.position]


def masked_lm_loss(logits: Float[Tensor, "R V"], labels: Int[Tensor, "R"]) -> Term:
    """Cross-entropy at the hidden words. No hidden word: sum 0, count 0, mean 0 (the released code gives NaN)."""
    loss = F.cross_entropy(logits.float(), labels, reduction="sum")  # ALBEF Eq. 3
    return Term(loss, loss.new_tensor(len(labels)))
