"""The command line: help at once, mistakes in one line, every field by its name."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import diptych
from diptych import places
from diptych.apps.doctor import read_run
from diptych.apps.export import export_folder
from diptych.apps.index import index_info
from diptych.apps.index.items import read_items
from diptych.cache import cache_folder
from diptych.catalog import find_recipe
from diptych.cli.main import VERBS, main
from diptych.console import say
from diptych.data.tokenizer import Tokenizer
from diptych.predict import ModelPool
from diptych.pretrained.formats import read as read_published
from diptych.recipes.override import override, parse_assignments
from diptych.run import train
from diptych.writing import write_text
from tests.layouts import picture
from tests.runs import save_run

ROOT = Path(__file__).parents[2]


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)


def test_help_imports_no_verb_no_catalog_and_nothing_heavy() -> None:
    run = python(
        "import sys; from diptych.cli.main import main; status = main(['--help']);"
        "own = [m for m in sys.modules if m.startswith('diptych')];"
        "heavy = {'torch', 'numpy', 'jsonargparse', 'rich', 'PIL'} & set(sys.modules);"
        "print(status, sorted(own), heavy)"
    )
    modules = ["diptych", "diptych.cli", "diptych.cli.main", "diptych.console", "diptych.printable"]
    assert run.stdout.splitlines()[-1] == f"0 {modules} set()"
    assert all(verb in run.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help_without_torch(verb: str) -> None:
    run = python(
        "import sys; from diptych.cli.main import main\n"
        f"try: main([{verb!r}, '--help'])\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    assert run.stdout.splitlines()[-1] == "0 False", run.stderr


def test_every_module_of_a_verb_is_in_the_table() -> None:
    files = {file.stem for file in (ROOT / "diptych" / "cli").glob("*.py")} - {"__init__", "main", "hits", "loading"}
    assert files == {module.rpartition(".")[2] for module, _ in VERBS.values()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "no verb 'trian'. Did you mean 'train'?"),
        (["train", "albef_tny"], "no recipe 'albef_tny'. Did you mean 'albef_tiny'?"),
        (["train", "albef_tiny", "data.pth=x"], "unknown name 'pth' in 'data'. Did you mean data.path?"),
        (["train", "albef_tiny", "photos"], "'photos' is no override"),
        (["resume", "nowhere"], "nowhere holds no run to resume"),
        (["recipes", "albef"], "no recipe 'albef'"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"diptych: {message}")
    assert captured.err.count("\n") == 1


def test_a_missing_package_and_the_systems_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error, words in (
        (ModuleNotFoundError("No module named 'yaml'", name="yaml"), "the package yaml is not installed"),
        (OSError(30, "Read-only file system", "a/b"), "diptych: a/b: Read-only file system"),
        (OSError(28, "No space left on device"), "diptych: No space left on device"),
    ):

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("diptych.cli.recipes.run", fail)
        assert main(["recipes"]) == 2
        assert words in (said := capsys.readouterr().err)
        assert len(said.splitlines()) == 1


def test_debugging_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPTYCH_DEBUG", "1")
    with pytest.raises(ValueError, match="no recipe 'albef'"):
        main(["recipes", "albef"])


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"diptych {diptych.__version__}\n"


def test_recipes_lists_every_field_as_train_takes_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "albef_base"]) == 0
    fields = [line for line in capsys.readouterr().out.splitlines() if re.fullmatch(r"[a-z_.]+=.*", line)]
    recipe = find_recipe("albef_tiny")
    assert override(recipe, parse_assignments(fields)) == find_recipe("albef_base")


@pytest.mark.parametrize("encoding", ["ascii:strict", "cp1252:strict"])
def test_output_escapes_what_a_console_cannot_show(encoding: str, tmp_path: Path) -> None:
    """Help, captions and file names hold characters that such consoles lack, and none of them may end a command."""
    (tmp_path / "红.jpg").write_bytes(b"no picture")
    (tmp_path / "红.txt").write_text("红色圆形", encoding="utf-8")
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
    for arguments, shown in (
        (["--help"], "diptych VERB"),
        (["data", "validate", "folder", str(tmp_path)], "\\u7ea2.jpg"),
    ):
        command = [sys.executable, "-m", "diptych", *arguments]
        run = subprocess.run(command, capture_output=True, check=False, timeout=120, env=environment)
        assert shown in run.stdout.decode(encoding.partition(":")[0]), run.stderr
        assert b"Error" not in run.stderr


def test_names_and_words_work_where_the_locale_knows_ascii_alone(tmp_path: Path) -> None:
    """Python is told not to use UTF-8, as some clusters do for all programs."""
    folder = tmp_path / "größe 红"
    picture(folder / "ü.png", 0)
    (folder / "ü.txt").write_text("ein größerer Kreis", encoding="utf-8")
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "diptych", "data", "convert", "folder", str(folder), "--to", str(tmp_path / "ö")]
    run = subprocess.run(command, capture_output=True, check=False, timeout=120, env=os.environ | locale)
    assert (run.returncode, run.stderr) == (0, b"")
    entry = json.loads((tmp_path / "ö" / "train.jsonl").read_text(encoding="utf-8"))
    assert (entry["image"], entry["captions"]) == ("../größe 红/ü.png", ["ein größerer Kreis"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("trained") / "run", "pretraining")


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("huggingface_hub", "the package huggingface_hub is not installed.*: pip install huggingface-hub"),
        ("faiss", r"pip install 'diptych\[search\]'"),
        ("fastapi", r"pip install 'diptych\[serve\]'"),
        ("starlette", r"serving needs starlette: pip install 'diptych\[serve\]'"),
        ("gradio", r"pip install 'diptych\[app\]'"),
        ("onnx", r"pip install 'diptych\[export\]'"),
        ("pyarrow", r"which needs pyarrow: pip install 'diptych\[search\]'"),
        ("yaml", "the package yaml is not installed.*: pip install pyyaml"),
    ],
)
def test_a_package_that_is_missing_is_named_with_its_line(
    missing: str, said: str, tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, picture = str(trained), str(tmp_path / "a.png")
    arguments = {
        "huggingface_hub": ["search", "nobody/nothing", "x", "--images", picture],
        "faiss": ["index", "build", picture, "--model", run, "--at", str(tmp_path / "index")],
        "fastapi": ["serve", run], "starlette": ["serve", run], "gradio": ["app", run],
        "onnx": ["export", run, "--to", str(tmp_path / "onnx"), "--onnx"],
        "pyarrow": ["embed", run, picture, "--to", str(tmp_path / "v.parquet")],
        "yaml": ["ablate", "albef_table1"],
    }  # fmt: skip
    code = (
        f"import sys; sys.modules[{missing!r}] = None; from diptych.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    run_ = subprocess.run(
        [sys.executable, "-c", code, *arguments[missing]], capture_output=True, text=True, check=False, timeout=120
    )
    assert run_.returncode == 2, run_.stderr
    assert re.search(said, run_.stderr.splitlines()[-1])
    assert "Traceback" not in run_.stderr


def test_a_package_that_cannot_be_used_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(arguments: list[str]) -> None:
        raise ImportError("libGL.so.1: cannot open shared object file", name="cv2")

    monkeypatch.setattr("diptych.cli.recipes.run", broken)
    assert main(["recipes"]) == 2
    assert "the package cv2 is installed and cannot be used (libGL.so.1" in capsys.readouterr().err


def test_parquet_is_written_without_pandas(tmp_path: Path, trained: Path) -> None:
    """pyarrow looks for pandas at its first array, which may be broken."""
    picture(tmp_path / "pictures" / "a.png", 0)
    code = "import sys; sys.modules['pandas'] = None; from diptych.cli.main import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["embed", str(trained), str(tmp_path / "pictures"), "--to", str(tmp_path / "v.parquet")]
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("place", ["an import", "the verb"])
def test_ctrl_c_is_one_line_and_130(place: str, tmp_path: Path) -> None:
    """Within an import the process ends at once, because C++ code may not survive an exception."""
    (tmp_path / "slow_import.py").write_text("print('ready', flush=True)\nimport time\ntime.sleep(60)\n")
    (tmp_path / "slow_verb.py").write_text(
        "import time\ndef run(arguments):\n    print('ready', flush=True)\n    time.sleep(60)\n"
    )
    module = {"an import": "slow_import", "the verb": "slow_verb"}[place]
    code = f"import sys, diptych.cli.main as cli; cli.VERBS['slow'] = ({module!r}, ''); sys.exit(cli.main())"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, "slow"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, "diptych: stopped before it was done\n")


def test_a_file_of_names_that_are_no_unicode_is_written_with_escapes(tmp_path: Path) -> None:
    name = os.fsdecode(b"gr\xfcn.png")
    assert write_text(tmp_path / "page.html", name).read_text(encoding="utf-8") == "gr\\udcfcn.png"


def test_the_library_escapes_too_where_its_caller_has_set_up_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", errors="strict"))
    say("starting from 红")
    sys.stdout.flush()
    assert written.getvalue() == b"starting from \\u7ea2\n"


def test_a_tilde_is_the_home_folder_wherever_a_path_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shell replaces it in words of their own only, and not in data.path=~/photos, --folder=~/run or Python."""
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = override(
        find_recipe("albef_tiny"),
        {
            "data.path": "~/photos, ~/more",
            "data.root": "~",
            "init_from": "~/run",
            "tokenizer.vocabulary": "~/v.txt",
            "data.mix": '[{"source": "folder", "path": "~/mixed"}]',
        },
    )
    assert recipe.data.path == f"{tmp_path}/photos,{tmp_path}/more"
    assert (recipe.data.root, recipe.init_from) == (str(tmp_path), f"{tmp_path}/run")
    assert (recipe.tokenizer.vocabulary, recipe.data.mix[0].path) == (f"{tmp_path}/v.txt", f"{tmp_path}/mixed")
    assert replace(recipe.data, path="a~b,c").path == "a~b,c"
    assert main(["train", "albef_tiny", "data.source=folder", "data.path=~/gone", "--folder=~/run"]) == 2
    assert f"no folder {tmp_path}/gone" in capsys.readouterr().err
    assert main(["data", "convert", "jsonl", "~/gone.jsonl", "--to=~/out"]) == 2
    assert f"no file {tmp_path}/gone.jsonl" in capsys.readouterr().err
    with pytest.raises(ValueError, match=f"^{tmp_path}/gone does not exist"):
        diptych.load("~/gone")


def doors() -> dict[str, Callable[[Path], object]]:
    """What takes a path in Python, by name."""
    tiny = find_recipe("albef_tiny")
    return {
        "vocabulary": Tokenizer.from_vocabulary,
        "models": lambda path: ModelPool.load([path]),
        "index": lambda path: index_info(path),
        "items": read_items,
        "published": read_published,
        "field": lambda path: override(tiny, {"data.max_words": f"@{path}"}),
        "run": read_run,
        "training": lambda path: train(tiny, path),
        "export": lambda path: export_folder("runs/any", path),
    }


@pytest.mark.parametrize("door", doors())
def test_a_home_folder_that_does_not_exist_is_said_in_a_sentence(
    door: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"~nobody-here.* begins with a home folder that does not exist: name the"):
        doors()[door](Path("~nobody-here/x"))
    assert not list(tmp_path.iterdir())


def test_without_a_home_folder_places_are_known_in_this_process_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(path: str) -> str:
        return path

    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "DIPTYCH_CACHE", "DIPTYCH_PLACES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", homeless)
    places.remember(["/data/a.jsonl"])
    places.allow({"data.path": places.StoredPlace("/data/a.jsonl")})
    with pytest.raises(ValueError, match="home folder that does not exist"):
        cache_folder()
