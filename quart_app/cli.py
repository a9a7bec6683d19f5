"""The `mesh` command: a mesh on this machine, and the administrators of the message service."""

from __future__ import annotations

from quart_app.local.cli import main
from quart_app.messages.cli import admin

main.add_command(admin)

__all__ = ["main"]
