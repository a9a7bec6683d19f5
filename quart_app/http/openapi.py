"""One OpenAPI document for all services and both ports, and a page that shows it without a network."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quart import Blueprint, Quart, Response, send_from_directory
from quart_schema import Info, QuartSchema, tag_blueprint
from werkzeug.exceptions import NotFound

#: Files of Swagger UI; `SHA256SUMS` there names their release.
ASSETS = Path(__file__).parent / "swagger_ui"

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>quart-mesh</title>
<link rel="stylesheet" href="/docs/assets/swagger-ui.css">
<link rel="icon" href="/docs/assets/favicon-32x32.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/assets/swagger-ui-bundle.js"></script>
<script src="/docs/assets/start.js"></script>
</body>
</html>
"""

START_SCRIPT = "SwaggerUIBundle({url: '/openapi.json', dom_id: '#swagger-ui', deepLinking: true, validatorUrl: null})\n"

#: What the page may do: it loads files of this server only, runs no script that its HTML contains, and sends no data
#: elsewhere.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

DESCRIPTION = (
    "N identical replicas and one Redis. Every replica answers every route; errors are application/problem+json "
    "(RFC 9457). Routes tagged `private` are on the private port, whose own /docs can try them."
)


#: The two ways in which requests name their user. Services declare one with `security_scheme([{BASIC: []}])`.
BASIC, SESSION = "basic", "session"
SECURITY_SCHEMES: dict[str, Any] = {
    BASIC: {"type": "http", "scheme": "basic", "description": "user and password of the service"},
    SESSION: {
        "type": "apiKey",
        "in": "cookie",
        "name": "__Host-session",
        "description": "set by POST /auth/login; a browser then sends it by itself",
    },
}

#: The schema of every answer that is not a success.
PROBLEM_SCHEMA = {
    "type": "object",
    "description": "What went wrong (RFC 9457); some problems have further members.",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["pointer", "message"],
                "properties": {"pointer": {"type": "string"}, "message": {"type": "string"}},
            },
        },
    },
}


async def openapi(
    public_blueprints: Sequence[Blueprint], version: str, private_blueprints: Sequence[Blueprint] = ()
) -> dict[str, Any]:
    """Return the document of these routes; the private ones are tagged `private`.

    A separate application makes the document, so that the applications that serve the routes do no work for it.
    """
    app = Quart("documented", static_folder=None)
    schema = QuartSchema(  # a path None: it adds no route of its own
        app,
        openapi_path=None,
        redoc_ui_path=None,
        scalar_ui_path=None,
        swagger_ui_path=None,
        info=Info(title="quart-mesh", version=version, description=DESCRIPTION),
    )
    for blueprint in private_blueprints:
        tag_blueprint(blueprint, ["private"])
    for blueprint in (*public_blueprints, *private_blueprints):
        app.register_blueprint(blueprint)
    async with app.app_context():
        document: dict[str, Any] = schema.openapi_provider_class(app, schema).schema()
    document["components"]["securitySchemes"] = SECURITY_SCHEMES
    _describe_problems(document)
    return document


async def _make_document_json(
    public_blueprints: Sequence[Blueprint], version: str, private_blueprints: Sequence[Blueprint]
) -> bytes:
    return json.dumps(await openapi(public_blueprints, version, private_blueprints)).encode()


def _describe_problems(document: dict[str, Any]) -> None:
    """Describe all errors as the `default` answer. An operation without described answers also gets a successful one.

    An operation is here one method of one route, as OpenAPI calls it.
    """
    document["components"]["schemas"]["Problem"] = PROBLEM_SCHEMA
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for operations in document["paths"].values():
        for operation in operations.values():
            # A blueprint that is in the documents of both ports is tagged twice.
            if "tags" in operation:
                operation["tags"] = list(dict.fromkeys(operation["tags"]))
            responses = operation["responses"] or {"2XX": {"description": "Done."}}
            operation["responses"] = {**responses, "default": {"description": "A problem.", "content": content}}


def routes(
    public_blueprints: Sequence[Blueprint], version: str, private_blueprints: Sequence[Blueprint] = ()
) -> Blueprint:
    """Return the routes GET /openapi.json and GET /docs, with the files of the page; `app.create_app` adds them."""
    blueprint = Blueprint("documentation", __name__)
    making_lock = asyncio.Lock()  # so that requests that come together make the document once
    document_json = b""
    #: The names of all assets, so that the file system is never asked for a name that a client has made up.
    asset_names = {str(file.relative_to(ASSETS)) for file in ASSETS.rglob("*")}

    @blueprint.get("/openapi.json")
    async def document() -> Response:
        nonlocal document_json
        async with making_lock:
            if not document_json:
                # Making the document takes 200 ms. In a thread, which needs an event loop of its own, it does not hold
                # up this one.
                document_json = await asyncio.to_thread(
                    lambda: asyncio.run(_make_document_json(public_blueprints, version, private_blueprints))
                )
        return Response(document_json, content_type="application/json")

    @blueprint.get("/docs")
    async def page() -> Response:
        headers = {"Content-Security-Policy": POLICY}
        return Response(PAGE, content_type="text/html; charset=utf-8", headers=headers)

    @blueprint.get("/docs/assets/start.js")
    async def start() -> Response:
        return Response(START_SCRIPT, content_type="text/javascript; charset=utf-8")

    @blueprint.get("/docs/assets/<path:name>")
    async def asset(name: str) -> Response:
        if name not in asset_names:
            raise NotFound
        return await send_from_directory(ASSETS, name, cache_timeout=86400)  # a day; only a release changes the files

    return blueprint
