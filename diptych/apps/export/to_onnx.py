"""Exports a trained model as ONNX files that run without this library: both encoders, fusion, and the tokenizer."""

from __future__ import annotations

import importlib
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
from diptych.reading import expand_home
from diptych.schema import Recipe
from diptych.search.contract import evaluating
from diptych.writing import whole_folder, write_text

TEXT_SIDE = ("text_state", "attention_mask")


@dataclass(frozen=True)
class Graph:
    """A module that becomes an ONNX file."""

    module: nn.Module
    inputs: Mapping[str, Tensor]
    """Example inputs: three rows, texts of two positions or more, because the exporter takes sizes of 1 as constant."""
    outputs: Sequence[str]


def export_onnx(predictor: Predictor, folder: str | Path, int8: bool = False) -> tuple[Path, ...]:
    """Writes image.onnx, text.onnx, fusion.onnx, tokenizer.json, model.json and README.md into a new folder.

    Batches may have any size, and texts any length up to the model's limit. A file has an output only if its weights
    were trained: `vectors` of the encoders, `match` of the fusion, and `logits` of a classifier. Returns the files.
    `int8` rounds the matrices of linear layers, with a scale for each output channel, and the word embeddings; their
    inputs are rounded when a file is used, with one scale for a tensor. Raises ValueError if the folder is not empty,
    and for a model without any such output; WriteError, with nothing written, if the disk refuses.
    """
    folder = expand_home(folder)
    require_new(folder)
    _require_extra("onnx", "onnxscript", *(["onnxruntime"] if int8 else []))
    parts = graphs(predictor)
    description = describe(predictor, parts) | {"weights": "int8" if int8 else "float32"}
    with whole_folder(folder) as unfinished:
        for name, graph in parts.items():
            file = unfinished / f"{name}.onnx"
            _write(graph, predictor, description, file)
            if int8:
                _round_weights(file)
        write_text(unfinished / "tokenizer.json", _tokenizer(predictor).to_str(pretty=True))
        write_text(unfinished / "model.json", json.dumps(description, indent=1, ensure_ascii=False) + "\n")
        write_text(unfinished / "README.md", _readme(description))
    return tuple(sorted(folder.iterdir()))


def describe(predictor: Predictor, parts: Mapping[str, Graph]) -> dict[str, Any]:
    """Describes the inputs and outputs of the files as plain JSON."""
    recipe = predictor.recipe
    mean, std = STATISTICS[recipe.data.normalise]
    description: dict[str, Any] = {
        "name": recipe.name,
        "system": type(recipe.model).__name__.removesuffix("Config").lower(),
        "made_by": f"diptych {diptych.__version__}",
        "image_size": recipe.model.image_size,
        "mean": mean,
        "std": std,
        "tokenizer": "tokenizer.json",
        "max_tokens": _max_tokens(recipe),
        "longest_text": recipe.model.max_positions,
        "files": {f"{n}.onnx": {"inputs": list(g.inputs), "outputs": list(g.outputs)} for n, g in parts.items()},
    }
    if "vectors" in parts["image"].outputs:
        description["temperature"] = predictor.model.temperature().item()
    if (classes := _classes(predictor)) is not None:
        description["classes"], description["activation"] = classes
    return description


def _classes(predictor: Predictor) -> tuple[tuple[str, ...], str] | None:
    """Returns the classes of the logits and the activation for probabilities; None without a classifier."""
    config = predictor.recipe.task
    return task_class(config).classes(config)


def _max_tokens(recipe: Recipe) -> int:
    """Returns the longest text in tokens. Questions are cut only at the model's own limit."""
    longest = recipe.model.max_positions
    assert longest is not None, "a Predictor's model has a text encoder"
    return longest if record_kind(recipe.task) is Question else recipe.data.max_tokens_evaluation


def _tokenizer(predictor: Predictor) -> Tokenizer:
    recipe = predictor.recipe
    questions = record_kind(recipe.task) is Question
    words = LONGEST_QUESTION if questions else recipe.data.max_words
    return standalone(predictor.tokenizer, words, _max_tokens(recipe), questions)


# --------------------------------------------------------------------------- graphs


def graphs(predictor: Predictor) -> dict[str, Graph]:
    """Returns the graphs by the names of their files.

    Raises ValueError for a model without trained vectors, matching or classifier, and for one in lower precision.
    """
    predictor.check_exact()
    vectors, match = (predictor.missing(ability) is None for ability in ("embed", "match"))
    head = getattr(predictor.task, "head", None) if _classes(predictor) else None
    if not (vectors or match or head):
        raise ValueError(
            f"{predictor.origin} has nothing to export to ONNX: it was trained for neither vectors nor matching, and "
            "it has no classifier (answers that are generated word by word are not exported)"
        )
    model, config = padded(predictor.model), predictor.recipe.model
    images = getattr(config, "images_per_text", 1)
    pixels = torch.rand(3, 3, config.image_size, config.image_size, device=predictor.device)
    ids = torch.full((3, 4), predictor.tokenizer.cls_id, device=predictor.device)
    with evaluating(predictor.model):
        image_state, text_state = model.image(pixels)[1], model.text(ids, torch.ones_like(ids).bool())[1]
    outputs = ["vectors"] * vectors
    texts = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    pairs = {"text_state": text_state, "attention_mask": texts["attention_mask"], "image_state": image_state}
    if images == 2:
        pairs["second_image_state"] = image_state.clone()
    parts = {
        "image": Graph(ImageEncoder(model, vectors), {"pixels": pixels}, (*outputs, "image_state")),
        "text": Graph(TextEncoder(model, vectors), texts, (*outputs, "text_state")),
    }
    if match or head:
        fusion_outputs = (*["match"] * match, *["logits"] * (head is not None))
        parts["fusion"] = Graph(Fusion(model, match, head), pairs, fusion_outputs)
    return parts


def _write(graph: Graph, predictor: Predictor, description: Mapping[str, Any], file: Path) -> None:
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
        assert not isinstance(value.shape[0], int), f"{file.name}: the exporter took the batch size for a constant"
    _fold_constants(program.model)
    program.model.metadata_props.update({name: _metadata(value) for name, value in description.items()})
    program.save(file)


def _fold_constants(model: Any) -> None:
    """Computes what depends on weights alone, such as matrices with the scales of a norm, once instead of at each run.

    A linear layer then has a constant matrix, which is what quantisation looks for.
    """
    import onnxscript.optimizer

    all_weights = 4 * sum(value.const_value.size for value in model.graph.initializers.values())  # in bytes
    with _quiet():
        onnxscript.optimizer.optimize(model, input_size_limit=all_weights, output_size_limit=all_weights)


def _round_weights(file: Path) -> None:
    """Rounds the matrices of a file's linear layers and its embeddings to int8, in place.

    Matrices have 7 of the 8 bits, since a processor without VNNI adds two products in 16 bits, which could overflow.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            file, file, op_types_to_quantize=["MatMul", "Gemm", "Gather"], per_channel=True,
            reduce_range=True, weight_type=QuantType.QInt8,
        )  # fmt: skip


def _metadata(value: Any) -> str:
    """Returns a string as it is and other values as JSON, because ONNX metadata are strings."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the remarks of exporter and quantiser about themselves and about optional libraries."""
    levels = {logger: logger.level for logger in map(logging.getLogger, ("torch.onnx", "onnxscript", None))}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def _require_extra(*packages: str) -> None:
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ValueError(f"writing ONNX needs {package}: pip install 'diptych[export]'") from error


# --------------------------------------------------------------------------- README.md


def _readme(description: Mapping[str, Any]) -> str:
    lines = [
        f"# {description['name']} as ONNX",
        "",
        f"Written by {description['made_by']}. `model.json` holds the following for programs, and so does the metadata "
        "of each file.",
        "",
        "| file | inputs | outputs |",
        "|---|---|---|",
    ]
    for file, tensors in description["files"].items():
        inputs, outputs = (", ".join(f"`{name}`" for name in tensors[end]) for end in ("inputs", "outputs"))
        lines.append(f"| {file} | {inputs} | {outputs} |")
    side = description["image_size"]
    lines += [
        "",
        f"- `pixels` [batch, 3, {side}, {side}], float32: an RGB picture resized to {side} × {side} (bicubic), "
        f"bytes / 255, minus {_numbers(description['mean'])}, divided by {_numbers(description['std'])} (red, green, "
        "blue).",
        "- `input_ids`, `attention_mask` [batch, length], int64: the results of `tokenizers.Tokenizer.from_file"
        f'("tokenizer.json").encode_batch`, which cleans up texts and cuts them to {description["max_tokens"]} tokens. '
        f"The model reads at most {description['longest_text']} tokens.",
        "- `image_state`, `text_state`: inputs of the fusion. Row p of each belongs to pair p: repeat rows to compare "
        "one with many. `attention_mask` is that of the texts.",
    ]
    if description["weights"] == "int8":
        lines.append(
            "- Matrices of linear layers and word embeddings are int8, so that the results differ a little from those "
            "of the float32 files. Compare both on your own data before you rely on these."
        )
    if "temperature" in description:
        lines.append(
            "- `vectors` [batch, width]: vectors of length 1, whose dot products are similarities. "
            f"Divided by {description['temperature']:.4f} these are logits (zero-shot classification)."
        )
    if any("match" in tensors["outputs"] for tensors in description["files"].values()):
        lines.append("- `match` [batch]: the probability that picture and text belong together.")
    if "classes" in description:
        classes = ", ".join(description["classes"][:10]) + (" …" if len(description["classes"]) > 10 else "")
        lines.append(f"- `logits` [batch, classes]: {classes}. Their {description['activation']} gives probabilities.")
    return "\n".join(lines) + "\n"


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:g}" if value == round(value, 6) else repr(value) for value in values) + ")"
