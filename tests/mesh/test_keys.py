"""Key names: each is spelled once, and within what its holder's user may touch."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

import mesh
from mesh import keys
from mesh.lease import acl

PACKAGE = Path(mesh.__file__).parent


def test_the_names_are_those_of_the_table() -> None:
    """The module's docstring is what people look up with redis-cli."""
    table = keys.__doc__ or ""
    for name in (
        keys.EPOCH, keys.DEAD, keys.BOOKS, "mesh:lease:{n}", "mesh:replica:{n}", "mesh:requests:{A..D}",
        "mesh:requests:db{n}", "mesh:replies:{replica}", "mesh:submitted:{replica}",
        "mesh:committed:{replica}", "db{n}:class",
    ):  # fmt: skip
        assert name in table
    assert keys.lease(3) == "mesh:lease:3" and keys.row(3) == "mesh:replica:3"
    assert keys.replies("r") == "mesh:replies:r" and keys.submitted("r") == "mesh:submitted:r"
    assert keys.committed("r") == "mesh:committed:r"
    assert keys.class_of(3) == "db3:class"


def test_every_request_stream_there_can_be() -> None:
    """What the books and the sweep go through."""
    assert keys.request_streams("AB", 2) == [
        "mesh:requests:A", "mesh:requests:B", "mesh:requests:db0", "mesh:requests:db1",
    ]  # fmt: skip


def test_no_other_python_module_spells_a_key() -> None:
    """A key is born in one place."""
    for path in PACKAGE.glob("*.py"):
        if path.name != "keys.py":
            code = re.sub(r'""".*?"""|#[^\n]*', "", path.read_text(), flags=re.DOTALL)
            assert not re.search(r'"(mesh:[a-z]|db\{\w+\}:)', code), path


def test_a_holders_user_may_touch_its_own_keys_and_only_read_others_leases() -> None:
    """The patterns, one by one."""
    rules = acl.rules(3, 0, "p", (7, 2))
    writable = [rule[1:] for rule in rules if rule.startswith("~")]
    readable = writable + [rule[3:] for rule in rules if rule.startswith("%R~")]

    def may(patterns: list[str], key: str) -> bool:
        return any(fnmatchcase(key, pattern) for pattern in patterns)

    own = "db3:class db3:values:records shared:x:y events:movements mesh:lease:3 mesh:replica:3"
    common = "mesh:requests:A mesh:books mesh:dead mesh:replies:r mesh:submitted:r mesh:committed:r"
    for key in f"{own} {common}".split():
        assert may(writable, key), key
    for key in ("mesh:lease:4", "mesh:lease:33", "mesh:replica:4"):
        assert may(readable, key) and not may(writable, key), key
    for key in ("db4:class", "db33:class", "db:3", "mesh:epoch", "secret", ""):
        assert not may(readable, key), key


def test_the_rules_start_from_nothing_and_select_two_databases() -> None:
    """-@all first; later rules only add, and `reset` forgets what an earlier epoch was allowed."""
    rules = acl.rules(3, 0, "p", (7, 0))
    assert rules[0] == "reset" and rules.index("-@all") < min(i for i, r in enumerate(rules) if r.startswith("+"))
    assert [rule for rule in rules if rule.startswith("+select")] == ["+select|0", "+select|3"]
    assert "+client|setinfo" not in rules, "7.0 does not know it"
    assert "+client|setinfo" in acl.rules(3, 0, "p", (7, 2))
    assert "+select|0" in acl.rules(0, 0, "p", (7, 0))


def test_every_epoch_has_a_password_of_its_own() -> None:
    """And nobody sees it by accident."""
    one, two = acl.new_credentials(3), acl.new_credentials(3)
    assert one.username == two.username and one.password != two.password
    assert str(one.password) not in repr(one)
