"""The `mesh` command: up, status, watch."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError
from redis import exceptions as redis_errors
from rich.console import Console
from rich.table import Table

from mesh import Member, RedisSettings
from mesh.settings import explain
from quart_app.local import supervisor, watch
from quart_app.local.discovery import FOLDER, redis_settings

READY_WAIT_S = 60.0
COLUMNS = ("database", "class", "state", "replica", "pid", "public", "private", "since", "epoch")
#: What fits a narrow terminal.
SHORT = ("database", "class", "replica", "public", "private")
WIDE = 118


class Commands(click.Group):
    """Says in a sentence which setting is not valid."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ValidationError as error:
            raise click.ClickException(f"the settings are not valid: {explain(error)}") from error


@click.group(cls=Commands)
def main() -> None:
    """A mesh of identical replicas on one Redis."""


@main.command()
@click.option("--replicas", default=4, show_default=True, type=click.IntRange(1, 16), envvar="REPLICAS")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), envvar="PORT")
@click.option("--redis-url", default=None, envvar="REDIS_URL", help="use this server; else an embedded one")
@click.option("--data", default=FOLDER, type=click.Path(path_type=Path), help="folder of the embedded server and logs")
def up(replicas: int, port: int, redis_url: str | None, data: Path) -> None:
    """Start a mesh on this machine; Ctrl-C drains and stops it."""
    try:
        asyncio.run(_up(replicas, port or supervisor.free_port(), redis_url or None, data))
    except supervisor.LocalError as error:
        raise click.ClickException(str(error)) from error


async def _up(replicas: int, port: int, redis_url: str | None, data: Path) -> None:
    console = Console()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with supervisor.mesh(replicas=replicas, port=port, redis_url=redis_url, folder=data) as (_, redis, keeping):
        stopped = asyncio.create_task(stop.wait())
        with console.status(f"starting {replicas} replicas") as status:

            def progress(count: int) -> None:
                status.update(f"starting {replicas} replicas: {count} ready")

            ready = asyncio.create_task(supervisor.all_ready(redis, replicas, keeping, progress, READY_WAIT_S))
            await asyncio.wait([ready, stopped], return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            _welcome(console, ready.result(), port, redis, data)
            await asyncio.wait([keeping, stopped], return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        stopped.cancel()
        if keeping.done():
            keeping.result()
        console.print("draining and stopping …")
    console.print("stopped")


def _welcome(console: Console, members: list[Member], port: int, redis: RedisSettings, data: Path) -> None:
    address = f"http://127.0.0.1:{port}"
    console.print(_table(members, console.width))
    cls = members[0].cls
    url = redis.url.get_secret_value() if redis.url is not None else ""
    console.print(f"[bold]{address}[/bold]   documentation {address}/docs   logs {data / 'logs'}", highlight=False)
    if "@" not in url:
        console.print(f"redis-cli -u {url}", highlight=False)
    console.print("\nTry it:", highlight=False)
    body = json.dumps([{"value": 144, "ttl": 300, "cls": cls}])
    console.print(
        f"curl {address}/values -H 'Content-Type: application/json' -d '{body}'", highlight=False, soft_wrap=True
    )
    console.print(f"curl {address}/values/3\n", highlight=False)
    console.print("Ctrl-C drains and stops everything.")


@main.command()
@click.option("--redis-url", default=None, envvar="REDIS_URL")
@click.option("--data", default=FOLDER, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="a list of objects, for programs")
def status(redis_url: str | None, data: Path, as_json: bool) -> None:
    """Who holds what."""
    try:
        found = asyncio.run(supervisor.read_roster(redis_settings(redis_url, data)))
    except (redis_errors.RedisError, OSError) as error:
        raise click.ClickException(f"Redis cannot be asked: {error}") from error
    members = [member for member in found if member.leased]
    if as_json:
        click.echo(json.dumps([_row(member) for member in members], indent=2))
    else:
        console = Console()
        console.print(_table(members, console.width) if members else "no replica is live")


@main.command(name="watch")
@click.option("--redis-url", default=None, envvar="REDIS_URL")
@click.option("--data", default=FOLDER, type=click.Path(path_type=Path))
@click.option("--class", "cls", default=None, help="only requests to this class (A) or database (db3)")
@click.option("--op", default=None, help="only this operation, or those that begin so: values.")
def watch_command(redis_url: str | None, data: Path, cls: str | None, op: str | None) -> None:
    """Requests and replies as they happen."""
    with contextlib.suppress(KeyboardInterrupt):
        try:
            asyncio.run(watch.run(redis_settings(redis_url, data), Console(soft_wrap=True), cls, op))
        except (redis_errors.RedisError, OSError) as error:
            raise click.ClickException(f"Redis cannot be read: {error}") from error


def _row(member: Member) -> dict[str, Any]:
    return {
        "database": member.database,
        "class": member.cls,
        "epoch": member.epoch,
        "replica": member.replica,
        "pid": member.pid,
        "public": member.public,
        "private": member.private,
        "state": member.state,
        "since": datetime.fromtimestamp(member.since / 1000, UTC).isoformat(timespec="milliseconds"),
    }


def _table(members: Iterable[Member], width: int) -> Table:
    table = Table()
    rows = [_row(member) for member in members]
    columns = COLUMNS if width >= WIDE else SHORT
    for name in columns:
        table.add_column(name, justify="right" if name in {"database", "pid", "epoch"} else "left", no_wrap=True)
    for row in rows:
        cells = {**row, "since": row["since"][11:19] + "Z"}
        table.add_row(*(str(cells[name]) for name in columns))
    return table


if __name__ == "__main__":
    main()
