"""Addresses over real HTTP: written at one replica, read at another, and kept over a restart of everything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from tests.support.replicas import Process, Replicas
    from tests.support.server import Server

ENV = {"SERVICES": "addresses", "DEFAULT_REGION": "RU"}
ROOT = "/addr_by_phone"
PHONE, SHOWN_PHONE = "8 (911) 123-45-67", "tel:+7-911-123-45-67"
ADDRESS = "Nevsky 1, Saint Petersburg"
SHOWN = {"phone": SHOWN_PHONE, "address": ADDRESS}


def said(answer: httpx.Response) -> tuple[int, Any]:
    return answer.status_code, answer.json() if answer.content else None


async def test_an_address_is_created_changed_and_deleted_over_two_replicas(replicas: Replicas) -> None:
    """Each step uses the replica that did not do the step before."""
    one, two = (process.public + ROOT for process in await replicas(2, ENV))
    http = replicas.client
    body = {"phone": PHONE, "address": ADDRESS}

    assert (await http.get(f"{one}/89111234567")).status_code == 404
    assert said(await http.post(one, json=body)) == (201, {"detail": "Created", "customer_addr": SHOWN})
    assert (await http.post(two, json=body | {"phone": "+79111234567"})).status_code == 409
    for where in ("?phone=+79111234567", "?phone=%2B7+911+123-45-67", "/tel:+7-911-123-45-67", "/8%20911%201234567"):
        assert said(await http.get(two + where)) == (200, SHOWN), where

    moved = SHOWN | {"address": "Liteyny 2, Saint Petersburg"}
    answer = await http.put(two, json=moved | {"phone": "+7 911 1234567"})
    assert said(answer) == (200, {"detail": "Updated", "customer_addr": moved})
    assert said(await http.get(f"{one}?phone=89111234567")) == (200, moved)
    answer = await http.put(f"{one}/+79111234567", json={"address": ADDRESS})
    assert said(answer) == (200, {"detail": "Updated", "customer_addr": SHOWN})
    assert said(await http.get(f"{two}/89111234567")) == (200, SHOWN)

    assert said(await http.delete(f"{two}?phone=89111234567")) == (204, None)
    assert (await http.get(f"{one}/89111234567")).status_code == 404
    assert (await http.put(f"{one}/89111234567", json={"address": ADDRESS})).status_code == 404
    assert (await http.post(one, json=body)).status_code == 201
    assert said(await http.delete(f"{two}/89111234567")) == (204, None)
    assert (await http.delete(f"{one}/89111234567")).status_code == 404


async def test_errors_are_problem_documents(replicas: Replicas) -> None:
    """A 422 names the field, and a text that is no phone is never 404."""
    (process,) = await replicas(1, ENV)
    root, http = process.public + ROOT, replicas.client
    wrong = {"phone": "hello", "address": "short"}
    for answer, status in (
        (await http.get(f"{root}?phone=hello"), 422),
        (await http.get(root), 422),
        (await http.post(root, json=wrong), 422),
        (await http.post(root, json={"phone": "hello", "address": ADDRESS}), 422),
        (await http.post(root, content=b"{", headers={"Content-Type": "application/json"}), 400),
        (await http.post(root, content=b"phone=1"), 415),
        (await http.patch(root), 405),
        (await http.get(f"{root}/+79111234567"), 404),
    ):
        assert answer.status_code == status
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.json()["status"] == status


async def test_restarting_everything_loses_nothing(replicas: Replicas, server: Server) -> None:
    """After replicas and Redis were killed, every acknowledged record is there."""
    (process,) = await replicas(1, ENV)
    phones = [f"+7911123{number:04}" for number in range(100)]
    for phone in phones:
        answer = await replicas.client.post(process.public + ROOT, json={"phone": phone, "address": f"Home of {phone}"})
        assert answer.status_code == 201
    process.kill()
    server.kill()
    server.start()
    (process,) = await replicas(1, ENV)
    for phone in phones:
        answer = await replicas.client.get(f"{process.public}{ROOT}/{phone}")
        assert answer.json()["address"] == f"Home of {phone}"


async def test_a_failure_of_redis_is_503_and_no_log_contains_a_phone(replicas: Replicas, server: Server) -> None:
    """The log of a replica contains no phone, with and without a failure."""
    (process,) = await replicas(1, ENV | {"LOG_LEVEL": "debug"})
    root, http = process.public + ROOT, replicas.client
    assert (await http.post(root, json={"phone": PHONE, "address": ADDRESS})).status_code == 201
    assert (await http.get(f"{root}/89111234567")).status_code == 200
    server.kill()
    for answer in (await http.get(f"{root}/89111234567"), await http.delete(f"{root}?phone=89111234567")):
        assert answer.status_code == 503
        assert answer.headers["Retry-After"]
    assert "1234567" not in _log(process)
    server.start()


def _log(process: Process) -> str:
    return process.log.read_text()
