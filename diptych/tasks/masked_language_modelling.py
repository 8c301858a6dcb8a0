"""Trains VLMo's second stage: masked language modelling on texts alone (VLMo §3.4).

Attention and V-FFNs, learnt from images in the first stage, are frozen by the recipe (`freeze`); the stage trains the
L-FFNs, the text embeddings and the word head.

B texts, L padded length, R masked tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diptych.data.loader import EvaluationBatch
from diptych.data.record import PlainText
from diptych.data.tokenizer import Tokenizer
from diptych.facts import TaskReport
from diptych.losses.masked_lm import WordMasking, masked_lm_loss, masked_tokens
from diptych.metrics.accuracy import estimate
from diptych.metrics.task_evaluation import MAIN, Decision, TaskEvaluation, check_finite
from diptych.models.vlmo import Vlmo
from diptych.models.vlmo_weights import untrained_parts
from diptych.nn.gather import Processes
from diptych.schema import LanguageStageConfig, Recipe, Released, SpecialIds
from diptych.task import Task
from diptych.types import AnyBatch, Exponential, Losses, Progress, Term, TextBatch, Texts, TokenPositions, expect


@dataclass(frozen=True)
class MaskedTexts:
    """Holds texts with words masked."""

    texts: Texts
    rows: TokenPositions
    """Where tokens are masked; `pair` counts the texts."""
    words: Int[Tensor, "R"]
    """The ids of the tokens that are masked there."""


class LanguageStage(Task):
    """Trains MLM with whole-word masking on texts alone. Parts of the model that no text reaches are frozen."""

    record = PlainText
    headed = False
    report = TaskReport(
        title="Masked language modelling",
        measure="Masked-word accuracy",
        how="Which word stands at each masked place? Every text has its own mask, always the same.",
        figures={"perplexity": "Perplexity of a masked word"},
    )

    model: Vlmo
    config: LanguageStageConfig

    def __init__(
        self, model: Vlmo, config: LanguageStageConfig, special: SpecialIds, released: Released = Released()
    ) -> None:
        """Freezes what texts alone do not reach: images, V-FFNs, fusion, and every head but the word head."""
        super().__init__()
        self.model, self.config, self.released = model, config, released
        sizes = (model.config.vocab_size, model.config.max_positions)
        self.masking = WordMasking(config, special, *sizes, released.masking_of_padding)
        of_images = ("vision_ffn", *["attention"] * (model.config.attention == "separate"))
        blocks = (f"blocks.{number}.{part}" for number in range(model.config.depth) for part in of_images)
        model.freeze(("image", *model.parts_unused_by(*self.trained(config)), *blocks))
        self.train()

    def forward(self, batch: AnyBatch, progress: Progress, masked: MaskedTexts | None = None) -> Losses:
        """Computes MLM of a batch of texts (VLMo §3.4). `masked` replaces the masks drawn from seed and step."""
        texts = expect(batch, TextBatch, "texts without pictures").texts
        masked = masked or self.mask(texts, progress, Processes.meet(len(batch)).own.start)
        logits = self.word_logits(masked)  # scores of each word at the masked tokens only [R, V]
        loss = masked_lm_loss(logits, masked.words)  # VLMo §3.4
        with torch.no_grad():
            measures = {
                "mlm_accuracy": Term.over((logits.argmax(1) == masked.words).float()),
                "perplexity": Exponential(loss.sum.detach(), loss.count),
            }
        return Losses.weighted(measures=measures, mlm=(1.0, loss))

    def mask(self, texts: Texts, progress: Progress, first_row: int = 0) -> MaskedTexts:
        """Masks words of texts that are rows `first_row` and following of the global batch.

        The masks are a pure function of seed, step and row. Raises ValueError for texts longer than the model's
        positions.
        """
        ids, labels = self.masking(texts, self.masking.draw(len(texts), progress, first_row))
        return MaskedTexts(Texts(ids, texts.attention_mask, texts.rng_keys), *masked_tokens(labels))

    def word_logits(self, masked: MaskedTexts) -> Float[Tensor, "R V"]:
        """Computes the scores of each word at the masked tokens, by attention and L-FFNs alone."""
        hidden = self.model.encode_text(self.model.text_state(masked.texts), masked.rows)  # [R, D]
        return self.model.word_logits(hidden).float()

    def predict(self, batch: TextBatch, first_row: int = 0) -> tuple[MaskedTexts, Float[Tensor, "R V"]]:
        """Masks texts that are records `first_row` and following of a split, and scores each word at the masked tokens.

        The mask of a record is always the same.
        """
        masked = self.mask(batch.texts, Progress(0, 0.0), first_row)
        return masked, self.word_logits(masked)

    @classmethod
    def trained(cls, config: LanguageStageConfig) -> tuple[str, ...]:
        """Names the calls of the model that train."""
        return "encode_text", "word_logits"

    def fresh_from(self, origin: Recipe) -> tuple[str, ...]:
        """Names the parts that the stage before has not trained."""
        return untrained_parts(origin.task, self.model.config.depth)

    def evaluate(self, batches: Iterable[EvaluationBatch], tokenizer: Tokenizer, resamples: int) -> TaskEvaluation:
        """Measures how often the likeliest word is the masked one, and the perplexity of the masked words.

        The words of one text are resampled together.
        """
        decisions: list[Decision] = []
        owners: list[str] = []
        right, hits, surprise = [], [], []
        for chunk in batches:
            masked, logits = self.predict(chunk.batch, len(decisions))
            records = [chunk.records[row] for row in masked.rows.pair.tolist()]
            log_probability = check_finite(logits, records).log_softmax(1)
            best = log_probability.max(dim=1)
            right.append(masked.words.cpu())
            hits.append((best.indices == masked.words).cpu())
            surprise.append(-log_probability.gather(1, masked.words[:, None])[:, 0].double().cpu())
            owners += [record.id for record in records]
            decisions += _decisions(chunk, masked, best.indices, best.values.exp(), tokenizer)
        words = torch.cat(right)
        if not len(words):
            raise ValueError("nothing to measure: no text of the split has a word that can be masked")
        accuracy, commonest = (
            estimate(values.double().numpy(), owners, resamples)
            for values in (torch.cat(hits), words == words.bincount().argmax())
        )
        figures = {"perplexity": torch.cat(surprise).mean().exp().item()}
        return TaskEvaluation({MAIN: accuracy}, {"commonest": commonest}, decisions=tuple(decisions), figures=figures)


def _decisions(
    chunk: EvaluationBatch,
    masked: MaskedTexts,
    guessed: Int[Tensor, "R"],
    probability: Float[Tensor, "R"],
    tokenizer: Tokenizer,
) -> Iterator[Decision]:
    """Gives the words guessed for each text, their mean probability, and the share of them that is right."""
    ids = chunk.batch.texts.input_ids.clone()
    ids[masked.rows.pair, masked.rows.position] = tokenizer.mask_id
    for row, record in enumerate(chunk.records):
        here = masked.rows.pair == row
        words, right = guessed[here].tolist(), masked.words[here].tolist()
        score = sum(a == b for a, b in zip(words, right, strict=True)) / len(right) if right else None
        mean = probability[here].mean().item() if right else None
        said, truth = (" ".join(map(tokenizer.token, each)) for each in (words, right))
        yield Decision(record.id, said, mean, truth, score, shown=tokenizer.decode(ids[row].tolist()))
