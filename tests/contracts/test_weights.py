"""Published weights by name, fetched from a server on loopback: breaks, wrong files, a shared cache, and no network."""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

import diptych
from diptych.catalog import RECIPES, build_task, find_recipe
from diptych.checkpoints import store
from diptych.checkpoints.convert import counts, to_published
from diptych.cli.main import main
from diptych.data.tokenizer import SPECIAL, Tokenizer
from diptych.pretrained import LAYOUTS, fetch, locate, named, published
from diptych.pretrained.named import with_start
from diptych.schema import Recipe
from diptych.serialize import from_dict
from diptych.train.start import start_from

WORDS = (*SPECIAL, "a", "fox", "and", "##s")


@dataclass
class Site:
    """A server with the files of all published weights, small."""

    port: int
    files: dict[str, bytes] = field(default_factory=dict)
    """Contents by path."""
    asked: list[tuple[str, str]] = field(default_factory=list)
    """The path and the Range of each request."""
    breaks: list[float] = field(default_factory=list)
    """Shares of the whole file after which the connection of the next answers breaks."""
    ranges: bool = True
    """Whether the server can send parts of files."""
    tags: bool = True
    """Whether it says which version of a file it has."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, site: Site, *args: Any) -> None:
        self.site = site
        super().__init__(*args)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        site, content = self.site, self.site.files.get(self.path)
        asked = self.headers.get("Range", "")
        site.asked.append((self.path, asked))
        if content is None:
            self.send_error(404)
            return
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        start = 0
        if asked and site.ranges and self.headers.get("If-Range", tag) == tag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if site.tags:
            self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = int(site.breaks.pop(0) * len(content)) if site.breaks else len(content)
        self.wfile.write(content[start:end])
        if end < len(content):
            self.close_connection = True


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Serves small files under the names of published ones, and leads all addresses to itself."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *args: Handler(own, *args))  # type: ignore[arg-type]
    own = Site(server.server_port)
    for name, place in (("DIPTYCH_CACHE", "cache"), ("DIPTYCH_WEIGHTS", "weights"), ("HF_HUB_CACHE", "hub")):
        monkeypatch.setenv(name, str(tmp_path / place))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    template = own.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(fetch, "BACKOFF", 0.01)
    for entry in published.PUBLISHED.values():
        places = tuple(place.replace("https:/", own.url) for place in entry.places)
        name, shape = entry.telling
        telling = name, tuple({768: 64, 257: 17, 197: 17, 577: 17, 30522: len(WORDS)}.get(size, size) for size in shape)
        small = replace(entry, places=places, telling=telling, sha256="")
        monkeypatch.setitem(published.PUBLISHED, entry.name, small)
    base = replace(find_recipe("albef_base"), task=small_recipe().task)  # a small queue
    monkeypatch.setitem(RECIPES, "albef_base", lambda: base)
    own.files |= {path_of("albef-4m"): torch_bytes(small_albef()), path_of("deit-base"): torch_bytes(small_vit())}
    own.files |= {path_of("bert-base"): save(small_bert()), path_of("bert-base", "vocab.txt"): VOCABULARY}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield own
    server.shutdown()
    server.server_close()


VOCABULARY = "\n".join(WORDS).encode()


def path_of(name: str, file: str | None = None) -> str:
    """Returns the path at which the site has a file, or another one beside it."""
    place = published.PUBLISHED[name].places[0]
    if place.startswith(published.HUB):
        owner, repository, own = place.removeprefix(published.HUB).split("/")
        return f"/{owner}/{repository}/resolve/main/{file or own}"
    return "/" + place.partition("://")[2].partition("/")[2] if "127.0.0.1" in place else "/" + place.partition("//")[2]


def torch_bytes(state: Any) -> bytes:
    import io

    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()


@functools.cache
def small_recipe() -> Recipe:
    recipe = find_recipe("albef_base")
    vision = replace(recipe.model.vision, image_size=16, patch_size=4, width=64, depth=2, heads=1)  # type: ignore[union-attr]
    text = replace(
        recipe.model.text, vocab_size=len(WORDS), width=64, layers=4, fusion_start=2, heads=1, intermediate=64,  # type: ignore[union-attr]
        max_positions=32,
    )  # fmt: skip
    model = replace(recipe.model, vision=vision, text=text, embed_dim=32)
    return replace(recipe, model=model, task=replace(recipe.task, queue_size=16))


@functools.cache
def small_albef() -> dict[str, Any]:
    """A file as ALBEF_4M.pth is: wrapped, with an optimiser's state beside the model."""
    recipe = small_recipe()
    torch.manual_seed(1)
    task = build_task(recipe, Tokenizer(WORDS))
    rules = LAYOUTS["pretraining"].rules(recipe.model)
    state = {name: value for name, value in task.state_dict().items() if name not in ("queue.ids", "queue.filled")}
    names = to_published(state, rules)
    names |= counts(names, rules)
    return {"model": {name: value.clone() for name, value in names.items()}, "optimizer": {"lr": 0.1}, "epoch": 3}


def small_vit() -> dict[str, Any]:
    prefix = "visual_encoder."
    own: dict[str, Tensor] = small_albef()["model"]
    state = {name.removeprefix(prefix): value for name, value in own.items() if name.startswith(prefix)}
    return {"model": state | {"head.weight": torch.zeros(10, 64), "head.bias": torch.zeros(10)}}


def small_bert() -> dict[str, Tensor]:
    own: dict[str, Tensor] = small_albef()["model"]
    names = {
        name.removeprefix("text_encoder."): value.clone() for name, value in own.items() if "text_encoder." in name
    }
    return {name: value for name, value in names.items() if "crossattention" not in name}


# --------------------------------------------------------------------------- the names


def test_a_name_loads_what_is_in_its_file(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = diptych.load("albef-4m", device="cpu")
    assert torch.equal(model.model.temp, small_albef()["model"]["temp"])
    assert (tmp_path / "weights" / "albef-4m" / "ALBEF_4M.pth").read_bytes() == site.files[path_of("albef-4m")]
    shown = capsys.readouterr().err
    assert "albef-4m/ALBEF_4M.pth: fetching" in shown
    assert "(100 %)" in shown
    times = len(site.asked)
    again = diptych.load("albef-4m", device="cpu")
    direct = diptych.from_pretrained("albef-4m", device="cpu")
    assert len(site.asked) == times  # from the cache
    for other in (again, direct):
        assert torch.equal(model.embed_texts(["a fox"]), other.embed_texts(["a fox"]))


def test_start_weights_by_name_start_a_run(site: Site) -> None:
    folder = locate("deit-base+bert-base")
    checkpoint = store.load_from(folder)
    recipe, tokenizer = from_dict(checkpoint.recipe), Tokenizer.load(checkpoint.tokenizer)
    task = build_task(recipe, tokenizer)
    start = start_from(task, folder, tokenizer)
    state = task.state_dict()
    assert torch.equal(state["model.vision.embedding.positions"], small_albef()["model"]["visual_encoder.pos_embed"])
    assert torch.equal(
        state["model.text.embedding.words.weight"],
        small_albef()["model"]["text_encoder.bert.embeddings.word_embeddings.weight"],
    )
    assert "image_proj" in start.untrained


def test_convert_and_inspect_take_names(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "albef-4m", "--image-size", "32", "--to", str(tmp_path / "run")]) == 0
    assert "32 px" in capsys.readouterr().out
    assert diptych.load(tmp_path / "run", device="cpu").recipe.model.image_size == 32
    assert main(["inspect", "albef-4m"]) == 0
    assert "ALBEF, pre-trained (4M or 14M)" in capsys.readouterr().out


def test_a_folder_of_that_name_comes_first(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "albef-4m").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="albef-4m holds no checkpoint"):
        diptych.load("albef-4m")
    assert not site.asked


@pytest.mark.parametrize("name", ["albef-4M", "albef_4m", "deit-base+bert-bse"])
def test_a_mistyped_name_gets_the_right_one(site: Site, name: str) -> None:
    meant = "deit-base+bert-base" if "+" in name else "albef-4m"
    with pytest.raises(ValueError, match=f"Did you mean {meant.replace('+', '.')}"):
        diptych.load(name)
    assert not site.asked


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("albef-99m", "albef-99m is neither a folder nor the name of published weights"),
        ("deit-base+mine", "deit-base.mine: mine is neither published weights nor OWNER/NAME"),
        ("timm:vit", "names have no prefix timm:"),
        ("hf:facebook/dinov2-base", "names have no prefix hf:"),
        ("runs-1", "runs-1 does not exist: name a run folder"),
        ("runs/demo:2", "runs/demo:2 does not exist: name a run folder"),
    ],
)
def test_what_is_meant_as_a_name_and_is_none_is_told_from_a_folder(site: Site, name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        diptych.load(name)
    assert not site.asked


@pytest.mark.parametrize("name", ["runs/demo", "jane/demo", "demo", "C:runs", "a/b+c/d"])
def test_a_folder_and_a_name_on_the_hub_are_not_taken_for_misspelt_weights(name: str) -> None:
    named._check_spelling(name)


def test_the_list_says_what_is_here(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "bert-base"]) == 0
    capsys.readouterr()
    assert main(["weights", "--json"]) == 0
    facts = {fact["name"]: fact for fact in json.loads(capsys.readouterr().out)}
    assert facts.keys() == published.PUBLISHED.keys()
    assert facts["bert-base"]["bytes"] == len(site.files[path_of("bert-base")])
    assert facts["albef-4m"]["estimated"]
    assert main(["weights", "--addresses"]) == 0
    table = capsys.readouterr().out
    for entry in published.PUBLISHED.values():
        assert entry.name in table
        assert entry.licence in table
    assert main(["weights", "albef-5m"]) == 2
    assert "Did you mean albef-4m?" in capsys.readouterr().err


def test_every_published_name_is_of_a_known_layout_and_has_an_address() -> None:
    for entry in published.PUBLISHED.values():
        assert entry.layouts[0] in LAYOUTS
        assert all(place.startswith(("https://", published.HUB)) for place in entry.places), entry.name
    assert len({place for entry in published.PUBLISHED.values() for place in entry.places}) == sum(
        len(entry.places) for entry in published.PUBLISHED.values()
    )


def test_encoders_of_the_hub_make_the_model(site: Site, tmp_path: Path) -> None:
    vit = {name: value for name, value in small_vit()["model"].items() if "head" not in name}
    vit |= {f"blocks.{block}.ls{part}.gamma": torch.full((64,), 0.5) for block in (0, 1) for part in (1, 2)}
    site.files |= {
        "/a/tower/resolve/main/pytorch_model.bin": torch_bytes(vit),
        "/a/bert/resolve/main/model.safetensors": save(small_bert()),
        "/a/bert/resolve/main/vocab.txt": VOCABULARY,
    }
    recipe = replace(small_recipe(), init_from="a/tower+a/bert")
    other = replace(recipe.model, vision=replace(recipe.model.vision, image_size=32, depth=7))  # type: ignore[union-attr]
    built = with_start(replace(recipe, model=other))
    vision = replace(recipe.model.vision, image_size=32, layer_scale=True)  # type: ignore[union-attr]
    assert built.model == replace(recipe.model, vision=vision)
    tokenizer = Tokenizer(WORDS)
    task = build_task(built, tokenizer)
    start_from(task, locate("a/tower+a/bert"), tokenizer)
    assert torch.equal(task.state_dict()["model.vision.blocks.1.scale2"], torch.full((64,), 0.5))
    wrong = replace(recipe, model=replace(recipe.model, vision=replace(vision, image_size=30)))
    with pytest.raises(ValueError, match=r"set model\.vision\.image_size=28 or 32"):
        with_start(wrong)
    with pytest.raises(ValueError, match=r"a/nothing .* cannot be had"):
        locate("a/nothing+a/bert")


def test_a_model_that_was_trained_keeps_the_recipe(site: Site) -> None:
    recipe = replace(small_recipe(), init_from="albef-4m")
    assert with_start(recipe) == recipe


# --------------------------------------------------------------------------- breaks


@pytest.mark.parametrize("share", [0.0, 0.4, 0.99])
def test_a_broken_fetch_goes_on_where_it_was(site: Site, share: float, tmp_path: Path) -> None:
    site.breaks = [share]
    assert main(["weights", "albef-4m"]) == 0
    content = site.files[path_of("albef-4m")]
    resumed = [asked for path, asked in site.asked if path == path_of("albef-4m")]
    assert resumed == ["", f"bytes={int(share * len(content))}-" if share else ""]
    assert (tmp_path / "weights" / "albef-4m" / "ALBEF_4M.pth").read_bytes() == content


def test_a_later_call_goes_on_where_an_earlier_one_was(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    content = site.files[path_of("albef-4m")]
    site.breaks = [0.4] * 20
    assert main(["weights", "albef-4m"]) == 2
    assert "5 tries brought nothing; the last: cut off after" in capsys.readouterr().err
    assert main(["weights"]) == 0
    site.breaks, site.asked = [], []
    assert main(["weights", "albef-4m"]) == 0
    assert site.asked == [(path_of("albef-4m"), f"bytes={int(0.4 * len(content))}-")]
    assert f"going on at {int(0.4 * len(content)):,} bytes" in capsys.readouterr().err


@pytest.mark.parametrize("tags", [True, False])
def test_a_file_that_changed_meanwhile_is_fetched_anew(site: Site, tmp_path: Path, tags: bool) -> None:
    site.breaks, site.tags = [0.4] * 20, tags
    assert main(["weights", "albef-4m"]) == 2
    other = small_albef() | {"epoch": 4, "notes": "longer " * 100}
    site.files[path_of("albef-4m")] = torch_bytes(other)
    site.breaks = []
    assert main(["weights", "albef-4m"]) == 0
    whole = (tmp_path / "weights" / "albef-4m" / "ALBEF_4M.pth").read_bytes()
    assert whole == site.files[path_of("albef-4m")]


def test_a_server_without_parts_is_asked_for_all(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.breaks, site.ranges = [0.4], False
    assert main(["weights", "albef-4m"]) == 0
    assert "sends the whole file again" in capsys.readouterr().err


def test_several_processes_fetch_a_file_once(site: Site) -> None:
    locations: list[Path] = []
    threads = [threading.Thread(target=lambda: locations.append(locate("albef-4m"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(locations)) == 1
    assert len(locations) == 3
    assert sum(path == path_of("albef-4m") for path, _ in site.asked) == 1


# --------------------------------------------------------------------------- what is not what its name says

PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3300000000\n"


@pytest.mark.parametrize(
    ("content", "holds"),
    [
        (lambda: torch_bytes(small_vit()), "it holds a ViT in the timm .DeiT. layout .image 2 layers of width 64"),
        (lambda: torch_bytes(small_bert()), "it holds a BERT in the Hugging Face layout"),
        (lambda: torch_bytes(widened()), "visual_encoder.pos_embed is 1 × 26 × 64. It holds ALBEF, pre-trained"),
        (lambda: torch_bytes({"weight": torch.ones(2)}), "1 tensors .weight …. that are no checkpoint"),
        (lambda: PAGE, "is a web page"),
        (lambda: POINTER, "is a git-lfs pointer"),
        (lambda: b"", "is empty"),
        (lambda: gzip.compress(torch_bytes(small_vit())), "is compressed with gzip"),
        (lambda: b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page"),
        (lambda: torch_bytes(small_albef())[:-4000], "is no checkpoint that can be read: it is cut off"),
    ],
)
def test_a_wrong_file_is_refused_with_what_it_holds(
    site: Site, content: Callable[[], bytes], holds: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site.files[path_of("albef-4m")] = content()
    with pytest.raises(ValueError, match=holds) as refusal:
        diptych.load("albef-4m")
    assert "set aside as" in str(refusal.value)
    assert not (tmp_path / "weights" / "albef-4m" / "ALBEF_4M.pth").exists()
    site.files[path_of("albef-4m")] = torch_bytes(small_albef())  # the right one is taken as if nothing had been
    assert main(["weights", "albef-4m"]) == 0


def widened() -> dict[str, Any]:
    other = small_albef()["model"] | {"visual_encoder.pos_embed": torch.zeros(1, 26, 64)}
    return {"model": other | {"visual_encoder_m.pos_embed": torch.zeros(1, 26, 64)}}


def test_a_wrong_file_put_there_by_hand_is_refused_and_left(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "weights" / "albef-4m" / "ALBEF_4M.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(torch_bytes(small_vit()))
    with pytest.raises(ValueError, match=r"is not albef-4m .* it holds a ViT"):
        diptych.load("albef-4m")
    assert file.exists()
    assert not site.asked


def test_what_changed_after_it_was_fetched_is_noticed(site: Site, tmp_path: Path) -> None:
    assert main(["weights", "albef-4m"]) == 0
    assert main(["weights", "--check"]) == 0
    file = tmp_path / "weights" / "albef-4m" / "ALBEF_4M.pth"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert main(["weights", "--check"]) == 2
    file.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="were fetched: it is damaged"):
        diptych.load("albef-4m")


def test_a_file_whose_hash_its_authors_state_must_have_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = published.PUBLISHED["deit-base"]
    monkeypatch.setitem(published.PUBLISHED, "deit-base", replace(entry, sha256="b5f2ef4d", places=entry.places[:1]))
    with pytest.raises(ValueError, match="is damaged, or another one"):
        locate("deit-base+bert-base")


def test_the_second_address_is_tried_and_the_first_one_named_if_none_works(site: Site) -> None:
    entry = published.PUBLISHED["vlmo-base"]
    with pytest.raises(ValueError, match=r"vlmo-base .* cannot be had") as refusal:
        diptych.load("vlmo-base")
    message = str(refusal.value)
    for place in entry.places:
        assert f"{place}: the server says 404" in message
    assert "curl -L -C - -o vlmo_base_patch16_224.pt" in message
    assert "weights/vlmo-base/vlmo_base_patch16_224.pt" in message
    second = published.PUBLISHED["deit-base"].places[1].removeprefix(published.HUB).split("/")
    del site.files[path_of("deit-base")]
    site.files[f"/{second[0]}/{second[1]}/resolve/main/{second[2]}"] = save(small_vit()["model"])
    assert locate("deit-base+bert-base").is_dir()


# --------------------------------------------------------------------------- without a network


@pytest.mark.parametrize("place", ["albef-4m/ALBEF_4M.pth", "ALBEF_4M.pth"])
def test_a_folder_filled_by_hand_needs_no_network(site: Site, tmp_path: Path, place: str) -> None:
    for name, content in ((place, torch_bytes(small_albef())), ("bert-base-uncased/vocab.txt", VOCABULARY)):
        (tmp_path / "weights" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "weights" / name).write_bytes(content)
    assert diptych.load("albef-4m", device="cpu").embed_texts(["a fox"]).shape == (1, 32)
    assert not site.asked


def test_a_mirror_is_asked_first(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPTYCH_WEIGHTS_MIRROR", f"{site.url}/mirror/")
    site.files["/mirror/albef-4m/ALBEF_4M.pth"] = site.files.pop(path_of("albef-4m"))
    assert main(["weights", "albef-4m"]) == 0
    assert [path for path, _ in site.asked] == ["/mirror/albef-4m/ALBEF_4M.pth"]


def test_a_full_disk_is_said_before_anything_is_fetched(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100}))
    assert main(["weights", "albef-4m"]) == 2
    assert "GB free, and" in capsys.readouterr().err


def test_a_bert_by_name_is_a_vocabulary(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "ALBEF.pth"
    file.write_bytes(torch_bytes(small_albef()))
    assert diptych.from_pretrained(file, vocabulary="bert-base", device="cpu").tokenizer.vocabulary == WORDS
    assert [path for path, _ in site.asked] == [path_of("bert-base", "vocab.txt")]


# --------------------------------------------------------------------------- servers that mean no good


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Answers every connection on loopback by a function. Yields the address."""
    listening = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                connection = listening.accept()[0]
            except OSError:  # the test is over
                return
            with connection, suppress(OSError):
                connection.recv(4096)
                answer(connection)

    threading.Thread(target=accept, daemon=True).start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/file"
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()


def endless(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(bytes(100_000))


def dripping(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    while True:
        connection.sendall(b"a")
        time.sleep(0.05)


def single(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nETag: 1\r\n\r\na")


def boasting(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\na")


def odd(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n" + bytes(2_000_000))


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (endless, "sends more than 1,000,000 bytes"),
        (dripping, "bytes came in 0.2 s"),
        (single, "5 tries brought nothing"),
        (boasting, "offers 99,999,999,999,999 bytes"),
        (odd, "sends more than 1,000,000 bytes"),
    ],
)
def test_a_server_that_never_ends_or_sends_too_much_is_given_up(
    answer: Callable[[socket.socket], None], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "WITHIN", 0.2)
    monkeypatch.setattr(fetch, "BACKOFF", 0.01)
    with answering(answer) as address, pytest.raises(fetch.Unavailable, match=re.escape(told)):
        fetch.fetch(address, tmp_path / "file", most=1_000_000)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 2_000_000
