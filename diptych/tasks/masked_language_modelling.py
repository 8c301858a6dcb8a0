"""VLMo's second stage: masked language modelling on texts alone (§3.4).

B texts, L padded length, R hidden words, V vocabulary.
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
from diptych.losses.masked_lm import WordMasking, hidden_words, masked_lm_loss
from diptych.metrics.accuracy import estimate
from diptych.metrics.task_evaluation import MAIN, Decision, TaskEvaluation, check_finite
from diptych.models.vlmo import Vlmo
from diptych.models.vlmo_weights import untrained_parts
from diptych.nn.gather import Processes
from diptych.schema import LanguageStageConfig, Recipe, SpecialIds
from diptych.task import Task
from diptych.types import AnyBatch, Exponential, Losses, Progress, RowList, Term, TextBatch, Texts, expect


@dataclass(frozen=True)
class MaskedTexts:
    """Texts with words hidden."""

    texts: Texts
    rows: RowList
    """Where; `pair` counts the texts."""
    words: Int[Tensor, "R"]
    """Which words are hidden there."""


class LanguageStage(Task):
    """MLM with whole-word masking. Word scores are computed at the hidden words only.

    What texts alone do not reach never trains. That attention does not train either is the recipe's to say (`freeze`).
    """

    record = PlainText
    headed = False
    report = TaskReport(
        title="Masked language modelling",
        measure="Masked-word accuracy",
        how="Which word stands at each hidden place? Every text has its own mask, always the same.",
        figures={"perplexity": "Perplexity of a hidden word"},
    )

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
        of_images = ("experts.image", *["attention"] * (config.attention == "separate"))
        blocks = (f"blocks.{number}.{part}" for number in range(config.depth) for part in of_images)
        self.model.freeze(("image", *self.model.unused(*self.trained(self.config)), *blocks))

    def fresh_from(self, origin: Recipe) -> tuple[str, ...]:
        """What the stage before has not taught."""
        return untrained_parts(origin.task, self.model.config.depth)

    def mask(self, texts: Texts, progress: Progress, first_row: int = 0) -> MaskedTexts:
        """Hide words of texts that are rows `first_row` and on of the global batch, as a pure function of `progress`.

        Raises ValueError for texts longer than the model's positions.
        """
        ids, labels = self.masking(texts, self.masking.draw(len(texts), progress, first_row))
        return MaskedTexts(Texts(ids, texts.attention_mask, texts.keys), *hidden_words(labels))

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
            raise ValueError("nothing to measure: no text of the split has a word that can be hidden")
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
