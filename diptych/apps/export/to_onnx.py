"""A trained model as ONNX files that run without this library: both encoders, the fusion, the tokenizer beside them."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.export import Dim

import diptych
from diptych.apps.export.folder import require_new
from diptych.apps.export.graphs import Fusion, ImageEncoder, TextEncoder, padded
from diptych.apps.export.standalone import standalone
from diptych.catalog import record_kind, task_class
from diptych.data.loader import LONGEST_QUESTION
from diptych.data.record import Question
from diptych.data.transforms import STATISTICS
from diptych.predict import Predictor
from diptych.schema import Recipe
from diptych.search.contract import evaluating

TEXT_SIDE = ("text_state", "attention_mask")


@dataclass(frozen=True)
class Graph:
    """What becomes a file."""

    module: nn.Module
    inputs: Mapping[str, Tensor]
    """Examples: batches of three, texts of two places or more, so that no size stands for one alone."""
    outputs: Sequence[str]


def export_onnx(predictor: Predictor, folder: str | Path) -> tuple[Path, ...]:
    """Writes image.onnx, text.onnx, fusion.onnx, tokenizer.json, model.json and README.md into a new folder.

    Batches and texts may have any size, up to the model's longest text. An output is there if its weights were trained:
    `vectors` of the encoders, `match` of the fusion and, of a model with a classifier, its `logits`. Returns the files.
    Raises ValueError for a folder that holds something, and for a model without any such output.
    """
    folder = Path(folder)
    require_new(folder)
    _require_extra()
    made = graphs(predictor)
    about = describe(predictor, made)
    folder.mkdir(parents=True, exist_ok=True)
    for name, graph in made.items():
        _write(graph, predictor, about, folder / f"{name}.onnx")
    _tokenizer(predictor).save(str(folder / "tokenizer.json"))
    (folder / "model.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_readme(about), encoding="utf-8")
    return tuple(sorted(folder.iterdir()))


def describe(predictor: Predictor, made: Mapping[str, Graph]) -> dict[str, Any]:
    """What one must know to feed the files and to read what they say; plain JSON."""
    recipe = predictor.recipe
    mean, std = STATISTICS[recipe.data.normalise]
    about: dict[str, Any] = {
        "name": recipe.name,
        "system": type(recipe.model).__name__.removesuffix("Config").lower(),
        "made_by": f"diptych {diptych.__version__}",
        "image_size": recipe.model.image_size,
        "mean": mean,
        "std": std,
        "tokenizer": "tokenizer.json",
        "max_tokens": _max_tokens(recipe),
        "longest_text": recipe.model.max_positions,
        "files": {f"{n}.onnx": {"inputs": list(g.inputs), "outputs": list(g.outputs)} for n, g in made.items()},
    }
    if "vectors" in made["image"].outputs:
        about["temperature"] = predictor.model.temperature().item()
    if (classes := _classes(predictor)) is not None:
        about["classes"], about["activation"] = classes
    return about


def _classes(predictor: Predictor) -> tuple[tuple[str, ...], str] | None:
    """Names of the logits, and what makes probabilities of them; None for a model without a classifier."""
    config = predictor.recipe.task
    return task_class(config).classes(config)


def _max_tokens(recipe: Recipe) -> int:
    """Questions are never cut, but to what the model can read."""
    longest = recipe.model.max_positions
    assert longest is not None, "a model without texts is no Predictor's"
    return longest if record_kind(recipe.task) is Question else recipe.data.max_tokens_evaluation


def _tokenizer(predictor: Predictor) -> Tokenizer:
    recipe = predictor.recipe
    questions = record_kind(recipe.task) is Question
    words = LONGEST_QUESTION if questions else recipe.data.max_words
    return standalone(predictor.tokenizer, words, _max_tokens(recipe), questions)


# --------------------------------------------------------------------------- graphs


def graphs(predictor: Predictor) -> dict[str, Graph]:
    """By the names of their files. Raises ValueError for a model that has no vectors, matches or classes to give."""
    vectors, match = (predictor.missing(ability) is None for ability in ("embed", "match"))
    head = getattr(predictor.task, "head", None) if _classes(predictor) else None
    if not (vectors or match or head):
        raise ValueError(
            f"{predictor.origin} has nothing for ONNX: its encoders were trained for neither vectors nor matching, and "
            "it has no classifier (answers that are written word by word are not exported)"
        )
    model, config = padded(predictor.model), predictor.recipe.model
    images = getattr(config, "images_per_text", 1)
    pixels = torch.rand(3, 3, config.image_size, config.image_size, device=predictor.device)
    ids = torch.full((3, 4), predictor.tokenizer.cls_id, device=predictor.device)
    with evaluating(predictor.model):
        image_state, text_state = model.image(pixels)[1], model.text(ids, torch.ones_like(ids).bool())[1]
    named = ["vectors"] * vectors
    texts = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    pairs = {"text_state": text_state, "attention_mask": texts["attention_mask"], "image_state": image_state}
    if images == 2:
        pairs["second_image_state"] = image_state.clone()
    made = {
        "image": Graph(ImageEncoder(model, vectors), {"pixels": pixels}, (*named, "image_state")),
        "text": Graph(TextEncoder(model, vectors), texts, (*named, "text_state")),
    }
    if match or head:
        outputs = (*["match"] * match, *["logits"] * (head is not None))
        made["fusion"] = Graph(Fusion(model, match, head), pairs, outputs)
    return made


def _write(graph: Graph, predictor: Predictor, about: Mapping[str, Any], file: Path) -> None:
    batch, length = Dim("batch"), Dim("length", max=predictor.recipe.model.max_positions)
    texts = ("input_ids", *TEXT_SIDE)
    shapes = {name: {0: batch, 1: length} if name in texts else {0: batch} for name in graph.inputs}
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph.module.eval(), tuple(graph.inputs.values()), dynamo=True, verbose=False, dynamic_shapes=shapes,
            input_names=list(graph.inputs), output_names=list(graph.outputs),
        )  # fmt: skip
    assert program is not None
    for value in program.model.graph.inputs:
        assert value.shape is not None
        assert not isinstance(value.shape[0], int), f"{file.name}: the size of a batch was taken for a constant"
    program.model.metadata_props.update({name: _plain(value) for name, value in about.items()})
    program.save(file)


def _plain(value: Any) -> str:
    """Metadata of ONNX are texts: anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of itself and of libraries that nobody here uses."""
    levels = {logger: logger.level for logger in map(logging.getLogger, ("torch.onnx", "onnxscript"))}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def _require_extra() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError("writing ONNX needs onnxscript: pip install 'diptych[export]'") from error


# --------------------------------------------------------------------------- in words


def _readme(about: Mapping[str, Any]) -> str:
    lines = [
        f"# {about['name']} as ONNX",
        "",
        f"Written by {about['made_by']}. `model.json` holds what follows for programs; each file holds it as metadata.",
        "",
        "| file | inputs | outputs |",
        "|---|---|---|",
    ]
    for name, ends in about["files"].items():
        inputs, outputs = (", ".join(f"`{one}`" for one in ends[side]) for side in ("inputs", "outputs"))
        lines.append(f"| {name} | {inputs} | {outputs} |")
    side = about["image_size"]
    lines += [
        "",
        f"- `pixels` [batch, 3, {side}, {side}], float32: an RGB picture resized to {side} × {side} (bicubic), "
        f"bytes / 255, less {_numbers(about['mean'])}, divided by {_numbers(about['std'])} (red, green, blue).",
        "- `input_ids`, `attention_mask` [batch, length], int64: what `tokenizers.Tokenizer.from_file"
        f'("tokenizer.json").encode_batch` gives; clean-up and the cut to {about["max_tokens"]} tokens are in that '
        f"file. The model reads {about['longest_text']} tokens at most.",
        "- `image_state`, `text_state`: what the fusion reads. Row p of its inputs belongs to pair p: repeat rows to "
        "compare one with many. `attention_mask` is that of the texts.",
    ]
    if "temperature" in about:
        lines.append(
            "- `vectors` [batch, width]: of length 1; their products are similarities. "
            f"Divided by {about['temperature']:.4f} they are logits (zero-shot classification)."
        )
    if any("match" in ends["outputs"] for ends in about["files"].values()):
        lines.append("- `match` [batch]: the probability that picture and text belong together.")
    if "classes" in about:
        shown = ", ".join(about["classes"][:10]) + (" …" if len(about["classes"]) > 10 else "")
        lines.append(f"- `logits` [batch, classes]: {shown}. Their {about['activation']} is a probability.")
    return "\n".join(lines) + "\n"


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:g}" if value == round(value, 6) else repr(value) for value in values) + ")"
