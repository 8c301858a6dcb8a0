"""Gives every error one shape: {"error": {"code": …, "message": …}}."""

from __future__ import annotations

import json
import logging
import secrets
import traceback
from collections.abc import Mapping, Sequence
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


class ApiError(Exception):
    """An error that a client receives."""

    def __init__(self, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        """`code` is a key of `CODES`."""
        super().__init__(message)
        self.code, self.status = code, CODES[code][0]
        self.headers = dict(headers or {})

    def response(self) -> Response:
        # The message may quote what a client sent, and a lone surrogate has no UTF-8.
        message = str(self)[:LONGEST].encode("utf-8", "replace").decode()
        content = json.dumps({"error": {"code": self.code, "message": message}}, ensure_ascii=False)
        return Response(content.encode(), self.status, self.headers, "application/json")


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
        if code == "unknown_path" and (meant := f"/v1{request.url.path}") in app.openapi()["paths"]:
            message = f"there is nothing at this path: {meant} is meant, so end the base address with /v1"
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


def describe(details: Sequence[Mapping[str, Any]], most: int = 3) -> str:
    """Describes the first of pydantic's errors in words.

    >>> describe([{"loc": ("texts", 1), "msg": "Input should be a valid string", "type": "string_type"}])
    'texts[1]: input should be a valid string'
    """
    lines = []
    for detail in details[:most]:
        parts = [part for part in detail["loc"] if not is_tag(part)]
        field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")
        message = WORDS.get(detail["type"]) or detail["msg"].removeprefix("Value error, ")
        lines.append(f"{field[:100] or 'the body'}: {message[:1].lower()}{message[1:]}")
    more = len(details) - most
    return "; ".join(lines) + (f"; and {more} more" if more > 0 else "")
