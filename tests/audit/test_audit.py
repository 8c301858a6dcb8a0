"""Checks that an audit finds the pairs that do not fit, and writes lists without them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from diptych.apps.audit import audit, score_pairs, write_audit
from diptych.catalog import open_source, read_splits
from diptych.cli.main import main
from diptych.data.record import BadRecord
from diptych.predict import Predictor, load
from diptych.schema import DataConfig, ScenesConfig
from tests.runs import save_run

COLOURS = {"red": (220, 30, 30), "green": (30, 170, 60), "blue": (40, 70, 220), "white": (245, 245, 245)}
NAMES = list(COLOURS)


class Seeing(Predictor):
    """Stands in for a model that knows colours: its vectors are one-hot."""

    def embed_readable(self, images: Sequence[Any]) -> tuple[list[int], Tensor, list[Any]]:
        opened: dict[int, Image.Image] = {}
        errors: list[Any] = []
        for place, image in enumerate(images):
            try:
                opened[place] = self.open(image)
            except BadRecord as error:
                errors.append(error)
        colours = [picture.getpixel((1, 1)) for picture in opened.values()]
        nearest = [
            min(NAMES, key=lambda name: sum(abs(a - b) for a, b in zip(COLOURS[name], seen, strict=True)))  # type: ignore[arg-type]
            for seen in colours
        ]
        return list(opened), torch.eye(4)[[NAMES.index(name) for name in nearest]], errors

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        return torch.eye(4)[[next(NAMES.index(word) for word in text.split() if word in COLOURS) for text in texts]]

    def match_pairs(self, images: Sequence[Any], texts: Sequence[str], pairs: Sequence[tuple[int, int]]) -> Tensor:
        assert list(pairs) == sorted(pairs)
        _, vectors, _ = self.embed_readable(images)
        return torch.stack([(vectors[i] @ self.embed_texts([texts[t]])[0]) * 0.8 + 0.1 for i, t in pairs])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("audit") / "run", "pretraining")


@pytest.fixture
def seeing(run: Path) -> Predictor:
    return Seeing(**vars(load(run, device="cpu")))


def folder(place: Path, count: int = 40, wrong: Sequence[int] = ()) -> Path:
    """Writes pictures of one colour with their names as captions; those of `wrong` get the next colour's name."""
    (place / "pictures").mkdir(parents=True)
    lines = []
    for number in range(count):
        name = NAMES[number % 4]
        said = NAMES[(number + 1) % 4] if number in wrong else name
        Image.new("RGB", (32, 24 + number % 3), COLOURS[name]).save(place / f"pictures/{number:02}.png")
        lines.append(json.dumps({"image": f"pictures/{number:02}.png", "captions": [f"thing {number} in {said}"]}))
    (place / "train.jsonl").write_text("\n".join(lines))
    return place / "train.jsonl"


def test_planted_pairs_are_found_and_left_out_of_the_list(seeing: Predictor, tmp_path: Path) -> None:
    wrong = {3, 8, 21}
    config = DataConfig(source="jsonl", path=str(folder(tmp_path / "data", wrong=sorted(wrong))), held_out=0.0)
    found = audit(seeing, read_splits(config))
    assert {int(pair.caption.split()[1]) for pair in found.dropped} == wrong
    assert [pair.score for pair in found.pairs] == sorted(pair.score for pair in found.pairs)
    text = write_audit(found, tmp_path / "out", "colours")
    assert "3 of 40 captions (7.5%) do not fit" in text
    kept = DataConfig(source="jsonl", path=str(tmp_path / "out/train.jsonl"), held_out=0.0)
    records = open_source(kept, "train")
    assert len(records) == 37
    assert not any(f"thing {number} in" in records.record(row).captions[0] for number in wrong for row in range(37))
    assert records.picture(records.record(0)).size
    page = (tmp_path / "out/audit.html").read_text()
    assert "thing 3 in" in page
    assert page.count("left out") >= 3
    lines = [json.loads(line) for line in (tmp_path / "out/pairs.jsonl").read_text().splitlines()]
    assert len(lines) == 40
    assert {line["dropped"] for line in lines[:3]} == {True}


@pytest.mark.parametrize("name", ["match", "both"])
def test_the_fusion_encoder_can_decide(seeing: Predictor, tmp_path: Path, name: Any) -> None:
    config = DataConfig(source="jsonl", path=str(folder(tmp_path / "data", wrong=[5])), held_out=0.0)
    found = audit(seeing, read_splits(config), name)
    assert [pair.caption.split()[1] for pair in found.dropped] == ["5"]
    assert found.pairs[0].match == pytest.approx(-2.197, abs=1e-3)


def test_a_share_can_be_asked_for(seeing: Predictor, tmp_path: Path) -> None:
    config = DataConfig(source="jsonl", path=str(folder(tmp_path / "data", wrong=[1, 2])), held_out=0.0)
    found = audit(seeing, read_splits(config), drop=0.25)
    assert len(found.dropped) == 10
    assert {pair.caption.split()[1] for pair in found.pairs[:2]} == {"1", "2"}
    with pytest.raises(ValueError, match="lies between 0 and 1"):
        audit(seeing, read_splits(config), drop=1.5)


def test_images_that_cannot_be_opened_are_told_and_left_out_of_the_list(seeing: Predictor, tmp_path: Path) -> None:
    listed = folder(tmp_path / "data", wrong=[5])
    (tmp_path / "data/pictures/07.png").write_bytes(b"<html>")
    found = audit(seeing, read_splits(DataConfig(source="jsonl", path=str(listed), held_out=0.0)))
    assert "1 records were passed over, the first: " in write_audit(found, tmp_path / "out", "colours")
    kept = (tmp_path / "out/train.jsonl").read_text().splitlines()
    assert len(kept) == 38
    assert not any("thing 7 in" in line or "thing 5 in" in line for line in kept)


def test_contrast_is_that_of_its_definition(seeing: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.nn.functional.normalize(torch.randn(6, 5, generator=generator), dim=1) for _ in range(2))
    batches = iter(texts.split(seeing.recipe.evaluation.batch_size))
    monkeypatch.setattr(Seeing, "embed_texts", lambda self, captions: next(batches))
    temperature = seeing.model.temperature().item()
    captions = ["a", "b", "c", "d", "e", "a"]  # the last says what the first says
    owners = [0, 1, 2, 3, 4, 4]
    scores = score_pairs(seeing, ["unused.png"] * 6, images, captions, owners)
    for row in range(6):
        other = [t for t in range(6) if owners[t] != owners[row] and captions[t] != captions[row]]
        own = images[owners[row]] @ texts[row] / temperature
        by_text = torch.stack([images[owners[row]] @ texts[t] / temperature for t in other]).exp().mean().log()
        by_image = torch.stack([images[owners[t]] @ texts[row] / temperature for t in other]).exp().mean().log()
        assert scores.contrast[row] == pytest.approx(float(own - (by_text + by_image) / 2), abs=1e-5)


def test_images_of_two_splits_and_captions_that_say_nothing_are_named(seeing: Predictor, tmp_path: Path) -> None:
    train = folder(tmp_path / "data", 12)
    lines = [json.loads(line) for line in train.read_text().splitlines()]
    lines[0]["captions"] = ["IMG_2041.jpg red"]
    lines += [{**line, "captions": ["a photo of something red"]} for line in lines[4:10]]
    train.write_text("\n".join(map(json.dumps, lines)))
    Image.open(tmp_path / "data/pictures/04.png").resize((64, 50)).save(tmp_path / "data/pictures/again.jpg")
    test = tmp_path / "data/test.jsonl"
    test.write_text(json.dumps({"image": "pictures/again.jpg", "captions": ["thing 4 in red"]}))
    config = DataConfig(source="jsonl", path=str(train), validation_path=str(test), test_path=str(test))
    found = audit(seeing, read_splits(config))
    reasons = {pair.caption: pair.empty for pair in found.pairs if pair.split == "train"}
    assert reasons["IMG_2041.jpg red"] == "it holds a file name or an address"
    assert reasons["a photo of something red"] == "many images share the caption"
    assert {(copy.split, Path(copy.record.image).name) for copy in found.copies} == {
        ("validation", "again.jpg"), ("test", "again.jpg"),
    }  # fmt: skip
    assert "nearly equal a training image" in found.summary()
    write_audit(found, tmp_path / "out", "colours")
    assert "Images of several splits" in (tmp_path / "out/audit.html").read_text()


def test_the_verb_audits_a_folder_with_a_real_model(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = folder(tmp_path / "data", 8)
    call = ["data", "audit", "jsonl", str(data), "--model", str(run), "--to", str(tmp_path / "out"), "--device", "cpu"]
    assert main([*call, "--score", "both", "--drop", "0.2"]) == 0
    out = capsys.readouterr().out
    assert "pairs that fit worst are left out (20% of each split)" in out
    assert "use them with: data.source=jsonl data.path=" in out
    assert (tmp_path / "out/audit.html").is_file()
    assert main([*call, "--drop", "2"]) == 2
    assert "lies between 0 and 1" in capsys.readouterr().err


def test_where_no_pair_fits_no_list_is_written_and_the_way_out_is_named(seeing: Predictor, tmp_path: Path) -> None:
    listings = read_splits(DataConfig(source="jsonl", path=str(folder(tmp_path / "data", 8))))
    found = audit(seeing, listings)
    hopeless = replace(found, pairs=tuple(replace(pair, dropped=True) for pair in found.pairs))
    said = write_audit(hopeless, tmp_path / "out", "title")
    assert "no list is written, since no pair would be left" in said
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"audit.html", "pairs.jsonl"}


@pytest.mark.parametrize("name", ["train.jsonl", "pairs.jsonl"])
def test_an_audit_overwrites_neither_what_it_reads_nor_what_no_audit_wrote(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    data = folder(tmp_path / "data", 8)
    data = data.rename(data.with_name(name))
    content = data.read_bytes()
    call = ["data", "audit", "jsonl", str(data), "--model", str(run), "--device", "cpu"]
    assert main([*call, "--to", str(data.parent)]) == 2
    assert f"{data} is one of the files that are read: write to another place" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_bytes(content)
    assert main([*call, "--to", str(tmp_path / "out")]) == 2
    assert "diptych did not write it" in capsys.readouterr().err
    assert data.read_bytes() == (tmp_path / "out" / name).read_bytes() == content
    assert [file.name for file in (tmp_path / "out").iterdir()] == [name]
    (tmp_path / "out" / name).unlink()
    assert main([*call, "--to", str(tmp_path / "out")]) == main([*call, "--to", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.4, 350, 450), (1.0, 990, 1000)])
def test_mismatch_gives_the_asked_share_another_scene_s_caption(share: float, low: int, high: int) -> None:
    scenes = ScenesConfig(sprites="shapes", count=1000, mismatch=share)
    clean = open_source(DataConfig(scenes=ScenesConfig(sprites="shapes", count=1000)), "train")
    mixed = open_source(DataConfig(scenes=scenes), "train")
    truths = [clean.record(index).captions[0] for index in range(1000)]
    records = [mixed.record(index) for index in range(1000)]
    wrong = [record for record, truth in zip(records, truths, strict=True) if record.captions[0] != truth]
    assert low <= len(wrong) <= high, "an exchanged caption may be equal"
    for record in wrong:
        assert record.captions[0] in truths
        assert record.clean == (truths[records.index(record)],)
    assert all(not open_source(DataConfig(scenes=scenes), "test").record(index).clean for index in range(5))
