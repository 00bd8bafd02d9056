"""Expressions over sizes that a program leaves open. torch hands them to ``sympify``, which evaluates them.

So only a small language comes through, read by Python's parser and never run here: calls of the functions
below, on each other, on whole numbers and on symbols with torch's names.
"""

from __future__ import annotations

import ast
import re
from typing import TypeGuard

from bntools.core.schema import Stranger, shown

_SYMBOL = re.compile(r"[su]\d{1,4}", re.ASCII)
_FUNCTIONS = frozenset(
    [
        "Add",
        "And",
        "CeilDiv",
        "CeilToInt",
        "CleanDiv",
        "Equality",
        "FloorDiv",
        "FloorToInt",
        "GreaterThan",
        "IntTrueDiv",
        "LessThan",
        "Max",
        "Min",
        "Mod",
        "ModularIndexing",
        "Mul",
        "Not",
        "Or",
        "PythonMod",
        "StrictGreaterThan",
        "StrictLessThan",
        "ToFloat",
        "TruncToInt",
        "Unequality",
    ]
)
_POWERS = frozenset({"Pow", "PowByNatural"})
_ASSUMED = frozenset({"integer", "positive", "nonnegative"})
_LONGEST, _LARGEST, _HIGHEST = 4096, 2**63, 8


def symbol(value: object) -> str:
    """A name that torch gives to an open size.

    Example:
        >>> symbol("s77")
        's77'
    """
    if not _is_name(value):
        raise Stranger(f"'{shown(value)}', which is no symbol of torch's")
    return value


def expression(value: object) -> str:
    """An expression over sizes, as torch writes it.

    Example:
        >>> expression("Mul(Integer(2), Symbol('s0', positive=True, integer=True))")
        "Mul(Integer(2), Symbol('s0', positive=True, integer=True))"
        >>> expression("exit()")
        Traceback (most recent call last):
        ...
        bntools.core.schema.Stranger: the expression 'exit()'
    """
    if not isinstance(value, str):
        raise Stranger(f"{shown(value)}, which is no expression")
    try:
        known = len(value) <= _LONGEST and value.isascii() and _is_known(ast.parse(value, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        known = False
    if not known:
        raise Stranger(f"the expression '{shown(value)}'")
    return value


def _is_known(node: ast.expr, *, powers: bool = True) -> bool:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return isinstance(node, ast.Name) and node.id in ("true", "false")
    name, args = node.func.id, node.args
    if name == "Symbol":
        return _is_symbol(args) and all(_is_assumption(keyword) for keyword in node.keywords)
    if node.keywords:
        return False
    if name == "Integer":
        return len(args) == 1 and _whole(args[0]) is not None
    if name == "Rational":
        return len(args) == 2 and all(_whole(each) is not None for each in args)
    if name in _POWERS:  # a tower of them would be computed, and no machine gets through it
        return powers and len(args) == 2 and _is_known(args[0], powers=False) and _is_small(args[1])
    return name in _FUNCTIONS and bool(args) and all(_is_known(each, powers=powers) for each in args)


def _is_symbol(args: list[ast.expr]) -> bool:
    return len(args) == 1 and isinstance(args[0], ast.Constant) and _is_name(args[0].value)


def _is_name(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and _SYMBOL.fullmatch(value) is not None


def _is_assumption(keyword: ast.keyword) -> bool:
    return keyword.arg in _ASSUMED and isinstance(keyword.value, ast.Constant) and keyword.value.value is True


def _is_small(node: ast.expr) -> bool:
    """``Integer(n)`` with a small n: what a power is raised to."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Integer"):
        return False
    whole = _whole(node.args[0]) if len(node.args) == 1 and not node.keywords else None
    return whole is not None and -1 <= whole <= _HIGHEST


def _whole(node: ast.expr) -> int | None:
    negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
    inner = node.operand if negative else node  # type: ignore[attr-defined]
    if not isinstance(inner, ast.Constant) or type(inner.value) is not int or inner.value > _LARGEST:
        return None
    return -inner.value if negative else inner.value
