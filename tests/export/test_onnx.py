"""Checks that exported files compute what the model computes, for any batch size, text length and padding."""

from __future__ import annotations

import json
import logging
import random
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer as Engine

from diptych.apps.export import export_onnx
from diptych.apps.export.graphs import Fusion, ImageEncoder, TextEncoder, padded
from diptych.apps.export.standalone import standalone
from diptych.apps.export.to_onnx import _round_weights, describe, graphs
from diptych.catalog import build_task
from diptych.cli.main import main
from diptych.data.loader import evaluation_batch
from diptych.data.record import Question
from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import EvaluationTransform
from diptych.predict import Predictor, load, make_predictor, prepare_texts
from diptych.schema import AlbefConfig, DataConfig, Nlvr2Config, Recipe, RetrievalConfig, TaskConfig, VlmoConfig
from diptych.types import Texts
from tests import tiny
from tests.disk import full_disk
from tests.runs import ANSWERS, WORDS, save_run

ROOT = Path(__file__).parents[2]


def shallow(config: AlbefConfig | VlmoConfig, **changes: Any) -> AlbefConfig | VlmoConfig:
    """Reduces a model to one unimodal and one fusion layer, since more layers only take longer."""
    if isinstance(config, VlmoConfig):
        return replace(config, depth=2, fusion_start=1, **changes)
    text = replace(config.text, layers=2, fusion_start=1)
    return replace(config, text=text, vision=replace(config.vision, depth=1), **changes)


@contextmanager
def unchecked() -> Iterator[None]:
    """Switches the shape checks off, because sizes are symbols while a graph is traced."""
    jaxtyping.config.update("jaxtyping_disable", True)
    trace = logging.getLogger("torch.__trace")
    trace.disabled = True  # thousands of records, which pytest would keep
    try:
        yield
    finally:
        trace.disabled = False
        jaxtyping.config.update("jaxtyping_disable", False)


VARIANTS: dict[str, tuple[AlbefConfig | VlmoConfig, TaskConfig]] = {
    "albef, norms behind": (tiny.albef_config(), RetrievalConfig(queue_size=0)),
    "albef, norms in front": (tiny.albef_config("pre", "conv"), RetrievalConfig(queue_size=0)),
    "albef, two pictures": (tiny.albef_config("pre", "conv", images_per_text=2), Nlvr2Config()),
    "vlmo, relative": (tiny.VLMO, RetrievalConfig(queue_size=0)),
    "vlmo, absolute": (
        replace(tiny.VLMO, positions="absolute", layer_scale=None, stem="conv"), RetrievalConfig(queue_size=0)
    ),
    "vlmo, standard transformer": (
        replace(tiny.VLMO, experts="one", attention="separate"), RetrievalConfig(queue_size=0)
    ),
    "vlmo, two pictures": (replace(tiny.VLMO, images_per_text=2), Nlvr2Config()),
}  # fmt: skip


TRACED = ("albef, norms in front", "vlmo, relative")
"""Variants that are exported to files, since tracing one takes seconds."""


def predictor_of(variant: str) -> Predictor:
    """Builds a predictor whose random weights give confident outputs."""
    config, task_config = VARIANTS[variant]
    recipe = Recipe("test", shallow(config), task_config, data=DataConfig(max_tokens=12, max_tokens_evaluation=12))
    task = build_task(recipe, WORDS)
    for seed, module in enumerate((task.model, getattr(task, "head", None))):
        if module is not None:
            tiny.shake(module, seed)
    return make_predictor(recipe, WORDS, task.state_dict(), Path("here"), device="cpu")


@dataclass(frozen=True)
class Exported:
    """A model with a session for each of its files."""

    predictor: Predictor
    folder: Path

    @cache  # noqa: B019  # as long as the tests
    def session(self, name: str) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(self.folder / f"{name}.onnx", providers=["CPUExecutionProvider"])

    def run(self, name: str, **given: torch.Tensor | np.ndarray) -> dict[str, np.ndarray]:
        session = self.session(name)
        found = session.run(None, {key: np.asarray(value) for key, value in given.items()})
        return dict(zip([output.name for output in session.get_outputs()], found, strict=True))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    @cache
    def make(variant: str) -> Exported:
        folder, predictor = tmp_path_factory.mktemp("onnx") / "files", predictor_of(variant)
        # What is traced keeps its whole stack, line by line; a thread's is not as deep as pytest's.
        with unchecked(), ThreadPoolExecutor(1) as thread:
            thread.submit(export_onnx, predictor, folder).result()
        return Exported(predictor, folder)

    return make


CASES = [([5, 9, 3, 7], 0), ([4], 0), ([1], 0), ([12, 1], 0), ([5, 2, 6], 4)]
"""Lengths of texts, and additional padding."""


def given_texts(lengths: list[int], padding: int) -> Texts:
    """Returns texts whose padding holds words, so that only the mask tells them apart."""
    texts = tiny.texts(lengths, seed=len(lengths))
    return tiny.padded(texts, max(lengths) + padding) if padding else texts


@pytest.mark.parametrize("variant", TRACED)
def test_the_files_give_what_the_model_gives(exported: Callable[[str], Exported], variant: str) -> None:
    found = exported(variant)
    model = found.predictor.model
    for lengths, padding in CASES:
        pixels, texts = given_pixels(len(lengths)), given_texts(lengths, padding)
        mask = texts.attention_mask.long()
        image = found.run("image", pixels=pixels)
        text = found.run("text", input_ids=texts.input_ids, attention_mask=mask)
        states = {"text_state": text["text_state"], "attention_mask": mask, "image_state": image["image_state"]}
        here = torch.arange(len(lengths))
        with torch.no_grad():
            image_state, text_state = model.image_state(pixels), model.text_state(texts)
            close(image["vectors"], model.embed_image(image_state)["main"])
            close(text["vectors"], model.embed_text(text_state)["main"])
            joint = model.fuse(text_state, image_state, here, here)
            close(found.run("fusion", **states)["match"], model.match_logits(joint).softmax(1)[:, 1])


@pytest.mark.parametrize("variant", TRACED)
def test_matrices_are_constants_and_can_be_rounded(exported: Callable[[str], Exported], variant: str) -> None:
    """A matrix that is computed at each run is one that no quantiser finds."""
    exact, pixels, texts = exported(variant), given_pixels(4), given_texts([5, 9, 3, 7], 0)
    rounded = Exported(exact.predictor, exact.folder.parent / "rounded")
    shutil.copytree(exact.folder, rounded.folder)
    mask = texts.attention_mask.long()
    states = exact.run("text", input_ids=texts.input_ids, attention_mask=mask) | exact.run("image", pixels=pixels)
    given = {
        "image": {"pixels": pixels},
        "text": {"input_ids": texts.input_ids, "attention_mask": mask},
        "fusion": {name: states[name] for name in ("text_state", "image_state")} | {"attention_mask": mask},
    }
    for name, inputs in given.items():
        file = rounded.folder / f"{name}.onnx"
        assert {matrix.data_type for matrix in matrices(file)} == {onnx.TensorProto.FLOAT}
        _round_weights(file)
        assert {matrix.data_type for matrix in matrices(file)} == {onnx.TensorProto.INT8}
        assert [entry.key for entry in onnx.load(file).metadata_props if entry.key == "system"]
        assert file.stat().st_size < (exact.folder / file.name).stat().st_size
        (result, *_), (expected, *_) = rounded.run(name, **inputs).values(), exact.run(name, **inputs).values()
        if name == "fusion":
            np.testing.assert_allclose(result, expected, atol=0.1)
        else:
            assert (result * expected).sum(axis=1).min() > 0.99


def matrices(file: Path) -> list[onnx.TensorProto]:
    """Returns the matrices of a file's linear layers. Fails for one that is computed from weights alone."""
    graph = onnx.load(file).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        large = [name for name in node.input if name in constants and np.prod(constants[name].dims) > 256]
        assert not (large and node.op_type != "Split" and all(n in constants for n in node.input)), node.op_type
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm", "MatMulInteger")]
    return [constants[node.input[1]] for node in products if node.input[1] in constants]


def test_the_command_writes_rounded_files_that_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, rounded = str(save_run(tmp_path / "run", "entailment")), []
    monkeypatch.setattr("diptych.apps.export.to_onnx._write", lambda *given: given[-1].write_bytes(b"a file"))
    monkeypatch.setattr("diptych.apps.export.to_onnx._round_weights", lambda file: rounded.append(file.name))
    for name, more in (("exact", []), ("int8", ["--int8"])):
        assert main(["export", run, "--to", str(tmp_path / name), "--onnx", *more]) == 0
        about = json.loads((tmp_path / name / "model.json").read_text())
        assert about["weights"] == {"exact": "float32"}.get(name, name)
        assert ("are int8" in (tmp_path / name / "README.md").read_text()) == (name == "int8")
    assert sorted(rounded) == ["fusion.onnx", "image.onnx", "text.onnx"]
    assert main(["export", run, "--to", str(tmp_path / "folder"), "--int8"]) == 2
    assert "--int8 is for --onnx" in capsys.readouterr().err


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_traced_gives_what_the_model_gives(variant: str) -> None:
    """Compares all variants, also with task heads, before they become files."""
    predictor = predictor_of(variant)
    model, task, form = predictor.model, predictor.task, padded(predictor.model)
    for lengths, padding in CASES:
        pixels, texts = given_pixels(len(lengths)), given_texts(lengths, padding)
        mask, here = texts.attention_mask.long(), torch.arange(len(lengths))
        with torch.no_grad():
            image_state, text_state = model.image_state(pixels), model.text_state(texts)
            *vectors, image = ImageEncoder(form, task is None)(pixels)
            *text_vectors, text = TextEncoder(form, task is None)(texts.input_ids, mask)
            if task is None:
                close(vectors[0], model.embed_image(image_state)["main"])
                close(text_vectors[0], model.embed_text(text_state)["main"])
                joint = model.fuse(text_state, image_state, here, here)
                close(Fusion(form, True, None)(text, mask, image)[0], model.match_logits(joint).softmax(1)[:, 1])
            else:
                head = task.head
                assert isinstance(head, torch.nn.Module)
                joint = model.fuse(text_state, image_state, here, torch.stack([here, here.flip(0)], dim=1))
                close(Fusion(form, False, head)(text, mask, image, image.flip(0))[0], head(joint.pooled))


def given_pixels(count: int) -> torch.Tensor:
    return tiny.uniform(count, 3, tiny.SIDE, tiny.SIDE, seed=3) * 2 - 1


def close(found: np.ndarray | torch.Tensor, expected: torch.Tensor) -> None:
    assert tuple(found.shape) == tuple(expected.shape)
    np.testing.assert_allclose(np.asarray(found), expected.numpy(), rtol=0, atol=1e-4)


def test_a_longer_text_than_the_model_has_positions_for_is_refused(exported: Callable[[str], Exported]) -> None:
    texts = tiny.texts([13])
    with pytest.raises(Exception, match=r"(?i)index|bounds|shape|dimension"):
        exported("vlmo, relative").run("text", input_ids=texts.input_ids, attention_mask=texts.attention_mask.long())


def test_each_file_and_model_json_describe_inputs_and_outputs(exported: Callable[[str], Exported]) -> None:
    folder = exported("albef, norms in front").folder
    about = json.loads((folder / "model.json").read_text())
    assert about["mean"] == [0.48145466, 0.4578275, 0.40821073]  # ALBEF's, as published
    assert about["std"] == [0.26862954, 0.26130258, 0.27577711]
    assert (about["image_size"], about["max_tokens"], about["longest_text"]) == (tiny.SIDE, 12, tiny.POSITIONS)
    assert about["files"]["fusion.onnx"]["outputs"] == ["match"]
    for file in folder.glob("*.onnx"):
        held = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
        assert json.loads(held["mean"]) == about["mean"]
        assert held["tokenizer"] == "tokenizer.json"
        assert f"| {file.name} |" in (folder / "README.md").read_text()


def test_a_classifier_exports_named_logits_and_no_untrained_output(tmp_path: Path) -> None:
    for kind, classes, activation in (
        ("entailment", ("contradiction", "neutral", "entailment"), "softmax"),
        ("nlvr2", ("false", "true"), "softmax"),
        ("closed", ANSWERS, "sigmoid"),
    ):
        predictor = load(save_run(tmp_path / kind, kind), "cpu")
        made = graphs(predictor)
        about = describe(predictor, made)
        assert (about["classes"], about["activation"]) == (classes, activation)
        assert [list(graph.outputs) for graph in made.values()] == [["image_state"], ["text_state"], ["logits"]]
        assert ("second_image_state" in made["fusion"].inputs) == (kind == "nlvr2")
        assert "temperature" not in about


@pytest.mark.parametrize("separator", [False, True])
@pytest.mark.parametrize(("max_words", "max_tokens"), [(30, 30), (3, 30), (30, 6)])
def test_the_tokenizer_of_the_files_reads_any_text_as_the_model_does(
    separator: bool, max_words: int, max_tokens: int
) -> None:
    ours = Tokenizer(WORDS.vocabulary, separator=separator)
    engine = Engine.from_str(standalone(ours, max_words, max_tokens).to_str())
    config = replace(DataConfig(), max_words=max_words, max_tokens_evaluation=max_tokens)
    draw = random.Random(0)
    parts = [*"abcdefxyz  --//,.'!?\"()*#:;~\n\t  éÏß中İ<>[]", "<person>", "[SEP]", "[CLS]", " red ", " fox ", " "]
    compared = 0
    for _ in range(400):
        text = "".join(draw.choices(parts, k=draw.randint(1, 40)))
        try:
            expected = prepare_texts([text], ours, config).input_ids[0].tolist()
        except ValueError:  # without words
            continue
        assert engine.encode(text).ids == expected, repr(text)
        compared += 1
    assert compared > 300


def test_the_tokenizer_of_a_model_that_answers_reads_questions_as_evaluation_does() -> None:
    engine = standalone(WORDS, 50, 60, questions=True)
    for text in ("What is there,  left-of the car?", "how many <person> are there ", " is it? " + "a red fox " * 20):
        batch = evaluation_batch(
            [Question("q", None, text, (), "")], [[torch.zeros(3, 4, 4)]], WORDS, DataConfig(max_tokens_evaluation=6)
        )
        assert engine.encode(text).ids == batch.texts.input_ids[0].tolist()[:60]


# --------------------------------------------------------------------------- the page, the command


def snippet() -> str:
    """Returns the Python code of docs/export.md that uses the files."""
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    (code,) = [one for one in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL) if "onnxruntime" in one]
    return code


def test_the_pages_snippet_needs_no_torch_and_gives_the_predictors_numbers(
    exported: Callable[[str], Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = exported("albef, norms in front")
    predictor = replace(found.predictor, transform=EvaluationTransform(DataConfig(), tiny.SIDE))
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    (tmp_path / "demo-onnx").symlink_to(found.folder)
    monkeypatch.chdir(tmp_path)
    code = snippet().replace("photo.jpg", "photo.png")
    imported = set(re.findall(r"^(?:import|from) (\w+)", code, flags=re.MULTILINE))
    assert imported == {"json", "numpy", "onnxruntime", "PIL", "tokenizers"}
    names: dict[str, Any] = {}
    exec(code, names)
    np.testing.assert_allclose(names["match"], predictor.match("photo.png", names["texts"])[0], rtol=0, atol=1e-3)
    similarity = predictor.embed_images("photo.png") @ predictor.embed_texts(names["texts"]).T
    np.testing.assert_allclose(names["similarity"], similarity[0], rtol=0, atol=1e-3)


def test_a_model_that_writes_its_answers_has_nothing_to_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = save_run(tmp_path / "run", "decoder")
    assert main(["export", str(run), "--to", str(tmp_path / "out"), "--onnx"]) == 2
    assert "answers that are generated word by word are not exported" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    predictor = load(save_run(tmp_path / "run", "entailment"), "cpu")
    with pytest.raises(ValueError, match="name a new folder"):
        export_onnx(predictor, tmp_path)
    assert (tmp_path / "mine").read_text() == "kept"


def test_a_full_disk_leaves_no_file_and_a_second_try_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = load(save_run(tmp_path / "run", "entailment"), "cpu")

    def write(graph: Any, predictor: Any, description: Any, file: Path) -> None:  # quicker than a real graph
        file.write_bytes(bytes(5000 if file.stem == "fusion" else 10))

    monkeypatch.setattr("diptych.apps.export.to_onnx._write", write)
    with full_disk(at=4000), pytest.raises(OSError, match=r"out could not be written \(File too large\)"):
        export_onnx(predictor, tmp_path / "out")
    assert [one.name for one in tmp_path.iterdir()] == ["run"]
    assert "fusion.onnx" in {file.name for file in export_onnx(predictor, tmp_path / "out")}


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = load(save_run(tmp_path / "run", "entailment"), "cpu")
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ValueError, match=re.escape("pip install 'diptych[export]'")):
        export_onnx(predictor, tmp_path / "out")
