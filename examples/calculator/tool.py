"""A calculator as a tool of verl's agent loop ``tool_agent``; set as ``rollout.multi_turn.function_tool_path``.

The second value that it returns is its reward: the reward function gets the rewards of all calls of a dialogue, in
order, as ``extra_info["tool_rewards"]``.
"""

import ast
import operator
from collections.abc import Callable

from verl.tools.function_tool import function_tool

OPERATORS: dict[type, Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}
#: Characters of an expression; Python's parser fails on expressions that are nested too deeply.
LONGEST = 100


@function_tool
def calculate(expression: str):
    """Compute an arithmetic expression.

    Args:
        expression: numbers, brackets and the operators + - * /, for example 2 * (3 + 4).
    """
    try:
        if len(expression) > LONGEST:
            raise ValueError(f"{len(expression)} characters; at most {LONGEST}")
        return f"{value(ast.parse(expression.strip(), mode='eval').body):g}", 1.0
    except (ArithmeticError, SyntaxError, TypeError, ValueError) as error:
        return f"error: {getattr(error, 'msg', error)}", 0.0


def value(node: ast.AST) -> float:
    """The value of a parsed expression.

    Raises:
        ValueError: for anything but numbers and the operators.
    """
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.BinOp(op=op) if type(op) in OPERATORS:
            return OPERATORS[type(op)](value(node.left), value(node.right))
        case ast.UnaryOp(op=op) if type(op) in OPERATORS:
            return OPERATORS[type(op)](value(node.operand))
    raise ValueError(f"{type(node).__name__} is not allowed")
