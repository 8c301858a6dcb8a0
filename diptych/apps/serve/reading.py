"""Reads the JSON of request bodies and writes that of answers. Runs outside of the event loop.

What a body holds is counted before it is parsed, so that neither the parser nor the validation can be made to build
millions of objects from one body.
"""

from __future__ import annotations

import json
import re
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from diptych.apps.serve.errors import ApiError, describe, field_of
from diptych.apps.serve.limits import Limits

Kind = TypeVar("Kind", bound=BaseModel)
VALUES_PER_ITEM = 16
"""JSON values for each allowed item. The request that needs most, of OpenAI's nested inputs, has about eight."""
OTHER_VALUES = 100
"""JSON values besides those of the items: the fields themselves, and options."""
ESCAPES_PER_CHARACTER = 4
"""Escape sequences for each allowed character of a text: two for an emoji, in two lists of texts."""

_REST_OF_STRING = re.compile(r'[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)


def read_request(body: bytes, kind: type[Kind], limits: Limits) -> Kind:
    """Parses and validates a body. Raises ApiError: `bad_json`, `too_many` or `bad_request`."""
    values = _parsed(body, limits)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        raise ApiError("bad_request", describe(details, list(kind.model_fields)), param=field_of(details)) from None


def write_answer(answer: BaseModel) -> bytes:
    """Returns the JSON of an answer."""
    return answer.model_dump_json().encode()


def _parsed(body: bytes, limits: Limits) -> object:
    if not body:
        raise ApiError("bad_json", "the body is empty: send a JSON object")
    encoding = json.detect_encoding(body)
    try:
        text = body.decode(encoding, "surrogatepass")
    except UnicodeDecodeError as error:
        name = "UTF-8" if encoding.startswith("utf-8") else encoding.upper()
        message = f"the body is not {name}: byte {error.start:,} belongs to no character. Send JSON in UTF-8"
        raise ApiError("bad_json", message) from None
    try:
        _check_size(text, limits)
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ApiError("bad_json", f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise ApiError("bad_json", "the body is nested too deeply: no request needs more than a few levels") from None
    except ValueError:  # what Python says of integers of thousands of digits
        raise ApiError("bad_json", "the body holds a number of too many digits") from None


def _check_size(text: str, limits: Limits) -> None:
    most = VALUES_PER_ITEM * limits.items + OTHER_VALUES
    if count_values(text, most) > most:
        detail = f"at most {limits.items:,} pictures or texts are allowed in one request (--items)"
        raise ApiError("too_many", f"the body holds more than {most:,} JSON values; {detail}")
    most = ESCAPES_PER_CHARACTER * limits.items * limits.text_length
    if text.count("\\") > most:
        raise ApiError("too_many", f"the body holds more than {most:,} backslashes, which no request needs")


def count_values(text: str, most: int) -> int:
    r"""Counts the values of a JSON text from its marks outside of strings, and stops soon after `most`.

    Every value but the first follows a comma, a bracket or a brace.

    >>> count_values('{"a,[": [1, "x\\",", {}], "b": 2}', 100)
    7
    >>> count_values("[" * 10_000_000, 5) > 5
    True
    """
    count, position = 1, 0
    while count <= most and position < len(text):
        quote = text.find('"', position)
        end = len(text) if quote < 0 else quote
        count += sum(text.count(mark, position, end) for mark in ",[{")
        if quote < 0:
            break
        string = _REST_OF_STRING.match(text, quote + 1)
        if string is None:  # the string does not end, which the parser will say
            break
        position = string.end()
    return count
