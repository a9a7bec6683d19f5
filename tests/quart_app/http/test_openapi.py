"""One OpenAPI document for every route, and a page that needs no network."""

from __future__ import annotations

import re

import pytest

from quart_app.registry import SERVICES
from tests.support.nodes import applications


async def document(services: str = "values") -> dict[str, dict[str, dict[str, object]]]:
    response = await applications(services=services).public.test_client().get("/openapi.json")
    assert response.status_code == 200
    found: dict[str, dict[str, dict[str, object]]] = await response.get_json()
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
    private = [path for path, methods in found["paths"].items() for one in methods.values() if "private" in one["tags"]]
    assert sorted(private) == ["/backup", "/set"]


@pytest.mark.parametrize("path", ["/docs", "/docs/assets/swagger-ui.css", "/docs/assets/swagger-ui-bundle.js"])
async def test_the_page_and_its_parts_come_from_here(path: str) -> None:
    """No other server is asked for a part of the page."""
    response = await applications().public.test_client().get(path)
    assert response.status_code == 200


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
    """In the order in which the settings name them by default."""
    assert tuple(SERVICES) == ("values", "addresses", "messages", "grades", "movements")
