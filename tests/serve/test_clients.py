"""Checks that what usual clients, probes and proxies send is answered as they expect."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import ValidationError

from diptych.apps.serve.compatible import RerankRequest
from diptych.apps.serve.errors import describe
from diptych.apps.serve.limits import Limits
from diptych.apps.web import origin_of
from diptych.predict import ModelPool
from tests.serve.server_state import Running, encoded, error, picture, requests, running, wait_until

JSON = {"Content-Type": "application/json"}
PICTURE = f"data:image/png;base64,{encoded(picture())}"
OTHER = f"data:image/jpeg;base64,{encoded(picture(1), 'JPEG')}"


@pytest.mark.parametrize("path", ["/healthz", "/", "/v1/models", "/metrics", "/openapi.json"])
def test_head_is_answered_as_get_without_a_body(path: str, served: Running) -> None:
    with served.client() as client:
        head, get = client.head(path), client.get(path)
    assert head.status_code == get.status_code == 200
    assert head.content == b""
    assert head.headers["content-type"] == get.headers["content-type"]


def test_http_1_0_needs_no_host_but_a_given_one_is_checked(served: Running) -> None:
    assert b" 200 " in served.raw(b"GET /healthz HTTP/1.0\r\n\r\n").partition(b"\r\n")[0]
    assert b" 421 " in served.raw(b"GET /healthz HTTP/1.0\r\nHost: evil.example\r\n\r\n").partition(b"\r\n")[0]


def test_a_packed_body_is_unpacked_within_the_limits(pool: ModelPool) -> None:
    body = json.dumps({"texts": ["a boat"]}).encode()
    packed = gzip.compress(body)
    with running(pool, Limits(body_bytes=20_000)) as server:

        def send(content: Any, encoding: str = "gzip") -> tuple[int, str]:
            response = server.post("/v1/embed", content=content, headers={**JSON, "Content-Encoding": encoding})
            return response.status_code, "" if response.status_code == 200 else error(response)

        assert send(packed) == send(packed, "x-gzip") == send(body, "identity") == (200, "")
        assert send(gzip.compress(b" " * 10_000_000)) == (413, "body_too_large")
        assert send(packed, "br") == send(packed, "gzip, gzip") == (415, "bad_encoding")
        assert send(body) == send(packed[:-9]) == send(packed + b"x") == (415, "bad_encoding")
        without_length: Any = (bytes(20_000) if number else packed for number in range(100))
        assert send(without_length) in ((413, "body_too_large"), (415, "bad_encoding"))
        wait_until(server.is_idle)


def test_a_proxys_prefix_may_be_left_or_taken_off(pool: ModelPool) -> None:
    with running(pool, root_path="/ai") as server:
        for path in ("/ai/healthz", "/healthz", "/ai/v1/models", "/ai/", "/ai"):
            assert server.get(path).status_code == 200
        assert server.post("/ai/v1/embed", {"texts": ["a boat"]}).status_code == 200
        assert server.get("/aihealthz").status_code == 404
        assert server.get("/openapi.json").json()["servers"] == [{"url": "/ai"}]


@pytest.mark.parametrize("path", ["/v1/embed/", "/v1//embed", "/v1//embed//"])
def test_a_slash_too_many_makes_no_difference(path: str, served: Running) -> None:
    body = {"texts": ["a boat"]}
    assert served.post(path, body).json() == served.post("/v1/embed", body).json()
    assert served.get("/healthz/").status_code == 200
    assert served.get("/v1/nothing/").status_code == 404


def test_a_base_address_without_its_end_is_pointed_out(served: Running) -> None:
    answer = served.post("/embeddings", {"input": "a boat"})
    assert (answer.status_code, error(answer)) == (404, "unknown_path")
    assert "/v1/embeddings is meant" in answer.json()["error"]["message"]


PAGE, PREFLIGHT = "https://photos.example.org", {"Access-Control-Request-Method": "POST"}


def asked(server: Running, origin: str, wanted: str = "authorization, content-type") -> httpx.Response:
    """Asks what a browser asks before it sends a request of a web page."""
    headers = {"Origin": origin, **PREFLIGHT, "Access-Control-Request-Headers": wanted}
    with server.client() as client:
        return client.options("/v1/embed", headers=headers)


def test_web_pages_of_an_allowed_origin_may_ask_and_read_answers_and_errors(pool: ModelPool) -> None:
    with running(pool, key="k" * 16, origins=[PAGE]) as server:
        answer = asked(server, PAGE, "authorization, content-type, x-stainless-os")
        assert answer.status_code == 204
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert answer.headers["access-control-allow-headers"] == "authorization, content-type, x-stainless-os"
        for key, status in (("k" * 16, 200), ("wrong", 401)):
            headers = {"Origin": PAGE, "Authorization": f"Bearer {key}"}
            sent = server.post("/v1/embed", {"texts": ["a boat"]}, headers=headers)
            assert (sent.status_code, sent.headers["access-control-allow-origin"]) == (status, PAGE)
            assert sent.headers["vary"] == "Origin"
        other = asked(server, "https://evil.example")
        assert (other.status_code, error(other)) == (405, "wrong_method")
        assert "--allow-origin" in other.json()["error"]["message"]
        assert "access-control-allow-origin" not in other.headers
        assert "access-control-allow-origin" not in server.get("/healthz").headers


def test_no_web_page_may_ask_unless_it_is_said(served: Running, pool: ModelPool) -> None:
    assert asked(served, PAGE).status_code == 405
    headers = served.post("/v1/embed", {"texts": ["a boat"]}, headers={"Origin": PAGE}).headers
    assert not any(name.startswith("access-control") for name in headers)
    with running(pool, origins=["*"]) as server:
        assert asked(server, "https://any.example").headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("text", ["photos.example.org", "https://", "https://a.example/page", "null", ""])
def test_what_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--allow-origin"):
        origin_of(text)


def test_a_model_of_the_list_can_be_asked_for(served: Running) -> None:
    listed = served.get("/v1/models").json()["data"]
    for model in listed:
        assert served.get(f"/v1/models/{model['id']}").json() == model
    assert error(served.get("/v1/models/gpt")) == "unknown_model"


@pytest.mark.parametrize(
    "sent", ["https://example.org/a.jpg", ["a boat", " HTTP://example.org/a "], {"text": "http://a"}]
)
def test_an_address_is_neither_fetched_nor_read_as_a_text(served: Running, sent: Any) -> None:
    response = served.post("/v1/embeddings", {"input": sent})
    assert error(response) == "bad_picture"
    assert "no address is ever fetched" in response.text
    assert served.post("/v1/embeddings", {"input": "see http://a, a boat"}).status_code == 200
    assert error(served.post("/v1/rerank", {"query": "a boat", "documents": ["https://a/b.jpg"]})) == "bad_picture"


@pytest.mark.parametrize(
    ("path", "meant"),
    [("/v2/rerank", "/v1/rerank"), ("/openai/v1/embeddings", "/v1/embeddings"), ("/api/embed/", "/v1/embed")],
)
def test_another_servers_path_is_pointed_to_ours(path: str, meant: str, served: Running) -> None:
    answer = served.post(path, {"input": "a boat"})
    assert (answer.status_code, error(answer)) == (404, "unknown_path")
    assert f"{meant} is meant" in answer.text


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"input": "café"}'.encode("latin-1"), "the body is not UTF-8: byte 14 belongs to no character"),
        (b'{"input": "a", "dimensions": ' + b"9" * 5000 + b"}", "a number of too many digits"),
    ],
)
def test_what_is_wrong_with_a_body_is_said_alone(body: bytes, words: str, served: Running) -> None:
    answer = served.post("/v1/embeddings", content=body, headers=JSON)
    assert error(answer) == "bad_json"
    assert words in answer.text
    assert "nested" not in answer.text


@pytest.mark.parametrize(
    ("path", "field", "meant"),
    [
        ("embed", "images", "pictures"),
        ("search", "query", "text"),
        ("search", "top_k", "k"),
        ("search", "limit", "k"),
        ("entail", "hypothesis", "hypotheses"),
        ("answer", "question", "questions"),
        ("answer", "image", "picture"),
        ("rerank", "top_k", "top_n"),
        ("locate", "prase", "phrases"),
    ],
)
def test_a_misspelt_field_is_recognised(path: str, field: str, meant: str, served: Running) -> None:
    answer = served.post(f"/v1/{path}", {**requests()[f"/v1/{path}"], field: "a"})
    assert error(answer) == "bad_request"
    assert f"{field}: there is no such field here: did you mean {meant}?" in answer.text


def test_a_short_name_of_a_model_is_recognised(served: Running) -> None:
    for name in (model["id"] for model in served.get("/v1/models").json()["data"] if "/" in model["id"]):
        answer = served.post("/v1/embeddings", {"input": "a", "model": name.rpartition("/")[2]})
        assert error(answer) == "unknown_model"
        assert f"did you mean '{name}'?" in answer.text


def test_errors_have_the_fields_of_openais_too(served: Running) -> None:
    for body, kind, param in (
        ({"input": "a", "dimensions": "x"}, "invalid_request_error", "dimensions"),
        ({"input": "a", "model": "gpt"}, "not_found_error", "model"),
        ({"input": "?!"}, "invalid_request_error", None),
    ):
        said = served.post("/v1/embeddings", body).json()["error"]
        assert (said["type"], said["param"]) == (kind, param)


def test_scores_of_relevance_lie_between_0_and_1(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scored(*_: Any) -> Any:
        return [], [[1.0, 0.0], [-1.0, 0.0], [1.0000001, 0.0]]

    monkeypatch.setattr(served.state, "submit", scored)
    answer = served.post("/v1/rerank", {"query": "a boat", "documents": ["two dogs", "a boat"]}).json()
    assert [(one["index"], one["relevance_score"]) for one in answer["results"]] == [(1, 1.0), (0, 0.0)]


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ("data:image/png,abc", "is a data URL"),
        ("data:text/plain;base64,aGk=", "is a data URL"),
        (f"data:application/octet-stream;base64,{encoded(picture())}", "is a data URL"),
        ("ftp://x/y.jpg", "is an address"),
        ("file:///etc/passwd", "is an address"),
        ("/etc/passwd", "is the path of a file"),
        ("C:\\photos\\a.jpg", "is the path of a file"),
        *((encoded(picture(), kind), "is the base64 of a picture") for kind in ("PNG", "JPEG", "GIF", "WEBP")),
    ],
)
def test_what_is_no_text_is_not_embedded_as_one(served: Running, sent: str, words: str) -> None:
    for path, body in (
        ("/v1/embeddings", {"input": sent}),
        ("/v1/embeddings", {"input": ["a boat", {"text": sent}]}),
        ("/v1/rerank", {"query": sent, "documents": ["a boat"]}),
        ("/v1/rerank", {"query": "a boat", "documents": ["a boat", sent]}),
    ):
        answer = served.post(path, body)
        assert error(answer) == "bad_picture"
        assert words in answer.text
        assert "write data:image/…;base64,…" in answer.text
    for path, body in (
        ("/v1/embed", {"texts": ["a boat", sent]}),
        ("/v1/match", {"pictures": [encoded(picture())], "texts": [sent]}),
        ("/v1/search", {"text": sent}),
        ("/v1/answer", {"picture": encoded(picture()), "questions": [sent]}),
        ("/v1/locate", {"picture": encoded(picture()), "phrases": [sent]}),
    ):
        answer = served.post(path, body)
        assert error(answer) == "bad_text"
        assert answer.json()["error"]["message"].split("[")[0].split()[0] == list(body)[-1], path


def test_every_answer_names_the_words_that_the_model_cannot_read(served: Running) -> None:
    image = encoded(picture())
    for path, body in (
        ("/v1/embed", {"texts": ["a boat", "a 狐 and a 狐"]}),
        ("/v1/match", {"texts": ["a 狐"], "pictures": [image]}),
        ("/v1/search", {"text": "a 狐"}),
        ("/v1/entail", {"picture": image, "hypotheses": ["a boat", "a 狐"]}),
        ("/v1/locate", {"picture": image, "phrases": ["a 狐"]}),
        ("/v1/embeddings", {"input": ["a 狐"]}),
        ("/v1/rerank", {"query": "a 狐", "documents": ["a boat"]}),
    ):
        assert served.post(path, body).json()["unknown_words"] == ["狐"], path
    assert served.post("/v1/embed", {"texts": ["a boat"], "pictures": [image]}).json()["unknown_words"] == []


@pytest.mark.parametrize("text", ["data: boats, dogs", "a boat and/or a dog", "see file:///a, a boat", "/ a boat"])
def test_texts_with_marks_of_addresses_are_texts(served: Running, text: str) -> None:
    assert served.post("/v1/embeddings", {"input": text}).status_code == 200


@pytest.mark.parametrize("start", ["data:image/png;charset=utf-8;base64,", "DATA:IMAGE/PNG;BASE64,", "data:;base64,"])
def test_a_data_url_may_have_parameters(served: Running, start: str) -> None:
    vectors = [
        served.post("/v1/embeddings", {"input": sent}).json()["data"][0]["embedding"]
        for sent in (PICTURE, start + encoded(picture()))
    ]
    assert np.allclose(*vectors, atol=1e-6)


def test_refusals_are_said_in_the_words_of_the_request(served: Running) -> None:
    for body, words in (
        ({"input": []}, "input is empty: send a text"),
        ({"input": None}, "input is empty: send a text"),
        ({"input": "a", "truncate": True}, "truncate: there is no such field here"),
        ({"input": ["a"] * 5000}, "pictures or texts are allowed in one request (--items)"),
    ):
        assert words in served.post("/v1/embeddings", body).json()["error"]["message"]


# --------------------------------------------------------------------------- embeddings


def test_embeddings_are_the_same_as_floats_and_in_base64(served: Running) -> None:
    body = {"input": ["a boat", PICTURE, {"type": "image_url", "image_url": {"url": OTHER}}]}
    floats = served.post("/v1/embeddings", body).json()
    packed = served.post("/v1/embeddings", {**body, "encoding_format": "base64"}).json()
    direct = served.post(
        "/v1/embed", {"texts": ["a boat"], "pictures": [url.partition(",")[2] for url in (PICTURE, OTHER)]}
    ).json()
    for index, vector in enumerate([*direct["texts"], *direct["pictures"]]):
        assert np.allclose(floats["data"][index]["embedding"], vector, atol=1e-6)
        unpacked = np.frombuffer(base64.b64decode(packed["data"][index]["embedding"]), "<f4")
        assert np.allclose(unpacked, vector, atol=1e-6)
    assert floats["object"] == "list"
    assert floats["usage"]["prompt_tokens"] > 0
    null = {"encoding_format": None, "dimensions": None, "user": None, "model": None}
    assert served.post("/v1/embeddings", {**body, **null}).json()["data"] == floats["data"]


def test_a_single_input_is_a_list_of_one(served: Running) -> None:
    for one in ("a boat", PICTURE, {"text": "a boat"}, {"image": PICTURE.partition(",")[2]}):
        assert len(served.post("/v1/embeddings", {"input": one}).json()["data"]) == 1


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ({"input": [[1, 2, 3]]}, "bad_request", "token ids"),
        ({"input": [1, 2]}, "bad_request", "token ids"),
        ({"input": [["a"]]}, "bad_request", "input[0]: a text, or an object with one of text"),
        ({"input": [True]}, "bad_request", "input[0]: input should be a valid string"),
        ({"input": []}, "bad_request", ""),
        ({"input": {"image_url": {"url": "https://example.org/a.png"}}}, "bad_picture", "No address is ever fetched"),
        ({"input": {"image_url": "file:///etc/passwd"}}, "bad_picture", "No address is ever fetched"),
        ({"input": {"image": "http://127.0.0.1/a.png"}}, "bad_picture", "No address is ever fetched"),
        ({"input": {"text": "a boat", "image": "x"}}, "bad_request", "give one of text"),
        ({"input": ["a boat", "data:image/png;base64,iVBO"]}, "bad_picture", "input[1]"),
        ({"input": ["a boat"] * 65}, "too_many", "65 input"),
        ({"input": "a boat", "dimensions": 3}, "refused", "dimensions"),
        ({"input": "a boat", "model": "text-embedding-3-small"}, "unknown_model", "There are"),
    ],
)
def test_what_embeddings_do_not_take_is_named(body: Any, code: str, words: str, served: Running) -> None:
    response = served.post("/v1/embeddings", body)
    assert error(response) == code
    assert words in response.text


def test_the_openai_client_works_unmodified(served: Running) -> None:
    openai = pytest.importorskip("openai")
    alone = openai.DefaultHttpxClient(trust_env=False)
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, http_client=alone)
    names = [model.id for model in client.models.list()]
    assert names
    direct = served.post("/v1/embed", {"texts": ["a boat"]}).json()
    for more in ({}, {"encoding_format": "float"}, {"encoding_format": "base64", "user": "somebody"}):
        answer = client.embeddings.create(model=direct["model"], input=["a boat", PICTURE], **more)
        assert [item.index for item in answer.data] == [0, 1]
        if more.get("encoding_format") != "base64":
            assert np.allclose(answer.data[0].embedding, direct["texts"][0], atol=1e-6)
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        client.embeddings.create(model="gpt", input="a boat")


# --------------------------------------------------------------------------- re-ranking


def test_pictures_are_ordered_for_a_text_by_match(served: Running) -> None:
    answer = served.post("/v1/rerank", {"query": "a boat", "documents": [PICTURE, OTHER]}).json()
    match = served.post(
        "/v1/match", {"texts": ["a boat"], "pictures": [url.partition(",")[2] for url in (PICTURE, OTHER)]}
    ).json()["probabilities"]
    scores = [item["relevance_score"] for item in answer["results"]]
    assert answer["scored_by"] == "match"
    assert scores == sorted(scores, reverse=True)
    for item in answer["results"]:
        assert item["relevance_score"] == pytest.approx(match[item["index"]][0], abs=1e-5)


def test_texts_are_ordered_for_a_picture_and_for_a_text(served: Running) -> None:
    documents = ["two dogs on the beach", {"text": "a boat"}, "a small bird above a tree"]
    by_match = served.post("/v1/rerank", {"query": PICTURE, "documents": documents, "top_n": 2}).json()
    assert (by_match["scored_by"], len(by_match["results"])) == ("match", 2)
    similar = served.post("/v1/rerank", {"query": "a boat", "documents": documents, "return_documents": True}).json()
    assert similar["scored_by"] == "similarity"
    best = similar["results"][0]
    assert (best["index"], best["document"]) == (1, {"text": "a boat"})
    assert best["relevance_score"] == pytest.approx(1, abs=1e-5)


def test_documents_of_two_kinds_are_refused(served: Running) -> None:
    response = served.post("/v1/rerank", {"query": "a boat", "documents": ["a boat", PICTURE]})
    assert (response.status_code, error(response)) == (422, "refused")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"query": "a", "documents": [{"text": "x", "id": 3}]}, "documents[0].id: there is no such field here"),
        ({"query": ["a"], "documents": ["x"]}, "query: a text, or an object with one of text, image_url and image"),
        ({"query": "a", "documents": ["x", None]}, "documents[1]: input should be a valid string"),
        ({"query": "a", "documents": ["x"], "a[0]": 1}, "a[0]: there is no such field here"),
    ],
)
def test_errors_name_the_field_and_no_other_kind_of_value(body: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        RerankRequest.model_validate(body)
    said = describe(caught.value.errors())
    assert said.startswith(message)
    assert ";" not in said
    assert "function" not in said
