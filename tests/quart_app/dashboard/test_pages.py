"""Views as HTML."""

from __future__ import annotations

from mesh.dead.letters import DeadLetter
from quart_app.dashboard.assets import Assets
from quart_app.dashboard.pages import CHANGING_BLOCKS, VIEWS, Pages, PageView, group_letters
from tests.support.dashboard import QUIET

PAGES = Pages(Assets())


def letter(number: int, reason: str, stream: str = "mesh:requests:A") -> DeadLetter:
    return DeadLetter(f"{number}-0", number, "request", stream, reason, "op", "3", 2, "{}")


def view(name: str, **facts: object) -> PageView:
    return PageView(name, QUIET, "replica-1", 10_000, 3000, True, **facts)  # type: ignore[arg-type]


def test_dead_letters_are_grouped_by_reason_and_stream() -> None:
    """The largest group first, its letters as they were given."""
    letters = [letter(4, "x"), letter(3, "y"), letter(2, "y"), letter(1, "y", "events:m")]
    assert [(group.reason, group.stream, len(group.letters)) for group in group_letters(letters)] == [
        ("y", "mesh:requests:A", 2), ("x", "mesh:requests:A", 1), ("y", "events:m", 1),
    ]  # fmt: skip


def test_sections_are_parts_of_the_page() -> None:
    """A browser that gets sections shows what one that loads the page shows."""
    for name in VIEWS:
        page, sections = PAGES.page(view(name), ""), PAGES.sections(view(name))
        assert len(sections) == 1 + len(CHANGING_BLOCKS[name])
        for id, html in sections.items():
            assert f'id="{id}"' in html and html in page


def test_a_large_group_says_that_it_shows_its_newest() -> None:
    """No view shows everything."""
    html = PAGES.page(view("dead", groups=group_letters([letter(n, "x") for n in range(200, 0, -1)])), "")
    assert html.count('<tr id="letter-') == 20 and "The newest 20" in html
