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
  diptych convert albef-4m --image-size 384 --to runs/albef-384        (published weights by name)
  diptych convert runs/albef --to released ours.pth                    (a run of a published size)

`diptych inspect FILE` describes a file. `diptych weights` lists the names of published weights, which are fetched.
"""


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "diptych convert",
        usage="diptych convert FILE … --to FOLDER [options]\n       diptych convert RUN --to released FILE",
        description="Convert a published checkpoint, a ViT and a BERT, or a BEiT to ours, or a run to the "
        "released layout.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="a file, or the name of one; its content tells its kind"
    )
    parser.add_argument(
        "--to", nargs="+", required=True, metavar="TO", help="a new folder, or `released` and a new file"
    )
    parser.add_argument("--vocabulary", help="vocab.txt of the text encoder, its folder, or a BERT's name")
    parser.add_argument("--image-size", type=int, help="side in pixels; positions are resized (default: the file's)")
    parser.add_argument("--heads", help="attention heads, as in 12 or in 12,6 (image, text; default: 64 wide each)")
    parser.add_argument("--text-length", type=int, help="VLMo: longest text; positions are cut or extended")
    parser.add_argument(
        "--trained-image-size", type=int, help="VLMo: image size of relative positions, if the file does not tell it"
    )
    parser.add_argument("--answers", type=Path, help="VLMo's VQA: a JSON list of the answers, one for each class")
    parser.add_argument("--separator", action="store_true", help="ALBEF's start weights: close texts with [SEP]")
    options = parser.parse_args(arguments)

    from diptych import pretrained

    if options.to[0] == "released":
        if len(options.to) != 2 or len(options.files) != 1:
            raise ValueError("write diptych convert RUN --to released FILE")
        left_out = pretrained.export(Path(options.files[0]), Path(options.to[1]))
        print(f"{options.to[1]} is written in the released layout")
        for name, reason in left_out.items():
            print(f"  left out {name}: {reason}")
        return
    if len(options.to) != 1:
        raise ValueError("--to takes one folder, or `released` and a file")
    conversion = pretrained.Options(
        options.vocabulary, options.image_size, _heads(options.heads), options.separator,
        options.text_length, options.trained_image_size, options.answers,
    )  # fmt: skip
    folder = Path(options.to[0])
    files, conversion = pretrained.resolve(options.files, conversion)
    print(pretrained.convert(files, folder, conversion))
    print(f"written to {folder}; {folder / 'conversion.json'} lists what became of each tensor")


def _heads(text: str | None) -> tuple[int, int] | None:
    """Reads the heads of image and text encoder from `4` or `4,6`."""
    if text is None:
        return None
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or min(numbers) < 1:
        raise ValueError(f"--heads takes a number, or two with a comma (image, text), not {text!r}")
    return numbers[0], numbers[-1]
