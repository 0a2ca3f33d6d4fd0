"""Decay schedules: how an adapter follows the trained one, a preset's name or a formula in the optimizer step."""

import ast
import operator
from collections.abc import Callable
from functools import cache
from math import isfinite

# name: formula. DiffusionNFT's (arXiv 2509.16117, section 4) and, by adapter, those of CRD (arXiv 2603.14128).
SCHEDULES = {
    "copy": "0",
    "slow": "min(0.001 * step, 0.5)",
    "medium": "min(0.0075 * max(step - 75, 0), 0.999)",
    "crd_ocr_old": "min(0.25 + 0.005 * step, 0.999)",
    "crd_ocr_sampling": "0 if step < 75 else min(0.0075 * (step - 75), 0.999)",
    "crd_geneval_old": "min(0.25 + 0.001 * step, 0.5)",
    "crd_geneval_sampling": "min(0.001 * step, 0.5)",
}
LONGEST = 200
# Steps at which a schedule is tried: the first thousand, then 2 % apart up to 100 000.
_TRIED = [*range(1000), *sorted({round(1000 * 1.02**k) for k in range(233)}), 100_000]

Formula = Callable[[float], float]

_ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
_COMPARISON = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_FUNCTIONS: dict[str, Callable[..., float]] = {"min": min, "max": max}
_GRAMMAR = "a formula has numbers, step, + - * /, min(a, b), max(a, b), a < b, and a if a < b else c"


def decay_at(schedule: str, step: int) -> float:
    """d of adapter ← d · adapter + (1 − d) · trained after optimizer step ``step``, in [0, 1].

    Args:
        schedule: a name of ``SCHEDULES``, or a formula such as ``"min(0.25 + 0.005 * step, 0.999)"``: numbers,
            ``step``, ``+ - * /``, ``min``, ``max``, comparisons, and ``a if condition else b``. It is read as syntax,
            never executed as Python.
        step: optimizer steps so far.

    Raises:
        ValueError: the schedule is neither, or its value is not in [0, 1].
    """
    try:
        value = _formula(SCHEDULES.get(schedule, schedule))(float(step))
    except ZeroDivisionError:
        raise ValueError(f"{schedule!r} divides by zero at step {step}") from None
    if not (isfinite(value) and 0 <= value <= 1):
        raise ValueError(f"{schedule!r} is {value:g} at step {step}: a decay lies in [0, 1]")
    return value


@cache
def check_schedule(setting: str, schedule: str) -> None:
    """Raise ``ValueError`` in the name of ``setting`` unless ``schedule`` is a decay at all steps up to 100 000 that
    are tried: the first thousand, and then every 2 %."""
    try:
        for step in _TRIED:
            decay_at(schedule, step)
    except ValueError as error:
        raise ValueError(f"{setting} must be one of {tuple(SCHEDULES)} or a formula: {error}") from None


@cache
def _formula(text: str) -> Formula:
    """``text`` as a function of the step."""
    if len(text) > LONGEST:
        raise ValueError(f"a formula has at most {LONGEST} characters, this has {len(text)}")
    try:
        return _number(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, MemoryError, RecursionError):
        raise ValueError(f"{text!r} is no formula; {_GRAMMAR}") from None


def _number(node: ast.expr) -> Formula:
    """The value of an expression as a function of the step."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        value = _finite(node.value)
        return lambda step: value
    if isinstance(node, ast.Name) and node.id == "step":
        return lambda step: step
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        operand, sign = _number(node.operand), -1.0 if isinstance(node.op, ast.USub) else 1.0
        return lambda step: sign * operand(step)
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        left, right, combine = _number(node.left), _number(node.right), _ARITHMETIC[type(node.op)]
        return lambda step: combine(left(step), right(step))
    if isinstance(node, ast.IfExp):
        test, then, otherwise = _condition(node.test), _number(node.body), _number(node.orelse)
        return lambda step: then(step) if test(step) else otherwise(step)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
        if len(node.args) < 2 or node.keywords:
            raise ValueError(f"{node.func.id} takes two numbers or more; {_GRAMMAR}")
        arguments, function = [_number(argument) for argument in node.args], _FUNCTIONS[node.func.id]
        return lambda step: function(argument(step) for argument in arguments)
    raise ValueError(f"{ast.unparse(node)!r} is not allowed; {_GRAMMAR}")


def _condition(node: ast.expr) -> Callable[[float], bool]:
    """A comparison, chained or not, as a function of the step."""
    if not isinstance(node, ast.Compare) or any(type(kind) not in _COMPARISON for kind in node.ops):
        raise ValueError(f"{ast.unparse(node)!r} is no comparison; {_GRAMMAR}")
    sides = [_number(side) for side in (node.left, *node.comparators)]
    kinds = [_COMPARISON[type(kind)] for kind in node.ops]

    def holds(step: float) -> bool:
        values = [side(step) for side in sides]
        return all(compare(a, b) for compare, a, b in zip(kinds, values, values[1:], strict=False))

    return holds


def _finite(value: int | float) -> float:
    try:
        number = float(value)
    except OverflowError:
        raise ValueError("a number is too large") from None
    if not isfinite(number):
        raise ValueError("a number is too large")
    return number
