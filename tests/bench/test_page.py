"""What open pages cost."""

from __future__ import annotations

import socket
import threading

from bench.page import GOAL, LOADS, VIEWERS, ratios, viewer


def test_each_number_of_pages_is_compared_with_none() -> None:
    """Rates are compared within a round, under the same load."""
    series = {"0|rate": [100, 200], "1|rate": [99, 198], "16|rate": [90, 180]}
    found = ratios({f"{name}|{what}": values for name in LOADS for what, values in series.items()})
    assert len(found) == len(LOADS) * (len(VIEWERS) - 1)
    assert [round(ratio.spread.median, 2) for ratio in found.values()] == [0.99, 0.9] * 2
    assert [ratio.met for ratio in found.values()] == [True, False] * 2 and GOAL == 0.98


def test_a_viewer_hears_the_first_event_and_hangs_up() -> None:
    """The viewer finds its first event, also when that comes in pieces."""
    server = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def serve() -> None:
        connection, _ = server.accept()
        assert connection.recv(4096).startswith(b"GET /mesh/events/overview")
        for piece in (b"HTTP/1.1 200 OK\r\n\r\nretry: 1000\n\nevent: sec", b"tions\ndata: {}\n\n"):
            connection.sendall(piece)
        assert connection.recv(1) == b""
        ended.set()

    threading.Thread(target=serve, daemon=True).start()
    with viewer("127.0.0.1", server.getsockname()[1]) as heard:
        assert heard.wait(5)
    assert ended.wait(5)
    server.close()
