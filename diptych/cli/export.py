"""`diptych export RUN --to FOLDER [--onnx]` and `diptych export RUN --push OWNER/NAME`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from diptych.cli.loading import MODEL

EXAMPLES = """\
examples:
  diptych export runs/demo --to demo-model              (a folder with a model card, for diptych.load)
  diptych export runs/demo --to demo-onnx --onnx        (for onnxruntime)
  diptych export runs/demo --to demo-int8 --onnx --int8 (smaller and faster, a little less exact)
  diptych export runs/demo --push jane/demo --private   (to the Hugging Face Hub)

The released layout of ALBEF and VLMo is written by `diptych convert RUN --to released FILE`.
"""


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "diptych export",
        description="Share a trained model: as a folder, on the Hugging Face Hub, as ONNX.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", help=MODEL)
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="a new folder")
    parser.add_argument("--onnx", action="store_true", help="write both encoders and the fusion encoder as ONNX files")
    parser.add_argument("--int8", action="store_true", help="with --onnx: round the weights to int8")
    parser.add_argument("--push", metavar="OWNER/NAME", help="put the model on the Hugging Face Hub")
    parser.add_argument("--private", action="store_true", default=None, help="make the repository of --push private")
    parser.add_argument(
        "--license", help="licence of the weights, by its name on the Hub, such as apache-2.0 (default: unknown)"
    )
    options = parser.parse_args(arguments)
    _check(options)

    from diptych import pretrained
    from diptych.apps.export import export_folder, export_onnx, push_to_hub

    model = pretrained.load(options.run, "cpu")
    named = {} if options.license is None else {"license": options.license}
    if options.to and options.onnx:
        for file in export_onnx(model, options.to, options.int8):
            print(f"{file}  {file.stat().st_size / 1e6:,.1f} MB")
    elif options.to:
        print(f"{export_folder(model, options.to, **named)}: read its README.md before you share it")
    if options.push:
        print(push_to_hub(model, options.push, options.private, **named))


def _check(options: argparse.Namespace) -> None:
    """Raises ValueError for options that contradict each other."""
    if not (options.to or options.push):
        raise ValueError("give a target: --to FOLDER, --push OWNER/NAME, or both")
    if options.onnx and not options.to:
        raise ValueError("--onnx writes files: give their folder as --to FOLDER")
    if options.int8 and not options.onnx:
        raise ValueError(
            "--int8 is for --onnx. A folder holds the exact weights, and is rounded where it is loaded: precision=int8"
        )
    if options.private and not options.push:
        raise ValueError("--private is for --push OWNER/NAME")
    if options.license and options.onnx and not options.push:
        raise ValueError("--license is for the model card, which --onnx does not write")
