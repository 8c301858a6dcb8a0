"""Embeds and indexes on request in a process that can be killed at any moment: `python -m tests.index.killable RUN`.

It works like tests/smoke/killable.py, whose counter of moments it uses. It loads the model and warms up once, and then
forks for each request, which is one JSON line `{"do", "arguments", "kill_at"}` on stdin. It answers `{"status",
"moments"}`. A portion has three items, so that a few pictures make several portions.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from diptych.apps.index import add_to_index, build, build_index, embed_source, remove_from_index
from diptych.predict import Predictor, load
from tests.index.sources import save_pictures
from tests.smoke.killable import count_moments

PORTION = 3


def do(what: str, arguments: list[Any], model: Predictor) -> None:
    if what == "build":
        build_index(arguments[0], arguments[1], model, kind="ivf")
    elif what == "add":
        add_to_index(*arguments, model)
    elif what == "remove":
        remove_from_index(*arguments)
    else:
        embed_source(*arguments, model, part_size=PORTION)


def child(request: dict[str, Any], model: Predictor, answer: int) -> None:
    moments = count_moments(request["kill_at"])
    do(request["do"], request["arguments"], model)
    sys.setprofile(None)
    os.write(answer, str(moments()).encode())


def main() -> None:
    build.PORTION = PORTION
    model = load(sys.argv[1], "cpu")
    with tempfile.TemporaryDirectory() as folder:  # whatever is imported on first use is imported now
        photos = save_pictures(Path(folder) / "photos", 4)
        do("build", [f"{folder}/index", str(photos)], model)
        do("embed", [str(photos), f"{folder}/vectors.npy"], model)
    for line in sys.stdin:
        reading, writing = os.pipe()
        process = os.fork()
        if process == 0:
            status = 1
            try:
                child(json.loads(line), model, writing)
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        os.close(writing)
        _, status = os.waitpid(process, 0)
        moments = int(os.read(reading, 100) or 0)
        os.close(reading)
        print(json.dumps({"status": os.waitstatus_to_exitcode(status), "moments": moments}), flush=True)


if __name__ == "__main__":
    main()
