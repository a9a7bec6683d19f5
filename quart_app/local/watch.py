"""`mesh watch`: requests and replies as they happen, one readable line each."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.text import Text

from mesh import Connections, RedisSettings, keys, read_roster

#: All classes and databases that a mesh can have: a stream that does not exist is read as an empty one.
CLASSES = "ABCD"
DATABASE_COUNT = 16
#: Longest wait for new entries, after which the roster is read again to find the streams of new replicas. A shorter
#: wait shows their entries sooner, and costs more reads.
BLOCK_MS = 500
#: The most characters of a body that are shown, so that an entry fills only a few lines of a terminal.
LONGEST_BODY_CHARACTERS = 200


def watched_in_words(address: str | None, op_prefix: str | None) -> str:
    """Return the beginning of a sentence that says what is watched. The command adds the server to it."""
    target = "to all classes and databases" if address is None else f"to {address}"
    operations = "" if op_prefix is None else f" whose operation begins with {op_prefix}"
    return f"watching requests {target}, all replies and dead letters{operations},"


class Watcher:
    """Reads new entries of every stream. An entry that is removed before it is read is not shown.

    Answered requests are removed from their streams at once, and old replies after a while. `address`, a class or a
    database such as "db3", limits only the requests, not the replies and dead letters; `op_prefix` limits all entries.
    """

    def __init__(self, address: str | None, op_prefix: str | None) -> None:
        self._address = address
        self._op_prefix = op_prefix
        #: stream -> id of the last entry that was read, or the id after which to read
        self._last_ids: dict[str, str] = {}

    def follow(self, streams: list[str], after_id: str) -> None:
        """Follow these streams: known ones after the last entry that was read, new ones after `after_id`."""
        self._last_ids = {stream: self._last_ids.get(stream, after_id) for stream in streams}

    async def read(self, client: Any) -> list[Text]:
        """Return a line for each entry that came since the last read."""
        arguments = [*self._last_ids, *self._last_ids.values()]
        # One read returns at most 200 entries of each stream, so that its answer stays small. The next read goes on
        # after them.
        answer = await client.execute_command("XREAD", "COUNT", 200, "BLOCK", BLOCK_MS, "STREAMS", *arguments)
        entries = [(id, stream, fields) for stream, new_entries in answer or () for id, fields in new_entries]
        for id, stream, _ in entries:
            self._last_ids[stream] = id
        return [
            entry_line(id, stream, fields)
            for id, stream, fields in sorted(entries, key=_id_order)
            if self._is_wanted(stream, fields)
        ]

    def _is_wanted(self, stream: str, fields: dict[str, str]) -> bool:
        """Return whether `mesh watch` shows this entry: its address and its operation are those that were asked for."""
        address = stream.removeprefix(keys.REQUESTS)
        is_request = stream.startswith(keys.REQUESTS)
        if self._address is not None and is_request and address != self._address:
            return False
        # "open" is no operation. To create a stream of replies, a script appends such an entry and deletes it at once.
        return fields.get("op") != "open" and (
            self._op_prefix is None or fields.get("op", "").startswith(self._op_prefix)
        )


def _id_order(entry: tuple[str, str, dict[str, str]]) -> tuple[int, int]:
    """Return the two numbers of the id of an entry, by which entries of several streams sort in order of time.

    `entry` has the id, the stream and the fields, like the arguments of `entry_line`.
    """
    milliseconds, _, sequence = entry[0].partition("-")
    return int(milliseconds), int(sequence)


def entry_line(id: str, stream: str, fields: dict[str, str]) -> Text:
    """Return one entry as a line: when, what, from whom to whom, and the body."""
    time_of_day = datetime.fromtimestamp(int(id.partition("-")[0]) / 1000, UTC).strftime("%H:%M:%S.%f")[:-3]
    text = Text(f"{time_of_day} ", style="dim")
    body = fields.get("body", "")
    shown_body = (
        body if len(body) <= LONGEST_BODY_CHARACTERS else f"{body[:LONGEST_BODY_CHARACTERS]}… ({len(body)} characters)"
    )
    op, sender = fields.get("op", "?"), fields.get("from", "?")
    if stream == keys.DEAD:
        text.append(f"dead    {op} {fields.get('reason', '')} ", style="bold red")
    elif stream.startswith(keys.REQUESTS):
        text.append(f"request {op} ", style="cyan")
        text.append(f"{sender} -> {stream.removeprefix(keys.REQUESTS)} ")
    else:
        style = "green" if fields.get("status") == "ok" else "yellow"
        text.append(f"reply   {op} {fields.get('status', '')} ", style=style)
        text.append(f"{sender} -> {stream.removeprefix(keys.REPLIES)} ")
    text.append(shown_body, style="default")
    return text


async def run(settings: RedisSettings, console: Console, address: str | None, op_prefix: str | None) -> None:
    """Print a line for each new entry until interrupted."""
    client = Connections(settings).client("mesh-watch", block_ms=BLOCK_MS)
    watcher = Watcher(address, op_prefix)
    try:
        while True:
            seconds, microseconds = await client.time()
            members = await read_roster(client)
            replies = [keys.replies(member.replica) for member in members]
            # A stream that the watcher does not know yet is read from now on.
            watcher.follow(
                [*keys.request_streams(CLASSES, DATABASE_COUNT), *replies, keys.DEAD],
                f"{seconds * 1000 + microseconds // 1000}",
            )
            for text in await watcher.read(client):
                console.print(text)
    finally:
        await client.aclose()
