"""The phone of a query string, where a raw `+` means two things.

Forms write a space as `+`, and people paste `?phone=+7911…`. A plus right before a digit, at the start or after
one of `: = (`, is a plus sign; every other one is a space.
"""

from __future__ import annotations

from urllib.parse import unquote

from quart_app.addresses.phone import NotAPhone


def phone_of(query: bytes) -> str:
    """The one `phone` in a query string. Raises NotAPhone where it is missing, doubled or not UTF-8."""
    found = [value for name, _, value in _pairs(query) if name == "phone"]
    if len(found) != 1:
        raise NotAPhone("give one phone" if found else "the phone is missing")
    try:
        return _join([unquote(part, errors="strict") for part in found[0].split("+")])
    except UnicodeDecodeError:
        raise NotAPhone("the phone is not UTF-8") from None


def _pairs(query: bytes) -> list[tuple[str, str, str]]:
    return [pair.partition("=") for pair in query.decode("latin-1").split("&")]


def _join(parts: list[str]) -> str:
    text = parts[0]
    for part in parts[1:]:
        begins_number = text[-1:] in ("", ":", "=", "(") and part[:1].isdecimal()
        text += ("+" if begins_number else " ") + part
    return text
