"""Assembles a task's state from published files: files → tensors → layout → sizes → our names → task.

Nothing in a file is executed. Each of its tensors is loaded, or dropped for a stated reason, and each tensor that it
lacks has a stated reason too. Anything else is an error.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from diptych import catalog
from diptych.checkpoints import store
from diptych.checkpoints.convert import Absent, Report, absences, from_published
from diptych.checkpoints.sizes import build_without_memory, check_bytes
from diptych.data.tokenizer import VOCABULARY_FILE, Tokenizer
from diptych.pretrained.albef import AlbefFamily
from diptych.pretrained.family import Family, Options, State, word_count
from diptych.pretrained.formats import Layout, in_one_sentence, read, recognise, spell
from diptych.pretrained.vlmo import VlmoFamily
from diptych.reading import read_object
from diptych.schema import ModelConfig, Recipe, TokenizerConfig

FAMILIES: tuple[Family, ...] = (VlmoFamily(), AlbefFamily())
LAYOUTS: dict[str, Layout] = {name: layout for family in FAMILIES for name, layout in family.layouts.items()}
"""All layouts. A file is of the first one that fits it: a BEiT, for one, fits what a ViT needs, and has more."""
LARGER, PUBLISHED = 16, 1 << 31
"""A task takes at most so many times the bytes of its files, or as many bytes as a published size needs, because what
start weights lack is of that size. ALBEF with its momentum encoder takes five times the bytes of its ViT."""
OPTIONAL = (
    Absent("momentum_encoder", "no momentum encoder in the file: it starts as a copy of the student"),
    Absent("momentum_head", "no momentum copy of the head in the file: it starts as a copy of the student"),
    Absent("queue", "no queue in the file: it starts empty"),
)
"""Parts that a file may lack as a whole. Where it holds some of their tensors, it must hold all of them."""


def family_of(layout: Layout) -> Family:
    """Returns the system that a layout belongs to."""
    return next(family for family in FAMILIES if layout.title in {known.title for known in family.layouts.values()})


def family_with(model: ModelConfig) -> Family | None:
    """Returns the system of such a model; None where it was never released."""
    return next((family for family in FAMILIES if type(model) is family.config), None)


@dataclass(frozen=True)
class Assembled:
    """Everything that a checkpoint needs, made from published files."""

    layout: Layout
    recipe: Recipe
    tokenizer: Tokenizer
    weights: Mapping[str, Tensor]
    """The task's state."""
    report: Report
    resized: str | None
    """How positions were resized, in words."""
    beside: tuple[str, ...] = ()
    """What the files hold beside the model, such as an optimiser, which is not read."""

    def __str__(self) -> str:
        """Writes the report with a line for each reason."""
        report = self.report
        lines = [f"{len(report.loaded):5} loaded, as {len(set(report.loaded.values()))} tensors of other names"]
        for verb, reasons in (("dropped", report.dropped.values()), ("missing", report.missing.values())):
            counts = Counter(re.sub(r"^second name of .*", "second names of loaded ones", reason) for reason in reasons)
            lines += [f"{count:5} {verb}: {reason}" for reason, count in counts.items()]
        lines += [f"      {self.resized}"] if self.resized else []
        lines += [f"      not read, because beside the model: {', '.join(self.beside)}"] if self.beside else []
        return "\n".join([self.layout.title, *lines])


def assemble(files: Sequence[Path | str], options: Options) -> Assembled:
    """Makes a task's state from an ALBEF, a VLMo, or start weights: a ViT, a BERT or both, or a BEiT.

    Raises ValueError for files that hold a tensor nobody knows, or lack one without a reason.
    """
    with in_one_sentence(" and ".join(map(str, files))):
        return _assemble(files, options)


def _assemble(files: Sequence[Path | str], options: Options) -> Assembled:
    # Files → tensors and their layout. Several files are start weights that make one model.
    contents = [read(file) for file in files]
    names = [recognise(content.tensors, LAYOUTS) for content in contents]
    are_start_weights = any(family.starts.issuperset(names) for family in FAMILIES)
    if not names or len(set(names)) < len(names) or (len(names) > 1 and not are_start_weights):
        raise ValueError(
            "give one ALBEF checkpoint, one VLMo checkpoint, or start weights: a ViT, a BERT, or one of each; or a BEiT"
        )
    state: dict[str, Tensor] = {}
    for name, content in zip(names, contents, strict=True):
        state |= spell(content.tensors, LAYOUTS[name])
    family = family_of(LAYOUTS[names[0]])
    layout = family.joint_layout(names)
    if options.separator and not family.separator and not are_start_weights:
        raise ValueError("released ALBEF was trained without [SEP] behind a text: leave --separator out")
    tokenizer = _tokenizer(options, family, [content.file.parent for content in contents])

    # Shapes → the file's model, and the recipe of the wanted one, which may be of another size.
    recipe = family.recipe(layout, state)
    model = family.file_model(state, layout, recipe.model, options, contents)
    if (words := word_count(state)) not in (None, tokenizer.vocab_size):
        raise ValueError(
            f"the vocabulary has {tokenizer.vocab_size} pieces and the text encoder {words} words: "
            "give the vocabulary that it was trained with"
        )
    model = model.with_words(tokenizer.vocab_size, tokenizer.pad_id)
    token_config = TokenizerConfig(None, tokenizer.vocab_size, tokenizer.separator, tokenizer.lowercase)
    wanted = family.wanted_model(model, options)
    recipe = family.fill_recipe(replace(recipe, model=wanted, tokenizer=token_config, init_from=None), state, options)

    # Published names → ours, resized, and filled up with what the file need not have.
    rules = layout.rules(model)
    ours, report = from_published(state, rules)
    origin = " and ".join(map(str, files))
    pretended = build_without_memory(lambda: catalog.build_task(recipe, tokenizer), recipe, len(state), origin)
    if pretended is not None:
        check_bytes(pretended, max(LARGER * sum(tensor.nbytes for tensor in state.values()), PUBLISHED), origin)
    task = catalog.build_task(recipe, tokenizer)
    fresh = task.state_dict()
    ours, resized = family.fit_weights(ours, fresh, model, recipe.model)
    optional = [rule for rule in OPTIONAL if not any(f"{name}.".startswith(f"{rule.ours}.") for name in ours)]
    report = replace(report, missing=absences(fresh, ours, (*optional, *rules)))
    weights = ours | {name: _substitute(name, ours, fresh) for name in report.missing}
    store.load_into(task, weights, origin)
    beside = tuple(name for content in contents for name in content.beside)
    return Assembled(layout, recipe, tokenizer, weights, report, resized, beside)


def _substitute(name: str, ours: State, fresh: State) -> Tensor:
    """Returns the tensor that stands for one that the file lacks."""
    student = re.sub(r"^momentum_head\.", "head.", re.sub(r"^momentum_encoder\.", "model.", name))
    if student != name:
        return ours.get(student, fresh[student])
    if name == "queue.filled" and "queue.image" in ours:
        return ours["queue.image"].any(dim=1).sum()
    return fresh[name]


def _tokenizer(options: Options, family: Family, folders: Sequence[Path]) -> Tokenizer:
    """Makes the tokenizer of the vocabulary that the options name, or else of the one beside the weights."""
    named = [Path(options.vocabulary)] if options.vocabulary else []
    for vocabulary in (*named, *(folder for folder in folders if (folder / VOCABULARY_FILE).is_file())):
        settings = (vocabulary if vocabulary.is_dir() else vocabulary.parent) / "tokenizer_config.json"
        config = read_object(settings) if settings.is_file() else {}
        separator = options.separator or family.separator
        return Tokenizer.from_vocabulary(vocabulary, separator, config.get("do_lower_case", True))
    raise ValueError(
        f"a checkpoint file does not hold its words: name the {VOCABULARY_FILE} that it was trained with "
        "by --vocabulary (released ALBEF and VLMo: that of bert-base-uncased)"
    )
