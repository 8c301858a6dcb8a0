"""Checks that HTTP answers equal those of the Predictor, whatever other clients ask at the same time."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diptych.apps.index import build_index, open_index
from diptych.predict import ModelPool
from diptych.search.calibration import MatchCalibration
from tests.serve.server_state import Running, encoded, picture, requests, running, strict_json

CLOSE = 1e-5
PHONE = (100, 60)
Body = Mapping[str, Any]
ASKED = {"search": "embed", "embeddings": "embed", "rerank": "match"}
"""The abilities of endpoints that are called otherwise."""


def opened(content: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(content)))


def expected(pool: ModelPool, path: str, body: Body, index: Path) -> Any:
    """Computes the answer with the Predictor alone."""
    ability = path.rpartition("/")[2]
    model = pool.find(ASKED.get(ability, ability)).predictor
    answers: dict[str, Callable[[], Any]] = {
        "embed": lambda: {
            "pictures": model.embed_images([opened(one) for one in body["pictures"]]).tolist(),
            "texts": model.embed_texts(body["texts"]).tolist(),
        },
        "match": lambda: {
            "probabilities": model.match([opened(one) for one in body["pictures"]], body["texts"]).tolist()
        },
        "search": lambda: {
            "hits": [
                {"id": hit.id, "kind": "picture", "text": None, "similarity": hit.similarity, "match": hit.match}
                for hit in open_index(index, model).search(body["text"], body["k"]).hits
            ]
        },
        "entail": lambda: choices(model.entail(opened(body["picture"]), body["hypotheses"])),
        "compare": lambda: choices(model.compare(opened(body["left"]), opened(body["right"]), body["statements"])),
        "answer": lambda: {
            "results": [
                [{"answer": one.text, "probability": one.probability} for one in best]
                for best in model.answer(opened(body["picture"]), body["questions"], body["k"])
            ]
        },
        "locate": lambda: {
            "results": [
                {"phrase": one.phrase, "box": list(one.box), "score": one.score, "heat": None}
                for one in model.locate(opened(body["picture"]), body["phrases"])
            ]
        },
        "embeddings": lambda: {
            "data": [
                {"object": "embedding", "index": index, "embedding": vector}
                for index, vector in enumerate(
                    [
                        model.embed_texts(body["input"][0])[0].tolist(),
                        model.embed_images(opened(body["input"][1].partition(",")[2]))[0].tolist(),
                        model.embed_texts(body["input"][2]["text"])[0].tolist(),
                    ]
                )
            ]
        },
        "rerank": lambda: {
            "results": [
                {"index": index, "relevance_score": score, "document": None}
                for score, index in [
                    max(
                        (model.match(opened(picture), body["query"]).item(), index)
                        for index, picture in enumerate(
                            (body["documents"][0]["image"], body["documents"][1].partition(",")[2])
                        )
                    )
                ]
            ]
        },
    }
    return answers[ability]()


def choices(decisions: Any) -> Any:
    return {"results": [{"label": one.label, "probabilities": dict(one.probabilities)} for one in decisions]}


def near(one: Any, other: Any) -> bool:
    """Compares two JSON values, whose numbers may differ a little."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(near(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(near, one, other))
    return abs(one - other) <= CLOSE if isinstance(one, float) else one == other


@pytest.mark.parametrize("path", requests())
def test_every_endpoint_says_what_the_predictor_says(path: str, served: Running, pool: ModelPool, photos: Path) -> None:
    body = requests()[path]
    response = served.post(path, body)
    assert response.status_code == 200, response.text
    answer = dict(strict_json(response.content))
    ability = path.rpartition("/")[2]
    assert answer.pop("model") == pool.find(ASKED.get(ability, ability)).name
    answer = {name: answer[name] for name in expected(pool, path, body, photos)}
    assert near(answer, expected(pool, path, body, photos))


def test_64_clients_at_once_get_what_each_would_get_alone(served: Running, pool: ModelPool, photos: Path) -> None:
    work = [(path, requests(seed)[path]) for seed in range(10) for path in requests()]
    with ThreadPoolExecutor(64) as clients:
        answers = list(clients.map(lambda one: served.post(*one), work))
    assert {one.status_code for one in answers} == {200}
    for (path, body), answer in zip(work, answers, strict=True):
        expected_answer = expected(pool, path, body, photos)
        assert near({name: answer.json()[name] for name in expected_answer}, expected_answer), path
    together = [
        sample.value
        for metric in served.state.metrics.batches.collect()
        for sample in metric.samples
        if sample.name.endswith("_bucket") and sample.labels["le"] == "1.0"
    ]
    assert sum(together) < len(work), "no two requests ever shared a batch"


def test_a_large_picture_is_located_in_its_own_pixels_and_drawn(served: Running, pool: ModelPool) -> None:
    image = picture(3, PHONE)
    body = {"picture": encoded(image), "phrases": ["a boat"], "heat": True}
    answer = served.post("/v1/locate", body).json()["results"][0]
    alone = pool.find("locate").predictor.locate(image, "a boat")
    assert answer["box"] == list(alone.box)
    np.testing.assert_allclose(answer["heat"]["map"], alone.heat, atol=CLOSE)
    drawn = np.asarray(opened(answer["heat"]["png"]), float)
    assert np.abs(drawn - np.asarray(alone.draw(), float)).mean() < 1


def test_the_best_of_the_proposed_boxes_is_returned(served: Running, pool: ModelPool) -> None:
    image, boxes = picture(3, PHONE), [[0.0, 0.0, 10.0, 10.0], [50.0, 20.0, 30.0, 30.0]]
    answer = served.post("/v1/locate", {"picture": encoded(image), "phrases": ["a boat"], "proposals": boxes}).json()
    assert answer["results"][0]["box"] == list(pool.find("locate").predictor.locate(image, "a boat", boxes).box)


def test_offered_answers_are_chosen_from(served: Running) -> None:
    body = requests()["/v1/answer"] | {"answers": ["yes", "two"], "k": 5}
    assert {one["answer"] for best in served.post("/v1/answer", body).json()["results"] for one in best} == {
        "yes",
        "two",
    }


def test_a_model_is_asked_by_its_name(served: Running, pool: ModelPool) -> None:
    name = next(one.name for one in pool.models if one.name.endswith("vqa_closed"))
    answer = served.post("/v1/answer", requests()["/v1/answer"] | {"model": name}).json()
    assert answer["model"] == name
    refused = served.post("/v1/answer", requests()["/v1/answer"] | {"model": name, "answers": ["yes"]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "refused")
    assert "a closed set has its own 4 answers" in refused.json()["error"]["message"]


def test_search_takes_a_picture_and_ranks_again(served: Running) -> None:
    found = served.post("/v1/search", {"picture": encoded(picture(2)), "k": 1}).json()
    assert found["hits"][0]["id"].startswith("2")
    assert found["hits"][0]["similarity"] == pytest.approx(1, abs=1e-4)
    ranked = served.post("/v1/search", {"text": "a boat", "k": 3, "rerank": True}).json()["hits"]
    assert sorted((one["match"] for one in ranked), reverse=True) == [one["match"] for one in ranked]
    assert "path" not in ranked[0]


def test_a_search_answers_although_pictures_are_gone(pool: ModelPool, tmp_path: Path) -> None:
    for seed in range(3):
        picture(seed).save(tmp_path / f"{seed}.png")
    build_index(tmp_path / "index", tmp_path, pool.find("embed").predictor)
    (tmp_path / "1.png").unlink()
    (tmp_path / "2.png").write_text("no picture")
    with running(pool, index=str(tmp_path / "index")) as server:
        found = server.post("/v1/search", {"text": "a boat"})
        assert (found.status_code, len(found.json()["hits"])) == (200, 3)
        assert "no longer there: 1.png" in found.json()["notes"][0]
        ranked = server.post("/v1/search", {"text": "a boat", "rerank": True})
        assert ranked.status_code == 200
        assert [hit["id"] for hit in ranked.json()["hits"]] == ["0.png"]
        assert ranked.json()["notes"][0].startswith("2 left out of re-ranking")
        assert str(tmp_path) not in found.text + ranked.text


def test_models_say_what_they_can_and_how_well(served: Running, pool: ModelPool) -> None:
    answer = served.get("/v1/models").json()
    assert [one["name"] for one in answer["models"]] == [one.name for one in pool.models]
    able = pool.abilities()
    for ability, names in able.items():
        assert [one["name"] for one in answer["models"] if ability in one["best_for"]] == list(names[:1])
        assert {one["name"] for one in answer["models"] if ability in one["abilities"]} == set(names)
    assert answer["index"] == "exact, 5 vectors"


def test_the_page_and_the_description_name_every_status_and_no_other_host(served: Running) -> None:
    page, described = served.get("/").text, served.get("/openapi.json").json()
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page
    for path, methods in described["paths"].items():
        assert path in page
        for one in methods.values():
            assert {"200", "401", "500"} <= one["responses"].keys() | {"401"}
            if path in requests():
                statuses = {"400", "401", "404", "408", "413", "415", "421", "422", "429", "500", "503", "504"}
                assert statuses <= one["responses"].keys()
                assert one["responses"]["422"]["content"]["application/json"]["schema"]["$ref"].endswith(
                    "ErrorResponse"
                )
    assert json.dumps(described).count("HTTPValidationError") == 0


def test_a_search_that_finds_nothing_is_answered(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"text": "a boat", "k": 3, "rerank": True}
    before = served.post("/v1/search", body).json()
    assert (len(before["hits"]), before["min_match"], before["calibrated"]) == (3, 0, False)
    assert before["best_match"] == before["hits"][0]["match"]
    doubtful = MatchCalibration(0.01, 0.0, -3.0, 0.5, 10, 10)
    index = served.state.index
    monkeypatch.setattr(index, "predictor", replace(index.predictor, calibration=doubtful))
    answer = served.post("/v1/search", body)
    assert answer.status_code == 200
    found = answer.json()
    assert (found["hits"], found["min_match"], found["calibrated"]) == ([], 0.5, True)
    assert 0.03 < found["best_match"] < 0.07
    shown = served.post("/v1/search", body | {"min_match": 0.0}).json()["hits"]
    assert [hit["id"] for hit in shown] == [hit["id"] for hit in before["hits"]]
    assert shown[0]["match"] == found["best_match"]
    assert len(served.post("/v1/search", {"text": "a boat", "k": 3}).json()["hits"]) == 3, "similarity alone"
    refused = served.post("/v1/search", {"text": "a boat", "min_match": 0.5})
    assert refused.status_code == 422
    assert "min_match needs rerank" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [("-boat", "only what is unwanted"), ("boat -boat^1", "cancel each other"), ("a boat +fox^0", "has weight 0")],
)
def test_a_search_for_nothing_is_refused(served: Running, text: str, reason: str) -> None:
    answer = served.post("/v1/search", {"text": text})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "refused")
    assert reason in answer.json()["error"]["message"]
