"""The `mesh` command: a mesh on this machine, and the administrators of the message service."""

from __future__ import annotations

import sys

try:
    from quart_app.local.cli import main
    from quart_app.local.operate import cancel_command
    from quart_app.messages.cli import admin
    from quart_app.values.panel import cancel_by_id
except ModuleNotFoundError as error:  # installed as a library, without the services
    sys.exit(f"the mesh command needs {error.name}; install it with: pip install 'quart-mesh[api,local]'")

main.add_command(admin)
main.add_command(cancel_command(cancel_by_id, "job"))

__all__ = ["main"]
