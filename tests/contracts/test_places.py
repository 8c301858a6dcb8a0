"""A recipe that somebody else stored uses no file and no address that nobody named on this machine."""

from __future__ import annotations

import copy
import json
import pickle
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
from PIL import Image

from diptych import catalog, places
from diptych.checkpoints import store
from diptych.data.shards.listing import shard_names
from diptych.data.tokenizer import Tokenizer
from diptych.places import PlaceError, StoredPlace
from diptych.recipes.override import override, parse_assignments
from diptych.run import evaluate, train
from diptych.schema import DataConfig, MixConfig, Recipe, RunConfig, TokenizerConfig
from diptych.serialize import PLACES, field_types, from_dict, places_of, to_dict
from tests.runs import TASK_CONFIGS, recipe_of, save_run


@pytest.fixture(autouse=True)
def _nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(places.TRUST)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(places, "_allowed", set())


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A JSONL file of twelve captioned pictures."""
    lines = []
    for number in range(12):
        Image.new("RGB", (32, 32), (20 * number, 0, 0)).save(tmp_path / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "caption": f"a boat number {number}"}))
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(lines))
    return file


def of_somebody(recipe: Recipe) -> Recipe:
    """The recipe as it is read from a checkpoint."""
    return from_dict(json.loads(json.dumps(to_dict(recipe))))


def with_data(data: DataConfig) -> Recipe:
    return of_somebody(replace(recipe_of(TASK_CONFIGS["pretraining"]), data=data))


def test_every_text_of_the_schema_is_a_place_or_known_to_be_none() -> None:
    others = {"language", "device", "source", "name", "term", "words", "image_column", "caption_column"}

    def check(cls: type) -> None:
        for key, hint in field_types(cls).items():
            if hint in (str, str | None):
                assert key in PLACES.get(cls, ()) or key in others, f"{cls.__name__}.{key}: is it a place?"

    from diptych import schema

    for cls in vars(schema).values():
        if isinstance(cls, type) and hasattr(cls, "__dataclass_fields__"):
            check(cls)
    assert all(key in {item.name for item in fields(cls)} for cls, keys in PLACES.items() for key in keys)


def test_the_places_of_a_stored_recipe_stay_marked() -> None:
    data = DataConfig(
        "mix",
        cache="/tmp/x",
        mix=(MixConfig("jsonl", "a.jsonl", "/pictures"), MixConfig("shards", "http://h/{0..9}.tar")),
    )
    recipe = replace(with_data(data), tokenizer=TokenizerConfig("words.txt"), init_from="runs/x")
    recipe = pickle.loads(pickle.dumps(copy.deepcopy(of_somebody(recipe))))
    assert places_of(recipe) == {
        "data.cache": "/tmp/x", "data.mix.0.path": "a.jsonl", "data.mix.0.root": "/pictures",
        "data.mix.1.path": "http://h/{0..9}.tar", "tokenizer.vocabulary": "words.txt", "init_from": "runs/x",
    }  # fmt: skip
    assert all(isinstance(place, StoredPlace) for place in places_of(replace(recipe, name="b")).values())


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_no_place_of_a_stored_recipe_is_opened(photos: Path, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = with_data(DataConfig("jsonl", str(photos), test_path=str(photos)))
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", lambda *_: pytest.fail("something was opened"))
        patched.setattr(Path, "read_bytes", lambda *_: pytest.fail("something was read"))
        with pytest.raises(PlaceError, match=r"data\.path=.*DIPTYCH_PLACES=trusted"):
            catalog.open_source(recipe.data, split)  # type: ignore[call-overload]
        with pytest.raises(PlaceError, match="Nothing was read there"):
            catalog.read_splits(recipe.data)
    named = replace(recipe.data, path=str(photos), test_path=None)  # as an override on the command line
    assert len(catalog.open_source(named, "train")) == 6


@pytest.mark.parametrize("inline", [True, False])
def test_the_sources_of_a_mix_that_the_user_names_are_read(photos: Path, tmp_path: Path, inline: bool) -> None:
    mix = json.dumps([{"source": "jsonl", "path": str(photos)}])
    (tmp_path / "mix.json").write_text(mix)
    named = mix if inline else f"@{tmp_path / 'mix.json'}"
    changes = parse_assignments(["data.source=mix", f"data.mix={named}"])
    assert len(catalog.open_source(override(catalog.find_recipe("albef_tiny"), changes).data, "train")) == 6
    stored = of_somebody(override(catalog.find_recipe("albef_tiny"), changes))
    with pytest.raises(PlaceError, match=r"data\.mix\.0\.path"):
        catalog.open_source(stored.data, "train")


def test_a_vocabulary_and_a_start_are_places_too(tmp_path: Path) -> None:
    with pytest.raises(PlaceError, match="passwd"):
        Tokenizer.from_vocabulary(StoredPlace("/etc/passwd"))
    with pytest.raises(PlaceError, match="other"):
        store.load_from(StoredPlace(tmp_path / "other"))


def test_what_a_training_here_was_given_is_known_afterwards(photos: Path, tmp_path: Path) -> None:
    recipe = recipe_of(TASK_CONFIGS["pretraining"])
    data = DataConfig("jsonl", str(photos), max_tokens=8, workers=0)
    run = RunConfig(steps=1, batch_size=2, validate_every=0, device="cpu")
    train(replace(recipe, data=data, run=run), tmp_path / "run")
    places._allowed.clear()  # another process
    assert evaluate(tmp_path / "run").written[0].is_file()
    file = tmp_path / "config" / "diptych" / "places"
    assert [json.loads(line) for line in file.read_text().splitlines()] == [str(photos)]
    file.write_text("[\n")  # a damaged file knows nothing
    places._allowed.clear()
    with pytest.raises(PlaceError):
        evaluate(tmp_path / "run")


def test_a_yes_at_the_terminal_is_remembered(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        answers = ["n\n", "y\n"]  # noqa: RUF012

        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            return self.answers.pop(0)

        def write(self, text: str) -> None: ...

        def flush(self) -> None: ...

    data = with_data(DataConfig("jsonl", str(photos))).data
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("sys.stderr", Terminal())
    with pytest.raises(PlaceError):
        catalog.open_source(data, "train")
    for _ in range(2):  # asked once
        assert len(catalog.open_source(data, "train")) == 6
    assert not Terminal.answers


def test_a_run_of_scenes_asks_nothing(tmp_path: Path) -> None:
    checkpoint = store.load_from(save_run(tmp_path, "pretraining"))
    recipe = from_dict(checkpoint.recipe)
    assert recipe.data.source == "scenes"
    assert len(catalog.open_source(replace(recipe.data, path=StoredPlace("/etc/passwd")), "test"))


# --------------------------------------------------------------------------- addresses of shards


@pytest.mark.parametrize(
    "address",
    [
        "reference://*.tar::file:///tmp/spec.json", "reference://::/tmp/spec.json", "zip://x.tar::http://h/x.zip",
        "ftp://h/x.tar", "sftp://h/x.tar", "github://a:b@c/x.tar", "simplecache::http://h/x.tar", "s3://a::b/x.tar",
        "REFERENCE://x", "local:///etc/passwd", "dir://x", "python://x",
    ],
)  # fmt: skip
def test_only_known_protocols_are_asked(address: str) -> None:
    with pytest.raises(ValueError, match="shards are read from addresses of http://, https://, s3://"):
        shard_names(address) if "://" in address else catalog.read_splits(DataConfig("shards", address))


@pytest.mark.parametrize(
    "pattern",
    ["http://h/{000000000..999999999}.tar", "a/{0..9999}{0..9999}.tar", "{a,b}" * 20 + ".tar", "{x}" * 2000 + ".tar"],
)
def test_a_pattern_names_a_bounded_number_of_shards(pattern: str) -> None:
    begun = time.monotonic()
    with pytest.raises(ValueError, match=r"more than 1,000,000:|more than 20 pairs of braces"):
        shard_names(pattern)
    assert time.monotonic() - begun < 10
