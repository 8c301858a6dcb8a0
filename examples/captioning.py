"""A sixth task, captioning, for either model: a configuration, a task, and one line that makes them known.

python examples/captioning.py runs/demo
python examples/captioning.py runs/demo-vlmo data.source=folder data.path=photos

Trains it from a pre-trained run, once on the pictures and once on blank ones, and prints both beside some captions.
Any field of the recipe can be set: run.steps=3000 task.longest=30.

The model fuses the picture with a text in which every word is masked; a decoder reads the fused states and writes the
caption. The facts at the head of the task give a trained model the method `caption(picture)`, the server the endpoint
`POST /v1/caption`, and the report its page.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from diptych import load
from diptych.catalog import add_task
from diptych.data.loader import EvaluationBatch
from diptych.data.record import Picture, Record
from diptych.data.tokenizer import Tokenizer
from diptych.facts import Ability, TaskReport
from diptych.metrics.accuracy import estimate
from diptych.metrics.task_evaluation import MAIN, Decision, TaskEvaluation
from diptych.nn.decoder import AnswerDecoder, QuestionStates
from diptych.nn.packed import PackedSequences
from diptych.recipes.override import override, parse_assignments
from diptych.run import evaluate, train
from diptych.schema import AddedTaskConfig, DecoderConfig, Recipe, SpecialIds
from diptych.task import Model, Task
from diptych.types import Batch, Losses, PictureBatch, Progress, Term, Texts


@dataclass(frozen=True)
class CaptioningConfig(AddedTaskConfig):
    decoder: DecoderConfig = field(default_factory=lambda: DecoderConfig(2, 4, 512, norm="pre", dropout=0.0))
    longest: int = 20
    """The most word pieces of a caption; so many are masked in the text with which the picture is fused."""


CAPTION = Ability(
    "caption", "captions", 'model.caption("a.jpg")   # a sentence', description="A caption of a picture.", result=str,
    record=lambda text: Picture("picture", None, ""),
)  # fmt: skip


class Captioning(Task):
    """Learns P(caption | picture), word by word."""

    record = Record
    abilities = (CAPTION,)
    report = TaskReport("Captioning", "Words right", "Which word comes next in a picture's caption?", "next words")

    def __init__(self, model: Model, config: CaptioningConfig, special: SpecialIds) -> None:
        super().__init__()
        model.freeze(model.parts_unused_by("fuse"))  # what no loss reaches
        self.model, self.config, self.special = model, config, special
        self.head = AnswerDecoder(config.decoder, model.vocab_size, special.pad, model.joint_width())

    @classmethod
    def trained(cls, config: CaptioningConfig) -> tuple[str, ...]:
        return "fuse", "all_tokens"

    def adapt(self, state: Mapping[str, Tensor], origin: Recipe) -> dict[str, Tensor]:
        """Starts the decoder from the weights of the pre-trained model that fit."""
        return self.decoder_start(state) | super().adapt(state, origin)

    def read(self, batch: Batch | PictureBatch, rng_keys: Tensor | None = None) -> QuestionStates:
        """Fuses each picture with [CLS] [MASK] … [MASK]: the states that the decoder reads."""
        ids = torch.full((len(batch), 1 + self.config.longest), self.special.mask, device=batch.pixels.device)
        ids[:, 0] = self.special.cls
        texts = self.model.text_state(Texts(ids, torch.ones_like(ids, dtype=torch.bool), rng_keys))
        here = torch.arange(len(batch), device=ids.device)
        joint = self.model.fuse(texts, self.model.image_state(batch.pixels, rng_keys=batch.rng_keys), here, here, "all")
        return QuestionStates(joint.hidden, joint.mask)

    def word_logits(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Computes the scores of each caption's next words [R, V], those words [R], and the caption of each [R]."""
        ids, mask, rng_keys = batch.texts.input_ids, batch.texts.attention_mask, batch.texts.rng_keys
        following = nn.functional.pad(ids[:, 1:], (0, 1)).scatter(1, mask.sum(1, keepdim=True) - 1, self.special.sep)
        packed, here = PackedSequences(mask.sum(1), rng_keys), torch.arange(len(batch), device=ids.device)
        rows, _ = self.head(ids[mask], packed, self.read(batch, rng_keys), here)
        return self.head.word_logits(rows), following[mask], packed.sequence_ids

    def forward(self, batch: Batch, progress: Progress) -> Losses:
        logits, words, _ = self.word_logits(batch)
        right = Term.over((logits.detach().argmax(1) == words).float())
        loss = Term.over(nn.functional.cross_entropy(logits, words, reduction="none"))
        return Losses.weighted(measures={"word_accuracy": right}, caption=(1.0, loss))

    @torch.no_grad()
    def predict(self, batch: Batch) -> Tensor:
        """Writes the likeliest word after each: ids [B, at most longest], with [SEP] after the last word."""
        read, memory, sep = self.read(batch), (), self.special.sep
        here = torch.arange(len(read), device=batch.pixels.device)
        words = [torch.full_like(here, self.special.cls)]
        for _ in range(self.config.longest):
            rows, memory = self.head(words[-1], PackedSequences(torch.ones_like(here)), read, here, memory)
            words.append(self.head.word_logits(rows).argmax(1).masked_fill(words[-1] == sep, sep))
        return torch.stack(words[1:], 1)

    def responder(self, tokenizer: Tokenizer, **options: object) -> Callable[[Batch], list[str]]:
        """Answers `caption`: one text for each picture."""
        return lambda batch: [tokenizer.decode(ids) for ids in self.predict(batch).tolist()]

    def evaluate(self, batches: Iterable[EvaluationBatch], tokenizer: Tokenizer, resamples: int) -> TaskEvaluation:
        """Measures how many next words are right, given those before; the predictions are whole captions."""
        decisions, caption = [], self.responder(tokenizer)
        for chunk in batches:
            logits, words, owner = self.word_logits(chunk.batch)
            right = torch.bincount(owner, (logits.argmax(1) == words).double()) / torch.bincount(owner)
            for record, text, share in zip(chunk.records, caption(chunk.batch), right.tolist(), strict=True):
                decisions.append(Decision(record.id, text, None, record.captions[0], share))
        score = estimate(torch.tensor([decision.score for decision in decisions]).numpy(), resamples=resamples)
        return TaskEvaluation({MAIN: score}, decisions=tuple(decisions))


add_task(CaptioningConfig, Captioning)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a pre-trained run")
    parser.add_argument("--to", type=Path, default=Path("runs/captioning"), help="a new folder")
    args, changes = parser.parse_known_args(arguments)
    recipe = replace(load(args.run).recipe, name="captioning", task=CaptioningConfig(), init_from=args.run, freeze=())
    recipe = override(recipe, {"run.steps": 1200, "schedule.warmup_steps": 100} | parse_assignments(changes))
    for name, blank in (("pictures", False), ("blank pictures", True)):
        seen = replace(recipe, data=replace(recipe.data, blank_images=blank))
        result = evaluate(train(seen, args.to / name.replace(" ", "-"))).result
        low, high = result.scores[MAIN].interval
        print(f"\n{name}: {result.scores[MAIN].value:.1f} % of next words right ({low:.1f} to {high:.1f})")
        for decision in result.decisions[:3]:
            print(f"  said: {decision.said}\n  text: {decision.right}")


if __name__ == "__main__":
    main()
