"""Mutants of a Python module, made by cosmic-ray."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator

from tests.support.mutants.mutant import Candidate

#: The operators of cosmic-ray that the sample uses. Left out are those whose mutants nearly always raise TypeError,
#: such as `a ** b` for `a + b`: any test that reaches the line kills them, so they would only raise the share.
OPERATORS = (
    *(
        f"ReplaceComparisonOperator_{change}"
        for change in ("Eq_NotEq", "NotEq_Eq", "Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Is_IsNot", "IsNot_Is")
    ),
    *(
        f"ReplaceBinaryOperator_{change}"
        for change in ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul", "Mod_Mul")
    ),
    "ReplaceUnaryOperator_Delete_Not", "ReplaceUnaryOperator_Delete_USub",
    "AddNot", "ReplaceAndWithOr", "ReplaceOrWithAnd", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue",
    "ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "ZeroIterationForLoop",
    "ExceptionReplacer", "NumberReplacer", "RemoveDecorator",
)  # fmt: skip


def candidates(path: str, source: str) -> Iterator[Candidate]:
    """Yield the changes that can be made to a module."""
    lines = source.splitlines()
    nodes = list(ast_nodes(get_ast(source)))
    for name in OPERATORS:
        operator = get_operator(f"core/{name}")()
        places = [place for node in nodes for place in operator.mutation_positions(node)]
        for occurrence, ((line, column), _end) in enumerate(places):
            # The star before arguments by name is no multiplication, though cosmic-ray takes it for one.
            if lines[line - 1].startswith("*,", column):
                continue
            yield Candidate(path, line, name, partial(_mutate, source, operator, occurrence))


def _mutate(source: str, operator: object, occurrence: int) -> str | None:
    try:
        changed = mutate_code(source, operator, occurrence)
        compile(changed or "", "mutant", "exec")
    except (SyntaxError, AttributeError):
        # ExceptionReplacer fails for a dotted name among others, such as `except (errors.Busy, KeyError)`.
        return None
    return changed
