"""What Caddy adds to requests and answers: ids, compression, its log, and what it does not repeat."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest

from quart_app.local.caddy import Site, balancer, find_caddy
from quart_app.local.ports import free_port
from quart_app.local.processes import Supervisor
from tests.support.replicas import Process, Replicas
from tests.support.waiting import eventually

pytestmark = pytest.mark.skipif(find_caddy() is None, reason="no Caddy here")

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Upstream:
    """A replica that counts requests, and that a GET of /poison kills: it ends the connection without an answer."""

    def __init__(self) -> None:
        self.port = free_port()
        self.seen: list[str] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                path = head.split()[1]
                if path != "/readyz":
                    self.seen.append(head)
                if path == "/poison":
                    break
                writer.write(OK)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def upstreams(count: int) -> AsyncIterator[tuple[list[Upstream], httpx.AsyncClient]]:
    """Yield so many upstreams behind Caddy."""
    async with AsyncExitStack() as stack:
        found = [Upstream() for _ in range(count)]
        for one in found:
            await stack.enter_async_context(await asyncio.start_server(one.answer, "127.0.0.1", one.port))
        port = free_port()
        site = Site(port, [f"127.0.0.1:{one.port}" for one in found])
        await stack.enter_async_context(balancer(Supervisor(print), site))
        client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False)
        yield found, await stack.enter_async_context(client)


@pytest.mark.parametrize(("method", "visits"), [("GET", 2), ("POST", 1)])
async def test_a_poisonous_request_visits_two_replicas_at_most(method: str, visits: int) -> None:
    """A GET is repeated once, a POST never; otherwise one request could kill the whole mesh."""
    async with upstreams(4) as (found, client):
        assert (await client.request(method, "/poison")).status_code == 502
        # Where a kept connection ends, Go tries the same replica again, which in truth is dead by then.
        assert len([one for one in found if one.seen]) == visits
        assert (await client.get("/fine")).status_code == 200


async def test_a_request_gets_one_id_for_all_logs() -> None:
    """The client's own, or a new one; each replica that sees the request sees the same, and so does the client."""
    async with upstreams(2) as (found, client):
        await client.get("/poison")
        seen = [id for one in found for id in ids(one)]
        assert len(seen) >= 2 and len(set(seen)) == 1 and len(seen[0]) == 36
        await client.get("/fine", headers={"X-Request-Id": "mine"})
        assert "mine" in [id for one in found for id in ids(one)]
        refused = await client.post("/poison", headers={"X-Request-Id": "other"})
        assert (refused.status_code, refused.headers["X-Request-Id"]) == (502, "other")


def ids(upstream: Upstream) -> list[str]:
    """Return the ids of the requests that it saw."""
    lines = [line for head in upstream.seen for line in head.splitlines()]
    return [line.partition(": ")[2] for line in lines if line.lower().startswith("x-request-id:")]


async def test_whom_a_request_is_from_is_believed_only_of_proxies_that_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client cannot take the address of another."""
    claimed = {"X-Forwarded-For": "198.51.100.7"}
    async with upstreams(1) as (found, client):
        await client.get("/fine", headers=claimed)
        assert "x-forwarded-for: 127.0.0.1\r\n" in found[0].seen[0].lower()
    monkeypatch.setenv("PROXIES_IN_FRONT", "127.0.0.0/8")
    async with upstreams(1) as (found, client):
        await client.get("/fine", headers=claimed)
        assert "x-forwarded-for: 198.51.100.7, 127.0.0.1\r\n" in found[0].seen[0].lower()


async def test_proxies_of_the_environment_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests for replicas stay on this machine."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    async with upstreams(1) as (_, client):
        assert (await client.get("/fine")).status_code == 200


async def test_the_access_log_is_json_with_the_ids_and_without_persons(
    replicas: Replicas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A phone number in a path, a password and a cookie are not in it."""
    monkeypatch.setenv("ACCESS_LOG", f"file {tmp_path}/access.log")
    (process,) = await replicas(1, {"SERVICES": "addresses"})
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {
        "traceparent": trace,
        "X-Request-Id": "one",
        "Authorization": "Basic c2VjcmV0",
        "Cookie": "session=secret",
    }
    async with behind(process) as (client, _):
        await client.get("/addr_by_phone/+79161234567?token=secret", headers=headers)
    log = (tmp_path / "access.log").read_text()
    (line,) = [json.loads(line) for line in log.splitlines() if "addr_by_phone" in line]
    assert line["request"]["uri"] == "/addr_by_phone"
    assert line["request"]["headers"]["Traceparent"] == [trace]
    assert line["request"]["headers"]["X-Request-Id"] == line["resp_headers"]["X-Request-Id"] == ["one"]
    assert {"status", "duration", "size"} <= line.keys()
    assert "79161234567" not in log and "secret" not in log and "c2VjcmV0" not in log


@asynccontextmanager
async def behind(process: Process) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    """One replica behind Caddy: a client of the public site, and one of the operators' site."""
    public, private = free_port(), free_port()
    sites = [
        Site(port, [address.removeprefix("http://")])
        for port, address in ((public, process.public), (private, process.private))
    ]
    async with balancer(Supervisor(print), *sites):
        async with (
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{public}", timeout=30) as client,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{private}", timeout=30) as operator,
        ):

            async def leads() -> bool:
                return (await client.get("/health")).status_code == 200

            await eventually(leads, 15)
            yield client, operator


async def test_answers_are_compressed_and_events_are_not(replicas: Replicas) -> None:
    """Events arrive at once, and their stream ends when the replica drains: the browser connects to another."""
    (process,) = await replicas(1, {"DRAIN_MS": "1000"})
    async with behind(process) as (client, operator):
        assert (await client.get("/openapi.json")).headers["content-encoding"] in {"gzip", "zstd"}
        assert "content-encoding" not in (await client.get("/classes")).headers, "it is too small to gain"
        async with asyncio.timeout(20), operator.stream("GET", "/mesh/events/overview") as events:
            assert "content-encoding" not in events.headers
            lines = events.aiter_lines()
            assert await anext(lines)
            process.send(signal.SIGTERM)
            assert [line async for line in lines] != []


async def test_caddy_tells_its_own_metrics_to_operators(replicas: Replicas) -> None:
    """Caddy's metrics have a path at the operators' site, and none at the public one."""
    (process,) = await replicas(1)
    async with behind(process) as (client, operator):
        assert "caddy_http_requests_total" in (await operator.get("/caddy/metrics")).text
        assert (await client.get("/caddy/metrics")).status_code == 404
