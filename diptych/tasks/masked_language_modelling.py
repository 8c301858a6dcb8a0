"""VLMo's second stage: masked language modelling on texts alone (§3.4).

B texts, L padded length, R hidden words, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diptych.losses.masked_lm import WordMasking, hidden_words, masked_lm_loss
from diptych.models.vlmo import Vlmo
from diptych.models.vlmo_weights import untrained_parts
from diptych.nn.gather import Processes
from diptych.schema import LanguageStageConfig, Recipe, SpecialIds
from diptych.task import Task
from diptych.types import AnyBatch, Exponential, Losses, Progress, Term, TextBatch, Texts, TokenPositions, expect


@dataclass(frozen=True)
class MaskedTexts:
    """Texts with words hidden."""

    texts: Texts
    rows: TokenPositions
    """Where; `pair` counts the texts."""
    words: Int[Tensor, "R"]
    """Which words are hidden there."""


class LanguageStage(Task):
    """MLM with whole-word masking. Word scores are computed at the hidden words only.

    What texts alone do not reach never trains. That attention does not train either is the recipe's to say (`freeze`).
    """

    model: Vlmo
    config: LanguageStageConfig

    def __init__(self, model: Vlmo, config: LanguageStageConfig, special: SpecialIds) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.masking = WordMasking(config, special, model.config.vocab_size, model.config.max_positions)
        self._freeze_unreached()
        self.train()

    @classmethod
    def trained(cls, config: LanguageStageConfig) -> tuple[str, ...]:
        return "encode_text", "word_logits"

    def _freeze_unreached(self) -> None:
        """Images, their experts and attention, fusion, and every head but the words'."""
        config = self.model.config
        of_images = ("vision_ffn", *["attention"] * (config.attention == "separate"))
        blocks = (f"blocks.{number}.{part}" for number in range(config.depth) for part in of_images)
        self.model.freeze(("image", *self.model.parts_unused_by(*self.trained(self.config)), *blocks))

    def fresh_from(self, origin: Recipe) -> tuple[str, ...]:
        """What the stage before has not taught."""
        return untrained_parts(origin.task, self.model.config.depth)

    def mask(self, texts: Texts, progress: Progress, first_row: int = 0) -> MaskedTexts:
        """Hide words of texts that are rows `first_row` and on of the global batch, as a pure function of `progress`.

        Raises ValueError for texts longer than the model's positions.
        """
        ids, labels = self.masking(texts, self.masking.draw(len(texts), progress, first_row))
        return MaskedTexts(Texts(ids, texts.attention_mask, texts.rng_keys), *hidden_words(labels))

    def forward(self, batch: AnyBatch, progress: Progress, masked: MaskedTexts | None = None) -> Losses:
        texts = expect(batch, TextBatch, "texts without pictures").texts
        masked = masked or self.mask(texts, progress, Processes.meet(len(batch)).own.start)
        logits = self.word_logits(masked)
        loss = masked_lm_loss(logits, masked.words)  # VLMo §3.4
        with torch.no_grad():
            measures = {
                "mlm_accuracy": Term.over((logits.argmax(1) == masked.words).float()),
                "perplexity": Exponential(loss.sum.detach(), loss.count),
            }
        return Losses.weighted(measures=measures, mlm=(1.0, loss))

    def predict(self, batch: TextBatch, first_row: int = 0) -> tuple[MaskedTexts, Float[Tensor, "R V"]]:
        """Texts that are records `first_row` and on of a split, each with a mask that is always the same, and scores of
        each word at each hidden one."""
        masked = self.mask(batch.texts, Progress(0, 0.0), first_row)
        return masked, self.word_logits(masked)

    def word_logits(self, masked: MaskedTexts) -> Float[Tensor, "R V"]:
        """Scores of each word at each hidden one."""
        rows = self.model.encode_text(self.model.text_state(masked.texts), masked.rows)
        return self.model.word_logits(rows).float()
