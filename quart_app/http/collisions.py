"""Finds routes of different blueprints that would answer the same request."""

from __future__ import annotations

import re
from collections.abc import Iterable

from quart import Quart
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, RequestRedirect, Rule

_PLACEHOLDER = re.compile(r"<[^<>]+>")
#: Quart answers these methods for every route by itself.
_IMPLICIT = {"HEAD", "OPTIONS"}


def find(app: Quart) -> str:
    """Return a sentence about the first collision, or "" if there is none. Routes of one blueprint may overlap."""
    rules_by_blueprint: dict[str, list[Rule]] = {}
    for rule in app.url_map.iter_rules():
        rules_by_blueprint.setdefault(rule.endpoint.rpartition(".")[0], []).append(rule)
    maps_by_blueprint = {name: Map([_copy(rule) for rule in rules]) for name, rules in rules_by_blueprint.items()}
    for name, rules in rules_by_blueprint.items():
        for rule in rules:
            for other, routes in maps_by_blueprint.items():
                if other != name and (method := _shared_method(rule, routes)):
                    return f"{method} {rule.rule} of {name} is also a route of {other}"
    return ""


def _copy(rule: Rule) -> Rule:
    return Rule(rule.rule, endpoint=rule.endpoint, methods=rule.methods, strict_slashes=rule.strict_slashes)


def _shared_method(rule: Rule, routes: Map) -> str:
    """Return the first method for which `routes` answers an example path of the rule, or ""."""
    example = _PLACEHOLDER.sub("7", rule.rule)  # valid as a text and as an integer
    return next((method for method in _methods(rule) if _has_route(routes, example, method)), "")


def _methods(rule: Rule) -> Iterable[str]:
    return sorted((rule.methods or set()) - _IMPLICIT)


def _has_route(routes: Map, path: str, method: str) -> bool:
    try:
        routes.bind("example").match(path, method)
    except RequestRedirect:  # to the same path with a slash at its end, which is a route
        return True
    except HTTPException:
        return False
    return True
