"""The rules of a holder's user, word by word. `tests/journeys/test_isolation.py` tries them on servers."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

import pytest

from mesh.lease import acl

REDIS_7_0 = acl.Dialect(has_database_rules=False, knows_7_2_commands=False)
REDIS_8 = acl.Dialect(has_database_rules=False, knows_7_2_commands=True)
VALKEY_9_1 = acl.Dialect(has_database_rules=True, knows_7_2_commands=True)
DIALECTS = pytest.mark.parametrize("dialect", [REDIS_7_0, REDIS_8, VALKEY_9_1], ids=["7.0", "8", "valkey-9.1"])


def patterns(rules: list[str], kind: str) -> list[str]:
    """The key patterns of this kind, `~` or `%R~`, in and outside of selectors."""
    words = [word.strip("()") for rule in rules for word in rule.split()]
    return [word.removeprefix(kind) for word in words if word.startswith(kind)]


def may(patterns: list[str], key: str) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


@DIALECTS
def test_a_holders_user_may_touch_its_own_keys_and_only_read_others_leases(dialect: acl.Dialect) -> None:
    """Each pattern of the user is tried."""
    rules = acl.rules(3, 0, "p", dialect)
    writable = patterns(rules, "~")
    readable = writable + patterns(rules, "%R~")
    own = "db3:class db3:values:records shared:x:y events:movements mesh:lease:3 mesh:replica:3"
    others = "mesh:lanes mesh:lane:x mesh:running:x mesh:rate:x mesh:operations mesh:operations:served"
    shared = "mesh:requests:A mesh:audit mesh:minutes mesh:paused mesh:parked:op mesh:drain:r mesh:books mesh:dead"
    common = f"{shared} {others} mesh:replies:r mesh:submitted:r mesh:committed:r"
    for key in f"{own} {common}".split():
        assert may(writable, key), key
    for key in ("mesh:lease:4", "mesh:lease:33", "mesh:replica:4"):
        assert may(readable, key) and not may(writable, key), key
    for key in ("db4:class", "db33:class", "db:3", "mesh:epoch", "secret", ""):
        assert not may(readable, key), key


@DIALECTS
def test_the_rules_start_from_nothing(dialect: acl.Dialect) -> None:
    """-@all first, in each selector, too; `reset` forgets what an earlier epoch was allowed."""
    rules = acl.rules(3, 0, "p", dialect)
    assert rules[0] == "reset" and rules.index("-@all") < min(i for i, r in enumerate(rules) if r.startswith("+"))
    assert all(rule.startswith("(-@all ") for rule in rules if rule.startswith("("))
    assert ("+client|setinfo" in rules) is dialect.knows_7_2_commands, "7.0 does not know it"


def test_without_rules_per_database_the_user_selects_two_databases() -> None:
    """The user has a first-argument rule, and no selector."""
    rules = acl.rules(3, 0, "p", REDIS_8)
    assert [rule for rule in rules if "+select" in rule] == ["+select|0", "+select|3"]
    assert acl.rules(0, 0, "p", REDIS_8).count("+select|0") == 1


def test_with_rules_per_database_each_key_is_open_in_one_database() -> None:
    """One selector each, and nothing outside of them but what a connection needs."""
    *outside, bus, own = acl.rules(3, 0, "p", VALKEY_9_1)
    assert bus.endswith(" db=0)") and "~db3:" not in bus and "~shared:*" in bus
    assert own.endswith(" ~db3:* db=3)") and len(patterns([own], "~")) == 1
    assert not any(re.match(r"[+]@|[+]select|~|db=|alldbs|[(]", rule) for rule in outside)
    assert "+select|" not in " ".join([*outside, bus, own])


def test_the_holder_of_the_bus_database_has_one_selector() -> None:
    """The selector has both kinds of keys, because one selector must allow all keys of a command."""
    selectors = [rule for rule in acl.rules(0, 0, "p", VALKEY_9_1) if rule.startswith("(")]
    assert len(selectors) == 1 and "~db0:*" in selectors[0] and "~shared:*" in selectors[0]
