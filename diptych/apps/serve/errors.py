"""Gives every error one shape: {"error": {"code": …, "message": …, "type": …, "param": …}}.

`type` and `param` are what clients of OpenAI's API expect.
"""

from __future__ import annotations

import json
import logging
import secrets
import traceback
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from diptych.apps.web import cut

log = logging.getLogger("diptych.apps.serve")
LONGEST = 1_000
"""Largest number of characters of a message, which may quote what a client sent."""
CODES: dict[str, tuple[int, str]] = {
    "bad_json": (400, "the body is not valid JSON"),
    "no_key": (401, "the server requires a key, and the request has none or a wrong one"),
    "unknown_path": (404, "there is nothing at this path"),
    "unknown_model": (404, "no model of that name is served"),
    "wrong_method": (405, "the path does not accept this method"),
    "slow_body": (408, "the body did not arrive in time"),
    "no_index": (409, "the server was started without an index"),
    "body_too_large": (413, "the body has more bytes than the server accepts"),
    "picture_too_large": (413, "a picture, or all those of a request, have more pixels than the server accepts"),
    "bad_encoding": (415, "the body is compressed otherwise than by gzip, or is not what gzip writes"),
    "not_json": (415, "the body is not declared as application/json"),
    "wrong_host": (421, "the Host header names another server"),
    "bad_request": (422, "a field is missing, unknown or of the wrong type"),
    "bad_picture": (422, "a picture cannot be decoded"),
    "bad_text": (422, "a text is too long or contains no words"),
    "too_many": (422, "more pictures, texts, pairs or JSON values than the server accepts in one request"),
    "not_trained": (422, "no model here was trained for this; the message says what to train"),
    "refused": (422, "the model cannot answer this request; the message says why"),
    "busy": (429, "too many requests are waiting: retry after Retry-After seconds"),
    "failed": (500, "an internal error; the server's log has details under the id in the message"),
    "stopping": (503, "the server is being stopped and accepts no new requests"),
    "timed_out": (504, "the answer was not ready in time"),
}
"""The HTTP status and the meaning of each error code."""
TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
"""OpenAI's types of the errors of some statuses."""
SYNONYMS = (
    ("picture", "pictures", "image", "images", "img"),
    ("text", "texts", "query", "q", "prompt", "sentence", "sentences"),
    ("query", "q", "text"),
    ("input", "inputs", "text", "texts"),
    ("question", "questions", "query", "text", "texts"),
    ("hypothesis", "hypotheses", "text", "texts"),
    ("statement", "statements", "text", "texts"),
    ("phrase", "phrases", "text", "texts"),
    ("document", "documents", "passages", "texts"),
    ("k", "top_k", "topk", "top", "limit", "n", "count", "size"),
    ("top_n", "k", "top_k", "topk", "top", "limit", "n"),
    ("min_match", "threshold", "min_score"),
    ("model", "model_name", "engine"),
)
"""Names under which clients send one thing."""


class ApiError(Exception):
    """An error that a client receives."""

    def __init__(
        self, code: str, message: str, headers: Mapping[str, str] | None = None, param: str | None = None
    ) -> None:
        """`code` is a key of `CODES`. `param` is the field that is wrong, if it is one."""
        super().__init__(message)
        self.code, self.status, self.param = code, CODES[code][0], param
        self.headers = dict(headers or {})

    def response(self) -> Response:
        # The message may quote what a client sent, and a lone surrogate has no UTF-8.
        message = str(self)[:LONGEST].encode("utf-8", "replace").decode()
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        error = {"code": self.code, "message": message, "type": kind, "param": self.param}
        content = json.dumps({"error": error}, ensure_ascii=False).encode("utf-8", "replace")
        return Response(content, self.status, self.headers, "application/json")


def failed(error: BaseException) -> ApiError:
    """Returns a 500 that reveals nothing, and logs the traceback under the id in its message."""
    id = secrets.token_hex(4)
    log.error("failure %s\n%s", id, cut("".join(traceback.format_exception(error))))
    return ApiError("failed", f"internal error; the server's log has details under {id}")


def add_handlers(app: FastAPI) -> None:
    """Turns every error that the framework raises into an ApiError."""

    async def on_api_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error.response()

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code, message = HTTP_ERRORS.get(error.status_code, ("bad_request", str(error.detail)))
        path = request.url.path.rstrip("/")
        if code == "unknown_path" and (meant := f"/v1/{path.rpartition('/')[2]}") in app.openapi()["paths"]:
            base = ", so end the base address with /v1" if meant == f"/v1{path}" else ""
            message = f"there is nothing at this path: {meant} is meant{base}"
        return ApiError(code, message, error.headers).response()

    async def on_failure(_: Request, error: Exception) -> Response:
        return failed(error).response()

    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, on_failure)


HTTP_ERRORS = {
    404: ("unknown_path", "there is nothing at this path: / lists all paths"),
    405: ("wrong_method", "this path does not accept this method: / lists all paths"),
}
"""The error code and message for each status that the framework raises."""


WORDS = {
    "extra_forbidden": "there is no such field here: /openapi.json lists the fields",
    "union_tag_invalid": "a text, or an object with one of text, image_url and image is needed",
}
"""Our words for pydantic's kinds of errors, where its own say what it does instead of what is wrong."""


def is_tag(part: int | str) -> bool:
    """Tells whether a part of a place names no field but a kind of a union, whose tags stand in brackets."""
    return isinstance(part, str) and part.startswith("[") and part.endswith("]")


def field_of(details: Sequence[Mapping[str, Any]]) -> str | None:
    """Returns the field that the first of pydantic's errors is about; None if it is the whole body."""
    place = details[0]["loc"]
    return str(place[0])[:100] if place else None


def meant_field(name: str, fields: Sequence[str]) -> str | None:
    """Guesses which field an unknown one stands for.

    >>> meant_field("images", ["model", "pictures"]), meant_field("top_k", ["text", "k"]), meant_field("x", ["k"])
    ('pictures', 'k', None)
    """
    name = name[:40].lower()
    same = (field for group in SYNONYMS if name in group for field in group if field in fields)
    return next(same, None) or next(iter(get_close_matches(name, fields, 1, 0.75)), None)


def describe(details: Sequence[Mapping[str, Any]], fields: Sequence[str] = (), most: int = 3) -> str:
    """Describes the first of pydantic's errors in words. `fields` are those of the request.

    >>> describe([{"loc": ("texts", 1), "msg": "Input should be a valid string", "type": "string_type"}])
    'texts[1]: input should be a valid string'
    """
    lines = []
    for detail in details[:most]:
        parts = [part for part in detail["loc"] if not is_tag(part)]
        field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")
        message = WORDS.get(detail["type"]) or detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden" and len(parts) == 1 and (meant := meant_field(str(parts[0]), fields)):
            message = f"there is no such field here: did you mean {meant}?"
        lines.append(f"{field[:100] or 'the body'}: {message[:1].lower()}{message[1:]}")
    more = len(details) - most
    return "; ".join(lines) + (f"; and {more} more" if more > 0 else "")
