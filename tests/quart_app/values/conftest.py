"""Fixtures of the tests of /values."""

from __future__ import annotations

import pytest

from quart_app.values.jobs import Jobs
from quart_app.values.pace import Pace
from quart_app.values.settings import ValuesSettings
from tests.support.backend import Backend
from tests.support.values import Values


@pytest.fixture
async def values(mesh_of: Backend) -> Values:
    """Replicas with the operations of /values, on a real server."""
    return Values(mesh_of)


@pytest.fixture
def jobs() -> Jobs:
    """Jobs, at most three at a time."""
    return Jobs(ValuesSettings(max_jobs=3), Pace())
