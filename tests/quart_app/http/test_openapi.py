"""One OpenAPI document for every route, and a page that needs no network."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import pytest

from mesh import MeshSettings
from quart_app.http.openapi import ASSETS
from quart_app.registry import SERVICES
from tests.support.nodes import applications, node
from tests.support.server import Server


async def document(services: str = "values") -> dict[str, Any]:
    response = await applications(services=services).public.test_client().get("/openapi.json")
    assert response.status_code == 200
    found: dict[str, Any] = await response.get_json()
    return found


#: Blueprints with pages and files for browsers and with metrics for Prometheus, which no program calls.
UNDOCUMENTED = {"documentation", "landing", "live", "assets", "metrics"}


async def test_every_route_of_both_ports_is_in_the_document() -> None:
    """A fact about all routes is a test over the route table."""
    app = applications()
    documented = {(path, method) for path, methods in (await document())["paths"].items() for method in methods}
    for quart in (app.public, app.private):
        for rule in quart.url_map.iter_rules():
            if rule.endpoint.partition(".")[0] in UNDOCUMENTED:
                continue
            path = re.sub(r"<(?:[^:<>]+:)?([^<>]+)>", r"{\1}", rule.rule)
            for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
                assert (path, method.lower()) in documented


async def test_the_answers_have_the_schemas_of_the_task() -> None:
    """A list of the four letters; a list of values with their factors."""
    paths = (await document())["paths"]
    assert "['A', 'B', 'C', 'D']" in str(paths["/classes"]["get"])
    for path, method in (("/values", "post"), ("/values/{prime}", "get")):
        assert "prime_factors" in str(paths[path][method]) or "CalculatedValueEntity" in str(paths[path][method])


async def test_what_is_no_success_is_a_problem() -> None:
    """Every operation says what its success and its errors look like; those of the private port are tagged so."""
    found = await document(",".join(SERVICES))
    operations = [operation for methods in found["paths"].values() for operation in methods.values()]
    for operation in operations:
        assert "application/problem+json" in operation["responses"]["default"]["content"]
        assert any(str(status).startswith("2") for status in operation["responses"])
        assert operation["summary"].endswith("."), "a summary is a whole sentence, not the first line of one"
    private = [path for path, methods in found["paths"].items() for one in methods.values() if "private" in one["tags"]]
    assert sorted(private) == ["/backup", "/set"]


@pytest.mark.parametrize("path", ["/docs", "/docs/assets/swagger-ui.css", "/docs/assets/swagger-ui-bundle.js"])
async def test_the_page_and_its_parts_come_from_here(path: str) -> None:
    """No other server is asked for a part of the page."""
    response = await applications().public.test_client().get(path)
    assert response.status_code == 200


def test_the_files_of_swagger_ui_are_those_of_its_release() -> None:
    """SHA256SUMS names each file beside it, and each has the hash that is written there."""
    release, *lines = (ASSETS / "SHA256SUMS").read_text().splitlines()
    assert release.startswith("# Swagger UI 5.")
    pinned = {name: digest for digest, name in (line.split("  ") for line in lines)}
    found = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in ASSETS.iterdir()}
    del found["SHA256SUMS"]
    assert found == pinned
    assert {"LICENSE", "NOTICE"} < pinned.keys()


async def test_the_page_names_no_other_host() -> None:
    """Every address in the page is a path of this server, and each path answers."""
    client = applications().public.test_client()
    page = await (await client.get("/docs")).get_data(as_text=True)
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(addresses) >= 3
    for address in addresses:
        assert address.startswith("/")
        assert (await client.get(address)).status_code == 200


async def test_no_asset_outside_the_folder_is_served() -> None:
    """Paths with `..` are not found, nor are names too long for a file system."""
    client = applications().public.test_client()
    for path in (
        "/docs/assets/../__init__.py",
        "/docs/assets/%2e%2e/__init__.py",
        "/docs/assets//etc/passwd",
        "/docs/assets/" + "a" * 300,
    ):
        assert (await client.get(path, follow_redirects=True)).status_code in (400, 404)


def test_the_registry_names_the_five_services() -> None:
    """The order is that in which the settings name the services by default."""
    assert tuple(SERVICES) == ("values", "addresses", "messages", "grades", "movements")


async def test_authorize_knows_every_route_that_asks_who_is_there() -> None:
    """Such routes name a scheme, for a password or a session, and each scheme is described."""
    found = await document(",".join(SERVICES))
    schemes: dict[str, Any] = found["components"]["securitySchemes"]
    needs = {
        (path, method): [*scheme]
        for path, methods in found["paths"].items()
        for method, operation in methods.items()
        for scheme in operation.get("security", [])
    }
    assert needs[("/set", "post")] == needs[("/backup", "get")] == ["basic"]
    assert needs[("/messages", "post")] == needs[("/users/me", "get")] == ["session"]
    assert {name for names in needs.values() for name in names} == schemes.keys()


async def test_headers_that_a_client_may_send_are_parameters() -> None:
    """The page can send these headers because they are parameters."""
    found = await document(",".join(SERVICES))
    headers = {
        (path, method): [one["name"] for one in operation["parameters"] if one["in"] == "header"]
        for path, methods in found["paths"].items()
        for method, operation in methods.items()
    }
    assert headers[("/values", "post")] == headers[("/values/{prime}", "get")] == ["Prefer"]
    assert headers[("/messages", "post")] == ["Idempotency-Key"]


async def test_private_routes_can_be_tried_at_their_own_port() -> None:
    """The private port has a document of its routes, and a page that shows it."""
    client = applications(services=",".join(SERVICES)).private.test_client()
    paths = (await (await client.get("/openapi.json")).get_json())["paths"]
    assert {"/set", "/backup"} <= paths.keys() and "/values" not in paths
    assert (await client.get("/docs")).status_code == 200


def example(schema: dict[str, Any], components: dict[str, Any]) -> Any:
    """Return what the page offers to send: the first example of each field, or its first choice."""
    if "$ref" in schema:
        return example(components[schema["$ref"].rpartition("/")[2]], components)
    if "examples" in schema:
        return schema["examples"][0]
    if schema.get("type") == "array":
        return [example(schema["items"], components)]
    if schema.get("type") == "object":
        required = schema.get("required", ())
        return {name: example(each, components) for name, each in schema["properties"].items() if name in required}
    return schema["enum"][0]


async def test_the_examples_succeed_when_they_are_tried(server: Server) -> None:
    """What a visitor sends without a thought is answered with a success."""
    async with node(MeshSettings(redis=server.settings), services="values,addresses") as one:
        found = await (await one.public.get("/openapi.json")).get_json()
        tried = []
        for path in ("/values", "/addr_by_phone"):
            content = found["paths"][path]["post"]["requestBody"]["content"]["application/json"]
            body = example(content["schema"], found["components"]["schemas"])
            response = await one.public.post(path, json=body)
            assert response.status_code in (200, 201), (path, body, await response.get_data())
            tried.append(body)
        assert tried[0] == [{"value": 720720, "ttl": 300, "cls": "A"}]
