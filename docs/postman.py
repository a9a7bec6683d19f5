"""Writes a Postman collection of all routes, from the OpenAPI document, to standard output.

python docs/postman.py > mesh.postman_collection.json
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CollectorRegistry

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = "https://schema.getpostman.com/json/collection/v2.1.0/collection.json"
METHODS = {"get", "post", "put", "patch", "delete"}
#: Variables of the collection: the public address, and that for operators.
PUBLIC, PRIVATE = "public", "private"

Json = dict[str, Any]


async def document() -> tuple[Json, set[str]]:
    """Return the OpenAPI document, and the paths that only the private port serves."""
    from quart_app.app import create_app
    from quart_app.service import Context
    from quart_app.settings import AppSettings

    app = create_app(Context(AppSettings(), CollectorRegistry()))
    found: Json = await (await app.public.test_client().get("/openapi.json")).get_json()
    public = {re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule) for rule in app.public.url_map.iter_rules()}
    return found, set(found["paths"]) - public


def collection(openapi: Json, private: set[str]) -> Json:
    """Return the collection: a folder for each tag, a request for each operation."""
    folders: dict[str, list[Json]] = {}
    for path, operations in openapi["paths"].items():
        for method, operation in operations.items():
            if method in METHODS:
                (tag, *_) = operation.get("tags") or ["other"]
                base = PRIVATE if path in private else PUBLIC
                folders.setdefault(tag, []).append(_request(openapi, base, path, method, operation))
    return {
        "info": {"name": openapi["info"]["title"], "schema": SCHEMA},
        "variable": [
            {"key": PUBLIC, "value": "http://127.0.0.1:8000"},
            {"key": PRIVATE, "value": "http://127.0.0.1:8001"},
            {"key": "grades_username", "value": "grades"},
            {"key": "grades_password", "value": "grades"},
        ],
        "item": [{"name": tag, "item": items} for tag, items in sorted(folders.items())],
    }


def _request(openapi: Json, base: str, path: str, method: str, operation: Json) -> Json:
    parameters = [_resolved(openapi, each) for each in operation.get("parameters", ())]
    segments = re.sub(r"\{(\w+)\}", r":\1", path).strip("/").split("/")
    request: Json = {
        "method": method.upper(),
        "description": operation.get("description", ""),
        "header": [],
        "url": {
            "raw": "/".join([f"{{{{{base}}}}}", *segments]),
            "host": [f"{{{{{base}}}}}"],
            "path": segments,
            "query": list(_values(parameters, "query")),
            "variable": list(_values(parameters, "path")),
        },
    }
    body = _example(openapi, operation.get("requestBody", {}))
    if body is not None:
        request["header"].append({"key": "Content-Type", "value": "application/json"})
        request["body"] = {"mode": "raw", "raw": json.dumps(body, ensure_ascii=False, indent=2)}
    if base == PRIVATE:
        pair = ("username", "{{grades_username}}"), ("password", "{{grades_password}}")
        request["auth"] = {"type": "basic", "basic": [{"key": key, "value": value} for key, value in pair]}
    return {"name": operation.get("summary") or f"{method.upper()} {path}", "request": request}


def _values(parameters: list[Json], place: str) -> Iterator[Json]:
    for each in parameters:
        if each["in"] == place:
            schema = each.get("schema", {})
            value = each.get("example", schema.get("default", ""))
            yield {"key": each["name"], "value": "" if value is None else str(value)}


def _example(openapi: Json, body: Json) -> Any:
    """Return an example of a JSON body: the document's own, or one made of its schema; None where there is no body."""
    content = body.get("content", {}).get("application/json")
    if content is None:
        return None
    if "example" in content:
        return content["example"]
    examples = content.get("examples", {})
    if examples:
        return next(iter(examples.values()))["value"]
    return _made(openapi, content.get("schema", {}))


def _made(openapi: Json, schema: Json) -> Any:
    schema = _resolved(openapi, schema)
    if "example" in schema:
        return schema["example"]
    if schema.get("examples"):
        return schema["examples"][0]
    if "default" in schema:
        return schema["default"]
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return _made(openapi, schema[key][0])
    match schema.get("type"):
        case "object":
            return {name: _made(openapi, each) for name, each in schema.get("properties", {}).items()}
        case "array":
            return [_made(openapi, schema.get("items", {}))]
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return True
    return schema.get("enum", ["text"])[0]


def _resolved(openapi: Json, schema: Json) -> Json:
    while "$ref" in schema:
        found: Any = openapi
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        schema = found
    return schema


def main() -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    made = collection(*asyncio.run(document()))
    sys.stdout.write(json.dumps(made, ensure_ascii=False, indent=2) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
