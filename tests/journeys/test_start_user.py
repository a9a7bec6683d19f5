"""Replicas start with a user of few rights: docs/operations.md, "Credentials with few rights"."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from tests.support.replicas import Replicas
from tests.support.server import Server, server_programs
from tests.support.waiting import eventually

PAGE = Path(__file__).parents[2] / "docs/operations.md"


@pytest.fixture(params=server_programs())
def server(request: pytest.FixtureRequest, make_server: Callable[..., Server]) -> Server:
    """One server of each kind that this machine has."""
    return make_server(program=request.param)


def create_user(server: Server) -> None:
    """Create the user with the words of the page."""
    found = re.search(r"^    ACL SETUSER mesh-start (.*?)\n\n", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    words = found[1].replace("PASSWORD", "word").split()
    with server.redis() as client:
        version = [int(part) for part in client.info("server")["redis_version"].split(".")]
        later = ["+client|setinfo"] if version >= [7, 2] else []
        client.execute_command("ACL", "SETUSER", "mesh-start", "reset", *words, *later)


def refused(server: Server) -> list[str]:
    """What the server refused the start user since the last look."""
    with server.redis() as client:
        return [entry["object"] for entry in client.acl_log() if entry["username"] == "mesh-start"]


async def test_a_start_user_with_few_rights_is_enough(replicas: Replicas, server: Server) -> None:
    """The rights suffice for a lease, all services without SQL, and the takeover from a replica that died."""
    create_user(server)
    environ = {
        "REDIS_URL": f"redis://mesh-start:word@127.0.0.1:{server.port}/0",
        "SERVICES": "values,addresses,messages,grades",
        "MESSAGES_ADMIN_EMAIL": "admin@shop.example",
        "MESSAGES_ADMIN_PASSWORD": "a long phrase for tests 7",
        "GRADES_SNAPSHOT_DIR": str(replicas.folder / "grades"),
    }
    first, second = await replicas(2, environ)
    for process in (first, second):
        assert (await replicas.client.get(process.public + "/classes")).status_code == 200
    first.kill()
    (third,) = await replicas(1, environ)
    classes = (await replicas.client.get(third.public + "/classes")).json()
    body = [{"value": 10, "ttl": 60, "cls": cls} for cls in classes]

    async def stored() -> bool:
        return (await replicas.client.post(third.public + "/values", json=body)).status_code == 200

    await eventually(stored, 10)
    assert refused(server) == []


@pytest.mark.parametrize(
    "command",
    ["FLUSHALL", "FLUSHDB", "KEYS *", "CONFIG GET dir", "SHUTDOWN NOW", "SCRIPT FLUSH", "GET other"],
)
def test_the_start_user_cannot_do_what_the_mesh_never_does(server: Server, command: str) -> None:
    """A mistake of an operator who uses these credentials does less damage."""
    create_user(server)
    slipping = redis.Redis(port=server.port, username="mesh-start", password="word")
    with pytest.raises(redis.ResponseError, match=r"(?i)permission"):
        slipping.execute_command(*command.split())
