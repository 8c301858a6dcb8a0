"""Published checkpoints in and out: what a file is, the checkpoint of ours that it becomes, and the way back.

files → tensors → layout → sizes → our names → task → checkpoint. Nothing in a file is executed. Every tensor of it is
loaded, or dropped for a stated reason; what it lacks has a stated reason too. Anything else is an error.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from diptych import catalog
from diptych.checkpoints import store
from diptych.checkpoints.convert import Absent, Drop, Report, Rule, absences, counts, from_published, to_published
from diptych.checkpoints.published import Contents, Layout, read, recognise, spell
from diptych.data.tokenizer import VOCABULARY_FILE, Tokenizer
from diptych.models import albef
from diptych.nn.embeddings import resize_positions
from diptych.predict import Predictor, make_predictor
from diptych.schema import (
    AlbefConfig,
    AlbefPretrainConfig,
    EntailmentConfig,
    Nlvr2Config,
    Recipe,
    RetrievalConfig,
    TextAssignmentConfig,
    TokenizerConfig,
    VqaDecoderConfig,
)
from diptych.serialize import from_dict, to_dict

# --------------------------------------------------------------------------- the layouts

_NESTED = ((r"^(text_encoder(?:_m)?)\.(embeddings|encoder)\.", r"\1.bert.\2."),)
"""Spelling of a text encoder with a word head: its names have `bert.`."""
_FLAT = ((r"^(text_encoder(?:_m)?)\.bert\.", r"\1."),)
"""And of one without."""
_COUNTED = Absent("queue.filled", "counted: the places of the file's queue that hold a feature")
_PAIRS = ("embed images and texts", "match and rank them", "locate phrases")
_UNUSED = "the task does not use it: random"
_RANDOM = "not in the files: random, learnt in pre-training"


def _unused(*parts: str) -> list[Rule]:
    return [Absent(f"model.{part}", _UNUSED) for part in parts]


LAYOUTS: dict[str, Layout] = {
    "text_assignment": Layout(
        "ALBEF, pre-trained on text assignment, for NLVR2",
        {"visual_encoder.cls_token": 1, "ta_head.weight": 3},
        albef.published_text_assignment,
        TextAssignmentConfig,
        _FLAT,
        images_per_text=2,
        able=("start the fine-tuning for NLVR2",),
    ),
    "vqa": Layout(
        "ALBEF, fine-tuned for VQA with an answer decoder",
        {"visual_encoder.cls_token": 1, "text_decoder.cls.predictions.bias": None},
        lambda config: albef.PUBLISHED_VQA,
        VqaDecoderConfig,
        (*_FLAT, (r"^(text_decoder(?:_m)?)\.(embeddings|encoder)\.", r"\1.bert.\2.")),
        able=("answer questions, from a list or freely",),
    ),
    "entailment": Layout(
        "ALBEF, fine-tuned for visual entailment",
        {"visual_encoder.cls_token": 1, "cls_head.2.weight": 3},
        lambda config: [
            *albef.PUBLISHED_ENTAILMENT,
            *_unused("image_proj", "text_proj", "temp", "match_head", "word_head"),
        ],
        EntailmentConfig,
        _FLAT,
        able=("tell entailment, neutral and contradiction",),
    ),
    "nlvr2": Layout(
        "ALBEF, fine-tuned for NLVR2",
        {"visual_encoder.cls_token": 1, "cls_head.2.weight": 2},
        albef.published_nlvr2,
        Nlvr2Config,
        _FLAT,
        images_per_text=2,
        able=("tell whether a statement is true of two pictures",),
    ),
    "pretraining": Layout(
        "ALBEF, pre-trained (4M or 14M)",
        {"visual_encoder.cls_token": 1, "itm_head.weight": 2, "text_encoder.cls.predictions.bias": None},
        lambda config: [
            *albef.PUBLISHED_PRETRAINING,
            Absent("queue.ids", "released pre-training keeps no identities: the entries are nobody's"),
            _COUNTED,
        ],
        AlbefPretrainConfig,
        _NESTED,
        able=(*_PAIRS, "predict masked words", "start any fine-tuning"),
    ),
    "retrieval": Layout(
        "ALBEF, fine-tuned for retrieval or grounding (the same tensors)",
        {"visual_encoder.cls_token": 1, "itm_head.weight": 2, "vision_proj.weight": None},
        lambda config: [*albef.PUBLISHED_RETRIEVAL, *_unused("word_head"), _COUNTED],
        RetrievalConfig,
        _FLAT,
        able=_PAIRS,
    ),
    "vit": Layout(
        "a ViT in the timm (DeiT) layout",
        {"visual_encoder.cls_token": 1, "visual_encoder.blocks.0.attn.qkv.weight": None},
        lambda config: _start_rules(Absent("model.text", _RANDOM)),
        AlbefPretrainConfig,
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
        AlbefPretrainConfig,
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
"""The first that fits is it. Start weights get the names that they have within a released ALBEF."""
STARTS = {"vit", "bert"}


def _start_rules(*absent: Absent) -> list[Rule]:
    return [
        *albef.PUBLISHED_PRETRAINING,
        Drop("visual_encoder.head.{p}", "classes of other pictures"),
        Drop("visual_encoder.pre_logits.fc.{p}", "leads to classes of other pictures"),
        Drop("text_encoder.bert.pooler.dense.{p}", "ALBEF reads [CLS] itself"),
        Drop("text_encoder.cls.seq_relationship.{p}", "ALBEF predicts no next sentence"),
        Absent("model.text.layers.{i}.cross", "a BERT does not look at images: random"),
        Absent("model.text.layers.{i}.cross_norm", "a BERT does not look at images: fresh"),
        Absent("model.temp", "not in the files: the recipe's, learnt in pre-training"),
        *(Absent(f"model.{part}", _RANDOM) for part in ("image_proj", "text_proj", "match_head", "word_head")),
        *absent,
    ]


_LOOSE = (
    Absent("teacher", "no momentum copies in the file: the teacher starts as a copy of the student"),
    Absent("teacher_head", "no momentum copies in the file: the teacher starts as a copy of the student"),
    Absent("queue", "no queue in the file: it starts empty"),
)
"""What a file may lack as a whole, but not in part."""

# --------------------------------------------------------------------------- from files


@dataclass(frozen=True)
class Options:
    """What files cannot tell."""

    vocabulary: Path | str | None = None
    """A vocab.txt, or a folder that holds one; a BERT's own folder needs none."""
    image_size: int | None = None
    """Positions are resized to it; None keeps the file's."""
    heads: tuple[int, int] | None = None
    """Attention heads of image and text encoder. None: as a BERT's config.json says, else 64 wide each."""
    separator: bool = False
    """Close texts with [SEP]; for start weights only, since released ALBEF had none (REFERENCE defect 11)."""


@dataclass(frozen=True)
class Assembled:
    """What files became: all that a checkpoint needs."""

    layout: Layout
    recipe: Recipe
    tokenizer: Tokenizer
    weights: Mapping[str, Tensor]
    """The task's state."""
    report: Report
    resized: str | None
    """How positions were resized, in words."""

    def __str__(self) -> str:
        """The report, a line a reason."""
        report = self.report
        lines = [f"{len(report.loaded):5} loaded, as {len(set(report.loaded.values()))} tensors of other names"]
        for verb, reasons in (("dropped", report.dropped.values()), ("missing", report.missing.values())):
            told = Counter(re.sub(r"^second name of .*", "second names of loaded ones", reason) for reason in reasons)
            lines += [f"{number:5} {verb}: {reason}" for reason, number in told.items()]
        return "\n".join([self.layout.title, *lines, *([f"      {self.resized}"] if self.resized else [])])


def assemble(files: Sequence[Path | str], options: Options) -> Assembled:
    """A task's state from published files: one ALBEF, or start weights: a ViT, a BERT or both.

    Raises ValueError for files that hold anything unknown, or lack anything for no known reason.
    """
    contents, state, layout, start = _gather(files)
    if options.separator and not start:
        raise ValueError("released ALBEF was trained without [SEP] behind a text: leave --separator out")
    tokenizer = _tokenizer(options, [found.file.parent for found in contents])
    recipe = _recipe(state, layout, tokenizer, options, _bert_config(contents))
    rules = layout.rules(recipe.model)
    ours, report = from_published(state, rules)
    resized = _resize(ours, recipe)
    task = catalog.build_task(recipe, tokenizer)
    fresh = task.state_dict()
    loose = [rule for rule in _LOOSE if not any(f"{name}.".startswith(f"{rule.ours}.") for name in ours)]
    report = replace(report, missing=absences(fresh, ours, (*loose, *rules)))
    weights = ours | {name: _substitute(name, ours, fresh) for name in report.missing}
    store.load_into(task, weights, " and ".join(map(str, files)))
    return Assembled(layout, recipe, tokenizer, weights, report, resized)


def _gather(files: Sequence[Path | str]) -> tuple[list[Contents], dict[str, Tensor], Layout, bool]:
    """What the files hold, their tensors as the rules know them, their layout, and whether they are start weights."""
    contents = [read(file) for file in files]
    names = [recognise(found.tensors, LAYOUTS) for found in contents]
    start = STARTS.issuperset(names)
    if not names or len(set(names)) < len(names) or (len(names) > 1 and not start):
        raise ValueError("give one ALBEF checkpoint, or start weights: a ViT, a BERT, or one of each")
    state: dict[str, Tensor] = {}
    for name, found in zip(names, contents, strict=True):
        state |= spell(found.tensors, LAYOUTS[name])
    layout = LAYOUTS[names[0]]
    if len(names) > 1:
        title = " and ".join(LAYOUTS[name].title for name in names)
        layout = replace(layout, title=title, rules=lambda config: _start_rules())
    return contents, state, layout, start


def _substitute(name: str, ours: Mapping[str, Tensor], fresh: Mapping[str, Tensor]) -> Tensor:
    """What stands for a tensor that the file lacks."""
    student = re.sub(r"^teacher_head\.", "head.", re.sub(r"^teacher\.", "model.", name))
    if student != name:
        return ours.get(student, fresh[student])
    if name == "queue.filled" and "queue.image" in ours:
        return ours["queue.image"].any(dim=1).sum()
    return fresh[name]


def _resize(ours: dict[str, Tensor], recipe: Recipe) -> str | None:
    """Resizes the position tables in `ours` to the recipe's image; returns in words how, if there was need."""
    vision, told = recipe.model.vision, None
    side = vision.image_size // vision.patch_size
    for name in [name for name in ours if name.endswith("vision.embedding.positions")]:
        old = math.isqrt(ours[name].shape[1] - 1)
        if old != side:
            ours[name] = resize_positions(ours[name], side)
            told = f"positions resized from {old} × {old} to {side} × {side} patches: {vision.image_size} px"
    return told


# --------------------------------------------------------------------------- what the files say of sizes and words


def _recipe(
    state: Mapping[str, Tensor], layout: Layout, tokenizer: Tokenizer, options: Options, bert: Mapping[str, Any]
) -> Recipe:
    """The published recipe of the layout's task, with the sizes of the files."""
    recipe = _published(layout)
    model = sizes(state, layout.images_per_text, recipe.model, options.heads, bert)
    if any("word_embeddings" in name for name in state) and model.text.vocab_size != tokenizer.vocab_size:
        raise ValueError(
            f"the vocabulary has {tokenizer.vocab_size} pieces and the text encoder {model.text.vocab_size} words: "
            "give the vocabulary that it was trained with"
        )
    if options.image_size:
        model = replace(model, vision=replace(model.vision, image_size=options.image_size))
    task = make_task_config(recipe.task, state, model)
    words = TokenizerConfig(None, tokenizer.vocab_size, tokenizer.separator, tokenizer.lowercase)
    return replace(recipe, model=model, task=task, tokenizer=words)


def _published(layout: Layout) -> Recipe:
    """The recipe of the published size that trains the layout's task; that of pre-training with this task, if none."""
    recipes = (make() for name, make in catalog.RECIPES.items() if name.startswith("albef_base"))
    base = catalog.find_recipe("albef_base")
    return next((found for found in recipes if type(found.task) is layout.task), replace(base, task=layout.task()))


def make_task_config(task: Any, state: Mapping[str, Tensor], model: AlbefConfig) -> Any:
    """A task's configuration with the sizes of the files."""
    if "image_queue" in state:
        task = replace(task, queue_size=state["image_queue"].shape[1])
    if isinstance(task, VqaDecoderConfig):
        decoder = replace(
            task.decoder,
            layers=len(_numbers(state, r"text_decoder\.bert\.encoder\.layer\.(\d+)\.")),
            heads=model.text.heads,
            intermediate=_shape(state, "text_decoder.bert.encoder.layer.0.intermediate.dense.weight")[0],
            max_positions=_shape(state, "text_decoder.bert.embeddings.position_embeddings.weight")[0],
        )
        task = replace(task, decoder=decoder)
    return task


def sizes(
    state: Mapping[str, Tensor],
    images_per_text: int,
    base: AlbefConfig,
    heads: tuple[int, int] | None = None,
    bert: Mapping[str, Any] | None = None,
) -> AlbefConfig:
    """The model that published tensors are of, told by their shapes; `base` where they tell nothing.

    `heads` of image and text encoder, else as BERT's configuration says, else 64 wide each, as published.
    Raises ValueError for shapes that no ALBEF has.
    """
    config = replace(base, images_per_text=images_per_text)
    bert = bert or {}
    if "visual_encoder.cls_token" in state:
        width, _, _, patch = _shape(state, "visual_encoder.patch_embed.proj.weight")
        rows = _shape(state, "visual_encoder.pos_embed")[1]
        side = math.isqrt(rows - 1)
        if side**2 != rows - 1:
            raise ValueError(f"{rows} image positions are no square grid behind one class token: another kind of ViT")
        ratio = _shape(state, "visual_encoder.blocks.0.mlp.fc1.weight")[0] / width
        config = replace(
            config,
            vision=replace(
                config.vision, image_size=side * patch, patch_size=patch, width=width, mlp_ratio=ratio, stem="patch",
                depth=len(_numbers(state, r"visual_encoder\.blocks\.(\d+)\.")),
                heads=heads[0] if heads else _published_heads(width, "image"),
            ),
        )  # fmt: skip
    text = {name.replace("text_encoder.bert.", "text_encoder."): tensor for name, tensor in state.items()}
    if "text_encoder.embeddings.word_embeddings.weight" in text:
        vocabulary, width = text["text_encoder.embeddings.word_embeddings.weight"].shape
        stack = len(_numbers(text, r"text_encoder\.encoder\.layer\.(\d+)\."))
        crossing = _numbers(text, r"text_encoder\.encoder\.layer\.(\d+)\.crossattention\.")
        start = min(crossing, default=stack // 2)
        config = replace(
            config,
            text=replace(
                config.text, vocab_size=vocabulary, width=width, fusion_start=start, norm="post",
                layers=start + (stack - start) // images_per_text,
                heads=heads[1] if heads else bert.get("num_attention_heads") or _published_heads(width, "text"),
                intermediate=_shape(text, "text_encoder.encoder.layer.0.intermediate.dense.weight")[0],
                max_positions=_shape(text, "text_encoder.embeddings.position_embeddings.weight")[0],
                norm_eps=bert.get("layer_norm_eps", config.text.norm_eps),
            ),
        )  # fmt: skip
    if "vision_proj.weight" in state:
        config = replace(config, embed_dim=state["vision_proj.weight"].shape[0])
    return config


def _shape(state: Mapping[str, Tensor], name: str) -> torch.Size:
    if name not in state:
        raise ValueError(f"the checkpoint lacks {name}, without which its sizes are not known")
    return state[name].shape


def _numbers(names: Iterable[str], pattern: str) -> set[int]:
    """The layers that are named."""
    return {int(match[1]) for name in names if (match := re.match(pattern, name))}


def _published_heads(width: int, encoder: str) -> int:
    if width % 64:
        raise ValueError(
            f"the {encoder} encoder is {width} wide, which heads of 64 do not divide: say with --heads how many it has"
        )
    return width // 64


def _bert_config(contents: Sequence[Contents]) -> dict[str, Any]:
    """What a BERT's config.json says. Raises ValueError for one that is computed otherwise than ours."""
    config: dict[str, Any] = {}
    for found in contents:
        if recognise(found.tensors, LAYOUTS) == "bert" and (file := found.file.parent / "config.json").is_file():
            config = json.loads(file.read_text(encoding="utf-8"))
    for name, ours in (("model_type", "bert"), ("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
        if config.get(name, ours) != ours:
            raise ValueError(f"its config.json says {name}={config[name]}; only a BERT with {name}={ours} can be read")
    return config


def _tokenizer(options: Options, folders: Sequence[Path]) -> Tokenizer:
    """Of the vocabulary that is given, else the one beside the weights."""
    given = [Path(options.vocabulary)] if options.vocabulary else []
    for place in (*given, *(folder for folder in folders if (folder / VOCABULARY_FILE).is_file())):
        settings = (place if place.is_dir() else place.parent) / "tokenizer_config.json"
        said = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
        return Tokenizer.from_vocabulary(place, options.separator, said.get("do_lower_case", True))
    raise ValueError(
        f"a checkpoint file does not hold its words: name the {VOCABULARY_FILE} that it was trained with "
        "by --vocabulary (released ALBEF: that of bert-base-uncased)"
    )


# --------------------------------------------------------------------------- to a folder, to a model, and back


def convert(files: Sequence[Path | str], folder: Path, options: Options) -> Assembled:
    """Writes the checkpoint that `files` make into `folder`, for `diptych.load` and `init_from`; and the whole report.

    Raises ValueError for a folder that holds a checkpoint already, and as `assemble` does.
    """
    if (folder / "checkpoints").exists() or (folder / "recipe.json").exists():
        raise ValueError(f"{folder} holds a run already: name another folder")
    made = assemble(files, options)
    state = {"step": 0, "epoch": 0.0, "measure": None, "fresh": fresh_parts(made.report)}
    content = store.CheckpointState(made.weights, {}, state, to_dict(made.recipe), made.tokenizer.save)
    store.save_checkpoint(folder / "checkpoints", 0, content)
    (folder / "conversion.json").write_text(json.dumps(asdict(made.report), indent=1, ensure_ascii=False))
    return made


def fresh_parts(report: Report) -> list[str]:
    """Parts of the student that no file brought, such as `word_head`: random."""
    parts = (re.match(r"model\.(text\.layers\.\d+\.cross|\w+)", name) for name in report.missing)
    return sorted({re.sub(r"\d+", "*", part[1]) for part in parts if part})


def from_pretrained(
    *files: Path | str,
    vocabulary: Path | str | None = None,
    image_size: int | None = None,
    heads: tuple[int, int] | None = None,
    device: str = "auto",
) -> Predictor:
    """The model of a published file, ready to use; nothing is written.

    `vocabulary`: a vocab.txt or a folder that holds one. `image_size`: positions are resized to it.
    `heads` of image and text encoder, where they are not 64 wide. Raises ValueError as `assemble` does.
    """
    made = assemble(files, Options(vocabulary, image_size, heads))
    fresh = fresh_parts(made.report)
    return make_predictor(made.recipe, made.tokenizer, made.weights, Path(files[0]), fresh, device)


def export(run: Path, file: Path) -> dict[str, str]:
    """Writes a run's checkpoint in the released layout; returns what it has no place for, and why.

    A torch file with the entry `model`, as released, or bare safetensors if `file` is called so. Raises ValueError
    for a model that the released code cannot compute (another stem, other norms), and for a file that is there.
    """
    if file.exists():
        raise ValueError(f"{file} is there already: name another file")
    checkpoint = store.load(store.find(run))
    recipe = from_dict(checkpoint.recipe)
    layout = _layout_of(recipe)
    if layout is None:
        raise ValueError(f"{recipe.name} trains what was never released: it has no released layout")
    rules = layout.rules(recipe.model)
    weights = checkpoint.weights()
    try:
        published = to_published(weights, rules)
    except ValueError as error:
        raise ValueError(f"{checkpoint.folder} has no released layout: {error}") from None
    published |= counts(published, rules)
    unfinished = file.with_name(f"{file.name}.unfinished")
    if file.suffix == ".safetensors":
        save_file({name: tensor.clone() for name, tensor in published.items()}, unfinished)
    else:
        torch.save({"model": published}, unfinished)
    unfinished.replace(file)
    return absences(weights, from_published(published, rules)[0], rules)


def _layout_of(recipe: Recipe) -> Layout | None:
    """The layout that a recipe's runs are published in, if its task was ever released."""
    return next((layout for layout in LAYOUTS.values() if layout.task in type(recipe.task).__mro__), None)


# --------------------------------------------------------------------------- what a checkpoint is


def inspect(path: Path) -> str:
    """What a file, a folder in the Hugging Face layout, a run or a checkpoint is, in words. Reads shapes only."""
    if path.is_dir() and ((path / "checkpoints").is_dir() or (path / store.MANIFEST).is_file()):
        return _inspect_run(path)
    contents = read(path, shapes_only=True)
    layout = LAYOUTS[recognise(contents.tensors, LAYOUTS)]
    state = spell(contents.tensors, layout)
    # Heads do not show in shapes, and are not told: any number will do.
    model = sizes(state, layout.images_per_text, AlbefConfig(), heads=(1, 1))
    lines = [f"{contents.file}: {layout.title}", f"  holds    {len(state)} tensors, {_wrapping(contents)}"]
    if "visual_encoder.cls_token" in state:
        lines.append(_image_line(model))
    if "text_encoder" in {name.partition(".")[0] for name in state}:
        lines.append(_text_line(model, any(".crossattention." in name for name in state)))
    if any(".crossattention." in name for name in state):
        teacher = any(name.partition(".")[0].endswith("_m") for name in state)
        lines.append(_training_line(teacher, state["image_queue"].shape[1] if "image_queue" in state else 0))
    return "\n".join([*lines, f"  can      {'; '.join(layout.able)}"])


def _inspect_run(path: Path) -> str:
    checkpoint = store.load(store.find(path))
    recipe, fresh = from_dict(checkpoint.recipe), checkpoint.state.get("fresh", [])
    state = read(checkpoint.folder / "weights.safetensors", shapes_only=True).tensors
    layout = _layout_of(recipe)
    able = layout.able if layout else ()
    lines = [
        f"{checkpoint.folder}: a checkpoint of diptych",
        f"  holds    {len(state)} tensors of {recipe.name} with {type(recipe.task).__name__}, "
        f"step {checkpoint.state['step']}",
        _image_line(recipe.model),
        _text_line(recipe.model, fusion=True),
        _training_line(
            any(name.startswith("teacher.") for name in state),
            state["queue.image"].shape[0] if "queue.image" in state else 0,
        ),
    ]
    lines += [f"  random   {', '.join(fresh)}"] if fresh else []
    lines += [f"  can      {'; '.join(able)}"] if able else []
    return "\n".join(lines)


def _wrapping(contents: Contents) -> str:
    if contents.wrapper is None:
        return "bare"
    beside = f", beside {', '.join(contents.beside)}" if contents.beside else ""
    return f'under "{contents.wrapper}"{beside}'


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


def _training_line(teacher: bool, queue: int) -> str:
    return f"  teacher  {'yes' if teacher else 'no'}; {f'queue of {queue}' if queue else 'no queue'}"
