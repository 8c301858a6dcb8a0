"""Layouts and sizes of published ALBEFs, and of the ViT and BERT that an ALBEF starts from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from diptych.checkpoints.convert import Absent, Drop, Rule
from diptych.nn.embeddings import resize_positions
from diptych.pretrained import albef_names as names
from diptych.pretrained.family import (
    Family,
    Options,
    State,
    heads_of_64,
    numbers,
    resized_positions,
    shape,
    square_side,
)
from diptych.pretrained.formats import Contents, Layout, recognise, unused
from diptych.reading import read_object
from diptych.schema import (
    AlbefConfig,
    AlbefPretrainConfig,
    EntailmentConfig,
    ModelConfig,
    Nlvr2Config,
    Recipe,
    RetrievalConfig,
    TextAssignmentConfig,
    VqaDecoderConfig,
)

_NESTED = ((r"^(text_encoder(?:_m)?)\.(embeddings|encoder)\.", r"\1.bert.\2."),)
"""The spelling of a text encoder with a word head: its names contain `bert.`."""
_FLAT = ((r"^(text_encoder(?:_m)?)\.bert\.", r"\1."),)
"""The spelling of a text encoder without one: they do not."""
_COUNTED = Absent("queue.filled", "counted: the entries of the file's queue that hold a feature")
_PAIRS = ("embed images and texts", "match and rank them", "locate phrases")
_RANDOM = "not in the files: random, and learnt in pre-training"

LAYOUTS: dict[str, Layout] = {
    "text_assignment": Layout(
        "ALBEF, pre-trained on text assignment, for NLVR2",
        {"visual_encoder.cls_token": 1, "ta_head.weight": 3},
        names.published_text_assignment,
        TextAssignmentConfig(),
        _FLAT,
        images_per_text=2,
        able=("start the fine-tuning for NLVR2",),
    ),
    "vqa": Layout(
        "ALBEF, fine-tuned for VQA with an answer decoder",
        {"visual_encoder.cls_token": 1, "text_decoder.cls.predictions.bias": None},
        lambda config: names.PUBLISHED_VQA,
        VqaDecoderConfig(),
        (*_FLAT, (r"^(text_decoder(?:_m)?)\.(embeddings|encoder)\.", r"\1.bert.\2.")),
        able=("answer questions, from a list or freely",),
    ),
    "entailment": Layout(
        "ALBEF, fine-tuned for visual entailment",
        {"visual_encoder.cls_token": 1, "cls_head.2.weight": 3},
        lambda config: [
            *names.PUBLISHED_ENTAILMENT,
            *unused("image_proj", "text_proj", "temp", "match_head", "word_head"),
        ],
        EntailmentConfig(),
        _FLAT,
        able=("tell entailment, neutral and contradiction",),
    ),
    "nlvr2": Layout(
        "ALBEF, fine-tuned for NLVR2",
        {"visual_encoder.cls_token": 1, "cls_head.2.weight": 2},
        names.published_nlvr2,
        Nlvr2Config(),
        _FLAT,
        images_per_text=2,
        able=("tell whether a statement is true of two pictures",),
    ),
    "pretraining": Layout(
        "ALBEF, pre-trained (4M or 14M)",
        {"visual_encoder.cls_token": 1, "itm_head.weight": 2, "text_encoder.cls.predictions.bias": None},
        lambda config: [
            *names.PUBLISHED_PRETRAINING,
            Absent("queue.ids", "released pre-training stores no image ids: the entries match no image of a batch"),
            _COUNTED,
        ],
        AlbefPretrainConfig(),
        _NESTED,
        able=(*_PAIRS, "predict masked words", "start any fine-tuning"),
    ),
    "retrieval": Layout(
        "ALBEF, fine-tuned for retrieval or grounding (the same tensors)",
        {"visual_encoder.cls_token": 1, "itm_head.weight": 2, "vision_proj.weight": None},
        lambda config: [*names.PUBLISHED_RETRIEVAL, *unused("word_head"), _COUNTED],
        RetrievalConfig(),
        _FLAT,
        able=_PAIRS,
    ),
    "vit": Layout(
        "a ViT in the timm (DeiT) layout",
        {"visual_encoder.cls_token": 1, "visual_encoder.blocks.0.attn.qkv.weight": None},
        lambda config: _start_rules(Absent("model.text", _RANDOM)),
        AlbefPretrainConfig(),
        (
            (r"^(?=(visual|text)_encoder)", "not a ViT alone: "),
            (r"^(?=(cls_token|pos_embed|patch_embed|blocks|norm|head|pre_logits)\b)", "visual_encoder."),
        ),
        able=("start an image encoder",),
    ),
    "bert": Layout(
        "a BERT in the Hugging Face layout",
        {"text_encoder.bert.embeddings.word_embeddings.weight": None},
        lambda config: _start_rules(Absent("model.vision", _RANDOM)),
        AlbefPretrainConfig(),
        (
            (r"^(?=(visual|text)_encoder)", "not a BERT alone: "),
            (r"^(?:bert\.)?(?=(embeddings|encoder|pooler)\.)", "text_encoder.bert."),
            (r"^(?=cls\.)", "text_encoder."),
            (r"LayerNorm\.gamma$", "LayerNorm.weight"),
            (r"LayerNorm\.beta$", "LayerNorm.bias"),
        ),
        able=("start a text encoder",),
    ),
}
"""The layouts in the order in which they are tried. The spelling of start weights gives them the names that they have
within a released ALBEF, and lets no whole ALBEF fit."""


def _start_rules(*absent: Absent) -> list[Rule]:
    """Makes the rules for a ViT and a BERT; `absent` is the encoder that a single file lacks."""
    return [
        *names.PUBLISHED_PRETRAINING,
        Drop("visual_encoder.head.{p}", "classes of other pictures"),
        Drop("visual_encoder.pre_logits.fc.{p}", "leads to classes of other pictures"),
        Drop("text_encoder.bert.pooler.dense.{p}", "ALBEF reads [CLS] itself"),
        Drop("text_encoder.cls.seq_relationship.{p}", "ALBEF does not predict the next sentence"),
        Absent("model.text.layers.{i}.cross", "a BERT does not look at images: random"),
        Absent("model.text.layers.{i}.cross_norm", "a BERT does not look at images: fresh"),
        Absent("model.temp", "not in the files: the recipe's, and learnt in pre-training"),
        *(Absent(f"model.{part}", _RANDOM) for part in ("image_proj", "text_proj", "match_head", "word_head")),
        *absent,
    ]


# --------------------------------------------------------------------------- the family


class AlbefFamily(Family):
    """ALBEF, "Align before fuse", and the ViT and BERT that it starts from."""

    config = AlbefConfig
    layouts = LAYOUTS
    base = "albef_base"
    separator = False
    starts = frozenset({"vit", "bert"})

    def joint_layout(self, names: Sequence[str]) -> Layout:
        first = LAYOUTS[names[0]]
        if len(names) == 1:
            return first
        title = " and ".join(LAYOUTS[name].title for name in names)
        return replace(first, title=title, rules=lambda config: _start_rules())

    def file_model(
        self, state: State, layout: Layout, base: ModelConfig, options: Options, contents: Sequence[Contents]
    ) -> AlbefConfig:
        assert isinstance(base, AlbefConfig)
        return config_from_shapes(state, layout.images_per_text, base, options.heads, _bert_config(contents))

    def wanted_model(self, model: ModelConfig, options: Options) -> AlbefConfig:
        assert isinstance(model, AlbefConfig)
        vlmo_options = {
            "--text-length": options.text_length,
            "--trained-image-size": options.trained_image_size,
            "--answers": options.answers,
        }
        if misplaced := [name for name, value in vlmo_options.items() if value is not None]:
            raise ValueError(f"{', '.join(misplaced)} is for VLMo: leave it out")
        size = options.image_size or model.vision.image_size
        return replace(model, vision=replace(model.vision, image_size=size))

    def fill_recipe(self, recipe: Recipe, state: State, options: Options) -> Recipe:
        assert isinstance(recipe.model, AlbefConfig)
        return replace(recipe, task=make_task_config(recipe.task, state, recipe.model))

    def fit_weights(
        self, ours: dict[str, Tensor], fresh: State, model: ModelConfig, wanted: ModelConfig
    ) -> tuple[dict[str, Tensor], str | None]:
        assert isinstance(wanted, AlbefConfig)
        vision, note, fitted = wanted.vision, None, dict(ours)
        side = vision.image_size // vision.patch_size
        for name in [name for name in ours if name.endswith("vision.embedding.positions")]:
            file_side = math.isqrt(ours[name].shape[1] - 1)
            if file_side != side:
                fitted[name] = resize_positions(ours[name], side)
                note = resized_positions(file_side, side, vision.image_size)
        return fitted, note

    def describe_file(self, state: State, layout: Layout) -> list[str]:
        # Shapes do not tell the number of heads, and no line mentions it: any number will do.
        model = config_from_shapes(state, layout.images_per_text, AlbefConfig(), heads=(1, 1))
        crossing = any(".crossattention." in name for name in state)
        lines = [_image_line(model)] if "visual_encoder.cls_token" in state else []
        if any(name.startswith("text_encoder.") for name in state):
            lines.append(_text_line(model, crossing))
        if crossing:
            momentum_encoder = any(name.partition(".")[0].endswith("_m") for name in state)
            lines.append(
                _training_line(momentum_encoder, state["image_queue"].shape[1] if "image_queue" in state else 0)
            )
        return lines

    def describe_run(self, recipe: Recipe, state: State) -> list[str]:
        assert isinstance(recipe.model, AlbefConfig)
        queue = state["queue.image"].shape[0] if "queue.image" in state else 0
        momentum_encoder = any(name.startswith("momentum_encoder.") for name in state)
        return [
            _image_line(recipe.model),
            _text_line(recipe.model, fusion=True),
            _training_line(momentum_encoder, queue),
        ]


# --------------------------------------------------------------------------- sizes


def make_task_config(task: Any, state: Mapping[str, Tensor], model: AlbefConfig) -> Any:
    """Gives a task's configuration the sizes that the files have: those of the queue and of the answer decoder."""
    if "image_queue" in state:
        task = replace(task, queue_size=state["image_queue"].shape[1])
    if "text_decoder.cls.predictions.bias" in state:
        decoder = replace(
            task.decoder,
            layers=len(numbers(state, r"text_decoder\.bert\.encoder\.layer\.(\d+)\.")),
            heads=model.text.heads,
            intermediate=shape(state, "text_decoder.bert.encoder.layer.0.intermediate.dense.weight")[0],
            max_positions=shape(state, "text_decoder.bert.embeddings.position_embeddings.weight")[0],
        )
        task = replace(task, decoder=decoder)
    return task


def config_from_shapes(
    state: Mapping[str, Tensor],
    images_per_text: int,
    base: AlbefConfig,
    heads: tuple[int, int] | None = None,
    bert: Mapping[str, Any] | None = None,
) -> AlbefConfig:
    """Reads a model's configuration off the shapes of published tensors, and takes `base` where these do not tell it.

    `heads` are those of image and text encoder. None takes what BERT's configuration says, or else heads of width 64.
    Raises ValueError for shapes that no ALBEF has.
    """
    config = replace(base, images_per_text=images_per_text)
    bert = bert or {}
    if "visual_encoder.cls_token" in state:
        width, _, _, patch = shape(state, "visual_encoder.patch_embed.proj.weight")
        side = square_side(shape(state, "visual_encoder.pos_embed")[1] - 1, "image positions beside one class token")
        ratio = shape(state, "visual_encoder.blocks.0.mlp.fc1.weight")[0] / width
        config = replace(
            config,
            vision=replace(
                config.vision, image_size=side * patch, patch_size=patch, width=width, mlp_ratio=ratio, stem="patch",
                depth=len(numbers(state, r"visual_encoder\.blocks\.(\d+)\.")),
                heads=heads[0] if heads else heads_of_64(width, "image encoder"),
            ),
        )  # fmt: skip
    text = {name.replace("text_encoder.bert.", "text_encoder."): tensor for name, tensor in state.items()}
    if "text_encoder.embeddings.word_embeddings.weight" in text:
        vocabulary, width = text["text_encoder.embeddings.word_embeddings.weight"].shape
        stack = len(numbers(text, r"text_encoder\.encoder\.layer\.(\d+)\."))
        crossing = numbers(text, r"text_encoder\.encoder\.layer\.(\d+)\.crossattention\.")
        start = min(crossing, default=stack // 2)
        config = replace(
            config,
            text=replace(
                config.text, vocab_size=vocabulary, width=width, fusion_start=start, norm="post",
                layers=start + (stack - start) // images_per_text,
                heads=heads[1] if heads else bert.get("num_attention_heads") or heads_of_64(width, "text encoder"),
                intermediate=shape(text, "text_encoder.encoder.layer.0.intermediate.dense.weight")[0],
                max_positions=shape(text, "text_encoder.embeddings.position_embeddings.weight")[0],
                norm_eps=bert.get("layer_norm_eps", config.text.norm_eps),
            ),
        )  # fmt: skip
    if "vision_proj.weight" in state:
        config = replace(config, embed_dim=state["vision_proj.weight"].shape[0])
    return config


def _bert_config(contents: Sequence[Contents]) -> dict[str, Any]:
    """Reads the config.json beside a BERT. Raises ValueError for a BERT that is computed differently from ours."""
    config: dict[str, Any] = {}
    for content in contents:
        if recognise(content.tensors, LAYOUTS) == "bert" and (file := content.file.parent / "config.json").is_file():
            config = read_object(file)
    for name, ours in (("model_type", "bert"), ("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
        if config.get(name, ours) != ours:
            raise ValueError(f"its config.json says {name}={config[name]}; only a BERT with {name}={ours} can be read")
    return config


# --------------------------------------------------------------------------- in words


def _image_line(model: AlbefConfig) -> str:
    vision = model.vision
    return (
        f"  image    {vision.depth} layers of width {vision.width}, patch {vision.patch_size}, "
        f"for {vision.image_size} px"
    )


def _text_line(model: AlbefConfig, fusion: bool) -> str:
    text, times = model.text, model.images_per_text
    layers = f"{text.fusion_start} + {text.layers - text.fusion_start} fusion" if fusion else f"{text.layers}"
    repeated = f" (each {times} times, for {times} images a text)" if times > 1 else ""
    return (
        f"  text     {layers} layers{repeated} of width {text.width}, {text.vocab_size} words, "
        f"{text.max_positions} positions"
    )


def _training_line(momentum_encoder: bool, queue: int) -> str:
    entries = f"queue of {queue}" if queue else "no queue"
    return f"  training {'' if momentum_encoder else 'no '}momentum encoder; {entries}"
