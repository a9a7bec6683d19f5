"""The pytest plugin of the mesh: one fixture and one option.

A module of its own, outside of the package `mesh`, because pytest imports it in every project where the library is
installed. It imports nothing before a test asks for its fixture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from mesh.testing import MeshKit


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption("--mesh-redis", metavar="URL", help="run mesh_kit on this empty Redis instead of fakeredis")


@pytest.fixture
def mesh_kit(request: pytest.FixtureRequest) -> Callable[..., MeshKit]:
    """Return a function that makes a mesh for one test: `async with mesh_kit(operations, replicas=3) as kit:`."""
    from mesh.testing import MeshKit

    url = request.config.getoption("--mesh-redis")

    # An argument `redis` of the test wins over the option.
    def make(*operations: Any, **options: Any) -> MeshKit:
        return MeshKit(*operations, **{"redis": url, **options})

    return make
