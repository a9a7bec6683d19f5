"""`mesh admin`: the only way to make an existing account an administrator."""

from __future__ import annotations

import asyncio

import redis.asyncio as aio
from click.testing import CliRunner, Result

from mesh import keys
from quart_app.cli import main
from quart_app.local.ports import free_port
from quart_app.messages.users import Users
from tests.support.server import Server


def invoke(*words: str) -> Result:
    return CliRunner(env={"REDIS_URL": ""}).invoke(main, list(words))


async def in_thread(*words: str) -> Result:
    return await asyncio.to_thread(invoke, *words)


async def test_an_administrator_is_promoted_and_demoted_by_command(server: Server) -> None:
    """The address may have any spelling, the last administrator stays, and each change is audited once."""
    with server.redis() as redis:
        client = aio.Redis(port=server.port, decode_responses=True)
        for name in ("ann", "bob"):
            await Users(client).register(f"{name}@example.com", "hash")
        await client.aclose()
        options = ("--redis-url", server.url)
        steps = {
            ("promote", "Ann@Example.com"): (0, "ann@example.com is an administrator now\n"),
            ("promote", "ann@example.com"): (0, "ann@example.com was an administrator before; nothing is changed\n"),
            ("demote", "ann@example.com"): (
                1,
                "Error: ann@example.com is the only active administrator; promote another one first\n",
            ),
            ("promote", "bob@example.com"): (0, "bob@example.com is an administrator now\n"),
            ("demote", "ANN@example.com"): (0, "ann@example.com is no administrator now\n"),
            ("promote", "carl@example.com"): (
                1,
                "Error: no account has the address carl@example.com; register it first\n",
            ),
        }
        for (command, email), (status, output) in steps.items():
            result = await in_thread("admin", command, email, *options)
            assert (result.exit_code, result.output) == (status, output)
        assert [entry["event"] for _, entry in redis.xrange(keys.AUDIT)] == [
            "administrator promoted", "administrator promoted", "administrator demoted",
        ]  # fmt: skip


def test_an_administrator_needs_an_address_and_a_redis() -> None:
    """Both mistakes are sentences."""
    url = f"redis://127.0.0.1:{free_port()}/0"
    assert invoke("admin", "promote", "ann", "--redis-url", url).output.startswith(
        "Error: ann is not an e-mail address: "
    )
    result = invoke("admin", "demote", "ann@example.com", "--redis-url", url)
    assert result.exit_code == 1 and result.output.startswith("Error: the message service cannot reach its store")
