"""Which allocator our processes use, on machines with jemalloc and without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quart_app.local import allocator, redis_program, replicas

NAME = "libjemalloc.so.2"


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LD_PRELOAD", "PYTHONMALLOC"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def found(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.util.find_library", {"jemalloc": request.param}.get)


@pytest.mark.parametrize(
    ("found", "server", "python"),
    [
        (NAME, {"LD_PRELOAD": NAME}, {"LD_PRELOAD": NAME, "PYTHONMALLOC": "malloc"}),
        (None, {"GLIBC_TUNABLES": allocator.THREAD_CACHE}, {}),
    ],
    indirect=["found"],
)
@pytest.mark.usefixtures("found")
def test_jemalloc_is_used_where_the_machine_has_it(server: dict[str, str], python: dict[str, str]) -> None:
    """The wheel's server and replicas use it; without it, each gets the best setting that there is."""
    assert redis_program.wheel_server().environ == server
    assert allocator.python_variables() == python
    replica = replicas.replica_environment("redis://127.0.0.1:1/0", Path("data"))
    assert {name: replica[name] for name in ("LD_PRELOAD", "PYTHONMALLOC") if name in replica} == python


@pytest.mark.parametrize("found", ["/opt/homebrew/lib/libjemalloc.dylib"], indirect=True)
@pytest.mark.usefixtures("found")
def test_python_keeps_its_own_allocator_where_nothing_can_be_preloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """PYTHONMALLOC alone would choose the C library's allocator."""
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    assert allocator.python_variables() == {}


@pytest.mark.parametrize("name", ["LD_PRELOAD", "PYTHONMALLOC"])
@pytest.mark.parametrize("found", [NAME], indirect=True)
@pytest.mark.usefixtures("found")
def test_an_allocator_that_was_chosen_already_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the user has set one of the two variables, we set neither, because they only work together."""
    monkeypatch.setenv(name, "debug")
    assert allocator.python_variables() == {}


def test_python_keeps_its_objects_in_jemalloc() -> None:
    """The library is mapped, and Python's own allocator is not used."""
    told = allocator.python_variables()
    if not told:
        pytest.skip("this machine has no jemalloc (Debian: apt-get install libjemalloc2)")
    code = "import sys; print('jemalloc' in open('/proc/self/maps').read()); sys._debugmallocstats()"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **told}, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "True\n"
    assert "Small block threshold" not in done.stderr
