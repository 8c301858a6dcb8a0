"""Fine-tuning for retrieval and entailment: what trains, what is right, what moves state; any model will do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych import catalog
from diptych.losses.distillation import class_loss
from diptych.nn.queue import NOBODY
from diptych.schema import EntailmentConfig, GroundingConfig, GroundingTrainingConfig, RetrievalConfig
from diptych.task import Model, Task
from diptych.tasks.entailment import CLASSES, Entailment
from diptych.tasks.retrieval import Retrieval
from diptych.types import Batch, Joint, LabelledBatch, OutputPositions, Progress, Term, Texts, expect
from tests import tiny

LATER = Progress(step=3, epoch=2.0, seed=5)
"""After the momentum encoder has been let in."""
TASKS: dict[str, Callable[..., Any]] = {"retrieval": tiny.retrieval, "entailment": tiny.entailment}
IDS = (10, 11, 10, 13)
"""Samples 0 and 2 are of one picture; picture 11 waits in the queue too."""


def batch(**changes: Any) -> LabelledBatch:
    return tiny.labelled(tiny.batch(**changes))


@pytest.fixture(params=TASKS)
def make(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return TASKS[request.param]


# --------------------------------------------------------------------------- both tasks


@pytest.mark.parametrize("alpha", [0.0, 0.4])
@pytest.mark.parametrize("system", tiny.MODELS, ids=str)
def test_exactly_what_the_loss_reaches_trains(make: Callable[..., Any], system: dict[str, Any], alpha: float) -> None:
    """So no trainable parameter is without a gradient, which data-parallel training would not bear."""
    task = make(model=system, alpha=alpha)
    task(batch(), LATER).total.backward()
    assert all((weight.grad is not None) == weight.requires_grad for weight in task.parameters())
    trainable = {name for name, weight in task.named_parameters() if weight.requires_grad}
    assert not [name for name in trainable if name.startswith("momentum_")]
    task.zero_grad()
    task.model.requires_grad_(True)
    task(batch(), LATER).total.backward()
    assert {name for name, weight in task.named_parameters() if weight.grad is not None} == trainable


def test_a_forward_changes_nothing_and_each_hook_only_its_own(make: Callable[..., Any]) -> None:
    task = make(model={"dropout": 0.1})

    def moved(change: Callable[[], object]) -> set[str]:
        before = {name: value.clone() for name, value in task.state_dict().items()}
        change()
        return {name.split(".")[0] for name, value in task.state_dict().items() if not torch.equal(value, before[name])}

    carry: list[Any] = []
    assert moved(lambda: carry.append(task(batch(), LATER).carry)) == set()
    assert moved(lambda: task.predict(batch())) == set()
    momentum_encoders = {name for name, _ in task.named_children() if name.startswith("momentum_")}
    assert moved(task.before_step) == momentum_encoders
    assert moved(lambda: task.after_step(carry[0])) == ({"queue"} if isinstance(task, Retrieval) else set())


def test_the_momentum_encoder_moves_by_its_momentum(make: Callable[..., Any]) -> None:
    task = make(momentum=0.9)
    student = dict(task.model.named_parameters())
    before = {name: weight.clone() for name, weight in task.momentum_encoder.named_parameters()}
    task.before_step()
    for name, weight in task.momentum_encoder.named_parameters():
        torch.testing.assert_close(weight, 0.9 * before[name] + 0.1 * student[name], msg=name)


@pytest.mark.parametrize("released", [False, True], ids=["repaired", "released"])
def test_the_momentum_encoder_has_dropout_only_as_released(make: Callable[..., Any], released: bool) -> None:
    task = make(model={"dropout": 0.5}, momentum_encoder_dropout=released)

    def asked() -> Tensor:
        if isinstance(task, Retrieval):
            return task.run(batch(), tiny.uniform(2, 4)).contrast.keys[1]
        return task.momentum_logits(batch())

    assert torch.equal(asked(), asked()) is not released
    task.eval()
    assert torch.equal(asked(), asked())


@pytest.mark.parametrize("system", tiny.MODELS, ids=str)
def test_no_result_depends_on_padding(make: Callable[..., Any], system: dict[str, Any]) -> None:
    task, narrow = make(model=system), batch()
    wide = replace(narrow, texts=tiny.padded(narrow.texts, tiny.POSITIONS))
    torch.testing.assert_close(task(wide, LATER).total, task(narrow, LATER).total, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(task.predict(wide), task.predict(narrow), rtol=1e-4, atol=1e-6)


def test_predictions_are_probabilities_that_batch_mates_do_not_change(make: Callable[..., Any]) -> None:
    task, whole = make().eval(), batch()
    found = task.predict(whole)
    assert ((found >= 0) & (found <= 1)).all()
    if found.ndim == 2:
        torch.testing.assert_close(found.sum(1), torch.ones(4))
    for index in range(4):
        one = slice(index, index + 1)
        texts = Texts(whole.texts.input_ids[one], whole.texts.attention_mask[one])
        alone = task.predict(Batch(whole.pixels[one], texts, whole.image_ids[one]))
        torch.testing.assert_close(alone, found[one], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ramp", [0.0, 2.0])
def test_alpha_rises_as_its_ramp_says(make: Callable[..., Any], ramp: float) -> None:
    task = make(alpha=0.4, alpha_ramp=ramp)
    measured = [task(batch(), Progress(0, epoch)).measures["alpha"].mean.item() for epoch in (0.0, 1.0, 3.0)]
    assert measured == pytest.approx([0.0, 0.2, 0.4] if ramp else [0.4] * 3)


def test_a_batch_is_learnt(make: Callable[..., Any]) -> None:
    """Ten steps of plain gradient descent: hooks and losses work together."""
    task, one = make(), batch()
    optimizer = torch.optim.AdamW([weight for weight in task.parameters() if weight.requires_grad], lr=3e-3)
    before = task(one, LATER).total.item()
    for _ in range(10):
        task.before_step()
        losses = task(one, LATER)
        losses.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        task.after_step(losses.carry)
    assert task(one, LATER).total.item() < 0.8 * before


# --------------------------------------------------------------------------- retrieval


def contrast_of(task: Retrieval) -> Any:
    return task.run(batch(ids=IDS), tiny.uniform(2, 4)).contrast


def test_every_caption_of_a_picture_is_right_in_batch_and_queue() -> None:
    task = tiny.retrieval()
    positives = contrast_of(task).positives
    expected = torch.eye(4, 7)
    expected[0, 2] = expected[2, 0] = expected[1, 5] = 1
    expected[:3] /= 2
    assert torch.equal(positives, expected)
    task.queue.ids.fill_(NOBODY)
    assert not contrast_of(task).same[:, 4:].any(), "entries from before carry no identity"


@pytest.mark.parametrize("after_softmax", [False, True])
def test_no_negative_is_of_the_same_picture(after_softmax: bool) -> None:
    task, same = tiny.retrieval(negatives_mask_after_softmax=after_softmax), torch.tensor(IDS)
    with torch.no_grad():
        for weights in task.negative_weights(contrast_of(task)):
            assert torch.equal(weights == 0, same[:, None] == same[None])
        for step in range(20):
            progress = replace(LATER, step=step)
            made = task.run(batch(ids=IDS), task.draw(batch(ids=IDS), progress))
            assert all((same[drawn] != same).all() for drawn in made.negatives)


def test_a_text_draws_its_image_and_an_image_its_text() -> None:
    task, uniform = tiny.retrieval(), tiny.uniform(2, 4, seed=3)
    made = task.run(batch(ids=IDS), uniform)
    both = made.contrast.logits.text_to_image, made.contrast.logits.image_to_text
    for logits, drawn, numbers in zip(both, made.negatives, uniform.tolist(), strict=True):
        for row, (own, number) in enumerate(zip(IDS, numbers, strict=True)):
            others = [column for column in range(4) if IDS[column] != own]
            odds = logits[row, others].softmax(0).cumsum(0).tolist()
            assert drawn[row] == next(column for column, upto in zip(others, odds, strict=True) if number < upto)


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_the_contrast_is_cross_entropy_to_labels_and_momentum_encoder(alpha: float) -> None:
    task = tiny.retrieval(alpha=alpha)
    contrast = contrast_of(task)
    losses = task(batch(ids=IDS), LATER)
    expected = 0.0
    for logits, momentum_encoder in (
        (contrast.logits.image_to_text, contrast.logits.momentum_image_to_text),
        (contrast.logits.text_to_image, contrast.logits.momentum_text_to_image),
    ):
        targets = (1 - alpha) * contrast.positives + alpha * momentum_encoder.softmax(1)
        expected += F.cross_entropy(logits, targets).item() / 2  # torch's own, with probabilities as targets
    assert losses.terms["itc"][1].mean.item() == pytest.approx(expected, rel=1e-5)


def test_keys_are_the_momentum_encoders_also_without_its_targets() -> None:
    task = tiny.retrieval(alpha=0.0)
    with torch.no_grad():
        before = task(batch(), LATER).terms["itc"][1].mean
        tiny.shake(task.momentum_encoder, 9)
        assert not torch.isclose(task(batch(), LATER).terms["itc"][1].mean, before)


def test_draws_are_a_function_of_seed_step_and_micro_batch_alone() -> None:
    task = tiny.retrieval()
    first = task.draw(batch(), LATER)
    torch.manual_seed(1)
    assert torch.equal(first, task.draw(batch(), replace(LATER, epoch=9.0)))
    for other in (replace(LATER, step=4), replace(LATER, seed=6)):
        assert not torch.equal(first, task.draw(batch(), other))


def test_a_batch_of_one_picture_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="pairs from at least two different pictures"):
        tiny.retrieval()(batch(ids=(7, 7, 7, 7)), LATER)


def test_without_a_queue_the_batch_is_all_there_is() -> None:
    task = tiny.retrieval(queue_size=0)
    losses = task(batch(), LATER)
    task.after_step(losses.carry)
    assert losses.total.isfinite()
    assert contrast_of(task).logits.image_to_text.shape == (4, 4)


# --------------------------------------------------------------------------- entailment


def test_without_distillation_there_is_no_momentum_encoder_and_plain_cross_entropy() -> None:
    task, one = tiny.entailment(alpha=0.0), batch()
    assert not [name for name in task.state_dict() if name.startswith("momentum_")]
    task.before_step()
    torch.testing.assert_close(task(one, LATER).total, F.cross_entropy(task.logits(one), one.labels))


def test_with_distillation_the_momentum_encoders_classes_count_by_alpha() -> None:
    task, one = tiny.entailment(alpha=0.3), batch()
    labels = 0.7 * F.one_hot(one.labels, len(CLASSES)) + 0.3 * task.momentum_logits(one).softmax(1)
    torch.testing.assert_close(task(one, LATER).total, F.cross_entropy(task.logits(one), labels))


def test_accuracy_is_the_share_of_right_answers() -> None:
    task, one = tiny.entailment(), batch()
    answers = task.predict(one).argmax(1)
    wrong_once = answers.clone()
    wrong_once[0] = (wrong_once[0] + 1) % len(CLASSES)
    for labels, share in ((answers, 1.0), (wrong_once, 0.75)):
        assert task(replace(one, labels=labels), LATER).measures["accuracy"].mean.item() == share


def test_pairs_without_labels_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"needs a label \(contradiction, neutral or entailment\).*data\.source"):
        tiny.entailment()(tiny.batch(), LATER)
    assert expect(batch(), LabelledBatch, "labels").labels.tolist() == [0, 2, 1, 2]


@pytest.mark.parametrize("cut", [(12,), (1, 11), (5, 0, 7)], ids=str)
@pytest.mark.parametrize("alpha", [None, 0.4])
def test_class_losses_add_up_over_any_cut(cut: Sequence[int], alpha: float | None) -> None:
    logits, momentum_encoder, labels = tiny.uniform(12, 3) * 4, tiny.uniform(12, 3, seed=1) * 4, torch.arange(12) % 3

    def loss(ours: Tensor, theirs: Tensor, answers: Tensor) -> Term:
        return class_loss(ours, answers) if alpha is None else class_loss(ours, answers, theirs, alpha)

    whole = loss(logits, momentum_encoder, labels)
    parts = [loss(*piece) for piece in zip(*(x.split(cut) for x in (logits, momentum_encoder, labels)), strict=True)]
    torch.testing.assert_close(torch.stack([part.sum for part in parts]).sum(), whole.sum)
    assert sum(part.count.item() for part in parts) == whole.count.item() == 12


# --------------------------------------------------------------------------- retrieval as dual encoder

ALONE: dict[str, Any] = {"keys": "batch", "queue_size": 0, "alpha": 0.0}


@pytest.mark.parametrize("system", tiny.MODELS, ids=str)
def test_a_dual_encoder_contrasts_its_own_batch_and_fuses_nothing(
    system: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    task, one = tiny.retrieval(model=system, itm=0.0, **ALONE), batch(ids=IDS)
    model = task.model
    monkeypatch.setattr(model, "fuse", None)
    image, text = model.embed_image(model.image_state(one.pixels)), model.embed_text(model.text_state(one.texts))
    logits = image["main"] @ text["main"].T / model.temperature()
    same = torch.tensor(IDS)[:, None] == torch.tensor(IDS)
    right = same / same.sum(1, keepdim=True)
    losses = task(one, LATER)
    torch.testing.assert_close(losses.total, (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2)
    assert set(losses.terms) == {"itc"}
    assert losses.carry is None
    assert task.momentum_encoder is None
    losses.total.backward()
    assert all((weight.grad is not None) == weight.requires_grad for weight in task.parameters())
    frozen = {name for name, weight in task.named_parameters() if not weight.requires_grad}
    assert {f"model.{part}.weight" for part in ("match_head", "word_head.dense")} <= frozen


@pytest.mark.parametrize("system", tiny.MODELS, ids=str)
@pytest.mark.parametrize("left_out", ["itc", "itm"])
def test_a_term_of_weight_0_trains_nothing_and_the_other_is_as_before(system: dict[str, Any], left_out: str) -> None:
    """Negatives are drawn by the same similarities, whether these learn or not."""
    both, one = tiny.retrieval(model=system, itc=2.0, itm=0.5, **ALONE), batch()
    alone = tiny.retrieval(model=system, **{left_out: 0.0}, **ALONE)
    whole, part = both(one, LATER), alone(one, LATER)
    assert [weight for weight, _ in whole.terms.values()] == [2.0, 0.5]
    assert set(part.terms) == {"itc", "itm"} - {left_out}
    for name, (_, term) in part.terms.items():
        torch.testing.assert_close(term.mean, whole.terms[name][1].mean)
    part.total.backward()
    assert all((weight.grad is not None) == weight.requires_grad for weight in alone.parameters())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (RetrievalConfig(itc=0.0, itm=0.0), "both 0"),
        (RetrievalConfig(keys="batch", queue_size=0), r"set task\.alpha=0 and task\.queue_size=0"),
        (RetrievalConfig(keys="batch", alpha=0.0), r"set task\.alpha=0 and task\.queue_size=0"),
        (GroundingTrainingConfig(itm=0.0), r"task\.boxes\.mode=itm asks what task\.itm=0 does not train"),
        (GroundingTrainingConfig(itc=0.0, boxes=GroundingConfig(mode="itc")), r"asks what task\.itc=0 does not"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_with_the_way_out(
    config: RetrievalConfig, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        catalog.task_class(config)(tiny.albef(), config)


# --------------------------------------------------------------------------- any model


class Bags(Model):
    """The smallest model that keeps the contract: means of pixels and words, fused by a product."""

    embed_dim, vocab_size = 4, tiny.VOCABULARY
    call_parts = {  # noqa: RUF012
        "embed_image": ("image_proj",),
        "embed_text": ("text_proj",),
        "temperature": ("scale",),
        "match_logits": ("match",),
        "word_logits": ("words_out",),
    }

    def __init__(self) -> None:
        super().__init__()
        self.pixels, self.words = nn.Linear(3, 6), nn.Embedding(tiny.VOCABULARY, 6)
        self.image_proj, self.text_proj = nn.Linear(6, 4), nn.Linear(6, 4)
        self.match, self.words_out = nn.Linear(6, 2), nn.Linear(6, tiny.VOCABULARY)
        self.scale = nn.Parameter(torch.tensor(0.1))

    def image_state(self, pixels: Tensor, maps: Sequence[int] = (), rng_keys: Tensor | None = None) -> Tensor:
        return self.pixels(pixels.mean((2, 3)))

    def text_state(self, texts: Texts) -> Tensor:
        mask = texts.attention_mask[..., None]
        return (self.words(texts.input_ids) * mask).sum(1) / mask.sum(1)

    def embed_image(self, state: Tensor, branches: Sequence[str] = ("main",)) -> dict[str, Tensor]:
        return {"main": F.normalize(self.image_proj(state), dim=-1)}

    def embed_text(self, state: Tensor, branches: Sequence[str] = ("main",)) -> dict[str, Tensor]:
        return {"main": F.normalize(self.text_proj(state), dim=-1)}

    def temperature(self, branch: str = "main") -> Tensor:
        return self.scale

    def fuse(
        self, texts: Tensor, images: Tensor, text_index: Tensor, image_index: Tensor, positions: OutputPositions = None,
        maps: Sequence[int] = (),
    ) -> Joint:  # fmt: skip
        return Joint(texts[text_index] * images[image_index], None)

    def match_logits(self, joint: Joint) -> Tensor:
        return self.match(joint.pooled)

    def word_logits(self, rows: Tensor) -> Tensor:
        return self.words_out(rows)

    def joint_width(self, images: int = 1) -> int:
        return 6 * images


@pytest.mark.parametrize("config", [RetrievalConfig(queue_size=5), EntailmentConfig()], ids=["retrieval", "entailment"])
def test_a_task_needs_no_more_of_a_model_than_the_contract(config: RetrievalConfig | EntailmentConfig) -> None:
    task: Task = catalog.TASKS[type(config)](Bags(), config, tiny.SPECIAL)
    assert isinstance(task, Retrieval | Entailment)
    task.before_step()
    losses = task(batch(), LATER)
    losses.total.backward()
    task.after_step(losses.carry)
    assert all((weight.grad is not None) == weight.requires_grad for weight in task.parameters())
    assert task.predict(batch()).isfinite().all()
