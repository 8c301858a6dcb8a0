"""What goes wrong, in one shape: {"error": {"code": …, "message": …}}."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

log = logging.getLogger("diptych.apps.serve")
LONGEST = 1_000
"""Characters of a message: it may quote what was sent."""
CODES: dict[str, tuple[int, str]] = {
    "bad_json": (400, "the body is no JSON"),
    "no_key": (401, "the server has a key, and the request has not"),
    "unknown_path": (404, "there is nothing at this path"),
    "unknown_model": (404, "no model of that name is served"),
    "wrong_method": (405, "the path takes another method"),
    "slow_body": (408, "the body did not arrive in time"),
    "no_index": (409, "the server was started without an index"),
    "body_too_large": (413, "more bytes than the server takes"),
    "picture_too_large": (413, "more pixels than the server takes"),
    "not_json": (415, "the body is not declared as application/json"),
    "wrong_host": (421, "the Host header names another server"),
    "bad_request": (422, "a field is missing, unknown or of another type"),
    "bad_picture": (422, "what was sent as a picture cannot be read as one"),
    "bad_text": (422, "a text is too long or holds no words"),
    "too_many": (422, "more pictures, texts or pairs than the server takes at once"),
    "not_trained": (422, "no model here was trained for this; the message says what to train"),
    "refused": (422, "the model cannot be asked this; the message says why"),
    "busy": (429, "too much is waiting: come again after Retry-After seconds"),
    "failed": (500, "something broke; the server's log has more under the id in the message"),
    "stopping": (503, "the server is being stopped, and takes no new work"),
    "timed_out": (504, "the answer was not ready in time"),
}
"""Code → status, and what it means."""


class ApiError(Exception):
    """An answer other than the one that was asked for."""

    def __init__(self, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        """`code`: a key of `CODES`."""
        super().__init__(message)
        self.code, self.status = code, CODES[code][0]
        self.headers = dict(headers or {})

    def response(self) -> Response:
        # What a client wrote may be quoted, and half a surrogate pair has no UTF-8.
        message = str(self)[:LONGEST].encode("utf-8", "replace").decode()
        content = json.dumps({"error": {"code": self.code, "message": message}}, ensure_ascii=False)
        return Response(content.encode(), self.status, self.headers, "application/json")


def failed(error: BaseException) -> ApiError:
    """A 500 that leaks nothing: the log has the traceback under the same id."""
    mark = secrets.token_hex(4)
    log.error("failure %s", mark, exc_info=error)
    return ApiError("failed", f"something broke in the server; its log says more under {mark}")


def add_handlers(app: FastAPI) -> None:
    """Makes every error that the framework raises one of ours."""

    async def ours(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error.response()

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        found = error.errors()
        code = "bad_json" if any(one["type"] == "json_invalid" for one in found) else "bad_request"
        return ApiError(code, describe(found)).response()

    async def http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code, message = HTTP.get(error.status_code, ("bad_request", str(error.detail)))
        return ApiError(code, message, error.headers).response()

    async def broken(_: Request, error: Exception) -> Response:
        return failed(error).response()

    app.add_exception_handler(ApiError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, broken)


HTTP = {
    400: ("bad_json", "the body cannot be read as JSON: not UTF-8, nested too deeply, or a number too long"),
    404: ("unknown_path", "there is nothing here: / lists what there is"),
    405: ("wrong_method", "this path does not take this method: / lists what there is"),
}
"""Status that the framework gives → our code and words."""


def describe(found: Sequence[Mapping[str, Any]], most: int = 3) -> str:
    """The first few of pydantic's errors in words.

    >>> describe([{"loc": ("body", "texts", 1), "msg": "Input should be a valid string", "type": "string_type"}])
    'texts[1]: input should be a valid string'
    """
    lines = []
    for one in found[:most]:
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in one["loc"][1:]).lstrip(".")
        if one["type"] == "json_invalid":
            lines.append(f"the body is no JSON: {one['ctx']['error']} at character {one['loc'][-1]}")
        else:
            said = one["msg"].removeprefix("Value error, ")
            lines.append(f"{place[:100] or 'the body'}: {said[:1].lower()}{said[1:]}")
    more = len(found) - most
    return "; ".join(lines) + (f"; and {more} more" if more > 0 else "")
