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
_TOWER = "visual_encoder"
_CLIP = (
    (r"^(?=(visual|text)_encoder)", "not a CLIP: "),
    (r"^(?:vision_model\.)?embeddings\.class_embedding$", f"{_TOWER}.class_embedding"),
    (r"^(?:vision_model\.)?embeddings\.patch_embedding\.", f"{_TOWER}.patch_embed.proj."),
    (r"^(?:vision_model\.)?embeddings\.position_embedding\.weight$", f"{_TOWER}.position_table"),
    (r"^(?:vision_model\.)?embeddings\.position_ids$", f"{_TOWER}.position_ids"),
    (r"^(?:vision_model\.)?pre_layrnorm\.", f"{_TOWER}.norm_pre."),
    (r"^(?:vision_model\.)?post_layernorm\.", f"{_TOWER}.norm."),
    (r"^(?:vision_model\.)?head\.", f"{_TOWER}.pool."),
    (r"^(?:vision_model\.)?encoder\.layers\.(\d+)\.", rf"{_TOWER}.blocks.\1."),
    (r"\.self_attn\.(q|k|v)_proj\.", r".attn.\1."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"(?<=\d)\.layer_norm(\d)\.", r".norm\1."),
)
"""The spelling of CLIP and SigLIP, whose text encoders keep their names."""
_OTHER_TEXTS = "another text encoder with words of its own, which is not read"
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
            (r"^(?=(cls_token|pos_embed|patch_embed|blocks|norm|head|pre_logits|mask_token|fc_norm)\b)", f"{_TOWER}."),
        ),
        able=("start an image encoder",),
    ),
    "vit_transformers": Layout(
        "a ViT, MAE or DINOv2 in the Hugging Face layout",
        {f"{_TOWER}.cls_token": 1, f"{_TOWER}.blocks.0.attn.q.weight": None},
        lambda config: _start_rules(Absent("model.text", _RANDOM)),
        AlbefPretrainConfig(),
        (
            (r"^(?=(visual|text)_encoder)", "not a ViT alone: "),
            (r"^(?:vit|dinov2)\.", ""),
            (r"^embeddings\.(cls_token|mask_token)$", rf"{_TOWER}.\1"),
            (r"^embeddings\.position_embeddings$", f"{_TOWER}.pos_embed"),
            (r"^embeddings\.patch_embeddings\.projection\.", f"{_TOWER}.patch_embed.proj."),
            (r"^encoder\.layer\.(\d+)\.", rf"{_TOWER}.blocks.\1."),
            (r"\.attention\.attention\.(q|k|v)\w+\.", r".attn.\1."),
            (r"\.attention\.output\.dense\.", ".attn.proj."),
            (r"\.intermediate\.dense\.", ".mlp.fc1."),
            (r"\.output\.dense\.", ".mlp.fc2."),
            (r"\.layernorm_before\.", ".norm1."),
            (r"\.layernorm_after\.", ".norm2."),
            (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
            (r"^layernorm\.", f"{_TOWER}.norm."),
        ),
        able=("start an image encoder",),
    ),
    "siglip": Layout(
        "a SigLIP or SigLIP 2, of which the image encoder is taken",
        {f"{_TOWER}.pool.probe": 1, f"{_TOWER}.blocks.0.attn.q.weight": None},
        lambda config: _start_rules(Absent("model.text", _RANDOM)),
        AlbefPretrainConfig(),
        _CLIP,
        able=("start an image encoder",),
    ),
    "clip": Layout(
        "a CLIP in the Hugging Face layout, of which the image encoder is taken",
        {f"{_TOWER}.class_embedding": None, f"{_TOWER}.blocks.0.attn.q.weight": None},
        lambda config: _start_rules(Absent("model.text", _RANDOM)),
        AlbefPretrainConfig(),
        _CLIP,
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


_DEPTHS = tuple("".join(f".{{p{number}}}" for number in range(depth)) for depth in range(1, 9))
"""Patterns of names of all depths below a part."""
_COMPARISON = ("logit_scale", "logit_bias", "text_projection.weight", "visual_projection.weight")


def _start_rules(*absent: Absent) -> list[Rule]:
    """Makes the rules for a ViT and a BERT; `absent` is the encoder that a single file lacks."""
    return [
        *names.PUBLISHED_PRETRAINING,
        *names.TOWERS,
        *(Drop(f"text_model{depth}", _OTHER_TEXTS) for depth in _DEPTHS),
        *(Drop(f"decoder{depth}", "rebuilt masked patches in training") for depth in _DEPTHS),
        *(Drop(name, "compares with the other text encoder") for name in _COMPARISON),
        *(Drop(f"{head}.{{p}}", "classes of other pictures") for head in ("classifier", "pooler.dense")),
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


TOWERS = frozenset({"vit", "vit_transformers", "clip", "siglip"})
"""Layouts of image encoders."""

# --------------------------------------------------------------------------- the family


class AlbefFamily(Family):
    """ALBEF, "Align before fuse", and the ViT and BERT that it starts from."""

    config = AlbefConfig
    layouts = LAYOUTS
    base = "albef_base"
    separator = False
    starts = frozenset({*TOWERS, "bert"})

    def joint_layout(self, names: Sequence[str]) -> Layout:
        first = LAYOUTS[names[0]]
        if len(towers := TOWERS.intersection(names)) > 1:
            titles = " and ".join(LAYOUTS[name].title for name in sorted(towers))
            raise ValueError(f"{titles} are two image encoders: give one, and one text encoder")
        if len(names) == 1:
            return first
        title = " and ".join(LAYOUTS[name].title for name in names)
        return replace(first, title=title, rules=lambda config: _start_rules())

    def file_model(
        self, state: State, layout: Layout, base: ModelConfig, options: Options, contents: Sequence[Contents]
    ) -> AlbefConfig:
        assert isinstance(base, AlbefConfig)
        settings = _tower_config(contents), _bert_config(contents)
        return config_from_shapes(state, layout.images_per_text, base, options.heads, *settings)

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
            file_side = math.isqrt(ours[name].shape[1])
            if file_side != side:
                fitted[name] = resize_positions(ours[name], side)
                note = resized_positions(file_side, side, vision.image_size)
        return fitted, note

    def describe_file(self, state: State, layout: Layout) -> list[str]:
        # Shapes do not tell the number of heads, and no line mentions it: any number will do.
        model = config_from_shapes(state, layout.images_per_text, AlbefConfig(), heads=(1, 1))
        crossing = any(".crossattention." in name for name in state)
        lines = [_image_line(model)] if _PATCHES in state else []
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
    tower: Mapping[str, Any] | None = None,
    bert: Mapping[str, Any] | None = None,
) -> AlbefConfig:
    """Reads a model's configuration off the shapes of published tensors, and takes `base` where these do not tell it.

    `heads` are those of image and text encoder. None takes what the configurations of the image encoder (`tower`) and
    of the BERT say, or else heads of width 64. Raises ValueError for shapes that no ALBEF has.
    """
    config = replace(base, images_per_text=images_per_text)
    bert, tower = bert or {}, tower or {}
    if _PATCHES in state:
        width, _, _, patch = shape(state, _PATCHES)
        side = _grid_side(state)
        ratio = shape(state, "visual_encoder.blocks.0.mlp.fc1.weight")[0] / width
        config = replace(
            config,
            vision=replace(
                config.vision, image_size=side * patch, patch_size=patch, width=width, mlp_ratio=ratio, stem="patch",
                depth=len(numbers(state, r"visual_encoder\.blocks\.(\d+)\.")),
                heads=heads[0] if heads else tower.get("num_attention_heads") or heads_of_64(width, "image encoder"),
                **_tower_details(state, tower, config.vision.norm_eps),
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


_PATCHES = f"{_TOWER}.patch_embed.proj.weight"


def _grid_side(state: Mapping[str, Tensor]) -> int:
    """Returns the side of the patch grid that a file's positions are for."""
    table = f"{_TOWER}.position_table"
    count = len(state[table]) if table in state else shape(state, f"{_TOWER}.pos_embed")[1]
    if f"{_TOWER}.pool.probe" in state:
        return square_side(count, "image positions without a class token")
    return square_side(count - 1, "image positions beside one class token")


def _tower_details(state: Mapping[str, Tensor], tower: Mapping[str, Any], norm_eps: float) -> dict[str, Any]:
    """Reads how an image encoder differs from ALBEF's ViT, off its names and its configuration.

    Raises ValueError for an activation that we do not have.
    """
    clip, pooled = f"{_TOWER}.norm_pre.weight" in state, f"{_TOWER}.pool.probe" in state
    scaled, split = f"{_TOWER}.blocks.0.ls1.gamma" in state, f"{_TOWER}.blocks.0.attn.q.weight" in state
    usual = (
        1e-5 if clip else 1e-12 if split and not (pooled or scaled) else norm_eps
    )  # transformers' ViT and MAE: 1e-12
    told = tower.get("hidden_act") or ("quick_gelu" if clip else "tanh_gelu" if pooled else "gelu")
    known = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "tanh_gelu", "tanh_gelu": "tanh_gelu"}
    if told not in known:
        raise ValueError(f"its config.json says hidden_act={told}; known are {', '.join(known)}")
    return {
        "activation": known[told],
        "norm_eps": tower.get("layer_norm_eps") or usual,
        "layer_scale": scaled,
        "input_norm": clip,
        "patch_bias": f"{_TOWER}.patch_embed.proj.bias" in state,
        "pooling": "attention" if pooled else "class",
    }


def _tower_config(contents: Sequence[Contents]) -> dict[str, Any]:
    """Reads what the config.json beside an image encoder in the Hugging Face layout says; of other layouts, nothing."""
    for content in contents:
        named = recognise(content.tensors, LAYOUTS)
        if named in TOWERS - {"vit"} and (file := content.file.parent / "config.json").is_file():
            config: dict[str, Any] = read_object(file)
            inner = config.get("vision_config", config)
            return {"model_type": config.get("model_type"), **inner}
    return {}


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
