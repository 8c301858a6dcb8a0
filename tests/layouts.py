"""Published data layouts as small folders, made exactly as published: what tests of reading and of training share."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image


def picture(file: Path, shade: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (shade % 256, 0, 0)).save(file)


def write(file: Path, content: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def lines(file: Path, entries: list[object]) -> Path:
    return write(file, "\n".join(map(json.dumps, entries)))


def karpathy(folder: Path, coco: bool, splits: Sequence[str] = ("test", "train", "restval", "val")) -> Path:
    """A picture with two sentences for each split."""
    images: list[dict[str, Any]] = []
    for number, split in enumerate(splits):
        name = f"COCO_val2014_{number:012d}.jpg" if coco else f"{number}.jpg"
        image = {"filename": name, "imgid": number, "split": split, "sentids": [2 * number, 2 * number + 1]}
        if coco:
            image |= {"filepath": "val2014", "cocoid": 100 + number}
        image["sentences"] = [
            {"tokens": ["a", "fox"], "raw": f"A fox, {word}.", "imgid": number, "sentid": 2 * number + place}
            for place, word in enumerate(["one", "two"])
        ]
        images.append(image)
        picture(folder / "images" / image.get("filepath", "") / name)
    return write(folder / "dataset.json", {"images": images, "dataset": "coco" if coco else "flickr30k"})


def vqa_questions(folder: Path, subset: str, numbers: list[int]) -> Path:
    """One question a picture; the picture's number is a hundredth of the question's."""
    place = "test2015" if subset == "test-dev2015" else subset
    for number in numbers:
        picture(folder / "images" / place / f"COCO_{place}_{number // 100:012d}.jpg")
    questions = [{"image_id": n // 100, "question": f"What is {n}?", "question_id": n} for n in numbers]
    content = {"data_type": "mscoco", "data_subtype": subset, "task_type": "Open-Ended", "questions": questions}
    return write(folder / f"v2_OpenEnded_mscoco_{subset}_questions.json", content)


def vqa_annotations(folder: Path, subset: str, numbers: list[int]) -> Path:
    answers = [{"answer": "net" if n < 7 else "a net", "answer_confidence": "yes", "answer_id": n} for n in range(10)]
    annotations = [
        {
            "question_type": "what is",
            "multiple_choice_answer": "net",
            "answers": answers,
            "image_id": number // 100,
            "answer_type": "other",
            "question_id": number,
        }
        for number in numbers
    ]
    content = {"data_type": "mscoco", "data_subtype": subset, "annotations": annotations}
    return write(folder / f"v2_mscoco_{subset}_annotations.json", content)


def nlvr2_line(identifier: str, **more: object) -> dict[str, object]:
    base = {"sentence": "Both are red.", "label": "True", "synset": "fox", "query": "foxes1", "writer": "12"}
    return {"identifier": identifier, **base, **more}


def refcoco(folder: Path, splits: Sequence[str] = ("train", "val", "testA", "testB")) -> Path:
    """An object with two phrases, in a picture of its own, for each split."""
    refs: list[dict[str, Any]] = []
    for number, split in enumerate(splits):
        file = f"COCO_train2014_{number:012d}.jpg"
        picture(folder / "images/train2014" / file)
        sentences = [
            {"tokens": ["fox"], "raw": f"Fox {place}", "sent": f"fox {place}", "sent_id": 10 * number + place}
            for place in range(2)
        ]
        refs.append(
            {
                "ref_id": 40 + number,
                "ann_id": 70 + number,
                "image_id": number,
                "category_id": 1,
                "split": split,
                "file_name": f"COCO_train2014_{number:012d}_{70 + number}.jpg",
                "sentences": sentences,
                "sent_ids": [sentence["sent_id"] for sentence in sentences],
            }
        )
    folder = folder / "refcoco+"
    folder.mkdir(parents=True)
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=0))
    images = [
        {"id": n, "file_name": f"COCO_train2014_{n:012d}.jpg", "width": 6, "height": 4} for n in range(len(splits))
    ]
    boxes = [{"id": 70 + n, "image_id": n, "bbox": [n, 0.5, 2, 3], "category_id": 1} for n in range(len(splits))]
    write(folder / "instances.json", {"images": images, "annotations": boxes, "categories": []})
    return folder
