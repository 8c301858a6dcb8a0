"""Renders the documentation page at / from the OpenAPI description. It has no script and loads nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import astuple, fields
from functools import partial
from typing import Any

from jinja2 import Environment, PackageLoader

from diptych.apps.serve.limits import Limits

Schema = Mapping[str, Any]


def render(openapi: Schema, limits: Limits) -> str:
    """Returns the HTML page of an OpenAPI description."""
    environment = Environment(
        loader=PackageLoader("diptych.apps.serve"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["json_schema"] = _json_schema
    return environment.get_template("page.html.j2").render(
        info=openapi["info"],
        paths=openapi["paths"],
        rows=partial(_rows, openapi=openapi),
        limits=[*zip((field.name for field in fields(limits)), astuple(limits), strict=True)],
    )


def _json_schema(body: Schema) -> Schema | None:
    """The JSON schema of a request body or a response; None if it is not JSON."""
    schema: Schema | None = body.get("content", {}).get("application/json", {}).get("schema")
    return schema


def _rows(schema: Schema, openapi: Schema, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yields name, type and description of each field. Fields of nested objects have dotted names."""
    whole = _resolved(schema, openapi)
    for name, field in whole.get("properties", {}).items():
        optional = name not in whole.get("required", ()) and "default" in field
        default = f", default {field['default']!r}" if optional else ""
        yield f"{prefix}{name}", _type(field, openapi) + default, field.get("description", "")
        nested = _innermost(field, openapi)
        if "properties" in nested:
            yield from _rows(nested, openapi, f"{prefix}{name}[]." if "items" in field else f"{prefix}{name}.")


def _resolved(schema: Schema, openapi: Schema) -> Schema:
    """Follows a reference into the description's components."""
    if "$ref" not in schema:
        return schema
    component: Schema = openapi["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return component


def _options(schema: Schema) -> list[Schema]:
    """Returns the kinds of values of which one is given; none for a value of a single kind."""
    return schema.get("anyOf") or schema.get("oneOf") or []


def _innermost(schema: Schema, openapi: Schema) -> Schema:
    """Unwraps lists and optional values."""
    whole = _resolved(schema, openapi)
    if "items" in whole:
        return _innermost(whole["items"], openapi)
    if options := _options(whole):
        return _innermost(options[0], openapi)
    return whole


def _type(schema: Schema, openapi: Schema) -> str:
    """Names a type in words."""
    whole = _resolved(schema, openapi)
    if options := _options(whole):
        return " or ".join(_type(option, openapi) for option in options)
    if "enum" in whole:
        return " or ".join(f'"{value}"' for value in whole["enum"])
    if "items" in whole:
        return f"list of {_type(whole['items'], openapi)}"
    return "picture in base64" if whole.get("format") == "picture" else str(whole.get("type", "any"))
