"""`diptych convert FILE … --to FOLDER` and `diptych convert RUN --to released FILE`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

EXAMPLES = """\
examples:
  diptych convert ALBEF.pth --vocabulary bert-base-uncased/vocab.txt --to runs/albef
  diptych convert ALBEF.pth --vocabulary vocab.txt --image-size 384 --to runs/albef-384
  diptych convert vlmo_base_patch16_224.pt --vocabulary vocab.txt --image-size 384 --to runs/vlmo-384
  diptych convert beit_base.pth --vocabulary vocab.txt --to runs/beit   (then: train vlmo_base_language …)
  diptych convert deit_base.pth bert-base-uncased --to runs/start      (then: train … init_from=runs/start)
  diptych convert runs/demo --to released demo.pth

`diptych inspect FILE` says what a file is.
"""


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "diptych convert",
        usage="diptych convert FILE … --to FOLDER [options]\n       diptych convert RUN --to released FILE",
        description="Make a checkpoint of diptych from a published one, a ViT and a BERT, or a BEiT; or publish a run.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="recognised by what it holds")
    parser.add_argument(
        "--to", nargs="+", required=True, metavar="TO", help="a new folder, or `released` and a new file"
    )
    parser.add_argument("--vocabulary", type=Path, help="vocab.txt of the text encoder, or a folder that holds it")
    parser.add_argument("--image-size", type=int, help="side in pixels; positions are resized (default: the file's)")
    parser.add_argument("--heads", help="attention heads, as in 12 or in 12,6 (image, text; default: 64 wide each)")
    parser.add_argument("--text-length", type=int, help="VLMo: longest text; positions are cut or continued to it")
    parser.add_argument(
        "--trained-image-size", type=int, help="VLMo: what relative positions are for, if the file does not tell"
    )
    parser.add_argument("--answers", type=Path, help="VLMo's VQA: a JSON list of the answers, one a class")
    parser.add_argument("--separator", action="store_true", help="ALBEF's start weights: close texts with [SEP]")
    given = parser.parse_args(arguments)

    from diptych import pretrained

    if given.to[0] == "released":
        if len(given.to) != 2 or len(given.files) != 1:
            raise ValueError("write diptych convert RUN --to released FILE")
        left_out = pretrained.export(given.files[0], Path(given.to[1]))
        print(f"{given.to[1]}: the released layout")
        for name, reason in left_out.items():
            print(f"  left out {name}: {reason}")
        return
    if len(given.to) != 1:
        raise ValueError("--to takes one folder, or `released` and a file")
    options = pretrained.Options(
        given.vocabulary, given.image_size, _heads(given.heads), given.separator,
        given.text_length, given.trained_image_size, given.answers,
    )  # fmt: skip
    folder = Path(given.to[0])
    print(pretrained.convert(given.files, folder, options))
    print(f"written to {folder}; what became of each tensor stands in {folder / 'conversion.json'}")


def _heads(text: str | None) -> tuple[int, int] | None:
    """Of image and text encoder, from `4` or `4,6`."""
    if text is None:
        return None
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or min(numbers) < 1:
        raise ValueError(f"--heads takes a number, or two with a comma (image, text), not {text!r}")
    return numbers[0], numbers[-1]
