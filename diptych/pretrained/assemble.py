"""From published files to a task's state: files → tensors → layout → sizes → our names → task.

Nothing in a file is executed. Every tensor of it is loaded, or dropped for a stated reason; what it lacks has a stated
reason too. Anything else is an error.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from diptych import catalog
from diptych.checkpoints import store
from diptych.checkpoints.convert import Absent, Report, absences, from_published
from diptych.data.tokenizer import VOCABULARY_FILE, Tokenizer
from diptych.pretrained.albef import AlbefFamily
from diptych.pretrained.family import Family, Options, State, word_count
from diptych.pretrained.formats import Contents, Layout, read, recognise, spell
from diptych.pretrained.vlmo import VlmoFamily
from diptych.schema import ModelConfig, Recipe, TokenizerConfig

FAMILIES: tuple[Family, ...] = (VlmoFamily(), AlbefFamily())
LAYOUTS: dict[str, Layout] = {name: layout for family in FAMILIES for name, layout in family.layouts.items()}
"""The first that fits is it: a BEiT is told from a plain ViT by what it has more."""
LOOSE = (
    Absent("teacher", "no momentum copies in the file: the teacher starts as a copy of the student"),
    Absent("teacher_head", "no momentum copies in the file: the teacher starts as a copy of the student"),
    Absent("queue", "no queue in the file: it starts empty"),
)
"""What a file may lack as a whole, but not in part."""


def family_of(layout: Layout) -> Family:
    """The system that a known layout belongs to."""
    return next(family for family in FAMILIES if layout.title in {own.title for own in family.layouts.values()})


def family_with(model: ModelConfig) -> Family | None:
    """The system that such a model belongs to, if any of it was released."""
    return next((family for family in FAMILIES if type(model) is family.config), None)


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
    """A task's state from published files: one ALBEF, one VLMo, or start weights: a ViT, a BERT or both, or a BEiT.

    Raises ValueError for files that hold anything unknown, or lack anything for no known reason.
    """
    contents, state, layout, family, start = _gather(files)
    if options.separator and not family.separator and not start:
        raise ValueError("released ALBEF was trained without [SEP] behind a text: leave --separator out")
    tokenizer = _tokenizer(options, family, [found.file.parent for found in contents])
    recipe = family.recipe(layout, state)
    model = family.sizes(state, layout, recipe.model, options, contents)
    if (words := word_count(state)) not in (None, tokenizer.vocab_size):
        raise ValueError(
            f"the vocabulary has {tokenizer.vocab_size} pieces and the text encoder {words} words: "
            "give the vocabulary that it was trained with"
        )
    model = model.with_words(tokenizer.vocab_size, tokenizer.pad_id)
    recipe = _recipe(recipe, family.resized(model, options), tokenizer)
    recipe = family.filled(recipe, state, options)
    rules = layout.rules(model)
    ours, report = from_published(state, rules)
    task = catalog.build_task(recipe, tokenizer)
    fresh = task.state_dict()
    ours, resized = family.fit(ours, fresh, model, recipe.model)
    loose = [rule for rule in LOOSE if not any(f"{name}.".startswith(f"{rule.ours}.") for name in ours)]
    report = replace(report, missing=absences(fresh, ours, (*loose, *rules)))
    weights = ours | {name: _substitute(name, ours, fresh) for name in report.missing}
    store.load_into(task, weights, " and ".join(map(str, files)))
    return Assembled(layout, recipe, tokenizer, weights, report, resized)


def _gather(files: Sequence[Path | str]) -> tuple[list[Contents], dict[str, Tensor], Layout, Family, bool]:
    """What the files hold, their tensors as the rules know them, their layout, and whether they are start weights."""
    contents = [read(file) for file in files]
    names = [recognise(found.tensors, LAYOUTS) for found in contents]
    start = any(family.starts.issuperset(names) for family in FAMILIES)
    if not names or len(set(names)) < len(names) or (len(names) > 1 and not start):
        raise ValueError(
            "give one ALBEF checkpoint, one VLMo checkpoint, or start weights: a ViT, a BERT, or one of each; or a BEiT"
        )
    state: dict[str, Tensor] = {}
    for name, found in zip(names, contents, strict=True):
        state |= spell(found.tensors, LAYOUTS[name])
    family = family_of(LAYOUTS[names[0]])
    return contents, state, family.together(names), family, start


def _substitute(name: str, ours: State, fresh: State) -> Tensor:
    """What stands for a tensor that the file lacks."""
    student = re.sub(r"^teacher_head\.", "head.", re.sub(r"^teacher\.", "model.", name))
    if student != name:
        return ours.get(student, fresh[student])
    if name == "queue.filled" and "queue.image" in ours:
        return ours["queue.image"].any(dim=1).sum()
    return fresh[name]


# --------------------------------------------------------------------------- what the files do not say


def _recipe(recipe: Recipe, model: ModelConfig, tokenizer: Tokenizer) -> Recipe:
    words = TokenizerConfig(None, tokenizer.vocab_size, tokenizer.separator, tokenizer.lowercase)
    return replace(recipe, model=model, tokenizer=words, init_from=None)


def _tokenizer(options: Options, family: Family, folders: Sequence[Path]) -> Tokenizer:
    """Of the vocabulary that is given, else the one beside the weights."""
    given = [Path(options.vocabulary)] if options.vocabulary else []
    for place in (*given, *(folder for folder in folders if (folder / VOCABULARY_FILE).is_file())):
        settings = (place if place.is_dir() else place.parent) / "tokenizer_config.json"
        said = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
        closed = options.separator or family.separator
        return Tokenizer.from_vocabulary(place, closed, said.get("do_lower_case", True))
    raise ValueError(
        f"a checkpoint file does not hold its words: name the {VOCABULARY_FILE} that it was trained with "
        "by --vocabulary (released ALBEF and VLMo: that of bert-base-uncased)"
    )
