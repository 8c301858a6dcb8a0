"""A sixth task, captioning, for either model: a config, a task, a judge, and three lines that make them known.

python examples/captioning.py runs/demo
python examples/captioning.py runs/demo-vlmo data.source=folder data.path=photos

Trains it from a pre-trained run, once on the pictures and once on blank ones, and prints both beside some captions.
Any field of the recipe can be set: run.steps=3000 task.longest=30.
The model is asked to fuse the picture with a text of which every word is hidden; a decoder reads what it makes of them.
"""

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from diptych import load
from diptych import run as pipeline
from diptych.catalog import TASKS
from diptych.data.loader import EvaluationBatch
from diptych.data.tokenizer import Tokenizer
from diptych.evaluate.tasks import JUDGES
from diptych.metrics.accuracy import estimate
from diptych.metrics.task_evaluation import MAIN, Decision, TaskResult
from diptych.nn import decoder
from diptych.nn.packed import PackedSequences
from diptych.recipes.override import override, parse_assignments
from diptych.schema import AddedTaskConfig, DecoderConfig, Recipe, SpecialIds
from diptych.serialize import ADDED
from diptych.task import Model, Task
from diptych.types import Batch, Losses, Progress, Term, Texts


@dataclass(frozen=True)
class CaptioningConfig(AddedTaskConfig):
    decoder: DecoderConfig = field(default_factory=lambda: DecoderConfig(2, 4, 512, norm="pre", dropout=0.0))
    longest: int = 20
    """Word pieces of a caption at most; so many are hidden in the text that the picture is fused with."""


class Captioning(Task):
    """P(caption | picture), word by word."""

    def __init__(self, model: Model, config: CaptioningConfig, special: SpecialIds) -> None:
        super().__init__()
        model.freeze(model.parts_unused_by("fuse"))  # what no loss reaches
        words = model.word_logits(torch.zeros(1, model.joint_width())).shape[1]
        self.model, self.config, self.special = model, config, special
        self.head = decoder.AnswerDecoder(config.decoder, words, special.pad, model.joint_width())

    @classmethod
    def trained(cls, config: CaptioningConfig) -> tuple[str, ...]:
        return "fuse", "all_tokens"

    def adapt(self, state: Mapping[str, Tensor], origin: Recipe) -> dict[str, Tensor]:
        """The decoder starts with what a pre-trained model has for it."""
        own, start = self.state_dict(), self.model.decoder_start(state)
        fits = {name: value for name, value in start.items() if name in own and own[name].shape == value.shape}
        return fits | super().adapt(state, origin)

    def read(self, batch: Batch) -> decoder.QuestionStates:
        """What the decoder reads of each picture."""
        ids = torch.full((len(batch), 1 + self.config.longest), self.special.mask, device=batch.pixels.device)
        ids[:, 0] = self.special.cls
        hidden = self.model.text_state(Texts(ids, torch.ones_like(ids, dtype=torch.bool), batch.texts.rng_keys))
        here = torch.arange(len(batch), device=ids.device)
        joint = self.model.fuse(
            hidden, self.model.image_state(batch.pixels, rng_keys=batch.rng_keys), here, here, positions="all"
        )
        return decoder.QuestionStates(joint.hidden, joint.mask)

    def word_logits(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Scores of each caption's next words, those words, and which caption each is of."""
        ids, mask = batch.texts.input_ids, batch.texts.attention_mask
        ends = mask.sum(1, keepdim=True) - 1
        following = F.pad(ids[:, 1:], (0, 1)).scatter(1, ends, self.special.sep)
        packed = PackedSequences(mask.sum(1), batch.texts.rng_keys)
        rows, _ = self.head(ids[mask], packed, self.read(batch), torch.arange(len(batch), device=ids.device))
        return self.head.word_logits(rows), following[mask], packed.sequence_ids

    def forward(self, batch: Batch, progress: Progress) -> Losses:
        logits, words, _ = self.word_logits(batch)
        right = Term.over((logits.detach().argmax(1) == words).float())
        loss = Term.over(F.cross_entropy(logits, words, reduction="none"))
        return Losses.weighted(measures={"word_accuracy": right}, caption=(1.0, loss))

    @torch.no_grad()
    def predict(self, batch: Batch) -> Tensor:
        """The likeliest word after each: ids [B, at most longest], [SEP] behind a caption's last."""
        read, memory = self.read(batch), ()
        here = torch.arange(len(read), device=batch.pixels.device)
        found = [torch.full_like(here, self.special.cls)]
        for _ in range(self.config.longest):
            rows, memory = self.head(found[-1], PackedSequences(torch.ones_like(here)), read, here, memory)
            ended = found[-1] == self.special.sep
            found.append(self.head.word_logits(rows).argmax(1).masked_fill(ended, self.special.sep))
        return torch.stack(found[1:], 1)


def judge(task: Captioning, asked: Iterable[EvaluationBatch], tokenizer: Tokenizer, resamples: int) -> TaskResult:
    """How many next words are right, where those before are given; and a caption of each picture."""
    decisions: list[Decision] = []
    for one in asked:
        logits, words, owner = task.word_logits(one.batch)
        right = torch.bincount(owner, (logits.argmax(1) == words).double()) / torch.bincount(owner)
        said = [tokenizer.decode(ids) for ids in task.predict(one.batch).tolist()]
        for record, caption, share in zip(one.records, said, right.tolist(), strict=True):
            decisions.append(Decision(record.id, caption, None, record.captions[0], share))
    score = estimate(torch.tensor([one.score for one in decisions]).numpy(), resamples=resamples)
    return TaskResult({MAIN: score}, decisions=tuple(decisions))


TASKS[CaptioningConfig] = Captioning  # what builds it
JUDGES[CaptioningConfig] = judge  # what measures it
ADDED["CaptioningConfig"] = CaptioningConfig  # what reads it from a stored recipe


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a pre-trained run")
    parser.add_argument("--to", type=Path, default=Path("runs/captioning"), help="a new folder")
    given, changes = parser.parse_known_args(arguments)
    recipe = load(given.run).recipe
    recipe = replace(recipe, name="captioning", task=CaptioningConfig(), init_from=str(given.run), freeze=())
    usual = {"run.steps": 1200, "schedule.warmup_steps": 100}
    recipe = override(recipe, usual | parse_assignments(changes))
    for name, blank in (("pictures", False), ("blank pictures", True)):
        seen = replace(recipe, data=replace(recipe.data, blank_images=blank))
        found = pipeline.evaluate(pipeline.train(seen, given.to / name.replace(" ", "-"))).result
        score, between = found.scores[MAIN].value, "{:.1f} to {:.1f}".format(*found.scores[MAIN].interval)
        print(f"\n{name}: {score:.1f} % of next words right ({between})")
        for one in found.decisions[:3]:
            print(f"  said: {one.said}\n  text: {one.right}")


if __name__ == "__main__":
    main()
