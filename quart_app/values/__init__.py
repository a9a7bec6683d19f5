"""/values: factorise numbers and keep the result, with its time to live, in the database of a replica of a class."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quart_app.service import Context, Service

__all__ = ["create"]


def create(context: Context) -> Service:
    """Return the service.

    Its module is imported here, not above, because worker processes import this package only for the engine.
    """
    from quart_app.values import service

    return service.create(context)
