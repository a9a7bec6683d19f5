"""The command lines of both providers, and the environment that tells replicas where the providers are."""

from __future__ import annotations

import sys

#: The ports that the task text names.
FREE_PORT = 2197
PAID_PORT = 2198


def commands(free_port: int = FREE_PORT, paid_port: int = PAID_PORT) -> dict[str, list[str]]:
    """Return one command line per provider. Run it in the environment of the replicas. It stops on SIGTERM.

    With `-P`, Python imports no module from the current directory.
    """
    ports = {"free": free_port, "paid": paid_port}
    return {
        kind: [sys.executable, "-P", "-m", "quart_app.providers", kind, "--host", "127.0.0.1", "--port", str(port)]
        for kind, port in ports.items()
    }


def environment(free_port: int = FREE_PORT, paid_port: int = PAID_PORT) -> dict[str, str]:
    """Return the variables that tell a replica where the two providers are."""
    return {
        "FREE_PROVIDER_URL": f"http://127.0.0.1:{free_port}/",
        "PAID_PROVIDER_URL": f"http://127.0.0.1:{paid_port}/",
    }
