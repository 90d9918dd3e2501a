"""Fits values to the types that options declare, and says which a type allows; no torch."""

import ast
import math
from typing import Any

SCALARS: dict[str, type] = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "dict": dict,
    "Any": object,
}


def fit(value: Any, hint: ast.expr) -> Any:
    """Return `value` as the type that `hint` names.

    Raises:
        TypeError: the value is of another type.
        LookupError: the annotation is not one that options may have.
    """
    match hint:
        case ast.Constant(value=None):
            return _same(value, None)
        case ast.Name(id="Any"):
            return value
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _either(value, left, right)
        case ast.Name(id=name) if kind := _kind(name):
            return _scalar(value, kind)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=allowed):
            return _literal(value, allowed)
        case ast.Subscript(value=ast.Name(id="list"), slice=inner):
            return [fit(item, inner) for item in _scalar(value, list)]
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[_, inner])):
            return {key: fit(item, inner) for key, item in _scalar(value, dict).items()}
        case _:
            known = f"{', '.join(SCALARS)}, list[...], Literal[...], None and |"
            raise LookupError(f"has the type {ast.unparse(hint)}; options may use {known}.")


def _kind(name: str) -> type | None:
    """Tell what a name is the type of; a section's options are checked by themselves."""
    return dict if name.endswith("Options") else SCALARS.get(name)


def _same(value: Any, wanted: Any) -> Any:
    if value is wanted:
        return value
    raise TypeError


def _either(value: Any, left: ast.expr, right: ast.expr) -> Any:
    try:
        return fit(value, left)
    except TypeError:
        return fit(value, right)


def _literal(value: Any, allowed: ast.expr) -> Any:
    for choice in _choices(allowed):
        if type(value) is type(choice) and value == choice:
            return value
    raise TypeError


def _choices(allowed: ast.expr) -> list[Any]:
    elements = allowed.elts if isinstance(allowed, ast.Tuple) else [allowed]
    return [element.value for element in elements if isinstance(element, ast.Constant)]


def _scalar(value: Any, kind: type) -> Any:
    """Take an int for a float and an integral float for an int (`tokens=1e6`), never a bool."""
    if kind is float and type(value) in (int, float) and finite(value):
        return float(value) + 0.0  # -0.0 becomes 0.0: one number, one identity
    if kind is int and type(value) is float and value.is_integer():
        return int(value)
    if kind is object or (type(value) is kind and kind is not float):
        return value
    raise TypeError


def finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond the largest float
        return False


def expected(hint: ast.expr, value: Any) -> str:
    """Say what a hint allows, in words that a user of YAML knows."""
    match hint:
        case ast.Constant(value=None):
            return "null"
        case ast.BinOp(left=left, right=right):
            return f"{expected(left, value)} or {expected(right, value)}"
        case ast.Subscript(value=ast.Name(id="Literal"), slice=allowed):
            return " or ".join(repr(choice) for choice in _choices(allowed))
        case ast.Name(id=name) if name.endswith("Options"):
            return "dict[str, Any]"
        case ast.Name(id="float") if type(value) is float:
            return "a finite float"
        case ast.Name(id="str") if type(value) in (int, float, bool):
            return f"str (in quotes: \"'{value}'\")"
        case _:
            return ast.unparse(hint)
