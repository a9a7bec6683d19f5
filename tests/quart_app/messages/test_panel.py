"""What an operator sees of the free provider."""

from __future__ import annotations

from mesh.quota import Allowance
from quart_app.messages.panel import panel_of


def test_an_open_provider_says_how_much_it_takes() -> None:
    """The panel has a figure and a bar."""
    found = panel_of(Allowance(10, 9, None, 0))
    assert found.phrase == "the free provider is open"
    assert [(each.value, each.note, each.bad) for each in found.figures] == [("9", "of 10", False)]
    assert [(each.state, each.done, each.whole) for each in found.items] == [("open", 1, 10)]


def test_a_closed_provider_says_for_how_long() -> None:
    """The panel also says how many messages go one at a time afterwards."""
    found = panel_of(Allowance(10, 0, 43_000, 1000, caution=2))
    assert found.phrase == "the free provider is closed for 42 s"
    assert [(each.name, each.value, each.bad) for each in found.figures] == [
        ("free messages left", "0", True), ("opens in", "42 s", False), ("one at a time", "2", False),
    ]  # fmt: skip
    assert found.items[0].done == 10 and found.items[0].bad
