"""The `mesh` command: up, status, watch, redis-cli, and the commands of `operate`.

A parameter `data` is the path of the data folder (the option --data).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import click
from redis import exceptions as redis_errors
from rich.console import Console

from mesh import Member, RedisSettings
from quart_app import environment
from quart_app.exits import EXIT_SETUP
from quart_app.local import discovery, replicas, watch
from quart_app.local.errors import LocalError
from quart_app.local.mesh import LocalMesh, running_mesh
from quart_app.local.operate import COMMANDS, data_option, redis_url_option, unusable_redis_error
from quart_app.local.ports import free_port
from quart_app.local.processes import Supervisor
from quart_app.local.redis_server import DEFAULT_PORT, address_of
from quart_app.local.teller import Teller, member_row, missing_row, missing_sentence, roster_table

#: Longest wait of `mesh up` for all replicas to be ready. After it, `mesh up` shows the user those that are ready. A
#: longer wait suits a slow machine, but the user learns later that a replica does not get ready.
READY_WAIT_S = 60.0
#: A second signal within this time is ignored. The program `timeout` sends each signal to its command and then to the
#: whole process group, so `mesh up` gets it twice. Some terminals also send a signal twice. With a longer time, a quick
#: second Ctrl-C would have no effect.
SAME_SIGNAL_S = 0.3
#: The programs that `mesh redis-cli` looks for on PATH; it runs the first one that is there.
CLI_PROGRAMS = ("redis-cli", "valkey-cli")


class CannotRun(click.ClickException):
    """The command cannot work with this setup, and a second try does not help.

    Its exit status is EXIT_SETUP. All other errors are a plain ClickException with the exit status 1: a Redis that does
    not answer, an act that is refused, or a program that is not installed.
    """

    exit_code = EXIT_SETUP


class MeshGroup(click.Group):
    """The group `mesh`. It turns an error of the setup into one sentence for the user (CannotRun)."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            environment.load()  # the file .env, before the options of the command read their variables
            return super().invoke(ctx)
        except environment.SETTINGS_ERRORS as error:
            raise CannotRun(environment.sentence_about(error)) from error
        except LocalError as error:
            raise CannotRun(str(error)) from error


@click.group(cls=MeshGroup, context_settings={"show_default": True})
@click.version_option(version("quart-mesh"), prog_name="mesh")
def main() -> None:
    """Run a mesh of identical replicas on one Redis, look at it, and act on it."""


for command in COMMANDS:
    main.add_command(command)


@main.command()
@click.option("--replicas", "count", default=4, type=click.IntRange(1, 16), envvar="REPLICAS", help="How many.")
@click.option("--port", default=8000, type=click.IntRange(0, 65535), envvar="PORT", help="Public port; 0: any.")
@click.option(
    "--private-port",
    default=8001,
    type=click.IntRange(0, 65535),
    envvar="PRIVATE_PORT",
    help="Port for operators (metrics, grades) if it is free, else any other.",
)
@redis_url_option
@data_option
def up(count: int, port: int, private_port: int, redis_url: str | None, data: Path) -> None:
    """Start a mesh on this machine; Ctrl-C drains and stops it.

    Without REDIS_URL or REDIS_HOST it runs a server of its own, which keeps its data in a folder. Settings come from
    the environment and from the file .env.
    """
    # An empty REDIS_URL in the environment counts as none.
    asyncio.run(_up(count, port or free_port(), private_port, redis_url or None, data))


async def _up(count: int, port: int, private_port: int, redis_url: str | None, data: Path) -> None:
    """Run the mesh, and tell the user about it, until a signal comes."""
    teller = Teller()
    supervisor = Supervisor(teller.say)

    async def run() -> None:
        whole_mesh = running_mesh(
            supervisor, count=count, port=port, private_port=private_port, redis_url=redis_url, folder=data
        )
        async with whole_mesh as local_mesh:
            teller.say(f"starting {_replicas_in_words(count)}; logs in {data / 'logs'}")
            members = await replicas.wait_until_ready(
                local_mesh.redis, local_mesh.children, _ready_count_printer(teller, count), READY_WAIT_S
            )
            _welcome(teller, members, port, local_mesh, data)
            await asyncio.Event().wait()  # until a signal cancels this task

    mesh_task = asyncio.create_task(run())
    _stop_on_signals(mesh_task, supervisor)
    try:
        with contextlib.suppress(asyncio.CancelledError):  # a signal cancels `mesh_task`
            await mesh_task
        teller.say("stopped")
    finally:
        teller.close()


def _stop_on_signals(mesh_task: asyncio.Task[None], supervisor: Supervisor) -> None:
    """Cancel the task, and so drain and stop the mesh, at the first signal; kill every child at a second one.

    SIGHUP counts, too: it comes when the terminal is closed.
    """
    loop = asyncio.get_running_loop()
    first_signal_at_s: float | None = None

    def stop() -> None:
        nonlocal first_signal_at_s
        if first_signal_at_s is None:
            first_signal_at_s = loop.time()
            supervisor.say("stopping; Ctrl-C again ends everything at once")
            mesh_task.cancel()
        elif loop.time() - first_signal_at_s > SAME_SIGNAL_S:
            supervisor.say("ending everything at once")
            supervisor.kill_all()

    for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(signal_number, stop)


def _replicas_in_words(count: int) -> str:
    return f"{count} replica" if count == 1 else f"{count} replicas"


def _ready_count_printer(teller: Teller, count: int) -> replicas.ShowReadyCount:
    """Return a function that prints how many replicas are ready, whenever that changes."""
    last_ready_count = 0

    def print_ready_count(ready_count: int) -> None:
        nonlocal last_ready_count
        if ready_count != last_ready_count:
            teller.say(f"{ready_count} of {_replicas_in_words(count)} ready")
            last_ready_count = ready_count

    return print_ready_count


def _welcome(teller: Teller, members: list[Member], port: int, local_mesh: LocalMesh, data: Path) -> None:
    """Show the roster, the addresses, and commands to try. At least one member is ready: see `wait_until_ready`."""
    public, private = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{local_mesh.private_port}"
    teller.show_roster(members)
    unready_count = len(local_mesh.children) - len(members)
    if unready_count:
        teller.say(f"{unready_count} replicas are not ready yet; {data / 'logs'} says why")
    data_option_text = "" if data == discovery.default_folder() else f" --data {data}"
    example = {"value": 144, "ttl": 300, "cls": members[0].cls}
    for line in (
        f"public         {public}   in a browser: a page to try it; {public}/docs: all routes",
        f"for operators  {private}/mesh   what happens now; {private}/metrics: metrics",
        f"Redis          {address_of(local_mesh.redis)}   mesh dead list{data_option_text}   dead letters",
        "",
        "Try it:",
        f"curl {public}/values -H 'Content-Type: application/json' -d '{json.dumps([example])}'",
        f"curl {public}/values/3",
        "",
        "Ctrl-C drains and stops everything.",
    ):
        teller.show(line)


@main.command()
@redis_url_option
@data_option
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects, for programs.")
def status(redis_url: str | None, data: Path, as_json: bool) -> None:
    """Show which replica holds which database."""
    settings = discovery.redis_settings(redis_url, data)
    try:
        roster = asyncio.run(discovery.read_roster(settings))
        missing = asyncio.run(discovery.read_missing(settings))
    except (redis_errors.RedisError, OSError) as error:
        raise unusable_redis_error(settings, error, data) from error
    # The roster keeps a row for a time after its lease has ended. Such a row is left out, because no replica holds its
    # database.
    members = [member for member in roster if member.leased]
    if as_json:
        rows = [*map(member_row, members), *map(missing_row, missing)]
        click.echo(json.dumps(rows, indent=2))
        return
    if members:
        Console().print(roster_table(members, Console().width))
    else:
        click.echo("no replica is live")
    for database in missing:
        click.echo(missing_sentence(database))


#: The values of the option --class of `mesh watch`: a class (A), or a database (db3).
ADDRESSES = (*watch.CLASSES, *(f"db{number}" for number in range(watch.DATABASE_COUNT)))


@main.command(name="watch")
@redis_url_option
@data_option
@click.option(
    "--class",
    "address",
    default=None,
    type=click.Choice(ADDRESSES),
    metavar="CLASS",
    help="Only requests to this class (A) or database (db3).",
)
@click.option("--op", default=None, help="Only this operation, or those that begin with this text (values.).")
def watch_command(redis_url: str | None, data: Path, address: str | None, op: str | None) -> None:
    """Show requests and replies as they happen."""
    settings = discovery.redis_settings(redis_url, data)
    click.echo(f"{watch.watched_in_words(address, op)} on Redis at {address_of(settings)}; Ctrl-C ends it", err=True)
    with contextlib.suppress(KeyboardInterrupt):
        try:
            asyncio.run(watch.run(settings, Console(soft_wrap=True), address, op))
        except (redis_errors.RedisError, OSError) as error:
            raise unusable_redis_error(settings, error, data) from error


@main.command(name="redis-cli", context_settings={"ignore_unknown_options": True})
@redis_url_option
@data_option
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def redis_cli(redis_url: str | None, data: Path, words: tuple[str, ...]) -> None:
    """Run redis-cli on the Redis of this mesh, without a password that `ps` could show."""
    program = next(filter(None, map(shutil.which, CLI_PROGRAMS)), None)
    if program is None:
        raise click.ClickException("there is no redis-cli here: install redis-tools or valkey-tools")
    options, login_env = _redis_cli_login(discovery.redis_settings(redis_url, data))
    os.execve(program, [program, *options, *words], {**os.environ, **login_env})


def _redis_cli_login(settings: RedisSettings) -> tuple[list[str], dict[str, str]]:
    """Return the options and the environment variables with which redis-cli reaches this Redis.

    Of the options for TLS, only --tls is set. If the address has others (`ssl_ca_certs`), the user has to give
    redis-cli's own, such as --cacert.
    """
    if settings.sentinels:
        raise click.ClickException("this command cannot ask sentinels; name the server itself with --redis-url")
    url = "" if settings.url is None else settings.url.get_secret_value()
    parts = urlsplit(url)
    host, port = (parts.hostname or "localhost", parts.port or DEFAULT_PORT) if url else (settings.host, settings.port)
    user = unquote(parts.username or "") or settings.username
    password = unquote(parts.password or "") or (settings.password.get_secret_value() if settings.password else "")
    tls = ["--tls"] if url.startswith("rediss:") else []
    login_env = {"REDISCLI_AUTH": password} if password else {}
    return ["-h", host, "-p", str(port), "-n", str(settings.bus), "--user", user, *tls], login_env


if __name__ == "__main__":
    main()
