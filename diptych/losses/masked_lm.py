"""Masks words and computes the masked-language-modelling loss (MLM; ALBEF §3.2, VLMo §3.3).

B texts, L padded length, W longest text of the model, R masked tokens, V vocabulary.
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
"""The label of a token that is not predicted."""


@dataclass(frozen=True)
class MaskDraws:
    """Holds the random part of masking single tokens, one draw for each position."""

    select: Bool[Tensor, "B L"]
    replace: Bool[Tensor, "B L"]
    randomise: Bool[Tensor, "B L"]
    words: Int[Tensor, "B L"]

    @classmethod
    def make(
        cls, texts: int, length: int, probability: float, vocab_size: int, generator: torch.Generator
    ) -> MaskDraws:
        """Draws which tokens are selected; of these 80 % become [MASK], 10 % a random token, 10 % stay (ALBEF §3.2)."""
        select, replace, randomise = torch.rand(3, texts, length, generator=generator)
        words = torch.randint(vocab_size, (texts, length), generator=generator)
        return cls(select < probability, replace < 0.8, randomise < 0.5, words)


def mask_words(
    ids: Int[Tensor, "B L"], maskable: Bool[Tensor, "B L"], mask_id: int, draws: MaskDraws
) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B L"]]:
    """Masks the selected tokens. Returns the ids and the labels: the original id where masked, IGNORED elsewhere."""
    selected = draws.select & maskable
    labels = ids.masked_fill(~selected, IGNORED)
    masked = torch.where(selected & draws.replace, mask_id, ids)
    masked = torch.where(selected & ~draws.replace & draws.randomise, draws.words, masked)
    return masked, labels


# --------------------------------------------------------------------------- whole words


MOST_MASKED = 512
"""The most tokens of a text that are masked, as in the released code."""


MaskingConfig = LanguageStageConfig | VlmoPretrainConfig
"""Configurations that state the share of masked tokens, and whether whole words are masked."""


@dataclass(frozen=True)
class WordDraws:
    """Holds the random part of whole-word masking, one draw for each position."""

    order: Float[Tensor, "B W"]
    """Numbers in 0..1. Whole words are masked in the order of their first token's number; single tokens, if below the
    share."""
    replace: Bool[Tensor, "B W"]
    randomise: Bool[Tensor, "B W"]
    words: Int[Tensor, "B W"]

    @classmethod
    def make(cls, rows: range, width: int, vocab_size: int, seed: int) -> WordDraws:
        """Draws for rows of the global batch; a row's draws do not depend on the rows that are drawn with it."""
        # Philox is a counter-based generator of four numbers at each count; each position of each row has its own.
        generator = np.random.Generator(np.random.Philox(key=seed, counter=rows.start * width))
        order, replace, randomise, words = torch.from_numpy(generator.random((len(rows), width, 4))).unbind(2)
        return cls(order.float(), replace < 0.8, randomise < 0.5, (words * vocab_size).long())


class WordMasking(nn.Module):
    """Masks words as a recipe says, by draws that are a pure function of seed, step and row of the global batch."""

    continues: Tensor

    def __init__(
        self, config: MaskingConfig, special: SpecialIds, vocab_size: int, width: int, of_padding: bool = False
    ) -> None:
        """Prepares the masking of texts of up to `width` tokens. `whole_word_mask` explains `of_padding`."""
        super().__init__()
        self.of_padding = of_padding
        self.config, self.special, self.vocab_size, self.width = config, special, vocab_size, width
        table = torch.zeros(vocab_size, dtype=torch.bool)
        table[list(special.continuing)] = True
        self.register_buffer("continues", table, persistent=False)

    def draw(self, size: int, progress: Progress, first_row: int = 0) -> WordDraws:
        """Draws for `size` texts, which are rows `first_row` and following of the global batch."""
        seed = seed_of(progress.seed, "words", progress.step)
        return WordDraws.make(range(first_row, first_row + size), self.width, self.vocab_size, seed)

    def forward(self, texts: Texts, draws: WordDraws) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B L"]]:
        """Masks words. Returns the ids and the labels: the original id where masked, IGNORED elsewhere.

        Raises ValueError for texts longer than the model's positions.
        """
        width, ids, mask = self.width, texts.input_ids, texts.attention_mask
        if ids.shape[1] > width and mask[:, width:].any():
            longest = int(mask.sum(1).max())
            raise ValueError(f"a text has {longest} tokens; the model takes {width}: set data.max_tokens={width}")
        own = Texts(ids[:, :width], mask[:, :width])
        masked, labels = whole_word_mask(own, draws, self.special, self.continues, self.config, self.of_padding)
        padding = ids[:, width:]
        return torch.cat([masked, padding], 1), torch.cat([labels, torch.full_like(padding, IGNORED)], 1)


def whole_word_mask(
    texts: Texts,
    draws: WordDraws,
    special: SpecialIds,
    continues: Bool[Tensor, "V"],
    config: MaskingConfig,
    of_padding: bool = False,
) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B L"]]:
    """Masks a share of the tokens of each text. Returns the ids and the labels. Special tokens are never masked.

    `continues` marks the word pieces that continue a word. With `config.whole_words` all pieces of a word are masked or
    none, and as many words as fit into the share; a text that has a word has a masked one.
    As in the released code, `of_padding` takes the share of the padded length W, where [PAD] and [UNK] count as words
    whose draw is lost, and masks no word longer than the share, so that some texts have no masked word
    (docs/released_code.md, defect 18).
    """
    device, length = texts.input_ids.device, texts.input_ids.shape[1]
    replace, randomise, words = (x[:, :length].to(device) for x in (draws.replace, draws.randomise, draws.words))
    order = draws.order.to(device)
    ids = texts.input_ids.masked_fill(~texts.attention_mask, special.pad)
    plain = ~_is_any(ids, special.pad, special.unk, special.cls, special.sep, special.mask)
    if not config.whole_words:
        maskable = ~_is_any(ids, special.pad, special.cls, special.sep) if of_padding else plain
        select = order[:, :length] < config.mask_probability
        return mask_words(texts.input_ids, maskable, special.mask, MaskDraws(select, replace, randomise, words))
    if of_padding:
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
    """Returns how many tokens of a text to mask, given how many it has."""
    share = (tokens.cpu().double() * config.mask_probability).round().long()
    return share.clamp(1, MOST_MASKED).to(tokens.device)


def _choose(
    ids: Int[Tensor, "B L"],
    candidates: Bool[Tensor, "B L"],
    continues: Bool[Tensor, "V"],
    order: Float[Tensor, "B L"],
    targets: Int[Tensor, "B"],
    first_always: bool,
) -> Bool[Tensor, "B L"]:
    """Selects words in their drawn order while they fit into the targets, and skips a word that does not fit.

    With `first_always` the first word is selected even if it is longer than its target.
    """
    starts = candidates & ~(continues[ids] & F.pad(candidates[:, :-1], (1, 0)))  # first token of each word [B, L]
    word = (starts.cumsum(1) - 1).clamp(min=0)  # the word that each token belongs to [B, L]
    lengths = torch.zeros_like(ids).scatter_add_(1, word, candidates.long())  # tokens of each word [B, words]
    rank = torch.full_like(order, torch.inf)
    rank.scatter_reduce_(1, word, order.masked_fill(~starts, torch.inf), "amin")  # drawn number of each word
    ranking = rank.argsort(dim=1, stable=True)  # words in the order of their numbers
    masked, taken = torch.zeros_like(targets), []
    for number, length in enumerate(lengths.gather(1, ranking).unbind(1)):  # the next word of every text at once
        fits = masked + length <= targets
        taken.append(fits | (number == 0) if first_always else fits)
        masked = masked + length * taken[-1]
    chosen = torch.zeros_like(candidates).scatter_(1, ranking, torch.stack(taken, 1))  # back in the words' own order
    return chosen.gather(1, word) & candidates  # all tokens of the chosen words


# --------------------------------------------------------------------------- the loss


def masked_tokens(labels: Int[Tensor, "B L"]) -> tuple[TokenPositions, Int[Tensor, "R"]]:
    """Returns where tokens are masked (`pair` counts texts) and which tokens they were."""
    text, position = (labels != IGNORED).nonzero().unbind(1)
    return TokenPositions(text, position), labels[text, position]


def masked_lm_loss(logits: Float[Tensor, "R V"], labels: Int[Tensor, "R"]) -> Term:
    """Computes the cross-entropy at the masked tokens. Without any, the mean is 0; the released code gives NaN."""
    loss = F.cross_entropy(logits.float(), labels, reduction="sum")  # ALBEF Eq. 3
    return Term(loss, loss.new_tensor(len(labels)))
