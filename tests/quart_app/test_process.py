"""The process of one replica, before it serves and at its end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from redis.exceptions import AuthenticationError, ResponseError

from mesh import MeshSettings, Unavailable
from quart_app import process
from quart_app.exits import EXIT_AGAIN, EXIT_SETUP
from quart_app.registry import SERVICES
from quart_app.settings import AppSettings

#: What `python -m quart_app` does before it serves.
START = """
import gc
gc.disable()
from quart_app.process import Process
from quart_app.settings import AppSettings
from mesh import MeshSettings
Process(AppSettings(), MeshSettings())
young, often, _ = gc.get_threshold()
# An object takes 80 ns of a pass; a pass of 20 ms would hold the event loop for too long.
print(gc.isenabled(), gc.get_freeze_count() > 10_000, young * often <= 100_000)
"""


#: What some services alone need: service -> packages and modules. No other replica imports them.
OF_SERVICES = {
    "values": {"quart_app.values.service", "flint", "gmpy2", "pebble"},
    "addresses": {"quart_app.addresses.service", "phonenumbers"},
    "messages": {"quart_app.messages.service", "httpx2", "argon2", "jwt"},
    "grades": {"quart_app.grades.service", "httpx2"},
    "movements": {"quart_app.movements.service", "sqlalchemy", "aiosqlite"},
}
#: What no replica needs at its start: the programs around it, and what comes with a migration, a job or a test.
LATER = {
    "quart_app.local.mesh", "quart_app.providers.simulator", "alembic", "mako", "asyncpg", "cypari", "email_validator",
    "mesh.testing",
}  # fmt: skip
#: What `mesh` does not need to begin a command.
NO_COMMAND = set.union(*OF_SERVICES.values()) | {
    "quart", "hypercorn", "uvloop", "jinja2", "quart_app.process", "fakeredis", "alembic", "email_validator"
}  # fmt: skip


def imported(code: str, folder: Path, services: str) -> set[str]:
    """Return the modules that a new process has imported after this code, and the packages that they are in."""
    argv = [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"]
    env = {**os.environ, "SERVICES": services}
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("service", SERVICES)
def test_a_replica_imports_what_its_services_need_and_no_more(service: str, tmp_path: Path) -> None:
    """Each module costs time and memory, in each replica."""
    found = imported(";".join(START.strip().splitlines()[:-2]), tmp_path, service)
    others = set.union(*(names for name, names in OF_SERVICES.items() if name != service)) - OF_SERVICES[service]
    assert OF_SERVICES[service] <= found, "the list names what this service really imports"
    assert found & (others | LATER) == set()


def test_a_command_imports_nothing_that_only_a_replica_needs(tmp_path: Path) -> None:
    """A user waits for it."""
    assert imported("import quart_app.cli", tmp_path, "values") & NO_COMMAND == set()


def test_garbage_is_looked_for_once_everything_is_made(tmp_path: Path) -> None:
    """The start makes none, and a process that never looked for it would grow."""
    argv = [sys.executable, "-c", START]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "True True True"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (AuthenticationError("WRONGPASS invalid username-password pair or user is disabled."), EXIT_AGAIN),
        (ResponseError("NOPROTO unsupported protocol version"), EXIT_SETUP),
        (ResponseError("DENIED Redis is running in protected mode"), EXIT_SETUP),
        (Unavailable("the lease was not free in time"), EXIT_AGAIN),
        (OSError(98, "Address already in use"), EXIT_SETUP),
    ],
)
async def test_the_exit_status_says_whether_a_new_start_may_help(
    error: Exception, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of Redis that ends a membership for good counts as the one that a start would have met."""

    async def ends(self: process.Process) -> None:
        raise ExceptionGroup("the tasks of a process", [ExceptionGroup("the membership", [error])])

    monkeypatch.setattr(process.Process, "run", ends)
    assert await process.run(AppSettings(), MeshSettings()) == status
