"""`mesh watch`: requests and replies as they happen, one readable line each."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.text import Text

from mesh import Connections, RedisSettings, keys, read_roster

#: All classes and databases that a mesh can have: a stream that does not exist is read as an empty one.
CLASSES = "ABCD"
DATABASES = 16
#: Longest wait for new entries, after which the roster is read again.
BLOCK_MS = 500
LONGEST_BODY = 200


def subject(cls: str | None, op: str | None) -> str:
    """Return a phrase that says what is watched."""
    target = "to all classes and databases" if cls is None else f"to {cls}"
    operations = "" if op is None else f" whose operation begins with {op}"
    return f"watching requests {target}, all replies and dead letters{operations},"


class Watcher:
    """Reads new entries of every stream. If the mesh is faster than the terminal, some entries are not shown."""

    def __init__(self, cls: str | None, op: str | None) -> None:
        self._cls = cls
        self._op = op
        self._last_ids: dict[str, str] = {}

    def follow(self, streams: list[str], now: str) -> None:
        """Follow these streams: known ones from the last entry read, new ones from `now`."""
        self._last_ids = {stream: self._last_ids.get(stream, now) for stream in streams}

    async def read(self, client: Any) -> list[Text]:
        """Return a line for each entry that came since the last read."""
        arguments = [*self._last_ids, *self._last_ids.values()]
        answer = await client.execute_command("XREAD", "COUNT", 200, "BLOCK", BLOCK_MS, "STREAMS", *arguments)
        entries = [(id, stream, fields) for stream, of_stream in answer or () for id, fields in of_stream]
        for id, stream, _ in entries:
            self._last_ids[stream] = id
        return [
            line(id, stream, fields)
            for id, stream, fields in sorted(entries, key=_position)
            if self._is_wanted(stream, fields)
        ]

    def _is_wanted(self, stream: str, fields: dict[str, str]) -> bool:
        target = stream.removeprefix(keys.REQUESTS)
        is_request = stream.startswith(keys.REQUESTS)
        if self._cls is not None and is_request and target != self._cls:
            return False
        return fields.get("op") != "open" and (self._op is None or fields.get("op", "").startswith(self._op))


def _position(entry: tuple[str, str, dict[str, str]]) -> tuple[int, int]:
    milliseconds, _, sequence = entry[0].partition("-")
    return int(milliseconds), int(sequence)


def line(id: str, stream: str, fields: dict[str, str]) -> Text:
    """Return one entry as a line: when, what, from whom to whom, and the body."""
    time_of_day = datetime.fromtimestamp(int(id.partition("-")[0]) / 1000, UTC).strftime("%H:%M:%S.%f")[:-3]
    text = Text(f"{time_of_day} ", style="dim")
    body = fields.get("body", "")
    shown_body = body if len(body) <= LONGEST_BODY else f"{body[:LONGEST_BODY]}… ({len(body)} characters)"
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


async def run(settings: RedisSettings, console: Console, cls: str | None, op: str | None) -> None:
    """Print lines until interrupted."""
    client = Connections(settings).client("mesh-watch", block_ms=BLOCK_MS)
    watcher = Watcher(cls, op)
    try:
        while True:
            seconds, microseconds = await client.time()
            members = await read_roster(client)
            replies = [keys.replies(member.replica) for member in members]
            watcher.follow(
                [*keys.request_streams(CLASSES, DATABASES), *replies, keys.DEAD],
                f"{seconds * 1000 + microseconds // 1000}",
            )
            for text in await watcher.read(client):
                console.print(text)
    finally:
        await client.aclose()
