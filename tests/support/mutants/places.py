"""The lines that run the effect of a changed line."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from functools import lru_cache

#: Lines by the path of their file; None means any line of it.
Places = dict[str, set[int] | None]


def places(path: str, line: int, modules: Mapping[str, str]) -> Places:
    """Return the lines that run when a line of a module has an effect; `modules` are the sources by path.

    A line inside a function stands for its statement, without the statements inside it. A constant or a field runs when
    the module is imported; it stands for the lines that name it. Any other line of a module stands for the module.
    """
    found: Places = {}
    open_places, seen = [(path, line)], set()
    while open_places:
        at, number = place = open_places.pop()
        if place in seen:
            continue
        seen.add(place)
        if own := own_lines(modules[at], number):
            found.setdefault(at, set()).update(own)  # type: ignore[union-attr]
        elif use := _use(modules[at], number):
            for other, source in modules.items():
                if use.search(source):
                    open_places += [(other, n) for n, text in enumerate(source.splitlines(), 1) if use.search(text)]
    return found or {path: None}


def own_lines(source: str, line: int) -> set[int] | None:
    """Return the lines of the statement at `line` without the statements inside it; None if they run at import.

    The head of a function stands for all of its lines: defaults and decorators have an effect when it is called.
    """
    around = [node for node in _statements(source) if line in _span(node)]
    if not any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in around):
        return None
    innermost = min(around, key=lambda node: len(_span(node)))
    if isinstance(innermost, ast.FunctionDef | ast.AsyncFunctionDef):
        return set(range(innermost.body[0].lineno, (innermost.end_lineno or 0) + 1))
    inside = [_span(node) for node in ast.walk(innermost) if isinstance(node, ast.stmt) and node is not innermost]
    return set(_span(innermost)).difference(*inside) | {line}


def _use(source: str, line: int) -> re.Pattern[str] | None:
    """Return how other lines name the constant or field that a line outside of functions gives a value to."""
    around = [node for node in _statements(source) if line in _span(node)]
    for node in around:
        target = (
            node.target
            if isinstance(node, ast.AnnAssign)
            else node.targets[0]
            if isinstance(node, ast.Assign)
            else None
        )
        if isinstance(target, ast.Name):
            is_field = any(isinstance(each, ast.ClassDef) for each in around)
            return re.compile(rf"\.{target.id}\b|\b{target.id}=" if is_field else rf"\b{target.id}\b")
    return None


@lru_cache(maxsize=256)
def _statements(source: str) -> list[ast.stmt]:
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]


def _span(node: ast.stmt) -> range:
    """Return the lines of a statement, decorators included."""
    decorators = getattr(node, "decorator_list", [])
    return range(min([node.lineno, *(each.lineno for each in decorators)]), (node.end_lineno or node.lineno) + 1)
