"""Reads a folder of classes: a subfolder of pictures for each, as ImageNet and torchvision's ImageFolder have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from diptych.data.files import files_below, read_json
from diptych.data.picture_kinds import SUFFIXES

TRAIN = ("train", "training")
TEST = ("test", "val", "valid", "validation")
LAYOUT = "a folder of classes has a subfolder of pictures for each class: birds/wren/1.jpg, birds/robin/1.jpg"


@dataclass(frozen=True)
class ClassPictures:
    """The pictures of a folder of classes, sorted by name."""

    names: tuple[str, ...]
    """Names of the classes as a text reads them: `tabby cat` for the folder `tabby_cat`."""
    files: tuple[Path, ...]
    labels: tuple[int, ...]
    """The class of each file."""


def read_classes(folder: Path, names: Mapping[str, str] | None = None) -> tuple[ClassPictures, ClassPictures | None]:
    """Reads the pictures to measure on and, where the folder has subfolders `train` and `test`, those to train on.

    `names` says what a class is called, by the name of its folder. Raises ValueError for fewer than two classes, for a
    class of one part that the other lacks, and for a name of no folder.
    """
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: {LAYOUT}")
    inside = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_dir()}
    train = next((inside[name] for name in TRAIN if name in inside), None)
    test = next((inside[name] for name in TEST if name in inside), None)
    if train is None or test is None:
        return _read(folder, names), None
    measured, trained = _read(test, names), _read(train, names)
    if measured.names != trained.names:
        different = sorted({*measured.names} ^ {*trained.names})
        raise ValueError(f"{train.name} and {test.name} in {folder} hold different classes: {', '.join(different)}")
    return measured, trained


def _read(folder: Path, names: Mapping[str, str] | None) -> ClassPictures:
    of_class: dict[str, list[Path]] = {}
    for file in files_below(folder):
        if len(file.parts) > 1 and file.suffix.lower() in SUFFIXES:
            of_class.setdefault(file.parts[0], []).append(folder / file)
    if len(of_class) < 2:
        raise ValueError(f"{folder} holds pictures of {len(of_class)} classes, and two are needed: {LAYOUT}")
    if names is not None and (unknown := [name for name in names if name not in of_class]):
        raise ValueError(f"{folder} has no class {unknown[0]!r}; it has {', '.join(sorted(of_class))}")
    called = [(names or {}).get(name, name.replace("_", " ").strip()) for name in of_class]
    if twice := sorted({name for name in called if called.count(name) > 1}):
        raise ValueError(f"two classes are called {twice[0]!r}: give each a name of its own")
    labels = tuple(number for number, files in enumerate(of_class.values()) for _ in files)
    return ClassPictures(tuple(called), tuple(file for files in of_class.values() for file in files), labels)


def read_class_names(file: Path) -> dict[str, str]:
    """Reads a JSON object of names by folder, such as {"n02123045": "tabby cat"}. Raises ValueError."""
    layout = 'names of classes are a JSON object, as in {"n02123045": "tabby cat"}'
    content = read_json(file, layout)
    if not isinstance(content, dict) or not all(isinstance(name, str) and name.strip() for name in content.values()):
        raise ValueError(f"{file}: {layout}")
    return content
