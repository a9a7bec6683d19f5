"""What Caddy is told. Whole replicas stand behind it in tests/journeys/test_caddy.py."""

from __future__ import annotations

from pathlib import Path

import httpx
import psutil
import pytest

from quart_app.local.caddy import Site, balancer, find_caddy
from quart_app.local.ports import free_port
from quart_app.local.processes import Supervisor
from tests.support.waiting import eventually

pytestmark = pytest.mark.skipif(find_caddy() is None, reason="no Caddy here")


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
async def test_a_proxy_in_the_environment_does_not_reach_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Caddy would send every request for a replica there."""
    monkeypatch.setenv(name, "http://proxy.example:3128")
    async with balancer(Supervisor(print), Site(free_port(), ["127.0.0.1:1"])) as child:
        assert child.pid is not None
        assert not [told for told in psutil.Process(child.pid).environ() if told.upper().endswith("_PROXY")]


async def test_a_killed_caddy_is_started_again_at_both_its_addresses(tmp_path: Path) -> None:
    """The log of Caddy is kept where the caller wants it."""
    said: list[str] = []
    public, private = Site(free_port(), ["127.0.0.1:1"]), Site(free_port(), ["127.0.0.1:1"])
    async with balancer(Supervisor(said.append), public, private, log=tmp_path / "caddy.log") as child:
        assert child.pid is not None
        psutil.Process(child.pid).kill()
        async with httpx.AsyncClient(timeout=30) as client:

            async def answers() -> bool:
                try:
                    found = [await client.get(f"http://127.0.0.1:{site.port}/") for site in (public, private)]
                except httpx.TransportError:
                    return False
                return [answer.status_code for answer in found] == [503, 503]

            await eventually(answers, 30)
    assert said[0] == "Caddy ended (killed by SIGKILL); starting it again in 0.1 s"
    assert (tmp_path / "caddy.log").exists()
