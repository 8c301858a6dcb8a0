"""A small ALBEF, a small VLMo, small batches and random numbers for tests that need a whole model, none of its size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from diptych.models.albef import Albef
from diptych.models.vlmo import Vlmo
from diptych.recipes.vlmo_stages import frozen_attention
from diptych.schema import (
    AlbefConfig,
    AlbefPretrainConfig,
    DecoderConfig,
    EntailmentConfig,
    LanguageStageConfig,
    Nlvr2Config,
    Released,
    RetrievalConfig,
    SpecialIds,
    TextAssignmentConfig,
    TextConfig,
    VisionConfig,
    VlmoConfig,
    VlmoPretrainConfig,
    VqaClosedSetConfig,
    VqaDecoderConfig,
)
from diptych.tasks.albef_pretraining import AlbefPretraining
from diptych.tasks.entailment import Entailment
from diptych.tasks.masked_language_modelling import LanguageStage
from diptych.tasks.nlvr2 import Nlvr2, TextAssignment
from diptych.tasks.retrieval import Retrieval
from diptych.tasks.vlmo_pretraining import VlmoPretraining
from diptych.tasks.vqa import VqaClosedSet, VqaDecoding
from diptych.train.freeze import freeze
from diptych.types import (
    KNOWN,
    NO_CLAIM,
    SAID,
    Batch,
    Claims,
    LabelledBatch,
    LabelledPicturePairs,
    QuestionBatch,
    Texts,
)

SPECIAL = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4, continuing=(30, 31, 32, 33, 34, 35, 36, 37, 38, 39))
SIDE, PATCHES, VOCABULARY, POSITIONS = 16, 16, 40, 12

VISION = VisionConfig(image_size=SIDE, patch_size=4, width=16, depth=2, heads=2)
TEXT = TextConfig(
    vocab_size=VOCABULARY, width=24, layers=4, fusion_start=2, heads=3, intermediate=32, max_positions=POSITIONS,
    dropout=0.0,
)  # fmt: skip
DECODER = DecoderConfig(layers=2, heads=3, intermediate=32, max_positions=POSITIONS, dropout=0.0)
ANSWERS = ("yes", "no", "two", "red")
VLMO = VlmoConfig(
    image_size=SIDE, patch_size=4, width=24, depth=4, heads=3, mlp_ratio=2.0, fusion_start=2, max_positions=POSITIONS,
    vocab_size=VOCABULARY, drop_path=0.0, dropout=0.0,
)  # fmt: skip
VARIANTS = [("post", "patch"), ("pre", "conv")]
"""Places of the norms, kinds of stem."""
MODELS: list[dict[str, Any]] = [
    *({"norm": norm, "stem": stem} for norm, stem in VARIANTS),
    {"system": "vlmo"},
    {"system": "vlmo", "positions": "absolute", "layer_scale": None, "stem": "conv"},
    {"system": "vlmo", "experts": "one", "attention": "separate"},
]
"""Both systems in their variants, as `any_model` takes them."""


def albef_config(norm: str = "post", stem: str = "patch", images_per_text: int = 1, **text: Any) -> AlbefConfig:
    """Image width, text width and embedding width all differ, so that no mix-up fits."""
    vision = replace(VISION, stem=stem)
    return AlbefConfig(vision, replace(TEXT, norm=norm, **text), embed_dim=8, images_per_text=images_per_text)


TEMPERATURES = ("temp", "log_scale")
"""Parameters that stay as they are set."""


def shake(module: nn.Module, seed: int = 0) -> None:
    """Biases off 0 and norms off 1: what a zero would hide shows."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if not name.endswith(TEMPERATURES):
                weight.add_(torch.randn(weight.shape, generator=noise), alpha=0.1)


def configured(config: Any, changes: dict[str, Any]) -> tuple[Any, Released]:
    """The config with the changes of its own fields, and the changes of `Released`."""
    flags = {name: value for name, value in changes.items() if name in Released.__dataclass_fields__}
    return replace(config, **{name: changes[name] for name in changes if name not in flags}), Released(**flags)


def albef(seed: int = 0, keep_padding: bool = False, **changes: Any) -> Albef:
    torch.manual_seed(seed)
    model = Albef(albef_config(**changes))
    model.keep_padding = keep_padding
    shake(model, seed)
    return model.eval()


def vlmo(seed: int = 0, **changes: Any) -> Vlmo:
    torch.manual_seed(seed)
    model = Vlmo(replace(VLMO, **changes))
    shake(model, seed)
    return model.eval()


def any_model(seed: int = 0, system: str = "albef", **changes: Any) -> Albef | Vlmo:
    return vlmo(seed, **changes) if system == "vlmo" else albef(seed, **changes)


def vlmo_pretraining(seed: int = 0, model: dict[str, Any] | None = None, **changes: Any) -> VlmoPretraining:
    config, released = configured(VlmoPretrainConfig(mask_probability=0.4), changes)
    return VlmoPretraining(vlmo(seed, **(model or {})), config, SPECIAL, released)


def language_stage(seed: int = 0, model: dict[str, Any] | None = None, **changes: Any) -> LanguageStage:
    """Frozen as recipes do it."""
    config, released = configured(LanguageStageConfig(), changes)
    task = LanguageStage(vlmo(seed, **(model or {})), config, SPECIAL, released)
    freeze(task, frozen_attention(task.model.config))
    return task


def pretraining(seed: int = 0, model: dict[str, Any] | None = None, **changes: Any) -> AlbefPretraining:
    """A task whose momentum_encoder is not the student, and whose queue is half full."""
    config, released = configured(AlbefPretrainConfig(queue_size=6, mask_probability=0.4), changes)
    task = AlbefPretraining(albef(seed, **(model or {})), config, SPECIAL, released)
    shake(task.momentum_encoder, seed + 1)
    if config.queue_size:
        image, text = nn.functional.normalize(uniform(2, 3, 8, seed=seed) - 0.5, dim=-1)
        queued = claims([[1], [2], [1, 2]], [[1], [2, 3], [1, 2]]) if config.ignore_true_texts else None
        task.queue.push(image, text, torch.tensor([100, 101, 102]), queued)
    return task


def retrieval(seed: int = 0, model: dict[str, Any] | None = None, **changes: Any) -> Retrieval:
    """As `pretraining`; the picture of identity 11 waits in the queue too."""
    config, released = configured(RetrievalConfig(queue_size=6), changes)
    task = Retrieval(any_model(seed, **(model or {})), config, SPECIAL, released)
    if task.momentum_encoder is not None:
        shake(task.momentum_encoder, seed + 1)
    if task.config.queue_size:
        width = task.model.embed_dim
        image, text = nn.functional.normalize(uniform(2, 3, width, seed=seed) - 0.5, dim=-1)
        task.queue.push(image, text, torch.tensor([100, 11, 102]))
    return task


def entailment(seed: int = 0, model: dict[str, Any] | None = None, **changes: Any) -> Entailment:
    """A task whose momentum_encoder, if it has one, is not the student."""
    config, released = configured(EntailmentConfig(), changes)
    task = Entailment(any_model(seed, **(model or {})), config, SPECIAL, released)
    shake(task.head, seed)
    for part in (task.momentum_encoder, task.momentum_head):
        if part is not None:
            shake(part, seed + 1)
    return task


def nlvr2(seed: int = 0, model: dict[str, Any] | None = None, **changes: Any) -> Nlvr2:
    """A task whose momentum_encoder, if it has one, is not the student."""
    config, released = configured(Nlvr2Config(), changes)
    task = Nlvr2(any_model(seed, images_per_text=2, **(model or {})), config, SPECIAL, released)
    shake(task.head, seed)
    for part in (task.momentum_encoder, task.momentum_head):
        if part is not None:
            shake(part, seed + 1)
    return task


def text_assignment(seed: int = 0, model: dict[str, Any] | None = None, **changes: Any) -> TextAssignment:
    config, released = configured(TextAssignmentConfig(), changes)
    task = TextAssignment(any_model(seed, images_per_text=2, **(model or {})), config, SPECIAL, released)
    shake(task.head, seed)
    return task


def vqa_decoding(seed: int = 0, model: dict[str, Any] | None = None, **changes: Any) -> VqaDecoding:
    """A task whose momentum_encoder, if it has one, is not the student; norms stand where the model has them."""
    decoder = replace(DECODER, norm=(model or {}).get("norm", "pre" if "system" in (model or {}) else "post"))
    config, released = configured(VqaDecoderConfig(decoder=decoder, max_answer_tokens=5), changes)
    return _shaken_heads(VqaDecoding(any_model(seed, **(model or {})), config, SPECIAL, released), seed)


def vqa_closed_set(seed: int = 0, model: dict[str, Any] | None = None, **changes: Any) -> VqaClosedSet:
    config, released = configured(VqaClosedSetConfig(answers=ANSWERS), changes)
    return _shaken_heads(VqaClosedSet(any_model(seed, **(model or {})), config, SPECIAL, released), seed)


def _shaken_heads(task: Any, seed: int) -> Any:
    shake(task.head, seed)
    for part in (task.momentum_encoder, task.momentum_head):
        if part is not None:
            shake(part, seed + 1)
    return task


def claims(said: Sequence[Sequence[int]], known: Sequence[Sequence[int]]) -> Claims:
    """Fills the numbers of what each text says, and of what is known of each image, up to a batch's claims."""
    widths = ((said, SAID), (known, KNOWN))
    return Claims(*(torch.tensor([[*row, *[NO_CLAIM] * (width - len(row))] for row in rows]) for rows, width in widths))


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def texts(lengths: Sequence[int], seed: int = 0) -> Texts:
    """[CLS] and ordinary words, `lengths` tokens in all."""
    words = torch.randint(5, VOCABULARY, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    words[:, 0] = SPECIAL.cls
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return Texts(words.masked_fill(~mask, SPECIAL.pad), mask)


def padded(given: Texts, length: int) -> Texts:
    """The same texts in wider storage. The ids there are words: only the mask may decide what is padding."""
    more = length - given.input_ids.shape[1]
    ids = nn.functional.pad(given.input_ids, (0, more), value=7)
    return Texts(ids, nn.functional.pad(given.attention_mask, (0, more)))


def batch(lengths: Sequence[int] = (5, 9, 3, 7), ids: Sequence[int] = (10, 11, 12, 13), seed: int = 0) -> Batch:
    return Batch(uniform(len(lengths), 3, SIDE, SIDE, seed=seed) * 2 - 1, texts(lengths, seed), torch.tensor(ids))


def labelled(given: Batch, labels: Sequence[int] = (0, 2, 1, 2)) -> LabelledBatch:
    return LabelledBatch(given.pixels, given.texts, given.image_ids, given.records, labels=torch.tensor(labels))


def picture_pairs(given: Batch, labels: Sequence[int] = (0, 1, 1, 0), seed: int = 1) -> LabelledPicturePairs:
    """The batch with a second picture for each text."""
    second = uniform(*given.pixels.shape, seed=seed) * 2 - 1
    return LabelledPicturePairs(
        given.pixels, given.texts, given.image_ids, given.records, second_pixels=second, labels=torch.tensor(labels)
    )


def answers(lengths: Sequence[int], seed: int = 0) -> Texts:
    """[CLS], ordinary words and [SEP], `lengths` tokens in all."""
    given = texts(lengths, seed + 100)
    last = given.attention_mask.sum(1, keepdim=True) - 1
    return Texts(given.input_ids.scatter(1, last, SPECIAL.sep), given.attention_mask)


def questions(
    given: Batch, lengths: Sequence[int] = (3, 5, 4, 3, 4), owners: Sequence[int] = (0, 0, 1, 2, 3)
) -> QuestionBatch:
    """The batch as questions with answers, of which the first question has several, and with scores of `ANSWERS`."""
    return QuestionBatch(
        given.pixels, given.texts, given.image_ids, given.records,
        answers=answers(lengths), answer_of=torch.tensor(owners), weights=uniform(len(lengths), seed=7) + 0.2,
        scores=uniform(len(given), len(ANSWERS), seed=8),
    )  # fmt: skip


def same(ours: Tensor | None, theirs: Tensor | None) -> None:
    assert ours is not None
    assert theirs is not None
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def alone(batch: Texts, which: int, length: int) -> Texts:
    """One text of a batch in storage of `length`."""
    own = int(batch.attention_mask[which].sum())
    cut = Texts(batch.input_ids[which : which + 1, :own], batch.attention_mask[which : which + 1, :own])
    return padded(cut, length)
