"""The list of all services. A new service needs one line here and nothing elsewhere: see docs/add-a-service.md."""

from __future__ import annotations

#: Name -> module with a function `create(context) -> Service`. Only replicas that run a service import this module. The
#: `__init__.py` of its package imports nothing, because commands and worker processes need only parts of the package.
SERVICES = {
    "values": "quart_app.values.service",
    "addresses": "quart_app.addresses.service",
    "messages": "quart_app.messages.service",
    "grades": "quart_app.grades.service",
    "movements": "quart_app.movements.service",
}
