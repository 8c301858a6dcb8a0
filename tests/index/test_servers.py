"""Checks that indexes in PostgreSQL with pgvector and in Milvus behave like an index in a folder."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from diptych.apps.index import Item, add_to_index, build, build_index, index_info, open_index, remove_from_index
from diptych.apps.index.embedding import Portion
from diptych.apps.index.places import find_place
from diptych.apps.index.store import IndexDescription
from diptych.cli.main import main
from diptych.predict import Predictor
from diptych.predict.identity import ModelIdentity
from tests.index.servers import milvus, postgres
from tests.index.sources import CAPTIONS, save_lines, save_picture, save_pictures

NUMBERS = itertools.count()
Fresh = Callable[[], str]


@pytest.fixture(scope="module")
def postgres_address() -> Iterator[str]:
    with postgres() as address:
        yield address


@pytest.fixture(scope="module")
def milvus_address() -> Iterator[str]:
    with milvus() as address:
        yield address


@pytest.fixture(params=["postgres", "milvus"])
def fresh(request: pytest.FixtureRequest) -> Fresh:
    """Returns addresses of indexes that do not exist yet."""
    address: str = request.getfixturevalue(f"{request.param}_address")
    mark = "&index=i" if "?" in address else "?index=i" if request.param == "postgres" else "/i"
    return lambda: f"{address}{mark}{next(NUMBERS)}"


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """Saves five pictures, four of them with a caption, and ids with quotes and SQL."""
    save_pictures(tmp_path / "listed", 5)
    ids = ["plain", "it's", 'a "b" \\ %s {x}', "größe; DROP TABLE x"]
    lines: list[object] = [
        {"image": f"{n}.png", "caption": text, "id": ids[n], "image_id": f"of {ids[n]}"}
        for n, text in enumerate(CAPTIONS)
    ]
    return save_lines(tmp_path / "listed" / "list.jsonl", lines)


@pytest.mark.parametrize("kind", ["auto", "exact", "ivf", "hnsw"])
def test_a_server_finds_what_a_folder_finds(
    kind: str, fresh: Fresh, listed: Path, tmp_path: Path, model: Predictor
) -> None:
    place = fresh()
    built = [build_index(at, listed, model, kind) for at in (tmp_path / "index", place)]  # type: ignore[arg-type]
    assert [one.counts for one in built] == [{"picture": 4, "text": 4}] * 2
    here, there = open_index(tmp_path / "index", model), open_index(place, model)
    for query, of, rerank in (
        ("a boat", "picture", False), ("a boat", "picture", True), ("two dogs", "text", False),
        (listed.parent / "2.png", "picture", False), (listed.parent / "2.png", "text", True),
    ):  # fmt: skip
        one, other = (index.search(query, 3, of, rerank) for index in (here, there))  # type: ignore[arg-type]
        assert [(hit.id, hit.path, hit.text) for hit in one.hits] == [
            (hit.id, hit.path, hit.text) for hit in other.hits
        ]
        assert [hit.similarity for hit in other.hits] == pytest.approx([hit.similarity for hit in one.hits], abs=1e-5)
        assert one.searched == other.searched == 4


def test_equal_vectors_come_in_the_order_of_their_ids(fresh: Fresh, tmp_path: Path, model: Predictor) -> None:
    original = save_picture(tmp_path / "photos" / "k.png", 1)
    for name in "zbqamxZ":
        shutil.copy(original, tmp_path / "photos" / f"{name}.png")
    place = fresh()
    build_index(place, tmp_path / "photos", model)
    assert [hit.id for hit in open_index(place, model).search(original, k=3).hits] == ["Z.png", "a.png", "b.png"]


def test_add_and_remove_change_what_an_open_index_finds(
    fresh: Fresh, listed: Path, tmp_path: Path, model: Predictor
) -> None:
    place = fresh()
    build_index(place, listed, model)
    index = open_index(place, model)
    with pytest.raises(ValueError, match="nothing with the id 'no'"):
        remove_from_index(place, ["it's#1", "no"])
    assert remove_from_index(place, ["it's#1", 'of a "b" \\ %s {x}']) == 6
    assert index.counts == {"picture": 3, "text": 3}
    built = add_to_index(place, listed, model)
    assert (built.added, built.kept) == (2, 6)
    save_picture(listed.parent / "0.png", seed=90)
    assert add_to_index(place, save_pictures(tmp_path / "trip", 2, seed=20), model).added == 2
    assert build_index(place, listed, model).added == 1
    assert index.search(listed.parent / "0.png", k=1).hits[0].similarity == pytest.approx(1, abs=1e-5)
    assert open_index(place, model).search(tmp_path / "trip" / "0.png", k=1).hits[0].id == "trip/0.png"
    assert index_info(place).roots == (str(listed.parent), str(tmp_path / "trip"))


def test_an_interrupted_build_cannot_be_searched_and_can_be_continued(
    fresh: Fresh, tmp_path: Path, model: Predictor, vlmo: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, place = save_pictures(tmp_path / "photos", 7), fresh()
    monkeypatch.setattr(build, "PORTION", 2)
    embed, calls = build.embed, itertools.count()

    def breaking(*arguments: object) -> Portion:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return embed(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(build, "embed", breaking)
    with pytest.raises(KeyboardInterrupt):
        build_index(place, photos, model)
    with pytest.raises(ValueError, match="not finished"):
        open_index(place, model)
    (photos / "0.png").unlink()
    built = build_index(place, photos, model)
    assert (built.added, built.kept, built.counts["picture"]) == (3, 3, 6)
    with pytest.raises(ValueError, match="cannot be compared"):
        open_index(place, vlmo)
    with pytest.raises(ValueError, match="no index"):
        open_index(fresh(), model)


def test_postgres_refuses_a_second_writer(postgres_address: str, tmp_path: Path, model: Predictor) -> None:
    photos, place = save_pictures(tmp_path / "photos", 2), f"{postgres_address}&index=two"
    build_index(place, photos, model)
    with find_place(place).writing(begin=False), pytest.raises(ValueError, match="another process writes"):
        add_to_index(place, photos, model)
    assert add_to_index(place, photos, model).kept == 2


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_pgvector_uses_its_index_and_finds_most(kind: str, postgres_address: str) -> None:
    place = find_place(f"{postgres_address}&index=many_{kind}")
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((20, 8))
    vectors = (centres[rng.integers(20, size=2_000)] + 0.4 * rng.standard_normal((2_000, 8))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    items = [Item(f"{number:04d}", "picture", "x") for number in range(2_000)]
    with place.writing(begin=True) as writer:
        writer.begin(IndexDescription(ModelIdentity("/m", "d"), 8, kind, ()), anew=True)  # type: ignore[arg-type]
        writer.add(Portion(items, vectors, []))
        writer.commit(None)
    store = place.open()
    assert store.search_method("picture") == f"PostgreSQL, {kind.upper()}, 2,000 vectors"
    hits = []
    for query in vectors[::100]:
        exact = {f"{number:04d}" for number in np.argsort(-(vectors @ query))[:10]}
        hits.append(len(exact & {id for id, _ in store.nearest("picture", query, 10)}) / 10)
        assert len(store.nearest("picture", query, 1_500)) >= (1_500 if kind == "hnsw" else 10)
    assert np.mean(hits) >= 0.95


def test_no_server_is_one_line_without_the_password(capsys: pytest.CaptureFixture[str]) -> None:
    for place in ("postgresql://me:secret@127.0.0.1:9/db?index=x", "milvus://me:secret@127.0.0.1:9/x"):
        assert main(["index", "info", place]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "answers at" in error
        assert "secret" not in error
