"""Tests the benchmark of pseudo-targets: labels and predictions made by hand are judged by what the scenes show."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import pseudo_targets
from diptych.data.sources.scenes import open_scenes
from diptych.data.tokenizer import Tokenizer
from diptych.schema import DataConfig, ScenesConfig
from diptych.types import TokenPositions

SCENES = open_scenes(DataConfig(scenes=ScenesConfig(sprites="shapes", count=200, mismatch=0.5)), "train")
COUNT = 200
WRONG = [bool(SCENES.record(index).clean) for index in range(COUNT)]


def inspection(**fields: Any) -> Any:
    return SimpleNamespace(**fields)


def texts(preferred: list[int]) -> Counter[str]:
    found = inspection(momentum_texts=torch.tensor(preferred)[:, None])
    return Counter(pseudo_targets._texts(found, SCENES, range(COUNT)))


def test_a_caption_is_right_where_it_is_true_of_the_image() -> None:
    """A momentum encoder that repeats the labels is right where they are; few exchanged captions happen to be true."""
    counts = texts(list(range(COUNT)))
    assert set(counts) == {"both", "neither"}
    assert WRONG.count(False) <= counts["both"] <= WRONG.count(False) + WRONG.count(True) // 5


def test_a_pseudo_target_counts_as_right_where_the_text_that_it_prefers_is() -> None:
    """A momentum encoder that finds a true text wherever the batch has one never loses to a label."""
    true = [
        next((j for j in range(COUNT) if SCENES.given(j).true_of(SCENES.scene(i))), i)  # type: ignore[union-attr]
        for i in range(COUNT)
    ]
    counts = texts(true)
    assert counts["label"] == 0
    assert counts["pseudo"] > 10
    assert counts["both"] == texts(list(range(COUNT)))["both"]


def test_a_word_is_right_where_the_image_shows_its_thing() -> None:
    source = open_scenes(DataConfig(), "train")
    names = pseudo_targets._names(source)
    tokenizer = Tokenizer.train([" ".join(names), "without"], 2000)
    scene = source.scene(0)
    shown = next(iter(scene.kinds))
    absent = next(name for name in names.values() if name not in scene.kinds)
    plural = next(form for form, name in names.items() if name == shown and form != name)
    words = {
        "label": (plural, absent),
        "pseudo": (absent, plural),
        "both": (shown, plural),
        "neither": (absent, absent),
    }
    for right, pair in words.items():
        label, pseudo = (tokenizer.encode([word], 10)[0][1] for word in pair)
        found = inspection(
            masked=TokenPositions(torch.tensor([0]), torch.tensor([1])), labels=torch.tensor([label]),
            momentum_words=torch.tensor([[pseudo, label]]),
        )  # fmt: skip
        assert list(pseudo_targets._words(found, [scene], tokenizer, names)) == [right]
    other = tokenizer.encode(["without"], 10)[0][1]
    found = inspection(
        masked=TokenPositions(torch.tensor([0]), torch.tensor([1])), labels=torch.tensor([other]),
        momentum_words=torch.tensor([[other]]),
    )  # fmt: skip
    assert not list(pseudo_targets._words(found, [scene], tokenizer, names)), "only names of things are judged"


def test_a_run_whose_truth_is_not_known_is_named() -> None:
    opened = SimpleNamespace(folder="runs/pairs", recipe=SimpleNamespace(data=DataConfig(source="jsonl")))
    with pytest.raises(ValueError, match=r"runs/pairs was trained on jsonl: the truth is known of English scenes"):
        pseudo_targets._measure(opened, 10)  # type: ignore[arg-type]
