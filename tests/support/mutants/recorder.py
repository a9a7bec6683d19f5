"""A pytest plugin: which lines and scripts of the core each test runs, and how long the test takes.

It writes `{test: {"seconds": …, "passed": …, "lines": {path: [line, …]}, "scripts": [path, …]}}` as JSON to the file
that `MUTANTS_RECORD` names. The lines of a script are known where fakeredis runs it.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from fakeredis.commands_mixins.scripting_mixin import ScriptingCommandsMixin

from mesh.testing.fake_server import without_flags
from mesh.wire.script import Script

ROOT = Path(__file__).parents[3]
CORE = f"{ROOT}/mesh/"

#: The comment that a part of a script replaces.
PART = re.compile(r"--\[\[ [\w/.]+\.lua \]\]")

SHORT = 30

#: Lets a Lua runtime note its lines. The function returns those since its last call.
HOOK = """
local seen = {}
debug.sethook(function(_, line) seen[line] = true end, 'l')
return function() local now = seen; seen = {}; return now end
"""

#: What the current test has run: lines of modules, lines of scripts, and scripts.
lines: set[tuple[str, int]] = set()
script_lines: set[tuple[str, int]] = set()
scripts: set[str] = set()
found: dict[str, dict[str, Any]] = {}


def _enter(frame: FrameType, _event: str, _argument: object) -> Any:
    return _line if frame.f_code.co_filename.startswith(CORE) else None


def _line(frame: FrameType, event: str, _argument: object) -> Any:
    if event == "line":
        lines.add((frame.f_code.co_filename, frame.f_lineno))
    return _line


def _noted_sha(script: Script) -> str:
    scripts.add(script.source)
    return _sha.func(script)


def _noted_eval(self: Any, script: bytes, *words: Any) -> Any:
    runtime = self._get_server_runtime(self._server)
    if not hasattr(runtime_of := self._server, "_take_lines"):
        runtime_of._take_lines = runtime.execute(HOOK)
    runtime_of._take_lines()
    try:
        return _eval(self, script, *words)
    finally:
        text = script.decode()
        script_lines.update((text, line) for line in runtime_of._take_lines())


_sha = Script.__dict__["sha"]
_eval = ScriptingCommandsMixin.eval


@cache
def _origins(source: str) -> dict[int, set[tuple[str, int]]]:
    """Return for each line of a script the places in files that it comes from."""
    found = defaultdict(set)
    for file in sorted((ROOT / "mesh").rglob("*.lua")):
        text = without_flags(full := file.read_text("utf-8"))
        for at, start, count in _pieces(text, source):
            before = full.count("\n") - text.count("\n") + text.count("\n", 0, at)
            for n in range(count):
                found[start + n].add((file.relative_to(ROOT).as_posix(), before + n + 1))
    return found


def _pieces(text: str, source: str) -> list[tuple[int, int, int]]:
    """Return (offset in the file, line in the script, number of lines) of each piece of a file between its parts.

    A short piece, which another file may have as well, and one that the script lacks are left out.
    """
    pieces, begin = [], 0
    for end in [*(part.start() for part in PART.finditer(text)), len(text)]:
        kept = PART.sub("", text[begin:end]).strip()
        at = source.find(kept)
        if at >= 0 and len(kept) > SHORT:
            pieces.append((text.index(kept, begin), source.count("\n", 0, at) + 1, kept.count("\n") + 1))
        begin = end
    return pieces


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    for noted in (lines, script_lines, scripts):
        noted.clear()  # type: ignore[attr-defined]
    found[item.nodeid] = {"passed": True}
    started = time.monotonic()
    threading.settrace(_enter)
    sys.settrace(_enter)
    try:
        return (yield)
    finally:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
        found[item.nodeid] |= {"seconds": time.monotonic() - started, **_noted()}


def _noted() -> dict[str, Any]:
    """Return what the current test has run, by path."""
    by_path: dict[str, set[int]] = defaultdict(set)
    for file, line in lines:
        by_path[Path(file).relative_to(ROOT).as_posix()].add(line)
    for text, line in script_lines:
        for path, origin in _origins(text).get(line, ()):
            by_path[path].add(origin)
    ran = {path for source in scripts for places in _origins(without_flags(source)).values() for path, _ in places}
    return {"lines": {path: sorted(numbers) for path, numbers in by_path.items()}, "scripts": sorted(ran)}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    found[report.nodeid]["passed"] &= report.passed


def pytest_configure() -> None:
    Script.sha = property(_noted_sha)  # type: ignore[assignment, method-assign]
    ScriptingCommandsMixin.eval = _noted_eval


def pytest_sessionfinish() -> None:
    Path(os.environ["MUTANTS_RECORD"]).write_text(json.dumps(found), "utf-8")
