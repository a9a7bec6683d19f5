"""Finds routes of different blueprints that would answer the same request."""

from __future__ import annotations

import re
from collections.abc import Iterable

from quart import Quart
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, RequestRedirect, Rule

_PLACEHOLDER = re.compile(r"<[^<>]+>")
#: Quart answers these methods for every route by itself.
_AUTOMATIC_METHODS = {"HEAD", "OPTIONS"}


def find(app: Quart) -> str:
    """Return a sentence about the first collision, or "" if there is none. Routes of one blueprint may overlap.

    `app.create_app` refuses to start with a collision. An endpoint is `blueprint.view`.
    """
    rules_by_blueprint: dict[str, list[Rule]] = {}
    for rule in app.url_map.iter_rules():
        rules_by_blueprint.setdefault(rule.endpoint.rpartition(".")[0], []).append(rule)
    route_maps_by_blueprint = {
        blueprint: Map([_copy_rule(rule) for rule in rules]) for blueprint, rules in rules_by_blueprint.items()
    }
    for blueprint, rules in rules_by_blueprint.items():
        for rule in rules:
            for other_blueprint, other_routes in route_maps_by_blueprint.items():
                if other_blueprint != blueprint and (method := _shared_method(rule, other_routes)):
                    return f"{method} {rule.rule} of {blueprint} is also a route of {other_blueprint}"
    return ""


def _copy_rule(rule: Rule) -> Rule:
    """Return a copy, because a rule can belong to one map only."""
    return Rule(rule.rule, endpoint=rule.endpoint, methods=rule.methods, strict_slashes=rule.strict_slashes)


def _shared_method(rule: Rule, other_routes: Map) -> str:
    """Return the first method for which `other_routes` answers an example path of the rule, or ""."""
    example_path = _PLACEHOLDER.sub("7", rule.rule)  # "7" is valid as a text and as an integer
    return next((method for method in _methods(rule) if _answers(other_routes, example_path, method)), "")


def _methods(rule: Rule) -> Iterable[str]:
    return sorted((rule.methods or set()) - _AUTOMATIC_METHODS)


def _answers(other_routes: Map, path: str, method: str) -> bool:
    try:
        other_routes.bind("example").match(path, method)
    except RequestRedirect:  # to the same path with a slash at its end, which is a route
        return True
    except HTTPException:
        return False
    return True
