"""Models in bf16 and int8: what they lose, what they refuse, and how `auto` chooses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from diptych.apps import index
from diptych.apps.export import export_folder
from diptych.cli.main import main
from diptych.nn import lowered
from diptych.nn.blocks import Block, VisionBlock
from diptych.nn.lowered import Int8Weight, LoweredLinear, int8_is_exact, rounded_rows
from diptych.predict import Predictor, load, precision
from tests import runs

LOWER = ("bf16", pytest.param("int8", marks=pytest.mark.skipif(not int8_is_exact(), reason="no int8 on this CPU")))
needs_int8 = pytest.mark.skipif(not int8_is_exact(), reason="no int8 on this CPU")
KINDS = [(kind, system) for system in ("albef", "vlmo") for kind in ("retrieval", "grounding")]
WORDS = ["a red fox left of a car", "two dogs on the beach"]


def pictures(count: int = 3) -> list[Image.Image]:
    colours = torch.randint(0, 255, (count, 6, 6, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return [Image.fromarray(one.numpy()).resize((32, 32), Image.Resampling.BICUBIC) for one in colours]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {(kind, system): runs.save_run(folder / f"{system}-{kind}", kind, system) for kind, system in KINDS}


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(F.cosine_similarity(a, b, dim=1).min())


@pytest.mark.parametrize("name", LOWER)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_vectors_keep_their_direction_and_pairs_their_match(
    saved: dict[tuple[str, str], Path], kind: tuple[str, str], name: str
) -> None:
    exact, other = load(saved[kind], "cpu"), load(saved[kind], "cpu", precision=name)
    assert (exact.precision, other.precision) == ("fp32", name)
    assert not any(isinstance(module, LoweredLinear) for module in exact.model.modules())
    assert cosine(exact.embed_images(pictures()), other.embed_images(pictures())) > 0.99
    assert cosine(exact.embed_texts(WORDS), other.embed_texts(WORDS)) > 0.99
    assert not torch.equal(exact.embed_texts(WORDS), other.embed_texts(WORDS))
    assert (exact.match(pictures(), WORDS) - other.match(pictures(), WORDS)).abs().max() < 0.1
    heat, low = (model.locate(pictures()[0], "a fox").heat for model in (exact, other))
    assert cosine(torch.tensor(heat).flatten()[None], torch.tensor(low).flatten()[None]) > 0.9


@pytest.mark.parametrize("name", LOWER)
def test_every_product_within_blocks_is_lowered_and_nothing_else_is(
    saved: dict[tuple[str, str], Path], name: str
) -> None:
    model = load(saved["retrieval", "albef"], "cpu", precision=name).model
    inside = {id(part) for block in model.modules() if isinstance(block, Block) for part in block.modules()}
    for part in model.modules():
        assert not (isinstance(part, nn.Linear) and id(part) in inside)
        assert not (isinstance(part, LoweredLinear) and id(part) not in inside)
    assert {value.dtype for value in model.parameters()} == {torch.float32}


@needs_int8
def test_int8_has_a_scale_for_each_token_and_each_output() -> None:
    """An outlier in one token, or in one output channel, must not coarsen the others."""
    x, matrix = torch.randn(5, 64), torch.randn(8, 64)
    x[0] *= 1000
    matrix[0] *= 1000
    product = Int8Weight.of(matrix).multiply(x, torch.zeros(8))
    exact = x @ matrix.T
    error = (product - exact).abs() / (x.norm(dim=1)[:, None] * matrix.norm(dim=1))
    assert error.max() < 0.01


@needs_int8
def test_int8_is_the_rounded_product_to_the_last_bit() -> None:
    x, matrix = torch.randn(3, 7, 48), torch.randn(20, 48)
    whole, scale = rounded_rows(matrix)
    tokens, token_scale = rounded_rows(x.flatten(0, 1))
    by_hand = (tokens.double() @ whole.double().T) * token_scale * scale.T
    weight = Int8Weight.of(matrix)
    assert torch.allclose(weight.multiply(x, torch.zeros(20)).flatten(0, 1), by_hand.float(), rtol=1e-6)
    part = weight[4:9].multiply(x, torch.zeros(5))
    assert torch.equal(part, weight.multiply(x, torch.zeros(20))[..., 4:9])
    assert weight.multiply(x[:0], torch.zeros(20)).shape == (0, 7, 20)
    assert torch.equal(weight.multiply(torch.zeros(2, 48), torch.ones(20)), torch.ones(2, 20))  # 0 stays 0


@pytest.mark.parametrize("name", LOWER)
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_a_lowered_block_has_the_gradient_of_its_input(name: str, activation: str) -> None:
    torch.manual_seed(0)
    block = VisionBlock(32, 2, 4.0, 1e-6, 0.0, activation, layer_scale=True).eval()
    x = torch.randn(2, 5, 32, requires_grad=True)
    (exact,) = torch.autograd.grad(block(x)[0].square().sum(), x)
    originals = precision.lower(block, name)
    assert len(originals) == 4
    (rounded,) = torch.autograd.grad(block(x)[0].square().sum(), x)
    assert cosine(exact.flatten()[None], rounded.flatten()[None]) > 0.999
    precision.restore(originals)
    (again,) = torch.autograd.grad(block(x)[0].square().sum(), x)
    assert torch.equal(exact, again)


# --------------------------------------------------------------------------- auto


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Makes `auto` measure for small models too, with a cache of its own."""
    monkeypatch.setattr(precision, "LEAST_WIDTH", 1)
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path))
    return tmp_path / precision.MEASURED


def settle(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float], run: Path) -> Predictor:
    monkeypatch.setattr(precision, "_seconds", lambda name, device: seconds[name])
    return load(run, "cpu", precision="auto")


def test_auto_takes_the_fastest_and_says_so(
    saved: dict[tuple[str, str], Path], wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = saved["retrieval", "albef"]
    monkeypatch.setattr(precision, "LEAST_COSINE", 0.9)  # of random weights
    chosen = settle(monkeypatch, {"fp32": 1.0, "bf16": 0.4, "int8": 0.5}, run)
    assert chosen.precision == "bf16"
    assert "bf16, 2.5 times as fast as fp32" in chosen.precision_note
    kept = settle(monkeypatch, {}, run)  # measured once: nothing is asked again
    assert kept.precision == "bf16"
    assert len(json.loads(wide.read_text())) == 1
    wide.write_text("{")
    slower = settle(monkeypatch, {"fp32": 1.0, "bf16": 2.0, "int8": 0.9}, run)
    assert (slower.precision, slower.precision_note[:4]) == ("fp32", "fp32")
    assert torch.equal(slower.embed_texts(WORDS), load(run, "cpu").embed_texts(WORDS))


def test_auto_refuses_what_loses_more_than_its_bound(
    saved: dict[tuple[str, str], Path], wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = saved["retrieval", "vlmo"]
    monkeypatch.setattr(precision, "LEAST_COSINE", 1.1)  # which nothing reaches
    chosen = settle(monkeypatch, {"fp32": 1.0, "bf16": 0.4, "int8": 0.5}, run)
    assert chosen.precision == "fp32"
    assert "bf16 has a cosine of only" in chosen.precision_note
    assert torch.equal(chosen.embed_texts(WORDS), load(run, "cpu").embed_texts(WORDS))


def test_the_measured_block_is_timed_in_each_precision(wide: Path) -> None:
    seconds = precision.measure(torch.device("cpu"))
    assert list(seconds) == ["fp32", "bf16", *(["int8"] if int8_is_exact() else [])]
    assert min(seconds.values()) > 0
    assert precision.measure(torch.device("cpu")) == seconds


def test_small_models_stay_fp32(saved: dict[tuple[str, str], Path]) -> None:
    model = load(saved["retrieval", "albef"], "cpu", precision="auto")
    assert model.precision == "fp32"
    assert "width" in model.precision_note


# --------------------------------------------------------------------------- refusals


def test_what_cannot_be_is_said(
    saved: dict[tuple[str, str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = saved["retrieval", "albef"]
    with pytest.raises(ValueError, match="no precision 'int4': choose one of auto, fp32, bf16, int8"):
        load(run, "cpu", precision="int4")
    with pytest.raises(ValueError, match="int8 runs on CPUs only, not on cuda"):
        precision.check_precision("int8", torch.device("cuda"))
    assert main(["search", str(run), "a fox", "--images", str(run), "--precision", "fp8"]) == 2
    assert "no precision 'fp8'" in capsys.readouterr().err
    monkeypatch.setattr(precision, "int8_is_exact", lambda: False)
    with pytest.raises(ValueError, match="without overflow"):
        load(run, "cpu", precision="int8")


def test_overflow_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Int8Weight, "product", lambda self, tokens: torch.full((64, 64), float(2**15 - 1)))
    assert not lowered.int8_is_exact()


def test_a_lowered_model_is_not_exported(saved: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="loaded in bf16: load it in fp32"):
        export_folder(load(saved["retrieval", "albef"], "cpu", precision="bf16"), tmp_path / "out")


# --------------------------------------------------------------------------- indexes and verbs


def test_an_index_takes_queries_of_another_precision(saved: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    run = saved["retrieval", "albef"]
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, picture in enumerate(pictures()):
        picture.save(folder / f"{number}.png")
    exact, other = load(run, "cpu"), load(run, "cpu", precision="bf16")
    place = str(tmp_path / "photos.index")
    index.build_index(place, folder, other)
    assert index.index_info(place).precision == "bf16"
    assert "in bf16" in str(index.index_info(place))
    found = index.open_index(place, exact).search("a red fox", 3)
    assert len(found.hits) == 3
    again = str(tmp_path / "exact.index")
    index.build_index(again, folder, exact)
    assert index.index_info(again).precision == "fp32"
    assert index.index_info(again).digest == index.index_info(place).digest
    assert len(index.open_index(again, other).search("a red fox", 3).hits) == 3
