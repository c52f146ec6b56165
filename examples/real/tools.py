"""Three tools of the agent examples, as plain functions: both frameworks take their schemas from them.

Annotations are no strings here (no ``from __future__ import annotations``): LlamaIndex would not resolve their names.
"""

import ast
import operator
from collections.abc import Callable
from typing import Literal

from gac_core.evaluation.metrics import contains

# From the handbook of the other examples (examples/handbook/inns.md); the type restricts calls to these inns.
Inn = Literal["Rinma Inn", "Zelna Inn", "Yarlund Inn", "Talra Inn", "Ralvik Inn"]
PRICES: dict[str, int] = {"Rinma Inn": 74, "Zelna Inn": 47, "Yarlund Inn": 39, "Talra Inn": 58, "Ralvik Inn": 45}
Conversion = Literal["kilometres to miles", "miles to kilometres", "kilograms to pounds"]
FACTORS: dict[str, float] = {
    "kilometres to miles": 0.621371,
    "miles to kilometres": 1.609344,
    "kilograms to pounds": 2.204623,
}
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def calculate(expression: str) -> str:
    """Calculates an arithmetic expression of numbers, + - * / and parentheses."""
    try:
        return f"{_value(ast.parse(expression.strip(), mode='eval').body):.10g}"
    except (SyntaxError, ValueError, ZeroDivisionError) as error:
        return f"error: {error}"


def room_price(inn: Inn) -> str:
    """Returns the price of one night at an inn, in crowns."""
    return str(PRICES[inn])


def convert(value: float, conversion: Conversion) -> str:
    """Converts a length or a weight to another unit."""
    return f"{value * FACTORS[conversion]:.2f}"


TOOLS = (calculate, room_price, convert)
# Of the hand-off examples: name, subject and tool of each specialist.
Name = Literal["arithmetic", "inns", "units"]
SPECIALISTS: dict[Name, tuple[str, Callable[..., str]]] = {
    "arithmetic": ("sums, differences and products of numbers", calculate),
    "inns": ("prices of rooms at inns", room_price),
    "units": ("kilometres, miles, kilograms and pounds", convert),
}


def states(answer: str, number: str) -> float:
    """Returns whether an answer has the number, in words of its own rather than in a call that was written as text."""
    return 0.0 if answer.lstrip().startswith("{") else contains(answer.replace(",", ""), number)


def _value(node: ast.expr) -> float:
    """Evaluates numbers and the four operators; nothing else of Python."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return float(_OPERATORS[type(node.op)](_value(node.left), _value(node.right)))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    raise ValueError("only numbers and + - * / are understood")
