"""The comparisons hold with a golden folder whose sizes, pairs and texts are not the visible folder's.

The other folder is a copy of the given one, changed so that the released numbers which are compared stay true:

- images twice as wide as texts: the image encoder computes every number twice, and whatever reads an image halves the
  sum of both. All factors are powers of 2, so that only the order of sums changes;
- texts in the data sets' lists that are empty after the clean-up, as the released code reads them;
- pictures in a folder of their own;
- more pairs than two processes use; other names of the retrieval cases.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.parity.golden import run_alone

COMPARISONS = (
    "test_datasets.py",
    "test_published_keys.py::test_fine_tuning_starts_with_what_the_released_code_loads",
    "test_published_keys.py::test_what_the_released_code_ignores_changes_nothing[pretrain->vqa]",
    "test_published_keys.py::test_a_run_that_starts_from_the_file_begins_with_what_the_released_code_loads[pretrain->vqa]",
    "test_retrieval_eval.py",
    "test_vqa.py::test_vqa[losses_are_the_released_ones]",
    "test_vqa.py::test_vqa[ranking_is_the_released_one]",
    "test_vqa.py::test_the_decoder_starts_from_the_parts_that_the_released_one_starts_from",
    "vlmo/test_inputs.py",
    "vlmo/test_metrics.py",
    "vlmo/test_tasks.py::test_the_dual_encoder_finds_what_the_released_one_finds",
    "vlmo/test_tasks.py::test_reranking_gives_the_released_scores_and_recalls",
    "vlmo/test_two_ranks.py",
)
"""Those that the changes concern, and of which no stored number depends on the changed sizes."""


def test_comparisons_hold_with_another_folder(golden_albef: Path, golden_vlmo: Path, tmp_path: Path) -> None:
    albef, vlmo = tmp_path / "albef", tmp_path / "vlmo"
    shutil.copytree(golden_albef, albef, copy_function=shutil.copyfile)
    widen_images(albef)
    add_empty_texts(albef)
    shutil.copytree(golden_vlmo, vlmo, copy_function=shutil.copyfile)
    add_pairs(vlmo)
    rename_retrieval_cases(vlmo)
    here = Path(__file__).parent
    summary = run_alone(
        f"--golden-albef={albef}", f"--golden-vlmo={vlmo}", *(str(here / comparison) for comparison in COMPARISONS)
    ).splitlines()[-1]
    assert "skipped" not in summary, summary


def rewrite(file: Path, change: Callable[[Any], None]) -> None:
    """Changes the content of a JSON file in place."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


# --------------------------------------------------------------------------- images twice as wide

IMAGE_READER = re.compile(r"(vision_proj(_m)?|text_encoder(_m)?\..*\.crossattention\.self\.(key|value))\.weight")


def widen_images(folder: Path) -> None:
    """Doubles width and heads of the image encoder in every state, and leaves what is computed from an image.

    A folder whose images are half as wide as its texts stays as it is: it would become the equal one.
    """

    def change(sizes: dict[str, Any]) -> None:
        sizes["vit_dim"] *= 2
        sizes["vit_heads"] *= 2
        sizes["bert_config"]["encoder_width"] *= 2

    config = json.loads((folder / "config.json").read_text())
    if 2 * config["vit_dim"] == config["bert_config"]["hidden_size"]:
        return
    rewrite(folder / "config.json", change)
    for file in (folder / "state").iterdir():
        save_file({name: widened(name, tensor) for name, tensor in load_file(file).items()}, file)


def widened(name: str, tensor: Tensor) -> Tensor:
    """The tensor in a model whose image encoder computes every number twice, the second time in heads of its own."""
    if IMAGE_READER.fullmatch(name):
        return torch.cat([tensor, tensor], dim=1) / 2
    if not name.startswith(("visual_encoder.", "visual_encoder_m.")):
        return tensor
    if name.endswith(("cls_token", "pos_embed")):
        return torch.cat([tensor, tensor], dim=-1)
    if tensor.dim() == 2:
        tensor = torch.cat([tensor, tensor], dim=1) / 2
    parts = tensor.chunk(3) if ".qkv." in name else (tensor,)  # queries, keys, values
    return torch.cat([part for part in parts for _ in range(2)])


# --------------------------------------------------------------------------- empty texts

TEXTS = {
    "retrieval_train": "caption",
    "ve": "sentence",
    "nlvr": "sentence",
    "vqa_train": "question",
    "vqa_test": "question",
    "grounding": "text",
}
"""Each case's key of the text, where an entry has one text."""


def add_empty_texts(folder: Path) -> None:
    """Puts a copy of the first entry behind it, of another picture and with a text that the clean-up leaves empty."""
    cleaned = json.loads((folder / "text_cleanup.json").read_text())
    nothing = max(("", *(case["in"] for case in cleaned if case["pre_caption"] == case["pre_question"] == "")), key=len)

    def change(cases: dict[str, Any]) -> None:
        for name, key in TEXTS.items():
            _add_entry(cases[name], {key: nothing})
        for items in (cases["retrieval_train"]["items"], cases["grounding"]["train_items"]):
            for place, item in enumerate(items):  # pictures are numbered as they appear
                item[1] = 1 if place == 1 else item[1] + (item[1] >= 1)
        flat = cases["vqa_train"]["collated"]
        flat["questions"].insert(1, "")
        for values in (flat["answers"], flat["weights"]):
            values[flat["n"][0] : flat["n"][0]] = values[: flat["n"][0]]
        flat["n"].insert(1, flat["n"][0])
        _add_captions(cases["retrieval_eval"], nothing)
        for case in cases.values():
            _move_pictures(case)

    rewrite(folder / "datasets.json", change)


def _lists(case: dict[str, Any]) -> list[list[dict[str, Any]]]:
    return case["files"] if "files" in case else [case["file"]]


def _add_entry(case: dict[str, Any], text: dict[str, str]) -> None:
    entries = _lists(case)[0]
    first, other = deepcopy(entries[0]) | text, f"other{len(entries)}"
    entries.insert(1, first | {key: other for key in ("image", "image_id") if key in first})
    for items in (case[kind] for kind in ("items", "train_items", "test_items") if kind in case):
        items.insert(1, ["", *deepcopy(items[0][1:])])


def _add_captions(case: dict[str, Any], nothing: str) -> None:
    """An empty caption among the first picture's, and a picture that has no other."""
    texts = [[case["text"][text] for text in case["img2txt"][str(n)]] for n in range(len(case["image"]))]
    case["file"][0]["caption"].insert(1, nothing)
    case["file"].insert(1, {"image": "other", "caption": [nothing]})
    case["image"].insert(1, "other")
    texts[0].insert(1, "")
    texts.insert(1, [""])
    owners = [number for number, owned in enumerate(texts) for _ in owned]
    case["text"] = [text for owned in texts for text in owned]
    case["txt2img"] = {str(text): number for text, number in enumerate(owners)}
    case["img2txt"] = {str(n): [t for t, owner in enumerate(owners) if owner == n] for n in range(len(texts))}


def _move_pictures(case: dict[str, Any]) -> None:
    for entry in (entry for entries in _lists(case) for entry in entries):
        for key in ("image", "images"):
            if key in entry:
                entry[key] = _moved(entry[key])
    if "image" in case:
        case["image"] = _moved(case["image"])


def _moved(name: Any) -> Any:
    return [_moved(each) for each in name] if isinstance(name, list) else f"a.folder/{name}"


# --------------------------------------------------------------------------- VLMo


def add_pairs(folder: Path) -> None:
    """Repeats the first two pairs of `vl/` at its end, behind those that the two processes hold."""
    file = folder / "inputs.safetensors"
    save_file(
        {
            name: torch.cat([tensor, tensor[:2]]) if name.startswith("vl/") else tensor
            for name, tensor in load_file(file).items()
        },
        file,
    )
    rewrite(folder / "manifest.json", lambda told: told["inputs"]["vl_texts"].extend(told["inputs"]["vl_texts"][:2]))


def rename_retrieval_cases(folder: Path) -> None:
    """Changes the sizes in the names of the cases that need a model."""

    def renamed(name: str) -> str:
        return re.sub(r"(model|rerank)_\d+x\d+", r"\1_9x9", name)

    file = folder / "retrieval.safetensors"
    save_file({renamed(name): tensor for name, tensor in load_file(file).items()}, file)

    def change(told: dict[str, Any]) -> None:
        told["retrieval"] = {renamed(name): value for name, value in told["retrieval"].items()}

    rewrite(folder / "manifest.json", change)
