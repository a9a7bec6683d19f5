"""A key of the mesh that somebody overwrites with a value of another type, by a command meant for another server."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.replicas import Replicas
from tests.support.server import Server
from tests.support.waiting import eventually


@pytest.mark.timeout(120)
@pytest.mark.parametrize("key", ["mesh:later", "mesh:books", "mesh:requests:A", "mesh:written", "mesh:replica:9"])
async def test_no_process_ends_and_all_works_when_it_is_repaired(server: Server, replicas: Replicas, key: str) -> None:
    """Answers meanwhile are 200, or 503 with a reason; none is a 500."""
    (replica,) = await replicas(1, {"LOG_FORMAT": "json"})
    item = {"value": 6, "ttl": 600, "cls": "A"}

    async def statuses() -> list[int]:
        client, url = replicas.client, replica.public
        answers = await asyncio.gather(
            client.get(url + "/classes"), client.get(url + "/values/3"), client.post(url + "/values", json=[item])
        )
        assert all(answer.status_code != 503 or answer.json()["detail"] for answer in answers)
        return [answer.status_code for answer in answers]

    with server.redis() as admin:
        admin.delete(key)
        admin.set(key, "overwritten")
        seen = set()
        for _ in range(20):
            seen |= set(await statuses())
            await asyncio.sleep(0.25)
        admin.delete(key)

    async def works() -> bool:
        return await statuses() == [200, 200, 200]

    await eventually(works, 20)
    assert replica.popen.poll() is None, replica.log.read_text()
    assert seen <= {200, 404, 503, 504}
    # No answer needs the requests that wait, or the books, which only count.
    assert 503 in seen or key in {"mesh:later", "mesh:books"}
    assert '"exc_type"' not in replica.log.read_text()
