"""Checks that an exported folder loses nothing, and that its model card says what is known."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import diptych
from diptych.apps.export import export_folder, push_to_hub
from diptych.apps.export.card import command_of
from diptych.apps.export.folder import without_folders
from diptych.checkpoints import store
from diptych.cli.main import main
from diptych.predict import load
from diptych.pretrained import inspect
from diptych.recipes.albef import albef_tiny
from diptych.recipes.override import override
from diptych.run import open_task
from diptych.schema import AlbefPretrainConfig
from diptych.serialize import from_dict
from diptych.train.start import start_from
from tests.disk import full_disk
from tests.runs import WORDS, recipe_of, save_run, trained


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return save_run(tmp_path / "run", "entailment")


def evaluated(run: Path, checkpoint: str = "step-00000001") -> dict[str, Any]:
    found = {
        "checkpoint": checkpoint, "task": "EntailmentConfig", "split": "test", "unit": "percent", "examples": 1000,
        "labelled": 1000, "accuracy": 68.5, "accuracy.interval": [65.6, 71.3], "references.commonest": 36.9,
        "references.commonest.interval": [34.0, 40.0],
    }  # fmt: skip
    (run / "eval.json").write_text(json.dumps(found))
    return found


@pytest.mark.parametrize("system", ["albef", "vlmo"])
@pytest.mark.parametrize("kind", ["pretraining", "entailment", "nlvr2", "decoder"])
def test_weights_come_back_bit_for_bit_without_momentum_encoder_and_queue(
    tmp_path: Path, kind: str, system: str
) -> None:
    run = save_run(tmp_path / "run", kind, system)
    folder = export_folder(run, tmp_path / "out")
    stored = store.load_from(run).weights()
    own = load_file(folder / "model.safetensors")
    assert set(own) == {name for name in stored if name.startswith(("model.", "head."))}
    assert all(torch.equal(own[name], stored[name]) for name in own)
    back, before = diptych.load(folder, device="cpu"), diptych.load(run, device="cpu")
    assert (back.recipe, back.tokenizer, back.untrained) == (before.recipe, before.tokenizer, before.untrained)
    assert (back.task is None) == (before.task is None)
    assert type(diptych.from_pretrained(folder, device="cpu").model) is type(before.model)
    assert "a checkpoint of diptych" in inspect(folder)


def test_what_was_exported_is_exported_again_the_same(run: Path, tmp_path: Path) -> None:
    evaluated(run)
    first = export_folder(run, tmp_path / "a")
    second = export_folder(load(first, "cpu"), tmp_path / "b")
    for file in first.rglob("*"):
        if file.is_file():
            assert file.read_bytes() == (second / file.relative_to(first)).read_bytes(), file.name


def test_training_starts_from_an_exported_folder_as_from_the_run(run: Path, tmp_path: Path) -> None:
    task = trained("entailment")
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.zero_()
    start_from(task, export_folder(run, tmp_path / "out"), WORDS)
    stored = store.load_from(run).weights()
    for name, value in task.state_dict().items():
        student = name.replace("momentum_head.", "head.").replace("momentum_encoder.", "model.")
        assert torch.equal(value, stored[student])


def test_a_headed_model_is_opened_for_evaluation_without_its_momentum_encoder(run: Path, tmp_path: Path) -> None:
    opened = open_task(export_folder(run, tmp_path / "out"))
    own = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(value, own[name]) for name, value in opened.task.state_dict().items() if name in own)


def test_a_damaged_folder_is_an_error_and_an_edited_card_is_none(run: Path, tmp_path: Path) -> None:
    folder = export_folder(run, tmp_path / "out")
    (folder / "README.md").write_text("mine")
    load(folder, "cpu")
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load(folder, "cpu")


@pytest.mark.parametrize("target", ["new", "empty"])
def test_a_full_disk_is_one_sentence_and_a_second_try_works(run: Path, tmp_path: Path, target: str) -> None:
    folder = tmp_path / "out"
    if target == "empty":
        folder.mkdir()
    with full_disk(at=3000), pytest.raises(OSError, match=rf"^{folder} could not be written \(.*File too large"):
        export_folder(run, folder)
    assert not folder.exists() or not list(folder.iterdir())
    assert [one.name for one in tmp_path.iterdir() if one != folder] == ["run"]
    export_folder(run, folder)
    load(folder, "cpu")


def test_nothing_half_written_is_left_behind(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("diptych.apps.export.folder.model_card", full)
    with pytest.raises(OSError, match="full"):
        export_folder(run, tmp_path / "out")
    assert [one.name for one in tmp_path.iterdir()] == ["run"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("kept")
    with pytest.raises(ValueError, match="name a new folder"):
        export_folder(run, tmp_path / "mine")


# --------------------------------------------------------------------------- the card


def card(folder: Path) -> tuple[dict[str, Any], str]:
    """Reads the front matter and the text of a model card."""
    _, front, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_card_holds_what_was_measured_beside_what_guessing_gives(tmp_path: Path) -> None:
    run = save_run(tmp_path / "runs" / "tasks" / "entailment", "entailment")
    evaluated(run)
    twin = tmp_path / "runs" / "blind" / "entailment-1a2b"
    twin.mkdir(parents=True)
    stored = json.loads((run / "checkpoints" / "step-00000001" / "recipe.json").read_text())
    stored["data"]["blank_images"] = True
    (twin / "recipe.json").write_text(json.dumps(stored))
    (twin / "eval.json").write_text(json.dumps({**evaluated(run), "accuracy": 30.5}))
    front, text = card(export_folder(run, tmp_path / "out", "apache-2.0"))
    assert (front["license"], front["library_name"]) == ("apache-2.0", "diptych")
    assert "albef" in front["tags"]
    (result,) = front["model-index"][0]["results"]
    assert [(one["type"], one["value"]) for one in result["metrics"]] == [("accuracy", 68.5)]
    assert "| accuracy | 68.5 | 65.6 to 71.3 |  | 30.5 (65.6 to 71.3) |" in text
    assert "| without looking: commonest | 36.9 | 34.0 to 40.0 |" in text
    assert "without momentum encoder, queue and optimiser" in text
    assert "model.entail(" in text
    assert "model.match(" not in text


def test_the_evaluation_of_another_checkpoint_is_not_exported(run: Path, tmp_path: Path) -> None:
    evaluated(run, "step-00000009")
    front, text = card(export_folder(run, tmp_path / "out"))
    assert "model-index" not in front
    assert "Not measured" in text
    assert not (tmp_path / "out" / "eval.json").exists()


def test_every_call_in_a_card_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (20, 20), (200, 30, 30)).save(name)
    for kind in ("pretraining", "entailment", "nlvr2", "closed", "grounding"):
        folder = export_folder(save_run(tmp_path / kind, kind), tmp_path / f"{kind}-out")
        (code,) = re.findall(r"```python\n(.*?)```", card(folder)[1], flags=re.DOTALL)
        assert code.count("model.") >= 1
        exec(code.replace("this folder, or owner/name on the Hub", str(folder)), {})


def test_the_cards_command_makes_the_recipe_again() -> None:
    changes = {
        "run.steps": 7,
        "data.crop": (0.5, 1.0),
        "optim.clip": None,
        "data.source": "folder",
        "run.batch_size": 8,
    }
    recipe = override(albef_tiny(), changes)
    told = command_of(recipe)
    assert told is not None
    assert told.startswith("diptych train albef_tiny ")
    assert override(albef_tiny(), dict(one.split("=") for one in told.split()[3:])) == recipe
    assert command_of(recipe_of(AlbefPretrainConfig())) is None  # of no known name


def test_folders_of_the_machine_are_not_exported() -> None:
    plain = {"data": {"path": "/home/jane/a.json,/home/jane/b.json", "root": "coco"}, "init_from": "/x/runs/demo"}
    expected = {"data": {"path": "a.json,b.json", "root": "coco"}, "init_from": "demo"}
    assert without_folders(plain) == expected


# --------------------------------------------------------------------------- the Hub


class FakeHub(BaseHTTPRequestHandler):
    """The part of the Hub's interface that uploading and downloading a model takes."""

    files: dict[str, dict[str, bytes]] = {}  # noqa: RUF012
    private: dict[str, bool] = {}  # noqa: RUF012
    COMMIT = "0" * 40

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != "Bearer hf_good":
            return self.say(401, {"error": "Invalid credentials"})
        repo = "/".join(self.path.split("/")[3:5])
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.private[repo], self.files[repo] = (
                asked.get("visibility") == "private" or bool(asked.get("private")),
                {},
            )
            return self.say(200, {"url": f"http://{self.headers['Host']}/{repo}"})
        if "/preupload/" in self.path:
            mode = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            found = [{"path": one["path"], **mode} for one in json.loads(body)["files"]]
            return self.say(200, {"files": found})
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            address = f"http://{self.headers['Host']}/{repo}/commit/{self.COMMIT}"
            return self.say(200, {"success": True, "commitOid": self.COMMIT, "commitUrl": address})
        return self.say(200, {})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if "/resolve/" in self.path:
            repo, _, name = self.path[1:].partition("/resolve/")
            content = self.files[repo][name.partition("/")[2]]
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": self.COMMIT}
            return self.say(200, content, headers)
        repo = "/".join(self.path.partition("?")[0].split("/")[3:5])
        if repo not in self.files:
            return self.say(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        siblings = [{"rfilename": name, "size": len(content)} for name, content in self.files[repo].items()]
        if "/tree/" in self.path:
            tree = [{"type": "file", "path": one["rfilename"], "size": one["size"], "oid": "0"} for one in siblings]
            return self.say(200, tree)
        return self.say(200, {"id": repo, "sha": self.COMMIT, "private": self.private[repo], "siblings": siblings})

    def say(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeHub]]:
    """Runs a Hub on this machine, and makes it the only one."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    yield FakeHub
    server.shutdown()
    server.server_close()


def test_what_was_pushed_is_loaded_by_its_name(run: Path, hub: type[FakeHub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert main(["export", str(run), "--push", "jane/demo", "--private"]) == 0
    assert hub.private["jane/demo"]
    assert {"README.md", "config.json", "model.safetensors", "tokenizer/vocab.txt"} <= set(hub.files["jane/demo"])
    before = load(run, "cpu").model.state_dict()
    for back in (diptych.load("jane/demo", device="cpu"), diptych.from_pretrained("jane/demo", device="cpu")):
        assert all(torch.equal(value, before[name]) for name, value in back.model.state_dict().items())
    assert push_to_hub(load(run, "cpu"), "jane/other", private=False).endswith("jane/other")
    assert not hub.private["jane/other"]


def test_a_missing_or_wrong_token_and_a_missing_network_are_errors(
    run: Path, hub: type[FakeHub], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="hf auth login"):
        push_to_hub(run, "jane/nothing")
    with pytest.raises(ValueError, match=r"jane/nothing could not be uploaded to the Hub: .*401"):
        push_to_hub(run, "jane/nothing", token="hf_bad")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(ValueError, match="jane/nothing could not be uploaded to the Hub"):
        push_to_hub(run, "jane/nothing", token="hf_good")
    with pytest.raises(ValueError, match="OWNER/NAME"):
        push_to_hub(run, "demo", token="hf_good")
    assert "jane/nothing" not in hub.files


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a target: --to FOLDER, --push OWNER/NAME, or both"),
        (["--onnx", "--push", "a/b"], "--onnx writes files: give their folder as --to FOLDER"),
        (["--to", "x", "--private"], "--private is for --push"),
        (["--to", "x", "--onnx", "--license", "mit"], "--license is for the model card"),
    ],
)
def test_options_that_do_nothing_are_refused(
    run: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_options_of_published_files_are_refused_for_our_own(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="takes no options"):
        diptych.from_pretrained(export_folder(run, tmp_path / "out"), image_size=32)
    assert from_dict(json.loads((tmp_path / "out" / "recipe.json").read_text())) == load(run, "cpu").recipe
