"""A pytest plugin: tests over fakeredis and tests without a server run before those that start a real one."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests; the order is otherwise that of the files."""
    items.sort(key=_is_slow)


def _is_slow(item: pytest.Item) -> bool:
    parameters = getattr(item, "callspec", None)
    is_real = parameters is not None and "real" in parameters.params.values()
    return is_real or bool({"server", "make_server", "replicas"} & set(getattr(item, "fixturenames", ())))
