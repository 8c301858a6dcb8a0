"""Queries with wanted and unwanted words, near-duplicates, and the ways in which hits are shown."""

from __future__ import annotations

import html
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from diptych.apps.index import IndexHit, IndexQuery, build_index, open_index
from diptych.cli.main import main
from diptych.predict import Predictor, search_folder
from diptych.predict.duplicates import fold
from diptych.predict.queries import Term, read_query
from tests.index.sources import CAPTIONS, save_lines, save_pictures


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five pictures, of which two come twice: larger as JPEG, and as an exact copy."""
    folder = save_pictures(tmp_path / "photos", 5)
    for file in folder.rglob("*.png"):  # soft, as photographs are
        Image.open(file).resize((5, 4)).resize((200, 160)).save(file)
    Image.open(folder / "0.png").resize((400, 320)).save(folder / "0-large.jpg", quality=80)
    (folder / "1-copy.png").write_bytes((folder / "1.png").read_bytes())
    return folder


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("a red fox, left of a t-shirt", [("a red fox, left of a t-shirt", 1.0)]),
        ("a fox - and a car", [("a fox - and a car", 1.0)]),
        ("a fox +snow -car", [("a fox", 1.0), ("snow", 1.0), ("car", -0.5)]),
        ("a fox −car", [("a fox", 1.0), ("car", -0.5)]),
        ('-"red car"^2 a fox +snow^.25', [("a fox", 1.0), ("snow", 0.25), ("red car", -2.0)]),
        ("+snow +ice^2", [("snow", 1.0), ("ice", 2.0)]),
        ("-car a fox", [("a fox", 1.0), ("car", -0.5)]),
    ],
)
def test_a_query_is_split_into_its_terms(text: str, terms: list[tuple[str, float]]) -> None:
    assert read_query(text).terms == tuple(Term(*term) for term in terms)


@pytest.mark.parametrize(
    ("text", "message"), [("-car", "says only what is unwanted"), ("a fox +snow^0", r"\+snow\^0 has weight 0")]
)
def test_a_query_that_wants_nothing_is_said(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_query(text)


def test_terms_are_a_weighted_sum_of_vectors(model: Predictor) -> None:
    fox, boat, bird = model.embed_texts(["a red fox", "a boat", "bird"])
    expected = torch.nn.functional.normalize(fox + 0.5 * boat - 2 * bird, dim=0)
    found = model.embed_queries([read_query('a red fox +"a boat"^0.5 -bird^2')])
    assert torch.allclose(found[0], expected, atol=1e-6)
    assert torch.equal(model.embed_queries([read_query("a boat")]), model.embed_texts("a boat"))
    with pytest.raises(ValueError, match="cancel each other"):
        model.embed_queries([read_query("boat -boat^1")])


def test_an_index_and_a_folder_answer_a_query_alike(model: Predictor, photos: Path, tmp_path: Path) -> None:
    build_index(tmp_path / "index", photos, model)
    index = open_index(tmp_path / "index", model)
    query = "a boat -fox +bird^0.5"
    for rerank in (False, True):
        by_index = index.search(query, 7, rerank=rerank).hits
        by_folder = search_folder(model, query, photos, 7, rerank=rerank).hits
        assert [hit.id for hit in by_index] == [hit.name for hit in by_folder]
        assert [hit.match for hit in by_index] == pytest.approx([hit.match for hit in by_folder])
    files = [photos / hit.id for hit in by_index]
    boat, bird, fox = (model.match(files, text)[:, 0].logit() for text in ("a boat", "bird", "fox"))
    score = boat + 0.5 * bird - 0.5 * fox
    assert torch.allclose(score.sort(descending=True).values, score, atol=1e-4), "re-ranked by weighted log odds"
    assert [hit.match for hit in by_index] == pytest.approx(boat.sigmoid().tolist(), abs=1e-5)
    assert index.search("a boat +qzx").unknown_words == search_folder(model, "a boat +qzx", photos).unknown_words


def shown(hit: IndexHit) -> tuple[str, int]:
    """Returns the image of a hit, whichever of its copies comes first: their scores differ by rounding alone."""
    return hit.id.replace("-copy", ""), len(hit.copies)


@pytest.mark.parametrize("system", ["albef", "vlmo"])
def test_searches_together_find_what_each_finds_alone(
    system: str, model: Predictor, vlmo: Predictor, photos: Path, tmp_path: Path
) -> None:
    predictor = {"albef": model, "vlmo": vlmo}[system]
    build_index(tmp_path / "index", photos, predictor)
    build_index(
        tmp_path / "texts", save_lines(tmp_path / "list.jsonl", [{"text": text} for text in CAPTIONS]), predictor
    )
    words = [
        IndexQuery("a boat"), IndexQuery("a boat -fox +bird^0.5", 3, 0.4), IndexQuery("a red fox", 2, fold_copies=True),
        IndexQuery("a boat", 1),
    ]  # fmt: skip
    pictures = [IndexQuery(photos / "2.png"), IndexQuery(Image.open(photos / "0.png"), 2, 0.1)]
    cases = [(words, "picture", False), (words, "picture", True), ([*words, *pictures], "picture", False)]
    cases = [("index", *case) for case in cases] + [("texts", pictures, "text", rerank) for rerank in (False, True)]
    for place, queries, of, rerank in cases:
        index = open_index(tmp_path / place, predictor)
        if not rerank:  # only the fusion encoder gives the probability of a match
            queries = [replace(one, min_match=None) for one in queries]
        together = index.search_many(queries, of, rerank)
        for one, found in zip(queries, together, strict=True):
            alone = open_index(tmp_path / place, predictor).search(
                one.query, one.k, of, rerank, one.min_match, one.fold_copies
            )
            assert [shown(hit) for hit in found.hits] == [shown(hit) for hit in alone.hits]
            assert [hit.match for hit in found.hits] == pytest.approx([hit.match for hit in alone.hits], abs=1e-5)
            assert [hit.similarity for hit in found.hits] == pytest.approx(
                [hit.similarity for hit in alone.hits], abs=1e-5
            )
            assert (found.query, found.searched, found.min_match) == (alone.query, alone.searched, alone.min_match)


def test_searches_together_encode_each_text_and_picture_once(
    model: Predictor, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_index(tmp_path / "index", photos, model)
    index, network = open_index(tmp_path / "index", model), type(model.model)
    seen = {"image_state": 0, "text_state": 0}

    def count(name: str) -> None:
        encode = getattr(network, name)

        def counted(self: object, batch: object) -> object:
            seen[name] += len(batch)  # type: ignore[arg-type]
            return encode(self, batch)

        monkeypatch.setattr(network, name, counted)

    for name in seen:
        count(name)
    queries = [IndexQuery(text) for text in ("a boat", "a red fox -boat", "a boat", "fox -bird")]
    index.search_many(queries, rerank=True)
    assert seen == {"image_state": 7, "text_state": 2 * 5}, "texts once to embed and once to match"
    seen |= {"image_state": 0, "text_state": 0}
    index.search_many(queries, rerank=True)
    assert seen["image_state"] == 0, "their states are kept"
    build_index(tmp_path / "texts", save_lines(tmp_path / "list.jsonl", [{"text": text} for text in CAPTIONS]), model)
    seen |= {"image_state": 0, "text_state": 0}
    open_index(tmp_path / "texts", model).search(Image.open(photos / "0.png"), of="text", rerank=True)
    assert seen["image_state"] == 1, "one picture with all its texts"
    seen |= {"image_state": 0, "text_state": 0}
    picture = Image.open(photos / "0.png")
    model.locate([picture] * 3, ["a boat", "a fox", "a bird"])
    assert seen["image_state"] == 1, "a list that names one picture three times"


def test_one_refused_search_refuses_all_of_a_call(model: Predictor, photos: Path, tmp_path: Path) -> None:
    """So the server asks each alone then."""
    build_index(tmp_path / "index", photos, model)
    index = open_index(tmp_path / "index", model)
    with pytest.raises(ValueError, match="k is 0"):
        index.search_many([IndexQuery("a boat"), IndexQuery("a boat", 0)])
    with pytest.raises(ValueError, match="cancel each other"):
        index.search_many([IndexQuery("a boat"), IndexQuery("boat -boat^1")])


def test_near_duplicates_are_one_hit(model: Predictor, photos: Path, tmp_path: Path) -> None:
    build_index(tmp_path / "index", photos, model)
    index = open_index(tmp_path / "index", model)
    plain = search_folder(model, "a boat", photos, 7)
    assert len(plain.hits) == 7
    assert not any(hit.copies for hit in plain.hits)
    folded = search_folder(model, "a boat", photos, 7, fold_copies=True)
    groups = {frozenset((hit.name, *hit.copies)) for hit in folded.hits if hit.copies}
    assert groups == {frozenset(("0.png", "0-large.jpg")), frozenset(("1.png", "1-copy.png"))}
    assert len(folded.hits) == 5
    assert "(and 1 near-duplicate: " in str(folded)
    assert [(hit.id, hit.copies) for hit in index.search("a boat", 7, fold_copies=True).hits] == [
        (hit.name, hit.copies) for hit in search_folder(model, "a boat", photos, 7, False, fold_copies=True).hits
    ]
    assert len(search_folder(model, "a boat", photos, 3, fold_copies=True).hits) == 3, (
        "copies take no other hit's place"
    )


def test_different_pictures_and_missing_ones_are_not_folded(photos: Path) -> None:
    turned = Image.open(photos / "2.png").rotate(180)
    wide = Image.open(photos / "2.png").resize((40, 16))
    pictures = [photos / "2.png", turned, wide, photos / "gone.png", photos / "gone.png", photos / "2.png"]
    assert fold(pictures, 9) == [[0, 5], [1], [2], [3], [4]]
    assert fold(pictures, 1) == [[0]], "nothing behind the first of the next group is opened"


def run_command(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = main([str(word) for word in words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_hits_as_json_as_a_page_and_in_a_viewer(
    run: Path, model: Predictor, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    build_index(tmp_path / "index", photos, model)
    opened, viewer = tmp_path / "opened", tmp_path / "viewer"
    viewer.write_text(f'#!{sys.executable}\nimport sys\nopen({str(opened)!r}, "a").write(sys.argv[1] + "\\n")\n')
    viewer.chmod(0o755)
    monkeypatch.setenv("VIEWER", str(viewer))
    page = tmp_path / "hits.html"
    common = ("--top", 5, "--device", "cpu", "--json", "--html", page)
    for words in (("search", run, "a <boat", "--images", photos), ("index", "search", tmp_path / "index", "a <boat")):
        status, out, error = run_command(capsys, *words, *common)
        assert status == 0
        found = json.loads(out)
        assert [hit["name"] for hit in found["hits"]]
        assert all(Path(hit["path"]).is_file() for hit in found["hits"])
        assert f"written: {page}" in error
        text = page.read_text()
        assert html.escape("a <boat") in text
        assert "a <boat" not in text
        assert text.count("data:image/") == 5  # of seven pictures, two are copies
        assert all(Path(hit["path"]).as_uri() in text for hit in found["hits"])
        page.unlink()
    assert any(hit["copies"] for hit in found["hits"])
    assert run_command(capsys, *words, "--device", "cpu", "--open", 2)[0] == 0
    files = [hit["path"] for hit in found["hits"][:2]]
    for _ in range(600):
        if opened.exists() and len(opened.read_text().splitlines()) == 2:
            break
        time.sleep(0.1)
    assert sorted(opened.read_text().splitlines()) == sorted(files)
    shown = run_command(capsys, *words, "--device", "cpu", "--keep-copies")[1]
    assert "near-duplicate" not in shown
    assert len(shown.partition("\n\nwords")[0].splitlines()) == 3 + 7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--open", "-1"], "--open is -1: name how many pictures to open"),
        (["--open"], "no program opens pictures here"),
        (["--html", "."], "--html . is a folder: name a file"),
        (["--html", __file__], f"{__file__} is there already, and diptych did not write it"),
    ],
)
def test_what_cannot_be_shown_is_said_before_the_model_is_loaded(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VIEWER", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    for verb in (["search", "RUN", "a boat", "--images", "DIR"], ["index", "search", "PLACE", "a boat"]):
        status, _, error = run_command(capsys, *verb, *words)
        assert status == 2
        assert message in error


def test_a_renamed_file_replaces_its_earlier_name(model: Predictor, photos: Path, tmp_path: Path) -> None:
    place = tmp_path / "index"
    build_index(place, photos, model)
    (photos / "2.png").rename(photos / "fox.png")
    (photos / "inner" / "4.png").rename(photos / "4.png")
    (photos / "3.png").unlink()
    report = build_index(place, photos, model)
    assert (report.added, report.renamed, report.counts["picture"]) == (2, 2, 7)
    assert "2 added (2 of them renamed)" in str(report)
    ids = {hit.id for hit in open_index(place, model).search("a boat", 10).hits}
    assert {"fox.png", "4.png"} < ids
    assert not {"2.png", "inner/4.png"} & ids
    assert "3.png" in ids, "a picture that has gone stays until it is removed"


def test_a_copy_is_no_new_name_while_the_first_is_there(model: Predictor, photos: Path, tmp_path: Path) -> None:
    place = tmp_path / "index"
    build_index(place, photos, model)
    (photos / "two.png").write_bytes((photos / "2.png").read_bytes())
    assert build_index(place, photos, model).renamed == 0
    ids = {hit.id for hit in open_index(place, model).search("a boat", 10).hits}
    assert {"2.png", "two.png"} < ids
    (photos / "2.png").unlink()
    (photos / "two.png").rename(photos / "three.png")
    report = build_index(place, photos, model)
    assert report.renamed == 1, "one file has one earlier name"
