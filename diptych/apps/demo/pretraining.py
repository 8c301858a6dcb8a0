"""From made pictures to a model that is trained on them, measured and reported, stage by stage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from diptych import catalog
from diptych.apps import compare
from diptych.apps.compare.compute import record_compute
from diptych.apps.demo.systems import SYSTEMS, Demonstration
from diptych.apps.report import summary
from diptych.apps.report.of_run import report, write
from diptych.apps.report.stages import COMPUTE
from diptych.checkpoints import store
from diptych.data.sources.folder import CAPTIONS_FILE
from diptych.run import train
from diptych.run.evaluation import EvaluatedRetrieval, evaluate_as_retrieval
from diptych.schema import Recipe
from diptych.train.state import stored_recipe

PICTURES = "pictures"
"""The folder of saved test pictures below a run's."""
SAVED = 200
"""Unseen scenes that are saved as files, to search in."""
QUERIES = 4
"""Captions of the saved pictures that are suggested for a search: the first ones, not the best found."""


def demo(shown: Demonstration) -> Path:
    """Made pictures, a model trained on them from nothing, its measures and its report. A stopped one goes on."""
    folder = shown.folder
    for name in shown.system.stages:
        place = shown.stage_folder(name)
        _train(linked(shown, name), place)
        if not (place / "report.html").exists():
            print(f"Report:  {report(place)}")
    _train(linked(shown, shown.system.recipe), folder)
    evaluated = evaluate_as_retrieval(folder)
    page = write(evaluated)
    pictures = _save_pictures(evaluated, folder / PICTURES)
    print(summary(evaluated.to_json()))
    print(f"\nReport:    {page}\nPictures:  {pictures} (unseen scenes)")
    compare_systems(shown)
    print("\nTry next:", *_suggestions(shown, evaluated.split.captions[:QUERIES]), sep="\n  ")
    return page


# --------------------------------------------------------------------------- runs


def linked(shown: Demonstration, name: str) -> Recipe:
    """A recipe; where it names the run of a stage, the demonstration's."""
    places = {stage: str(shown.stage_folder(stage)) for stage in shown.system.stages}

    def link(run: str) -> str:
        return places.get(Path(run).name, run)

    recipe = catalog.find_recipe(name)
    task = catalog.task_class(recipe.task).relinked(recipe.task, link)
    return replace(recipe, task=task, init_from=link(recipe.init_from) if recipe.init_from else None)


def _train(recipe: Recipe, place: Path) -> None:
    """Trains a run, or goes on with what its folder holds; one that has ended stays as it is."""
    begun = (place / "recipe.json").exists()
    if begun:
        recipe = stored_recipe(place)
    if begun and _ended(recipe, place):
        print(f"{place} is trained already")
    else:
        print(f"{place} holds a run already: going on with it" if begun else f"\n{recipe.name} in {place}")
        train(recipe, place, resume=begun)
    if not (place / COMPUTE).exists():
        record_compute(place)


def _ended(recipe: Recipe, place: Path) -> bool:
    newest, _ = store.newest_whole(place / "checkpoints")
    return newest is not None and newest.state["step"] == recipe.run.steps


# --------------------------------------------------------------------------- what is shown


def _save_pictures(evaluated: EvaluatedRetrieval, folder: Path) -> Path:
    """The first test pictures as files, to search in, with their captions as the source `folder` reads them."""
    folder.mkdir(exist_ok=True)
    split = evaluated.split
    count = min(SAVED, len(split.pictures))
    names = [f"{number:04d}.png" for number in range(count)]
    for number, name in enumerate(names):
        split.pictures[number].save(folder / name)
    pairs = zip(split.captions, split.image_of_text.tolist(), strict=True)
    lines = [json.dumps({"image": names[owner], "caption": caption}) for caption, owner in pairs if owner < count]
    (folder / CAPTIONS_FILE).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def _suggestions(shown: Demonstration, queries: Sequence[str]) -> list[str]:
    """Commands that go on from here."""
    folder, system = shown.folder, shown.system
    start = " init_from=none" if system.stages else ""  # whose words are those of scenes
    return [
        *(f'diptych search {folder} "{query}" --images {folder / PICTURES}' for query in queries),
        f"diptych demo --all-tasks --model {system.name}",
        f"diptych train {system.recipe} data.source=folder data.path=YOUR_PHOTOS run.batch_size=16{start}",
    ]


def compare_systems(shown: Demonstration) -> None:
    """This demonstration beside those of the other systems, where they have been run."""
    folders = [shown.folder if one is shown.system else one.folder for one in SYSTEMS.values()]
    runs = [folder for folder in folders if (folder / "eval.json").exists()]
    if len(runs) < 2:
        return
    try:
        found = compare.compare(runs)
    except ValueError as error:
        print(f"\nNot compared with the other system: {error}")
        return
    print(f"\n{compare.as_text(found)}\n\nThe same as a page: {compare.write(found, shown.folder)}")
