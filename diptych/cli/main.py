"""`diptych VERB …`. Only the verb that runs is imported, so that `--help` answers at once."""

from __future__ import annotations

import difflib
import os
import re
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from types import FrameType

from diptych import __version__
from diptych.console import escape_output
from diptych.printable import printable

VERBS = {
    "demo": ("diptych.cli.demo", "compose pictures, train, evaluate, report: minutes on a CPU"),
    "train": ("diptych.cli.train", "train a recipe: train RECIPE [name=value …]"),
    "resume": ("diptych.cli.resume", "continue a run that was stopped or killed"),
    "evaluate": ("diptych.cli.evaluate", "measure a trained run on its test split"),
    "report": ("diptych.cli.report", "write a run's report.html"),
    "doctor": ("diptych.cli.doctor", "check whether a run is healthy, and say what to do about problems"),
    "compare": ("diptych.cli.compare", "put runs side by side: quality, speed, parameters"),
    "ablate": (
        "diptych.cli.ablate",
        "train variants of a recipe for several seeds, and write one table with intervals",
    ),
    "embed": ("diptych.cli.embed", "write vectors of pictures and texts: embed RUN DIR|JSONL --to vectors.npy"),
    "index": ("diptych.cli.index", "build an index and search it: index build|add|remove|search|info"),
    "search": ("diptych.cli.search", 'find pictures by words: search RUN "a red fox" --images DIR'),
    "serve": ("diptych.cli.serve", "answer over HTTP: embed, match, search, entail, answer, compare, locate"),
    "app": ("diptych.cli.app", "try trained models in the browser: app RUN… [--images DIR]"),
    "export": ("diptych.cli.export", "share a model: a folder with a card, the Hugging Face Hub, ONNX"),
    "inspect": ("diptych.cli.inspect", "describe a checkpoint: its kind, sizes and abilities"),
    "convert": ("diptych.cli.convert", "convert published checkpoints to ours and back: convert FILE --to FOLDER"),
    "weights": ("diptych.cli.weights", "list published weights and fetch them by name: weights [NAME …]"),
    "data": ("diptych.cli.data", "check and convert data: data validate|convert|shard|show|audit LAYOUT PATH"),
    "plan": ("diptych.cli.plan", "predict memory, time and cost of a recipe on given devices"),
    "recipes": ("diptych.cli.recipes", "list the recipes, or every field of one"),
    "where": ("diptych.cli.where", 'find the code of a paper\'s equation: where "ALBEF Eq. 6"'),
}
"""Module of each verb, which has `run(arguments)`, and its line of help."""
NAMES_ON_PYPI = {"faiss": "faiss-cpu", "PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn"}
"""Packages that are installed under another name than they are imported by."""

USAGE, INTERRUPTED = 2, 130
"""Exit statuses after a user's mistake and after Ctrl-C."""
STOPPED = "diptych: stopped before it was done"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a verb and returns the exit status. A user's mistake is one line on stderr; DIPTYCH_DEBUG=1 shows where."""
    if arguments is None:
        _use_utf8()
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not ignored, as in the background
            signal.signal(signal.SIGINT, _interrupt)
    escape_output()
    verb, *rest = map(_at_home, list(sys.argv[1:] if arguments is None else arguments) or ["--help"])
    try:
        if verb in ("-h", "--help", "help"):
            print(help_text(), flush=True)
        elif verb == "--version":
            print(f"diptych {__version__}", flush=True)
        elif verb not in VERBS:
            nearest = difflib.get_close_matches(verb, VERBS, n=1)
            meant = f" Did you mean '{nearest[0]}'?" if nearest else ""
            return complain(f"no verb '{verb}'.{meant} See diptych --help")
        else:
            import_module(VERBS[verb][0]).run(rest)
    except BrokenPipeError:  # the reader has gone, as in `diptych recipes | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        if os.environ.get("DIPTYCH_DEBUG"):
            raise
        return complain(_in_words(error))
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if os.environ.get("DIPTYCH_DEBUG") or package in ("", "diptych"):
            raise
        return complain(_lacking(package, error))
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr, flush=True)
        return INTERRUPTED
    return 0


def _use_utf8() -> None:
    """Starts Python anew in UTF-8 mode where the locale knows ASCII alone: names and texts may hold other characters.

    Python does so itself under the locale C, unless PYTHONUTF8=0 forbids it.
    """
    if sys.getfilesystemencoding() == "ascii" and sys.executable:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Answers Ctrl-C. Within an import the process ends at once, because C++ code may not survive an exception."""
    while frame is not None:
        if "importlib._bootstrap" in frame.f_code.co_filename:
            with suppress(OSError):
                os.write(sys.stderr.fileno(), f"{STOPPED}\n".encode())
            os._exit(INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


def _lacking(package: str, error: ImportError) -> str:
    """Says how a package is installed that is not there, or why one that is there cannot be used."""
    if not isinstance(error, ModuleNotFoundError):
        reason = str(error).partition("\n")[0]
        return f"the package {package} is installed and cannot be used ({reason}): install it anew"
    from importlib import metadata

    name = NAMES_ON_PYPI.get(package, package.replace("_", "-"))
    needs = []
    with suppress(metadata.PackageNotFoundError):  # the library may run from its folder
        needs = metadata.requires("diptych") or []
    extras = [match[1] for need in needs if (match := re.match(rf"{name}\b.*extra == .([\w-]+)", need))]
    wanted = f"'diptych[{extras[0]}]'" if extras else name
    return f"the package {package} is not installed, without which this cannot be done: pip install {wanted}"


def _in_words(error: ValueError | OSError) -> str:
    """Returns an error's message. Of the system's own errors, the file comes first and the number is left out."""
    if isinstance(error, OSError) and error.errno is not None and error.strerror and str(error).startswith("[Errno"):
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _at_home(argument: str) -> str:
    """Replaces `~` where no shell does, as in `--folder=~/run`. Recipes do it too, in `data.path=~/photos`."""
    name, sign, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return f"{name}{sign}{os.path.expanduser(value)}" if value == "~" or value.startswith("~/") else argument  # noqa: PTH111


def help_text() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {text}" for verb, (_, text) in VERBS.items()]
    return "\n".join(
        [
            "usage: diptych VERB …",
            "",
            "Vision-language pre-training: images and texts are first aligned, then fused.",
            "",
            *lines,
            "",
            "diptych VERB --help explains a verb.",
        ]
    )


def complain(message: str) -> int:
    print(f"diptych: {printable(message, lines=True)}", file=sys.stderr)
    return USAGE


if __name__ == "__main__":
    sys.exit(main())
