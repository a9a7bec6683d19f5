"""The list of all services. A new service needs one line here and nothing elsewhere: see docs/add-a-service.md."""

from __future__ import annotations

#: Name -> package. The package has a function `create(context) -> Service`; only replicas that run it import it.
SERVICES = {
    "values": "quart_app.values",
    "addresses": "quart_app.addresses",
    "messages": "quart_app.messages",
    "grades": "quart_app.grades",
    "movements": "quart_app.movements",
}
