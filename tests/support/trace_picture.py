"""Draws a trace as a page: one line a span, as the viewers of traces do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from tests.support.otlp import ReceivedSpan

STYLE = """
body { margin: 0; padding: 28px 36px; background: #fbfbf9; color: #1a1c1f; font: 15px/1.4 Arial, sans-serif; }
h1 { font-size: 22px; font-weight: 500; margin: 0 0 4px; }
p { margin: 0 0 18px; color: #5b5f66; }
svg { display: block; width: 100%; height: auto; font: 13px Arial, sans-serif; }
.name { fill: #1a1c1f; } .soft { fill: #5b5f66; } .line { stroke: #e2e1dc; }
.SERVER { fill: #0b6a5c; } .PRODUCER { fill: #7aa79f; } .CONSUMER { fill: #b06a00; } .INTERNAL { fill: #8a8f98; }
.inside { fill: #fbfbf9; }
.event { fill: #fbfbf9; stroke: #1a1c1f; stroke-width: 1.2; }
"""
ROW, LEFT, WIDTH = 30, 430, 1208


def drawn(spans: Sequence[ReceivedSpan]) -> str:
    """Return a page that shows the spans of one trace; each part stands below what it is a part of."""
    ids = {span.id: span for span in spans}
    roots = [span for span in spans if span.parent not in ids]
    rows = [row for root in roots for row in _rows(root, spans, 0)]
    begin, end = min(span.begin_ns for span in spans), max(span.end_ns for span in spans)
    scale = (WIDTH - LEFT - 8) / max(1, end - begin)
    lines = [_line(n, depth, span, begin, scale) for n, (depth, span) in enumerate(rows)]
    processes = sorted({span.source for span in spans})
    height = ROW * len(rows) + 8
    return (
        f"<!doctype html><meta charset=utf-8><style>{STYLE}</style><h1>{escape(roots[0].name)}</h1>"
        f"<p>Trace {spans[0].trace}: {len(spans)} spans of {', '.join(processes)} in {_ms(end - begin)}. "
        "A circle is an event: submitted, reply.</p>"
        f'<svg viewBox="0 0 {WIDTH} {height}" xmlns="http://www.w3.org/2000/svg">{"".join(lines)}</svg>'
    )


def _rows(span: ReceivedSpan, spans: Sequence[ReceivedSpan], depth: int) -> list[tuple[int, ReceivedSpan]]:
    below = [row for each in spans if each.parent == span.id for row in _rows(each, spans, depth + 1)]
    return [(depth, span), *below]


def _line(number: int, depth: int, span: ReceivedSpan, begin: int, scale: float) -> str:
    top = ROW * number
    x, width = LEFT + (span.begin_ns - begin) * scale, max(3.0, (span.end_ns - span.begin_ns) * scale)
    note = f"{_ms(span.end_ns - span.begin_ns)}{_about(span.attributes)}"
    # Inside the picture: to the left of a bar that ends at its edge.
    after = x + width + 8 < WIDTH - 7 * len(note)
    place = (x + width + 8, "start") if after else (x - 8, "end") if x > LEFT + 7 * len(note) else (x + 8, "start")
    fill = "soft" if after or place[1] == "end" else "inside"
    circles = "".join(_circle(LEFT + (at - begin) * scale, top) for _, at, _ in span.events)
    return (
        f'<line class="line" x1="0" x2="{WIDTH}" y1="{top + ROW}" y2="{top + ROW}"/>'
        f'<text class="soft" x="0" y="{top + 20}">{escape(span.source)}</text>'
        f'<text class="name" x="{64 + 18 * depth}" y="{top + 20}">{escape(span.name)}</text>'
        f'<rect class="{span.kind}" x="{x:.1f}" y="{top + 8}" width="{width:.1f}" height="14" rx="3"/>{circles}'
        f'<text class="{fill}" x="{place[0]:.1f}" y="{top + 20}" text-anchor="{place[1]}">{escape(note)}</text>'
    )


def _circle(x: float, top: int) -> str:
    return f'<circle class="event" cx="{x:.1f}" cy="{top + 15}" r="4"/>'


def _about(attributes: Mapping[str, object]) -> str:
    deliveries = attributes.get("mesh.deliveries")
    return f", delivery {deliveries}" if deliveries not in (None, 1) else ""


def _ms(nanoseconds: int) -> str:
    ms = nanoseconds / 1e6
    return f"{ms / 1000:.2f} s" if ms >= 1000 else f"{ms:.1f} ms"
