"""The definition of an operation as a JSON object, for people and programs that do not have its code."""

from __future__ import annotations

import inspect
from typing import Any

from mesh.errors import refusals_of
from mesh.operations.codec import schema_of
from mesh.operations.operation import Operation


def define(op: Operation[Any, Any], service: str, handler: Any) -> dict[str, Any]:
    """Return the definition of an operation: schemas of its request and reply, and its service's own errors.

    The summary and the detail of an error are first lines of docstrings.
    """
    summary = (inspect.getdoc(handler) or "").partition("\n")[0]
    return {
        "service": service,
        "summary": summary,
        "request": None if op.body is None else schema_of(op.body, for_writing=False),
        "reply": schema_of(op.reply, for_writing=True),
        "errors": {
            error_type.code: {
                "detail": (inspect.getdoc(error_type) or error_type.__name__).partition("\n")[0],
                "facts": {name: schema_of(kind, for_writing=True) for name, kind in facts.items()},
            }
            for error_type, facts in refusals_of(service)
        },
    }
