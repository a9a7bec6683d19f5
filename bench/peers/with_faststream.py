"""FastStream: `broker.request`, its RPC over Redis, with a list as the queue and a subscription for each reply."""

from __future__ import annotations

import logging
import os
import sys

from faststream import FastStream
from faststream.redis import ListSub, RedisBroker, StreamSub
from load import REDIS_URL, drive, run

#: Of channel, list and stream, the list had the best latency and rate.
QUEUE = os.environ.get("BENCH_FASTSTREAM_QUEUE", "list")
#: Each request holds a connection for its reply; the pool's default of 100 would refuse more.
CONNECTIONS = 1000

broker = RedisBroker(REDIS_URL, max_connections=CONNECTIONS, logger=logging.getLogger("quiet"))
app = FastStream(broker)
SOURCE = {
    "channel": {"channel": "bench"},
    "list": {"list": ListSub("bench", polling_interval=0.01)},
    "stream": {"stream": StreamSub("bench", group="bench", consumer="one", polling_interval=10)},
}[QUEUE]


@broker.subscriber(**SOURCE, **({"max_workers": 128} if QUEUE != "list" else {}))
async def handle(number: int) -> int:
    await broker._connection.set(f"stored:{number}", number)
    return number


async def client() -> None:
    target = {QUEUE: "bench"}

    async def call(number: int) -> int:
        message = await broker.request(number, timeout=10.0, **target)
        return int(await message.decode())

    async with broker:
        await drive(lambda in_flight: call)


if __name__ == "__main__":
    logging.getLogger("quiet").setLevel(logging.ERROR)
    run(app.run() if sys.argv[1] == "worker" else client())
