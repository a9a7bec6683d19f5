"""The changes that cosmic-ray makes to a module. They run where `make mutants` has installed it."""

from __future__ import annotations

from tests.support.mutants.python import OPERATORS, candidates

SOURCE = """\
@cached
def f(a: int | None) -> bool:
    for each in a:
        if each < 3 and not b:
            continue
    return True
"""


def test_each_change_is_python_and_names_its_line() -> None:
    """Every candidate of this module changes the line that it names."""
    lines = SOURCE.splitlines()
    for candidate in candidates("a.py", SOURCE):
        after = candidate.apply()
        assert after is not None and after != SOURCE
        compile(after, "a.py", "exec")
        if candidate.kind != "RemoveDecorator":
            assert after.splitlines()[candidate.line - 1] != lines[candidate.line - 1]


def test_the_changes_of_a_module() -> None:
    """Conditions, loops, numbers, truth values and decorators are changed; annotations are not."""
    kinds = {(each.line, each.kind.removeprefix("Replace")) for each in candidates("a.py", SOURCE)}
    assert kinds >= {
        (1, "RemoveDecorator"), (3, "ZeroIterationForLoop"), (4, "ComparisonOperator_Lt_LtE"), (4, "AndWithOr"),
        (4, "NumberReplacer".removeprefix("Replace")), (5, "ContinueWithBreak"), (6, "TrueWithFalse"),
    }  # fmt: skip
    assert not any(line == 2 for line, _ in kinds)


def test_the_tool_has_every_operator() -> None:
    """A later release that renames an operator is noticed here."""
    from cosmic_ray.plugins import operator_names

    assert {f"core/{name}" for name in OPERATORS} <= set(operator_names())


def test_arguments_by_name_stay() -> None:
    """The star before them is no product."""
    assert [each.kind for each in candidates("a.py", "def f(a, *, b): ...\n")] == []
    assert "ReplaceBinaryOperator_Mul_Div" in [each.kind for each in candidates("a.py", "x = a * b\n")]


def test_a_change_that_the_tool_cannot_make_is_none() -> None:
    """It fails for a dotted name among several exceptions; the sample takes another line."""
    source = "try:\n    f()\nexcept (errors.Busy, KeyError):\n    pass\n"
    assert [each.apply() for each in candidates("a.py", source) if each.kind == "ExceptionReplacer"][:1] == [None]
