"""The commands of `mesh` that act on a running mesh. They work on Redis directly, so no replica needs to answer.

They run the same scripts as the live page. So the books balance, and `mesh:audit` has an entry for each act.
"""

from __future__ import annotations

import asyncio
import getpass
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
from redis import exceptions as redis_errors
from redis.asyncio import Redis

from mesh import Connections, MeshError, MeshSettings, RedisSettings, keys
from mesh.control import (
    MOST_REPLIES_SEARCHED,
    Control,
    Journeys,
    JourneyStep,
    OperationState,
    OperationStates,
    percentile_ms,
    read_definitions,
    read_states,
)
from mesh.dead import ID, Actor, ChosenLetters, DeadLetter, DeadLetters, LetterGroup, Report
from mesh.discovery import make_document
from quart_app.local import discovery  # finds a mesh on this machine; `mesh.discovery` describes operations
from quart_app.local.redis_server import address_of, cause_of
from quart_app.panels import counted

T = TypeVar("T")

redis_url_option = click.option(
    "--redis-url",
    default=None,
    envvar="REDIS_URL",
    help="Use this server. Put a password into the variable REDIS_URL instead: `ps` shows options to every user.",
)
#: Gives a command the parameter `data`, which is the data folder of a mesh.
data_option = click.option(
    "--data",
    default=discovery.default_folder,
    show_default="data",
    type=click.Path(path_type=Path),
    help="Folder of the embedded server, of the logs, and of what the other commands need to find the mesh.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def current_actor() -> Actor:
    """Return who runs this command, for the audit log."""
    return Actor(getpass.getuser(), "command line")


def on_redis(redis_url: str | None, data: Path, function: Callable[[Redis], Awaitable[T]]) -> T:
    """Call a function with a client of the mesh's bus, and return its result. Raises ClickException if it fails."""
    settings = discovery.redis_settings(redis_url, data)

    async def run() -> T:
        # `shared` asks for a pool of connections, because `Journeys` sends several commands at once.
        client = Connections(settings).client("mesh-operator", shared=True)
        try:
            return await function(client)
        finally:
            await client.aclose()

    try:
        return asyncio.run(run())
    except MeshError as error:
        raise click.ClickException(error.detail) from error
    except (redis_errors.RedisError, OSError) as error:
        raise unusable_redis_error(settings, error, data) from error


def unusable_redis_error(settings: RedisSettings, error: Exception, data: Path) -> click.ClickException:
    """Return the error that says which Redis cannot be used and why, and whether a mesh runs on the data folder."""
    hint = "" if discovery.find_running(data) else f"; no mesh runs on {data}"
    return click.ClickException(f"Redis at {address_of(settings)} cannot be used: {cause_of(error)}{hint}")


def _control(redis: Redis) -> Control:
    # The environment of this command says which classes and databases the mesh has. The data folder only says how to
    # reach Redis. With other settings than the replicas have, the command may overlook some of their streams.
    return Control(redis, MeshSettings())


@click.command()
@redis_url_option
@data_option
@_json_option
@click.option("--asyncapi", "as_asyncapi", is_flag=True, help="Print an AsyncAPI 3 document of all operations.")
def ops(redis_url: str | None, data: Path, as_json: bool, as_asyncapi: bool) -> None:
    """List the operations: who serves them, what waits, runs and is paused, and how calls were answered lately.

    At most the first 1,000 requests of each stream are counted, and the last few hundred answers to each replica.
    """
    if as_asyncapi:
        click.echo(json.dumps(_asyncapi(on_redis(redis_url, data, read_definitions)), indent=2))
        return

    async def read(redis: Redis) -> OperationStates:
        settings = MeshSettings()
        return await read_states(redis, settings, await Journeys(redis, settings).newest(MOST_REPLIES_SEARCHED))

    operations = on_redis(redis_url, data, read)
    facts_in_order = [_operation_facts(state) for state in operations.in_order()]
    if as_json:
        click.echo(json.dumps(facts_in_order, indent=2))
        return
    for facts in facts_in_order:
        click.echo(_operation_line(facts))
    # Notes go to standard error, so that standard output has only what was asked for.
    if not facts_in_order:
        click.echo("there is no operation", err=True)
    if not operations.complete:
        click.echo("not all requests were counted: there are too many, or they are too large", err=True)


def _asyncapi(definition_by_op: dict[str, dict[str, Any]]) -> dict[str, Any]:
    settings = MeshSettings()
    # Operations may have different versions, which have no common order: the document has the one that sorts last.
    version = max((str(definition.get("version", "")) for definition in definition_by_op.values()), default="")
    return make_document(
        definition_by_op,
        title=settings.name,
        version=version,
        classes=settings.classes,
        database_count=settings.databases,
    )


def _operation_facts(state: OperationState) -> dict[str, Any]:
    """Return an operation as `mesh ops --json` prints it.

    `kind` is "command" or "query", and `served_by` the databases of the replicas that serve it. `longest_ms` is the
    time within which 100 percent of the counted answers came; 0 without answers.
    """
    facts: dict[str, Any] = {
        "op": state.op, "kind": state.kind, "served_by": state.served_by, "waits": state.waits, "runs": state.runs,
        "later": state.later, "answered": len(state.answers), "failed": state.failed,
        "longest_ms": percentile_ms(state.answers, 100) or 0, "limit": state.limit, "paused": state.paused is not None,
    }  # fmt: skip
    facts |= {name: state.definition.get(name, "") for name in ("service", "version", "summary")}
    if state.paused is not None:
        facts |= {"since": _iso_time(state.paused.since_ms), "by": state.paused.actor}
    return facts


def _operation_line(facts: dict[str, Any]) -> str:
    """Return an operation as `mesh ops` prints it, from the facts that `_operation_facts` returns."""
    databases = " ".join(map(str, facts["served_by"]))
    work_text = f"{facts['waits']} wait, {facts['runs']} run, {facts['later']} later"
    answer_text = f"{facts['answered']} answered, {facts['failed']} of them failed, longest {facts['longest_ms']} ms"
    server_text = f"served by {databases}" if databases else "served by nobody"
    limit_text = f"limit {facts['limit']};" if facts["limit"] else ""
    pause_text = f"; paused since {facts['since']} by {facts['by']}" if facts["paused"] else ""
    name_and_kind = f"{facts['op']:<24} {facts['kind']:<7}"
    parts = (name_and_kind, f"{server_text};", limit_text, f"{work_text};", f"{answer_text}{pause_text}")
    return " ".join(part for part in parts if part)


@click.command()
@redis_url_option
@data_option
@click.argument("op")
def pause(redis_url: str | None, data: Path, op: str) -> None:
    """Pause an operation, such as values.put: calls are refused, and requests that no caller waits for are parked."""

    async def pause_op(redis: Redis) -> tuple[bool, bool]:
        return await _control(redis).pause(op, current_actor()), op in await read_definitions(redis)

    is_new_pause, is_served = on_redis(redis_url, data, pause_op)
    # Replicas learn of a pause at their next renewal: every 0.5 s with the default of MESH_LEASE_TTL_MS.
    click.echo(
        f"{op} is paused within a second; mesh resume {op} ends it" if is_new_pause else f"{op} was paused before"
    )
    if not is_served:
        click.echo(f"no replica serves an operation called {op} now; mesh ops lists those that there are", err=True)


@click.command()
@redis_url_option
@data_option
@click.argument("op")
def resume(redis_url: str | None, data: Path, op: str) -> None:
    """Let a paused operation go on."""
    was_paused = on_redis(redis_url, data, lambda redis: _control(redis).resume(op, current_actor()))
    click.echo(f"{op} goes on within a second" if was_paused else f"{op} was not paused")


#: Cancels something of a service that is not a request, such as a job, by its id. Returns a sentence that says what was
#: done, or None if there is nothing with this id.
CancelOther = Callable[[Redis, str, Actor], Awaitable[str | None]]


def cancel_command(cancel_other: CancelOther, noun: str) -> click.Command:
    """Return the command `mesh cancel`, which cancels a request or something else, such as a job (see `quart_app.cli`).

    An id with the form of an entry's id belongs to a request. `cancel_other` gets every other id. `noun` is the word
    for what it cancels.
    """

    # The id of a job may begin with a hyphen, like an option.
    @click.command(name="cancel", context_settings={"ignore_unknown_options": True})
    @redis_url_option
    @data_option
    @click.argument("id")
    def cancel(redis_url: str | None, data: Path, id: str) -> None:
        if ID.fullmatch(id):
            stream_and_op = on_redis(redis_url, data, lambda redis: _control(redis).cancel(id, current_actor()))
            if stream_and_op is None:
                raise click.ClickException(
                    f"no stream has the request {id}: it has ended already, or it never was there"
                )
            # The operation is "" if the entry names none.
            click.echo(f"cancelled {stream_and_op[1] or 'a request'} on {stream_and_op[0]}")
            return
        sentence = on_redis(redis_url, data, lambda redis: cancel_other(redis, id, current_actor()))
        if sentence is None:
            raise click.ClickException(f"there is no {noun} {id}: it was deleted, or its time is over")
        click.echo(sentence)

    cancel.help = (
        f"Cancel a request that is not answered yet, by the id of its entry (mesh trace, mesh watch, XRANGE show it), "
        f"or a {noun} by its id."
    )
    return cancel


@click.command()
@redis_url_option
@data_option
@click.argument("replica")
def drain(redis_url: str | None, data: Path, replica: str) -> None:
    """Let the replica of this name (see mesh status) finish its work and leave."""
    # Here `replica` is the name of a replica, and not a `Mesh`: the help shows the parameter's name.
    if not on_redis(redis_url, data, lambda redis: _control(redis).drain(replica, current_actor())):
        raise click.ClickException(f"no live replica is called {replica}, or it leaves already; see mesh status")
    click.echo(f"{replica} begins to drain within a second")


@click.command()
@redis_url_option
@data_option
@_json_option
@click.argument("reference", metavar="ID")
def trace(redis_url: str | None, data: Path, as_json: bool, reference: str) -> None:
    """Show what became of a request. ID is the id of its entry, its name, or the X-Request-Id of its call.

    A gather has a line for each database. An answered request is known while its reply is kept: the stream of replies
    to a replica keeps the last few hundred.
    """
    steps = on_redis(redis_url, data, lambda redis: Journeys(redis, MeshSettings()).find(reference))
    if not steps:
        raise click.ClickException(f"nothing is known of {reference}: it is not waiting, and no reply to it is kept")
    if as_json:
        click.echo(json.dumps([asdict(step) for step in steps], indent=2))
        return
    for step in steps:
        click.echo(_step_line(step))


def _step_line(step: JourneyStep) -> str:
    """Return a line about one request: when, what, how it ended, who worked, for how long."""
    # `answered_ms` is 0 if there is no reply, and `accepted_ms` is 0 if the reply does not tell it. One of the two is
    # known, because each step is read from an entry, and its id begins with a time. The worker is "" if no replica has
    # the request.
    moment = _iso_time(step.accepted_ms or step.answered_ms)
    route = f"{step.sender} -> {step.worker or step.stream.removeprefix(keys.REQUESTS)}"
    times = f"{step.total_ms} ms, of which {step.took_us / 1000:.1f} ms work" if step.answered_ms else ""
    return "  ".join(part for part in (moment, step.id, step.op, step.status, route, times, step.reason) if part)


@click.group()
def dead() -> None:
    """Look at dead letters, replay them, or discard them."""


def _dead_letters(redis: Redis) -> DeadLetters:
    return DeadLetters(redis, MeshSettings().stream_bound)


@dead.command(name="list")
@redis_url_option
@data_option
@_json_option
def list_letters(redis_url: str | None, data: Path, as_json: bool) -> None:
    """List dead letters in groups by reason and stream, the largest first, each with its newest id."""
    letters: list[DeadLetter] = on_redis(redis_url, data, lambda redis: _dead_letters(redis).all())
    groups: dict[tuple[str, str], list[DeadLetter]] = {}
    for letter in letters:
        groups.setdefault((letter.reason, letter.stream), []).append(letter)
    group_facts = [
        {
            "count": len(group),
            "stream": stream,
            "newest": group[0].id,  # `all` returns the newest letter first
            "at": _iso_time(group[0].at_ms),
            "reason": reason,
        }
        for (reason, stream), group in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]
    if as_json:
        click.echo(json.dumps(group_facts, indent=2))
        return
    # A reason can be the long text of an error, so only its beginning is printed.
    for facts in group_facts:
        click.echo(f"{facts['count']:>6}  {facts['stream']}  {facts['newest']}  {facts['at']}  {facts['reason']:.300}")
    click.echo(counted(len(letters), "dead letter") if group_facts else "there is no dead letter", err=True)


@dead.command()
@redis_url_option
@data_option
@click.argument("id")
def show(redis_url: str | None, data: Path, id: str) -> None:
    """Print one dead letter as JSON: reason, stream, operation, body."""
    letter = on_redis(redis_url, data, lambda redis: _dead_letters(redis).find(id))
    if letter is None:
        raise click.ClickException(f"there is no dead letter {id}")
    click.echo(json.dumps({**asdict(letter), "at": _iso_time(letter.at_ms)}, indent=2))


_ids_argument = click.argument("ids", nargs=-1)
_like_option = click.option(
    "--like", metavar="ID", help="Take this letter, and all older ones with its reason and stream."
)


@dead.command()
@redis_url_option
@data_option
@_ids_argument
@_like_option
def replay(redis_url: str | None, data: Path, ids: tuple[str, ...], like: str | None) -> None:
    """Put dead letters back on the streams that they came from, so that each is worked on once more.

    Requests lose their deadline, and nobody gets their answers. Running this twice is safe: each letter goes back once.
    """
    _print_report(_act_on_letters(redis_url, data, ids, like, DeadLetters.replay), "replayed")


@dead.command()
@redis_url_option
@data_option
@_ids_argument
@_like_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def discard(redis_url: str | None, data: Path, ids: tuple[str, ...], like: str | None, yes: bool) -> None:
    """Delete dead letters. This cannot be undone."""
    if not yes:
        chosen = f"all letters like {like}" if like else counted(len(ids), "dead letter")
        click.confirm(f"Delete {chosen}, with everything in them?", abort=True)
    _print_report(_act_on_letters(redis_url, data, ids, like, DeadLetters.discard), "discarded")


def _act_on_letters(
    redis_url: str | None,
    data: Path,
    ids: tuple[str, ...],
    like: str | None,
    act: Callable[[DeadLetters, ChosenLetters, Actor], Awaitable[Report]],
) -> Report:
    """Replay or discard (`act`) the letters of these ids, or the group of the letter `like`."""
    if bool(ids) == bool(like):
        raise click.UsageError("name letters by their ids, or a group of them with --like ID")

    async def run(redis: Redis) -> Report:
        letters = _dead_letters(redis)
        group: LetterGroup | None = await letters.group_like(like) if like else None
        # If the letter of --like is gone, there is no group. The act then gets its id, and reports one letter as gone.
        return await act(letters, group or ids or [str(like)], current_actor())

    return on_redis(redis_url, data, run)


def _print_report(report: Report, verb: str) -> None:
    """Print what became of the letters. Raises ClickException if the act stopped before the last one."""
    gone = f", {report.gone} gone already" if report.gone else ""
    click.echo(f"{report.done} {verb}{gone}")
    if report.problem:
        raise click.ClickException(f"it stopped: {report.problem}")


#: The commands of this module, for the group `mesh`. `quart_app.cli` adds `cancel`, which needs a function of /values.
COMMANDS = (dead, ops, pause, resume, drain, trace)


def _iso_time(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds")
