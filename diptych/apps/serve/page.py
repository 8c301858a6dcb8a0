"""The page at /: what can be asked and answered, made from the OpenAPI description. No script, no other host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from html import escape
from typing import Any

from diptych.apps.serve.limits import Limits

STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
code { font-family: ui-monospace, monospace } table { border-collapse: collapse; display: block; overflow-x: auto }
td, th { border-bottom: 1px solid #8886; padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top }
h2 { margin-top: 2.5rem; border-top: 1px solid #8886; padding-top: 1rem } summary { cursor: pointer }
"""
Schema = Mapping[str, Any]


def render(described: Schema, limits: Limits) -> str:
    """HTML of an OpenAPI description."""
    parts = "\n".join(
        _operation(path, method, one, described)
        for path, methods in described["paths"].items()
        for method, one in methods.items()
    )
    kept = [(field.name, f"{getattr(limits, field.name):,}") for field in fields(limits)]
    info = described["info"]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(info['title'])}</title><style>{STYLE}</style>"
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])}</p>"
        '<p>For programs: <a href="openapi.json">openapi.json</a>.</p>'
        f"{parts}<h2>Limits</h2>{_table(('limit', 'here'), kept)}</html>"
    )


def _operation(path: str, method: str, one: Schema, described: Schema) -> str:
    asked = one.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    told = one["responses"].get("200", {}).get("content", {}).get("application/json", {}).get("schema")
    answers = [(status, answer["description"]) for status, answer in one["responses"].items()]
    return (
        f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(one.get('description', ''))}</p>"
        + (f"<h3>Request</h3>{_fields(asked, described)}" if asked else "")
        + (f"<h3>Answered</h3>{_fields(told, described)}" if told else "")
        + f"<details><summary>Status codes</summary>{_table(('status', 'meaning'), answers)}</details>"
    )


def _fields(schema: Schema, described: Schema) -> str:
    rows = [(name, kind, said) for name, kind, said in _rows(schema, described, "")]
    return _table(("field", "type", ""), rows)


def _rows(schema: Schema, described: Schema, above: str) -> Iterator[tuple[str, str, str]]:
    """Name, type and description of each field, those of inner objects under dotted names."""
    whole = _resolved(schema, described)
    for name, one in whole.get("properties", {}).items():
        needed = "" if name in whole.get("required", ()) or "default" not in one else f", default {one['default']!r}"
        yield f"{above}{name}", _kind(one, described) + needed, one.get("description", "")
        inner = _innermost(one, described)
        if "properties" in inner:
            yield from _rows(inner, described, f"{above}{name}[]." if "items" in one else f"{above}{name}.")


def _resolved(schema: Schema, described: Schema) -> Schema:
    if "$ref" not in schema:
        return schema
    found: Schema = described["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return found


def _innermost(schema: Schema, described: Schema) -> Schema:
    whole = _resolved(schema, described)
    if "items" in whole:
        return _innermost(whole["items"], described)
    if "anyOf" in whole:
        return _innermost(whole["anyOf"][0], described)
    return whole


def _kind(schema: Schema, described: Schema) -> str:
    whole = _resolved(schema, described)
    if "anyOf" in whole:
        return " or ".join(_kind(one, described) for one in whole["anyOf"])
    if "enum" in whole:
        return " or ".join(f'"{one}"' for one in whole["enum"])
    if "items" in whole:
        return f"list of {_kind(whole['items'], described)}"
    return "picture in base64" if whole.get("format") == "picture" else str(whole.get("type", "any"))


def _table(heads: tuple[str, ...], rows: list[Any]) -> str:
    head = "".join(f"<th>{escape(one)}</th>" for one in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
