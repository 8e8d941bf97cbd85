"""The arithmetic of `eval(...)` in recipes: a parser that never executes code.

Grammar, with Python's precedence and results:

    sum     = product (("+" | "-") product)*
    product = unary (("*" | "/" | "//" | "%") unary)*
    unary   = ("-" | "+") unary | power
    power   = atom ["**" unary]
    atom    = number | variable | function "(" sum ("," sum)* ")" | "(" sum ")"
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from typing import Any

from sparse_accel.errors import nearest

Number = int | float

# Limits that no real recipe reaches; they keep the evaluation of every expression fast.
LONGEST = 1000
DEEPEST = 50
LARGEST = 10**18

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
    r"|(?P<name>[^\W\d]\w*)"
    r"|(?P<operator>\*\*|//|[-+*/%(),]))"
)
_EXPRESSION = re.compile(r"\s*eval\s*\(")

_OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
}
# name: (function, fewest arguments, most arguments)
_FUNCTIONS: dict[str, tuple[Callable[..., Any], int, int]] = {
    "abs": (abs, 1, 1),
    "float": (float, 1, 1),
    "int": (int, 1, 1),
    "max": (max, 2, LONGEST),
    "min": (min, 2, LONGEST),
    "round": (round, 1, 2),
}


class ExpressionError(ValueError):
    """An expression that is not valid or has no value. The recipe reader adds file and line."""


def expression_in(value: object) -> str | None:
    """Returns the expression of a value that is entirely `eval(...)`; None for any other value.

    Raises:
        ExpressionError: the value begins with `eval(` but is not one complete expression.
    """
    if not isinstance(value, str) or not (opening := _EXPRESSION.match(value)):
        return None
    text = value.rstrip()
    depth = 1
    for position in range(opening.end(), len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            if position == len(text) - 1:
                return text[opening.end() : position].strip()
            raise ExpressionError(f"the entire value must be inside eval(...), got '{text}'")
    raise ExpressionError(f"'{text}' has no closing parenthesis")


def evaluate_expression(text: str, variable: Callable[[str], Any]) -> Any:
    """Returns the value of the text between the parentheses of `eval(...)`.

    Args:
        text: a name alone, whose value may have any type; or arithmetic on finite numbers.
        variable: returns the value of a name; raises ExpressionError if it does not exist.

    Raises:
        ExpressionError: the expression is not valid or has no value.
    """
    if len(text) > LONGEST:
        raise ExpressionError(f"the expression is {len(text)} characters long; at most {LONGEST} are allowed")
    if text.isidentifier() and text not in _FUNCTIONS:
        return variable(text)
    return _Parser(text, variable).value()


class _Parser:
    """Recursive-descent parser of one expression; every method returns the value of what it parsed."""

    def __init__(self, text: str, variable: Callable[[str], Any]) -> None:
        self.text = text
        self.variable = variable
        self.tokens = _tokens(text)
        self.position = 0
        self.depth = 0

    def value(self) -> Number:
        if not self.tokens:
            raise ExpressionError("eval() is empty")
        value = self.sum()
        if self.position < len(self.tokens):
            raise self.unexpected()
        return value

    def sum(self) -> Number:
        value = self.product()
        while operation := self.take("+", "-"):
            value = self.apply(operation, value, self.product())
        return value

    def product(self) -> Number:
        value = self.unary()
        while operation := self.take("*", "/", "//", "%"):
            value = self.apply(operation, value, self.unary())
        return value

    def unary(self) -> Number:
        self.depth += 1
        if self.depth > DEEPEST:
            raise ExpressionError(f"the expression is nested more than {DEEPEST} levels deep")
        sign = self.take("-", "+")
        value: Number
        if sign:
            operand = self.unary()
            value = -operand if sign == "-" else operand
        else:
            value = self.power()
        self.depth -= 1
        return value

    def power(self) -> Number:
        base = self.atom()
        return _power(base, self.unary()) if self.take("**") else base

    def atom(self) -> Number:
        kind, token = self.tokens[self.position] if self.position < len(self.tokens) else ("end", "")
        if kind == "number":
            self.position += 1
            return _checked(float(token) if set(token) & set(".eE") else int(token))
        if kind == "name":
            self.position += 1
            return self.call(token) if self.take("(") else self.number(token)
        if self.take("("):
            value = self.sum()
            self.expect(")")
            return value
        raise self.unexpected()

    def call(self, name: str) -> Number:
        arguments = [self.sum()]
        while self.take(","):
            arguments.append(self.sum())
        self.expect(")")
        if name not in _FUNCTIONS:
            raise ExpressionError(f"'{name}' is not a function; use one of {', '.join(_FUNCTIONS)}")
        function, fewest, most = _FUNCTIONS[name]
        if not fewest <= len(arguments) <= most:
            raise ExpressionError(f"{name}() got a wrong number of arguments: {len(arguments)}")
        if name == "round" and not all(isinstance(digits, int) and abs(digits) <= DEEPEST for digits in arguments[1:]):
            raise ExpressionError(f"the digits of round() must be an integer of at most {DEEPEST}")
        return _checked(function(*arguments))

    def number(self, name: str) -> Number:
        if name in _FUNCTIONS:
            raise ExpressionError(f"'{name}' is a function: write {name}(...)")
        value = self.variable(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ExpressionError(f"'{name}' is {value!r}, not a number")
        return _checked(value)

    def apply(self, operation: str, left: Number, right: Number) -> Number:
        try:
            return _checked(_OPERATIONS[operation](left, right))
        except ZeroDivisionError:
            raise ExpressionError(f"division by zero: {left} {operation} {right}") from None

    def take(self, *operators: str) -> str:
        """Moves past the next token if it is one of `operators` and returns it; otherwise returns an empty string."""
        if self.position < len(self.tokens):
            kind, token = self.tokens[self.position]
            if kind == "operator" and token in operators:
                self.position += 1
                return token
        return ""

    def expect(self, token: str) -> None:
        if not self.take(token):
            raise self.unexpected(f"; '{token}' is missing")

    def unexpected(self, hint: str = "") -> ExpressionError:
        found = f"'{self.tokens[self.position][1]}'" if self.position < len(self.tokens) else "its end"
        return ExpressionError(f"the expression '{self.text}' cannot be read at {found}{hint}")


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens, position, end = [], 0, len(text.rstrip())
    while position < end:
        token = _TOKEN.match(text, position)
        if not token or not token.lastgroup:
            character = text[position:].lstrip()[0]
            raise ExpressionError(
                f"the expression '{text}' cannot be read at '{character}': "
                "use numbers, variables, + - * / // ** %, parentheses and " + ", ".join(_FUNCTIONS)
            )
        tokens.append((token.lastgroup, token[token.lastgroup]))
        position = token.end()
    return tokens


def _power(base: Number, exponent: Number) -> Number:
    whole = isinstance(base, int) and isinstance(exponent, int)
    if whole and abs(base) > 1 and exponent > 0 and exponent * math.log2(abs(base)) > math.log2(LARGEST) + 1:
        raise ExpressionError(f"{base} ** {exponent} is too large")
    if base < 0 and not float(exponent).is_integer():
        raise ExpressionError(f"{base} ** {exponent} is not a real number")
    try:
        return _checked(base**exponent)
    except ZeroDivisionError:
        raise ExpressionError(f"division by zero: {base} ** {exponent}") from None
    except OverflowError:
        raise ExpressionError(f"{base} ** {exponent} is too large") from None


def _checked(value: Number) -> Number:
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ExpressionError(f"an integer is larger than {LARGEST}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ExpressionError("a number is too large")
    return value


class Scope:
    """Variables by name, each evaluated at its first use; names that are not found here come from an enclosing scope.

    Attributes:
        used: the names that were used, here or in an inner scope.
    """

    def __init__(self, variables: dict[str, Any], enclosing: Scope | None = None) -> None:
        self.variables = variables
        self.enclosing = enclosing
        self.used: set[str] = set()
        self._values: dict[str, Any] = {}
        self._open: list[str] = []

    def variable(self, name: str) -> Any:
        """Returns the evaluated value of a variable.

        Raises:
            ExpressionError: the name does not exist, its expression is not valid, or variables form a cycle.
        """
        if name not in self.variables:
            if self.enclosing and name in self.enclosing.names():
                return self.enclosing.variable(name)
            known = self.names()
            listed = f" The variables are: {', '.join(sorted(known))}." if known else " The recipe has no variables."
            raise ExpressionError(f"there is no variable '{name}'.{nearest(name, known)}{listed}")
        self.used.add(name)
        if name in self._open:
            cycle = " -> ".join([*self._open[self._open.index(name) :], name])
            raise ExpressionError(f"the variables depend on each other in a cycle: {cycle}")
        if name not in self._values:
            self._open.append(name)
            try:
                self._values[name] = self.evaluate(self.variables[name])
            finally:
                self._open.pop()
        return self._values[name]

    def names(self) -> set[str]:
        """Returns the names of all variables, those of enclosing scopes included."""
        return {str(name) for name in self.variables} | (self.enclosing.names() if self.enclosing else set())

    def evaluate(self, value: Any) -> Any:
        """Returns `value` with every `eval(...)` replaced by its result, at any depth of lists and mappings."""
        if isinstance(value, dict):
            return {self.evaluate(key): self.evaluate(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [self.evaluate(entry) for entry in value]
        expression = expression_in(value)
        return value if expression is None else evaluate_expression(expression, self.variable)
