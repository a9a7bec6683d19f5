"""Reads the phone in a query string, where a raw `+` can mean a plus sign or a space.

Forms encode a space as `+`, and people paste `?phone=+7911…`. A `+` directly before a digit, at the start or after one
of `: = (`, is read as a plus sign. Every other `+` is read as a space.
"""

from __future__ import annotations

from urllib.parse import unquote

from quart_app.addresses.phone import NotAPhone


def phone_in(query: bytes) -> str:
    """Return the text of the parameter `phone`. Raises NotAPhone if it is missing, repeated or not UTF-8."""
    values = [value for name, _, value in _split_pairs(query) if name == "phone"]
    if len(values) != 1:
        raise NotAPhone("give one phone, not several" if values else "the parameter phone is missing")
    try:
        return _join_at_pluses([unquote(part, errors="strict") for part in values[0].split("+")])
    except UnicodeDecodeError:
        raise NotAPhone("the parameter phone is not UTF-8") from None


def _split_pairs(query: bytes) -> list[tuple[str, str, str]]:
    """Return name, "=" and value of each parameter, still percent-encoded."""
    # latin-1, because it decodes all bytes: UTF-8 is checked when the percent-encoding is removed.
    return [pair.partition("=") for pair in query.decode("latin-1").split("&")]


def _join_at_pluses(parts: list[str]) -> str:
    """Join the parts between raw `+`, with a plus sign or a space in place of each `+`."""
    text = parts[0]
    for part in parts[1:]:
        begins_number = text[-1:] in ("", ":", "=", "(") and part[:1].isdecimal()
        text += ("+" if begins_number else " ") + part
    return text
