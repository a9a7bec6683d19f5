"""What every Lua script of the repository must be like, before a server sees it."""

from __future__ import annotations

import importlib
import pkgutil
import struct
from collections.abc import Iterator

import pytest

import mesh
import quart_app
from mesh.requests import scripts
from mesh.wire.script import Script
from quart_app.values.store import VERBS

lua51 = pytest.importorskip("lupa.lua51")

#: What Redis gives to a script.
GIVEN = {
    *("redis", "KEYS", "ARGV", "cjson", "string", "table", "math", "unpack", "tonumber", "tostring", "type"),
    *("pairs", "ipairs", "next", "select", "pcall", "error"),
}
#: The plain variants of three scripts lack a part. They reach what it defines only after a check that it is there.
OF_PARTS = {"make_seldom", "options", "make_options", "end_early"}
#: Instructions of the virtual machine.
GET_GLOBAL, SET_GLOBAL = 5, 7


class Chunk:
    """Reads a compiled chunk of Lua 5.1: `globals` are the names of its global variables."""

    def __init__(self, code: bytes) -> None:
        self._code, self._at = code, 12
        self.globals: set[str] = set()
        self._function()

    def _unpack(self, form: str) -> int:
        (value,) = struct.unpack_from(form, self._code, self._at)
        self._at += struct.calcsize(form)
        return int(value)

    def _text(self) -> str:
        size = self._unpack("<Q")
        text = self._code[self._at : self._at + size - 1] if size else b""
        self._at += size
        return text.decode("latin-1")

    def _function(self) -> None:
        self._text()
        self._at += 4 + 4 + 4
        instructions = [self._unpack("<I") for _ in range(self._unpack("<i"))]
        constants = [self._constant() for _ in range(self._unpack("<i"))]
        self.globals |= {
            constants[instruction >> 14]
            for instruction in instructions
            if instruction & 0x3F in (GET_GLOBAL, SET_GLOBAL)
        }
        for _ in range(self._unpack("<i")):
            self._function()
        lines = self._unpack("<i")
        self._at += 4 * lines
        for _ in range(self._unpack("<i")):
            self._text()
            self._at += 8
        for _ in range(self._unpack("<i")):
            self._text()

    def _constant(self) -> str:
        match self._unpack("<B"):
            case 1:
                self._at += 1
            case 3:
                self._at += 8
            case 4:
                return self._text()
        return ""


def _scripts() -> Iterator[tuple[str, Script]]:
    """Yield the scripts that the modules of both packages have, and the variants of the two large ones."""
    for package in (mesh, quart_app):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if "migrations" in module.name or module.name.endswith("__main__"):
                continue
            for name, thing in vars(importlib.import_module(module.name)).items():
                for each in thing.values() if isinstance(thing, dict) else [thing]:
                    if isinstance(each, Script):
                        yield f"{module.name}.{name}", each
    for script in (scripts.SUBMIT, scripts.commit_with([VERBS.lua])):
        variants = scripts.variants(script)
        yield from (
            (f"{'plain' if variant is variants.plain else 'other'} variant", variant) for variant in variants.all
        )


def test_no_script_uses_a_name_that_nothing_defines() -> None:
    """A wrong name of a local is a global in Lua, and Redis reports it only when the line runs."""
    dump = lua51.LuaRuntime(encoding=None).eval(b"function(source) return string.dump(assert(loadstring(source))) end")
    checked = 0
    for name, script in _scripts():
        source = "\n".join(line for line in script.source.splitlines() if not line.startswith("#!"))
        unknown = Chunk(bytes(dump(source.encode()))).globals - GIVEN
        assert not unknown - (OF_PARTS if "plain" in name.lower() else set()), name
        checked += 1
    assert checked > 60
