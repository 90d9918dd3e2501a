"""From a config node to the object it names: the options its class has, their types, the call.

`signature` reads source text and imports nothing, so that checking a config never loads torch;
`build` is all of Hydra that a training job needs.
"""

import ast
import importlib
import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from annotated_types import Ge, Gt, Le, Lt

from sae_sweeps.errors import ConfigError, did_you_mean, one_line
from sae_sweeps.marks import AtMost, Birth, Idle

TARGET, NUMERICS = "_target_", "_numerics_"
"""A node's class, and the number of its algorithm where that is not 1."""
NO_OPTIONS = (TARGET, NUMERICS)
BOUNDS: dict[type, str] = {Gt: "gt", Ge: "ge", Lt: "lt", Le: "le"}
"""The bounds of annotated-types, and where each has its number."""
MARKS: dict[str, type] = {mark.__name__: mark for mark in (*BOUNDS, AtMost, Birth, Idle)}
SCALARS: dict[str, type] = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "dict": dict,
    "Any": object,
}


def build(node: Mapping[str, Any], *runtime: Any) -> Any:
    """Call the node's `_target_` with `runtime` by position and the node's options by name.

    Raises:
        ConfigError: a ValueError of the constructor's, as its word on the options.
    """
    module, _, name = node[TARGET].rpartition(".")
    options = {key: value for key, value in node.items() if key not in NO_OPTIONS}
    kind = getattr(importlib.import_module(module), name)
    try:
        return kind(*runtime, **options)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{node[TARGET]}: {one_line(error)}") from error


@dataclass(frozen=True)
class Option:
    """What an annotation says of an option: `Annotated[int, Birth(0)]`, or a type alone."""

    hint: ast.expr
    """Its type."""
    marks: tuple[Any, ...] = ()
    """Birth and the like."""

    @property
    def birth(self) -> Birth | None:
        """The value that stands for its absence; None for options of the first version."""
        return next((mark for mark in self.marks if isinstance(mark, Birth)), None)

    @property
    def bounds(self) -> dict[type, int | float]:
        """Limits of a number, by their kind."""
        found = [mark for mark in self.marks if type(mark) in BOUNDS]
        return {type(mark): getattr(mark, BOUNDS[type(mark)]) for mark in found}

    @property
    def others(self) -> tuple[str, ...]:
        """Options that it may not exceed, by dotted path; `.name` is of the same node."""
        return next((mark.others for mark in self.marks if isinstance(mark, AtMost)), ())

    def allows(self, number: int | float) -> bool:
        """Say whether a number is within the bounds."""
        bounds = self.bounds
        above = number > bounds.get(Gt, -math.inf) and number >= bounds.get(Ge, -math.inf)
        return above and number < bounds.get(Lt, math.inf) and number <= bounds.get(Le, math.inf)

    def limits(self) -> str:
        """Word the bounds: `1 to 2^26`, `at least 0 and less than 1`."""
        bounds = {kind: _power(value) for kind, value in self.bounds.items()}
        if Ge in bounds and Le in bounds:
            return f"{bounds[Ge]} to {bounds[Le]}"
        words = {Gt: "more than", Ge: "at least", Lt: "less than", Le: "at most"}
        return " and ".join(f"{words[kind]} {bounds[kind]}" for kind in words if kind in bounds)

    @property
    def idle(self) -> bool:
        """Whether it cannot change a run's weights."""
        return any(isinstance(mark, Idle) for mark in self.marks)


@cache
def signature(target: str) -> dict[str, Option]:
    """Return a `_target_`'s options and their annotations: what YAML must state.

    Raises:
        LookupError: there is no such class; the first argument says why, as a sentence.
    """
    annotated = _options(_definition(target))
    for option, hint in annotated.items():
        if hint is None:
            raise LookupError(f"its option {option!r} has no type annotation.")
    return {option: _parsed(hint) for option, hint in annotated.items() if hint is not None}


@cache
def numerics(target: str) -> int:
    """Return a class's `numerics`: how often its algorithm was replaced by another, from 1 on.

    Raises:
        LookupError: there is no such class; the first argument says why, as a sentence.
    """
    for part in _definition(target).body:
        match part:
            case ast.AnnAssign(target=ast.Name(id="numerics"), value=ast.Constant(value=int(n))):
                return n
            case ast.Assign(targets=[ast.Name(id="numerics")], value=ast.Constant(value=int(n))):
                return n
            case _:
                continue
    return 1


def _definition(target: str) -> ast.ClassDef | ast.FunctionDef:
    module, _, name = target.rpartition(".")
    tree = _syntax(module)
    top = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef)}
    if name in top:
        return top[name]
    handed_on = _origin(name, module, tree.body)
    if handed_on != target:
        return _definition(handed_on)
    raise LookupError(f"{module} defines no {name!r}.{did_you_mean(name, top)}")


def _parsed(hint: ast.expr) -> Option:
    """Part a type from its marks; marks that are not ours are for others to read."""
    match hint:
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[inner, *marks])):
            return Option(inner, tuple(found for mark in marks for found in _marks(mark)))
        case _:
            return Option(hint)


def _constant(node: ast.expr) -> Any:
    """Evaluate a constant, or a power of two constants."""
    match node:
        case ast.BinOp(left=base, op=ast.Pow(), right=exponent):
            return _constant(base) ** _constant(exponent)
        case _:
            return ast.literal_eval(node)


def _power(value: int | float) -> str:
    """Write a large power of two as one."""
    exponent = math.log2(value) if value >= 2**20 else 0.5
    return f"2^{exponent:g}" if exponent.is_integer() else f"{value:g}"


def _marks(mark: ast.expr) -> list[Any]:
    match mark:
        case ast.Call(func=ast.Name(id=name), args=args) if name in MARKS:
            return [MARKS[name](*map(_constant, args))]
        case _:
            return []


@cache
def ancestors(target: str) -> frozenset[str]:
    """Return the names of the classes that a `_target_` inherits from.

    Bases are followed within the target's own package and ours: others would have to be imported.
    """
    module, _, name = target.rpartition(".")
    try:
        body = _syntax(module).body
    except LookupError:
        return frozenset()
    classes = [node for node in body if isinstance(node, ast.ClassDef) and node.name == name]
    handed_on = _origin(name, module, body)
    if not classes and handed_on != target:
        return ancestors(handed_on)
    bases = [_origin(ast.unparse(base), module, body) for node in classes for base in node.bases]
    near = (module.partition(".")[0], __name__.partition(".")[0])
    followed = [ancestors(base) for base in bases if base.partition(".")[0] in near]
    return frozenset(base.rpartition(".")[2] for base in bases).union(*followed)


def _origin(base: str, module: str, body: list[ast.stmt]) -> str:
    """Write a class with the module it comes from: one that is imported, or this one."""
    for node in body:
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                if base == (alias.asname or alias.name):
                    return f"{node.module}.{alias.name}"
    return base if "." in base else f"{module}.{base}"


@cache
def _syntax(module: str) -> ast.Module:
    source = _source(module)
    if source is None:
        raise LookupError(f"there is no module {module!r}.")
    if source.suffix != ".py":
        raise LookupError(f"{module} is not a Python source file.")
    try:
        return ast.parse(source.read_bytes(), filename=str(source))
    except (SyntaxError, ValueError) as error:
        raise LookupError(f"{source} cannot be read: {error}.") from None


def _source(module: str) -> Path | None:
    """Find a module's file, and import nothing for it, not even the packages it is in."""
    first, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(first)
    except (ImportError, ValueError):
        return None
    if spec is None or not rest:
        return Path(spec.origin) if spec and spec.origin else None
    places = [Path(place, *rest) for place in spec.submodule_search_locations or ()]
    files = [file for p in places for file in (p / "__init__.py", p.with_name(f"{p.name}.py"))]
    return next((file for file in files if file.is_file()), None)


def _options(node: ast.ClassDef | ast.FunctionDef) -> dict[str, ast.expr | None]:
    """Read keyword-only parameters, or the fields of a dataclass; nothing inherited counts."""
    if isinstance(node, ast.FunctionDef):
        return {a.arg: a.annotation for a in node.args.kwonlyargs}
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            return _options(part)
    if not any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return {}
    fields = [part for part in node.body if isinstance(part, ast.AnnAssign)]
    named = {f.target.id: f.annotation for f in fields if isinstance(f.target, ast.Name)}
    return {name: hint for name, hint in named.items() if "ClassVar" not in ast.unparse(hint)}


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
