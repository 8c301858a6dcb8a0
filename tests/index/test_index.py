"""Checks searches against the model itself, changes of an index, and refusals."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.apps.index import (
    IndexQuery,
    Item,
    add_to_index,
    build_index,
    index_info,
    open_index,
    remove_from_index,
)
from diptych.apps.index.files import sole_writer
from diptych.apps.index.index import nearest
from diptych.apps.index.neighbours import MethodChoice, require_faiss
from diptych.apps.index.states import ImageStateCache
from diptych.checkpoints.files import fingerprint
from diptych.predict import Predictor
from tests.index.sources import CAPTIONS, save_lines, save_picture, save_pictures


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return save_pictures(tmp_path / "photos", 9)


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """Saves four pictures with a caption each."""
    save_pictures(tmp_path / "listed", 5)
    lines: list[object] = [{"image": f"{n}.png", "caption": text, "id": f"t{n}"} for n, text in enumerate(CAPTIONS)]
    return save_lines(tmp_path / "listed" / "list.jsonl", lines)


def brute(model: Predictor, query: torch.Tensor, files: list[Path]) -> list[str]:
    """Ranks files by similarity with the model alone, and returns their names."""
    return [files[place].name for place in (model.embed_images(files) @ query[0]).argsort(descending=True).tolist()]


@pytest.mark.parametrize("system", ["model", "vlmo"])
def test_words_and_pictures_find_what_the_model_itself_finds_nearest(
    system: str, request: pytest.FixtureRequest, photos: Path, tmp_path: Path
) -> None:
    model: Predictor = request.getfixturevalue(system)
    built = build_index(tmp_path / "index", photos, model)
    assert (built.added, built.kept, built.counts) == (9, 0, {"picture": 9, "text": 0})
    index, files = open_index(tmp_path / "index", model), sorted(photos.rglob("*.png"))
    assert (len(index), index.search_method) == (9, "exact, 9 vectors")
    found = index.search("two dogs", k=4)
    assert [hit.path.name for hit in found.hits if hit.path] == brute(model, model.embed_texts("two dogs"), files)[:4]
    found = index.search(files[2], k=9)
    assert [hit.path.name for hit in found.hits if hit.path] == brute(model, model.embed_images(files[2]), files)
    assert found.hits[0].similarity == pytest.approx(1, abs=1e-5)
    assert index.search(Image.open(files[2])).hits[0].id == found.hits[0].id
    assert index.search(np.asarray(Image.open(files[2]))).hits[0].id == found.hits[0].id


@pytest.mark.parametrize("system", ["model", "vlmo"])
def test_re_ranking_orders_by_the_probability_that_the_model_gives(
    system: str, request: pytest.FixtureRequest, listed: Path, tmp_path: Path
) -> None:
    model: Predictor = request.getfixturevalue(system)
    build_index(tmp_path / "index", listed, model)
    index = open_index(tmp_path / "index", model)
    assert index.counts == {"picture": 4, "text": 4}
    for found, of in (
        (index.search("a boat", k=4, rerank=True), "picture"),
        (index.search(listed.parent / "1.png", k=4, of="text", rerank=True), "text"),
    ):
        matches = [hit.match for hit in found.hits]
        assert matches == sorted(matches, reverse=True)
        assert {hit.kind for hit in found.hits} == {of}
        expected = [
            model.match(hit.path, "a boat").item()
            if hit.path
            else model.match(listed.parent / "1.png", hit.text).item()
            for hit in found.hits
        ]
        assert matches == pytest.approx(expected, abs=1e-5)
    assert {hit.text for hit in found.hits} == set(CAPTIONS)


def test_a_picture_is_encoded_once_until_it_changes(photos: Path, tmp_path: Path, model: Predictor) -> None:
    build_index(tmp_path / "index", photos, model)
    index = open_index(tmp_path / "index", model)
    first = index.search("a boat", k=9, rerank=True)
    assert index.states.encoded == 9
    assert index.search("a boat", k=9, rerank=True) == first
    index.search("two dogs", k=9, rerank=True)
    assert index.states.encoded == 9
    save_picture(photos / "0.png", seed=77)
    index.search("a boat", k=9, rerank=True)
    assert index.states.encoded == 10


def test_the_state_cache_keeps_the_last_used_states_within_its_limit(photos: Path, model: Predictor) -> None:
    files = sorted(photos.rglob("*.png"))
    one = model.encode(files[0]).nbytes
    states = ImageStateCache(model, limit=3 * one)
    states.get(files[:3])
    states.get(files[:1])
    states.get(files[3:4])
    assert (states.nbytes, states.encoded) == (3 * one, 4)
    states.get([files[0], files[2], files[3]])
    assert states.encoded == 4
    assert len(states.get(files)) == 9
    assert states.nbytes == 3 * one


def test_equal_vectors_come_in_the_order_of_their_ids(tmp_path: Path, model: Predictor) -> None:
    original = save_picture(tmp_path / "photos" / "k.png", 1)
    for name in "zbqamx":
        shutil.copy(original, tmp_path / "photos" / f"{name}.png")
    save_picture(tmp_path / "photos" / "other.png", 2)
    build_index(tmp_path / "index", tmp_path / "photos", model)
    index = open_index(tmp_path / "index", model)
    assert [hit.id for hit in index.search(original, k=3).hits] == ["a.png", "b.png", "k.png"]
    assert [hit.id for hit in index.search(original, k=8).hits] == [f"{n}.png" for n in [*"abkmqxz", "other"]]


class Reversed:
    """A store whose vectors are all equal, and that returns any of them."""

    place, description = "", None

    def count(self, kind: str) -> int:
        return 50

    def nearest(self, kind: str, query: np.ndarray, k: int) -> list[tuple[str, float]]:
        return [(f"{number:02d}", 0.5) for number in range(49, 49 - k, -1)]

    search_method = items = skipped = close = count  # unused here


def test_ties_at_the_cut_are_broken_by_id_among_all_equal_vectors() -> None:
    found = nearest(Reversed(), "picture", np.zeros(2, np.float32), 3)  # type: ignore[arg-type]
    assert [id for id, _ in found] == ["00", "01", "02"]


def test_adding_embeds_only_what_is_new_or_changed(
    photos: Path, tmp_path: Path, model: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "index"
    build_index(place, photos, model)
    save_picture(photos / "new.png", 50)
    changed = save_picture(photos / "3.png", 51)
    seen: list[str] = []
    embed = Predictor.embed_readable
    monkeypatch.setattr(
        Predictor, "embed_readable", lambda self, files: (seen.extend(f.name for f in files), embed(self, files))[1]
    )
    built = add_to_index(place, photos, model)
    assert (built.added, built.kept, sorted(seen)) == (2, 8, ["3.png", "new.png"])
    found = open_index(place, model).search(changed, k=1).hits[0]
    assert (found.id, found.similarity) == ("3.png", pytest.approx(1, abs=1e-5))
    assert build_index(place, photos, model).added == 0


def test_ids_of_a_second_source_begin_with_its_folders_name(photos: Path, tmp_path: Path, model: Predictor) -> None:
    place = tmp_path / "index"
    build_index(place, photos, model)
    for parent in ("x", "y"):
        other = save_pictures(tmp_path / parent / "trip", 2, seed=30)
        add_to_index(place, other, model)
    found = open_index(place, model).search(other / "0.png", k=2)
    assert {hit.id for hit in found.hits} == {"trip/0.png", "trip-2/0.png"}
    assert {hit.path for hit in found.hits} == {tmp_path / "x/trip/0.png", tmp_path / "y/trip/0.png"}
    assert index_info(place).roots == (str(photos), *(str(tmp_path / name / "trip") for name in "xy"))


def test_removed_items_are_not_found_and_an_unknown_id_removes_nothing(
    listed: Path, tmp_path: Path, model: Predictor
) -> None:
    place = tmp_path / "index"
    build_index(place, listed, model)
    with pytest.raises(ValueError, match=r"nothing with the id 'no' \(nor 1 others\): nothing was removed"):
        remove_from_index(place, ["0.png", "no", "nor"])
    assert remove_from_index(place, ["0.png", "t1#1"]) == 6
    index = open_index(place, model)
    assert {hit.id for hit in index.search("a boat").hits} == {"1.png", "2.png", "3.png"}
    assert {hit.id for hit in index.search("a boat", of="text").hits} == {"t0#1", "t2#1", "t3#1"}
    remove_from_index(place, ["1.png", "2.png", "3.png"])
    with pytest.raises(ValueError, match="holds no pictures"):
        open_index(place, model).search("a boat")


def test_hits_that_are_gone_or_changed_are_named_and_re_ranking_leaves_them_out(
    photos: Path, tmp_path: Path, model: Predictor
) -> None:
    build_index(tmp_path / "index", photos, model)
    index = open_index(tmp_path / "index", model)
    assert index.search("a boat").notes == index.search("a boat", rerank=True).notes == ()
    (photos / "1.png").unlink()
    save_picture(photos / "2.png", 77)
    (photos / "3.png").write_text("no picture")
    found = index.search("a boat", 9)
    assert len(found.hits) == 9
    gone, changed = found.notes
    assert gone.startswith("1 of the hits are no longer there: 1.png (`diptych index add PLACE SOURCE --prune`")
    assert changed.startswith("2 of the hits changed since they were embedded: ")
    assert found.to_json()["notes"] == [gone, changed]
    assert str(found).endswith(f"\n{gone}\n{changed}")
    ranked = index.search_many([IndexQuery("a boat", 9), IndexQuery("two dogs", 9)], rerank=True)
    for result in ranked:
        assert {hit.id for hit in result.hits} == {hit.id for hit in found.hits} - {"1.png", "3.png"}
        assert result.notes[0].startswith("2 left out of re-ranking, whose files cannot be opened: ")
        assert result.notes[1].startswith("1 of the hits changed since they were embedded: 2.png")
    for file in photos.rglob("*.png"):
        file.unlink()
    nothing = index.search("a boat", rerank=True)
    assert (nothing.hits, nothing.nothing) == ((), "none of the nearest pictures can be opened")


def test_what_a_source_has_no_more_is_counted_and_pruned_on_request(
    listed: Path, tmp_path: Path, model: Predictor
) -> None:
    place, other = tmp_path / "index", save_pictures(tmp_path / "other", 3, seed=40)
    lines = [json.loads(line) | {"id": None} for line in listed.read_text().splitlines()]
    lines = [{key: value for key, value in line.items() if value is not None} for line in lines]
    save_lines(listed, [*lines])
    assert build_index(place, listed, model).gone == ()
    add_to_index(place, other, model)
    (listed.parent / "1.png").unlink()
    (other / "0.png").unlink()
    save_lines(listed, [*lines[:3]])
    report = build_index(place, listed, model)
    assert (set(report.gone), report.pruned) == ({"1.png", "list.jsonl:4#1"}, 0)
    assert "2 in the index, which the source has no more: " in str(report)
    assert "--prune` removes them" in str(report)
    assert report.counts == {"picture": 7, "text": 4}, "nothing is removed unless it is asked for"
    report = add_to_index(place, listed, model, prune=True)
    assert (report.gone, report.pruned, report.counts) == ((), 2, {"picture": 6, "text": 3})
    assert "2 removed, which the source has no more" in str(report)
    assert add_to_index(place, other, model).gone == ("other/0.png",)


def test_patterns_of_ids_are_removed(listed: Path, tmp_path: Path, model: Predictor) -> None:
    place = tmp_path / "index"
    build_index(place, listed, model)
    with pytest.raises(ValueError, match=r"nothing with the id '\*\.jpg': nothing was removed"):
        remove_from_index(place, ["*.png", "*.jpg"])
    assert remove_from_index(place, ["[01].png", "0.png", "t?#1"]) == 2
    assert index_info(place).counts == {"picture": 2, "text": 0}


def test_bad_pictures_are_skipped_and_listed(photos: Path, tmp_path: Path, model: Predictor) -> None:
    (photos / "4.png").write_bytes((photos / "4.png").read_bytes()[:200])
    (photos / "empty.jpg").touch()
    built = build_index(tmp_path / "index", photos, model)
    assert [(error.record, error.reason) for error in built.skipped] == [
        ("4.png", "picture truncated"), ("empty.jpg", "picture empty"),
    ]  # fmt: skip
    assert built.counts["picture"] == 8
    assert [line.partition(":")[0] for line in index_info(tmp_path / "index").skipped] == ["4.png", "empty.jpg"]
    only = save_lines(tmp_path / "photos" / "bad.jsonl", [{"image": "empty.jpg"}])
    with pytest.raises(ValueError, match="none of the 1 pictures can be read"):
        build_index(tmp_path / "other", only, model)
    with pytest.raises(ValueError, match="not finished"):
        open_index(tmp_path / "other", model)


def test_a_list_of_items_is_indexed_by_their_ids(photos: Path, tmp_path: Path, model: Predictor) -> None:
    items = [Item("first", "picture", str(photos / "0.png")), Item("words", "text", "two dogs")]
    build_index(tmp_path / "index", items, model)
    index = open_index(tmp_path / "index", model)
    assert index.search("a boat").hits[0].path == photos / "0.png"
    assert index.search("two dogs", of="text").hits[0].text == "two dogs"


# --------------------------------------------------------------------------- refused


def test_another_models_index_is_refused_with_both_names(
    photos: Path, tmp_path: Path, model: Predictor, vlmo: Predictor
) -> None:
    place = tmp_path / "index"
    build_index(place, photos, model)
    for call in (
        lambda: open_index(place, vlmo),
        lambda: add_to_index(place, photos, vlmo),
        lambda: build_index(place, photos, vlmo),
    ):
        with pytest.raises(ValueError, match="cannot be compared") as refused:
            call()
        assert all(str(one.origin) in str(refused.value) for one in (model, vlmo))


def test_one_changed_weight_is_another_model_and_a_copy_is_the_same(
    photos: Path, tmp_path: Path, model: Predictor, run: Path
) -> None:
    from diptych.predict import load

    build_index(tmp_path / "index", photos, model)
    shutil.copytree(run, tmp_path / "copy")
    open_index(tmp_path / "index", load(tmp_path / "copy", "cpu"))
    other = load(run, "cpu")
    with torch.no_grad():
        next(other.model.parameters()).view(-1)[0] += 1
    with pytest.raises(ValueError, match="was made by"):
        open_index(tmp_path / "index", other)


def test_a_damaged_index_is_refused_with_the_files_name(photos: Path, tmp_path: Path, model: Predictor) -> None:
    build_index(tmp_path / "whole", photos, model, kind="ivf")
    for name in ("index.json", "generation-*/picture.npy", "generation-*/picture.jsonl", "generation-*/picture.faiss"):
        for harm in ("cut", "flip", "gone"):
            place = tmp_path / f"{harm}-{Path(name).name}"
            shutil.copytree(tmp_path / "whole", place)
            (file,) = place.glob(name)
            content = bytearray(file.read_bytes())
            if harm == "gone":
                file.unlink()
            elif harm == "cut":
                file.write_bytes(content[:-7])
            else:
                content[len(content) // 2] ^= 255
                file.write_bytes(content)
            with pytest.raises(
                ValueError, match=r"no index in" if name == "index.json" and harm == "gone" else file.name
            ):
                open_index(place, model)


def resealed(place: Path, changed: Path) -> Path:
    """Enters the digest of a changed file into the description of an index, as its author would."""
    manifest = place / "index.json"
    content = json.loads(manifest.read_text())
    content["files"][changed.name] = fingerprint(changed)
    manifest.write_text(json.dumps(content))
    return place


@pytest.mark.parametrize("harm", [np.nan, np.inf, 1e30, "narrow"])
@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_an_index_with_vectors_of_no_model_is_refused(
    photos: Path, tmp_path: Path, model: Predictor, harm: float | str, kind: MethodChoice
) -> None:
    build_index(tmp_path / "index", photos, model, kind=kind)
    (file,) = (tmp_path / "index").glob("generation-*/picture.npy")
    vectors = np.load(file)
    if harm == "narrow":
        vectors = vectors[:, :7].copy()
    else:
        vectors[1, 2] = harm
    np.save(file, vectors)
    with pytest.raises(ValueError, match="vectors of no model"):
        open_index(resealed(tmp_path / "index", file), model)


@pytest.mark.parametrize("harm", ["narrow", "other numbers", "other metric"])
def test_lists_of_other_vectors_are_refused(photos: Path, tmp_path: Path, model: Predictor, harm: str) -> None:
    faiss = require_faiss()
    build_index(tmp_path / "index", photos, model, kind="ivf")
    (file,) = (tmp_path / "index").glob("generation-*/picture.faiss")
    (vectors,) = map(np.load, (tmp_path / "index").glob("generation-*/picture.npy"))
    if harm == "narrow":
        vectors = vectors[:, :7].copy()
    metric = faiss.METRIC_L2 if harm == "other metric" else faiss.METRIC_INNER_PRODUCT
    quantiser = faiss.IndexFlatIP(vectors.shape[1])
    lists = faiss.IndexIVFFlat(quantiser, vectors.shape[1], 1, metric)
    lists.train(vectors)
    lists.add_with_ids(vectors, np.arange(len(vectors)) + (10**9 if harm == "other numbers" else 0))
    faiss.write_index(lists, str(file))
    with pytest.raises(ValueError, match=r"is damaged .*build it again"):
        open_index(resealed(tmp_path / "index", file), model).search("a boat")


def test_two_writers_at_once_are_refused_and_readers_are_not(photos: Path, tmp_path: Path, model: Predictor) -> None:
    place = tmp_path / "index"
    build_index(place, photos, model)
    with sole_writer(place):
        for call in (
            lambda: build_index(place, photos, model),
            lambda: add_to_index(place, photos, model),
            lambda: remove_from_index(place, ["0.png"]),
        ):
            with pytest.raises(ValueError, match="another process writes"):
                call()
        assert open_index(place, model).search("a boat").hits


def test_an_open_index_outlives_changes(photos: Path, tmp_path: Path, model: Predictor) -> None:
    place = tmp_path / "index"
    build_index(place, photos, model)
    index = open_index(place, model)
    before = index.search("a boat")
    remove_from_index(place, [before.hits[0].id])
    assert index.search("a boat") == before
    assert open_index(place, model).search("a boat").hits == before.hits[1:]


def test_threads_share_an_index(photos: Path, tmp_path: Path, model: Predictor) -> None:
    build_index(tmp_path / "index", photos, model)
    index = open_index(tmp_path / "index", model)
    expected = {text: index.search(text, k=9, rerank=True) for text in CAPTIONS}
    fresh = open_index(tmp_path / "index", model)
    results: list[tuple[str, object]] = []
    threads = [
        threading.Thread(target=lambda text=text: results.append((text, fresh.search(text, k=9, rerank=True))))
        for text in CAPTIONS * 2
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    for text, found in results:
        assert [hit.id for hit in found.hits] == [hit.id for hit in expected[text].hits]  # type: ignore[attr-defined]


def test_error_messages_say_what_to_do(listed: Path, tmp_path: Path, model: Predictor) -> None:
    place, pictures = tmp_path / "index", listed.parent
    for wrong, message in (
        (tmp_path / "nowhere", "no index in .*nowhere: make one"),
        ("redis://host/x", "an index is a folder, milvus"),
        ("milvus://host/x", "milvus://host:port/name"),
        ("postgresql://me:secret@host/db", r"postgresql://me@host/db names no index: end it with \?index=NAME"),
    ):
        with pytest.raises(ValueError, match=message):
            open_index(wrong, model)
    with pytest.raises(ValueError, match="holds other things"):
        build_index(pictures, listed, model)
    build_index(place, listed, model)
    with pytest.raises(ValueError, match=r"put .* into it with `diptych index add`"):
        build_index(place, save_pictures(tmp_path / "other", 2), model)
    with pytest.raises(ValueError, match="searched by 'auto': for 'hnsw' build another"):
        build_index(place, listed, model, kind="hnsw")
    index = open_index(place, model)
    for ask, message in (
        (lambda: index.search("a boat", k=0), "k is 0"),
        (lambda: index.search("?!"), "holds no words"),
        (lambda: index.search("a boat", of="text", rerank=True), "a text is re-ranked among pictures"),
        (lambda: index.search(pictures / "0.png", rerank=True), "a picture is re-ranked among texts"),
    ):
        with pytest.raises(ValueError, match=message):
            ask()
    (pictures / "1.png").rename(pictures / "moved.png")
    assert len(index.search("a boat").hits) == 4
    with pytest.raises(ValueError, match=r"1\.png is no longer there"):
        index.states.get([pictures / "1.png"])


def test_a_model_without_vectors_makes_no_index(photos: Path, tmp_path: Path, model: Predictor) -> None:
    blind = replace(model, untrained=frozenset(model.model.call_parts["embed_image"]))
    with pytest.raises(ValueError, match="holds no trained"):
        build_index(tmp_path / "index", photos, blind)
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("module", "place", "extra"),
    [
        ("faiss", "index", "search"),
        ("psycopg", "postgresql://me@127.0.0.1:9/db?index=x", "postgres"),
        ("pymilvus", "milvus://127.0.0.1:9/x", "milvus"),
    ],
)
def test_a_missing_extra_is_named_before_anything_is_embedded(
    module: str, place: str, extra: str, photos: Path, tmp_path: Path, model: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"needs {module}: pip install 'diptych\[{extra}\]'"):
        build_index(place, photos, model)
    assert not (tmp_path / "index").exists()
