"""The evaluator of `eval(...)`: Python's arithmetic on everything that it takes, and a plain error for all else."""

from __future__ import annotations

import contextlib
import math
import operator
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_accel.recipe.expressions import (
    LARGEST,
    ExpressionError,
    Scope,
    evaluate_expression,
    expression_in,
)

OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
}


def evaluate(text: str, **variables: Any) -> Any:
    return Scope(variables).evaluate(f"eval({text})")


# An expression as a pair: its text, and a function that computes it with Python's own operators.
Pair = tuple[str, Any]


def _number(value: float) -> Pair:
    return repr(value), lambda: value


def _combined(parts: tuple[Pair, str, Pair]) -> Pair:
    (left, compute_left), sign, (right, compute_right) = parts
    return f"({left}) {sign} ({right})", lambda: OPERATIONS[sign](compute_left(), compute_right())


def _called(parts: tuple[str, Pair, Pair]) -> Pair:
    name, (left, compute_left), (right, compute_right) = parts
    if name in ("max", "min"):
        function = max if name == "max" else min
        return f"{name}({left}, {right})", lambda: function(compute_left(), compute_right())
    singles: dict[str, Callable[[Any], Any]]
    singles = {"abs": abs, "int": int, "float": float, "round": round, "-": operator.neg}
    single = singles[name]
    return f"{name}({left})", lambda: single(compute_left())


pairs = st.recursive(
    st.one_of(st.integers(0, 20).map(_number), st.floats(0, 100, allow_subnormal=False).map(_number)),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(list(OPERATIONS)), inner).map(_combined),
        st.tuples(st.sampled_from(["max", "min", "abs", "int", "float", "round", "-"]), inner, inner).map(_called),
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(pairs)
def test_equals_python_wherever_python_has_a_modest_answer(pair: Pair) -> None:
    text, compute = pair
    try:
        ours = evaluate(text)
    except ExpressionError:
        ours = None
    if ours is None and len(text) <= 60 and "**" not in text:
        try:
            expected = compute()
        except (ZeroDivisionError, OverflowError, ValueError):
            return
        assert not math.isfinite(expected) or abs(expected) > 1e15, f"{text} is {expected}, and was refused"
    if ours is not None:
        assert ours == compute() and type(ours) is type(compute())


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["+", "-", "*", "/", "//", "%"]), min_size=1, max_size=6), st.data())
def test_precedence_without_parentheses(signs: list[str], data: st.DataObject) -> None:
    numbers = [data.draw(st.integers(1, 9)) for _ in range(len(signs) + 1)]
    values: list[Any] = [numbers[0]]
    text = str(numbers[0])
    pending: list[str] = []
    for sign, number in zip(signs, numbers[1:], strict=True):
        text += f" {sign} {number}"
        if sign in "+-":
            values.append(number)
            pending.append(sign)
        else:
            values[-1] = OPERATIONS[sign](values[-1], number)
    total = values[0]
    for sign, value in zip(pending, values[1:], strict=True):
        total = OPERATIONS[sign](total, value)
    assert evaluate(text) == total


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2 ** 3 ** 2", 512),
        ("-2 ** 2", -4),
        ("2 ** -1", 0.5),
        ("--3", 3),
        ("+3", 3),
        ("1e-4 * 2", 2e-4),
        (".5 + 5.", 5.5),
        ("round(2.567, 2)", 2.57),
        ("max(1, 2, 3) - min(4, 5)", -1),
        ("  ( 1+2 )*3 ", 9),
        ("7 // 2 % 2", 1),
    ],
)
def test_examples(text: str, expected: float) -> None:
    result = evaluate(text)
    assert result == pytest.approx(expected) and type(result) is type(expected)


def test_variables_may_depend_on_each_other_and_a_bare_one_may_be_anything() -> None:
    scope = Scope({"a": 4, "b": "eval(a * 2 + 1)", "c": ["eval(b)", {"deep": "eval(name)"}], "name": "hello"})
    assert scope.variable("b") == 9
    assert scope.evaluate("eval(c)") == [9, {"deep": "hello"}]
    assert scope.evaluate({"eval(name)": [["eval( a )"]]}) == {"hello": [[4]]}


def test_a_scope_within_shadows_what_is_outside_and_leaves_it_alone() -> None:
    outer = Scope({"n": 1, "double": "eval(n * 2)"})
    inner = Scope({"n": 5, "sum": "eval(n + double)"}, outer)
    assert inner.variable("sum") == 5 + 2
    assert outer.used == {"n", "double"} and inner.used == {"sum", "n"}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "empty"),
        ("1 +", "its end"),
        ("1 2", "'2'"),
        ("(1", "no closing parenthesis"),
        ("max(1, )", "')'"),
        ("1 / 0", "division by zero"),
        ("0 ** -1", "division by zero"),
        ("1 % 0", "division by zero"),
        ("(-8) ** 0.5", "not a real number"),
        ("num_epoch + 1", "Did you mean 'num_epochs'?"),
        ("nope", "no variable 'nope'"),
        ("name + 1", "'hello', not a number"),
        ("flag + 1", "True, not a number"),
        ("name.upper", "'.'"),
        ("name['a']", "'['"),
        ("__import__(1)", "not a function"),
        ("open(1)", "not a function"),
        ("max", "is a function"),
        ("max + 1", "is a function"),
        ("abs(1, 2)", "arguments: 2"),
        ("round(1.5, 0.5)", "an integer"),
        ("round(1, -99999999999)", "at most"),
        ("1 if 1 else 2", "'if'"),
        ("1 < 2", "'<'"),
        ("'a' * 9", "cannot be read"),
        ("9 ** 9 ** 9", "too large"),
        ("10 ** 400 * 1.0", "too large"),
        ("1e308 * 10", "too large"),
        (f"{LARGEST} * 10", f"larger than {LARGEST}"),
        ("1e999", "too large"),
        ("(" * 60 + "1" + ")" * 60, "nested"),
        ("-" * 60 + "1", "nested"),
        ("1+" * 600 + "1", "characters long"),
    ],
)
def test_errors_say_what_is_wrong(text: str, part: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        evaluate(text, num_epochs=13, name="hello", flag=True)
    assert part in str(caught.value)


def test_a_circle_is_named() -> None:
    with pytest.raises(ExpressionError, match="a -> b -> a"):
        Scope({"a": "eval(b + 1)", "b": "eval(a + 1)"}).variable("a")
    with pytest.raises(ExpressionError, match="n -> n"):
        Scope({"n": "eval(n)"}).variable("n")


@pytest.mark.parametrize("value", [3, None, "evaluate(x)", "x eval(y)", "eval", "", "re:eval(x)"])
def test_only_a_text_that_is_wholly_eval_is_an_expression(value: Any) -> None:
    assert expression_in(value) is None


@pytest.mark.parametrize("value", ["eval(a) + 1", "eval(a) + eval(b)", "eval(a))", "eval(a"])
def test_a_text_that_is_partly_eval_is_an_error(value: str) -> None:
    with pytest.raises(ExpressionError):
        expression_in(value)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="0123456789+-*/%().,eab naxmi[]'_", max_size=40))
def test_no_text_hangs_or_fails_otherwise(text: str) -> None:
    started = time.monotonic()
    with contextlib.suppress(ExpressionError, KeyError):
        evaluate_expression(text, {"a": 2, "b": 3.5}.__getitem__)
    assert time.monotonic() - started < 1
