"""Key names: each is spelled once, and within what its holder's user may touch."""

from __future__ import annotations

import re
from pathlib import Path

import mesh
from mesh import keys

PACKAGE = Path(mesh.__file__).parent


def test_the_names_are_those_of_the_table() -> None:
    """The module's docstring is what people look up with redis-cli."""
    table = keys.__doc__ or ""
    for name in (
        keys.CLAIM, keys.FORMAT, keys.EPOCH, keys.DEAD, keys.BOOKS, keys.AUDIT, keys.MINUTES,
        keys.PAUSED, "mesh:parked:{op}", keys.OPERATIONS, keys.SERVED, "mesh:drain:{replica}",
        keys.LANES, "mesh:lane:{lane}", "mesh:running:{lane}", "mesh:rate:{lane}",
        "mesh:lease:{n}", "mesh:replica:{n}",
        "mesh:requests:{A..D}", "mesh:requests:db{n}", "mesh:replies:{replica}", "mesh:submitted:{replica}",
        "mesh:committed:{replica}", "db{n}:class", "db{n}:format",
    ):  # fmt: skip
        assert name in table
    assert keys.lease(3) == "mesh:lease:3" and keys.row(3) == "mesh:replica:3"
    assert keys.replies("r") == "mesh:replies:r" and keys.submitted("r") == "mesh:submitted:r"
    assert keys.drain("r") == "mesh:drain:r"
    assert keys.committed("r") == "mesh:committed:r"


def test_every_request_stream_there_can_be() -> None:
    """The books and the sweep go through all of them."""
    assert keys.request_streams("AB", 2) == [
        "mesh:requests:A", "mesh:requests:B", "mesh:requests:db0", "mesh:requests:db1",
    ]  # fmt: skip


def test_no_other_python_module_spells_a_key() -> None:
    """A key is born in one place."""
    for path in PACKAGE.glob("*.py"):
        if path.name != "keys.py":
            code = re.sub(r'""".*?"""|#[^\n]*', "", path.read_text(), flags=re.DOTALL)
            assert not re.search(r'"(mesh:[a-z]|db\{\w+\}:)', code), path
