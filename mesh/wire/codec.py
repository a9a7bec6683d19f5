"""JSON as text, for the bodies of requests and replies and for the answers of scripts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

ENCODER = msgspec.json.Encoder()
_DECODER: msgspec.json.Decoder[Any] = msgspec.json.Decoder()


def encode(body: Mapping[str, Any]) -> str:
    """Return a body as readable JSON."""
    return ENCODER.encode(body).decode()


def decode(text: str) -> Any:
    """Return the value of a JSON text. Raises ValueError when the text is not valid JSON."""
    try:
        return _DECODER.decode(text)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error
