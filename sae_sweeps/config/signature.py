"""From a config node to the object it names: the options its class has, their types, the call.

`signature` reads source text and imports nothing, so that checking a config never loads torch;
`build` is all of Hydra that a training job needs.
"""

import ast
import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from annotated_types import Ge, Gt, Le, Lt

from sae_sweeps.config.source import definition
from sae_sweeps.errors import ConfigError, one_line
from sae_sweeps.marks import Alias, AtMost, Birth, Code, Idle

TARGET, NUMERICS = "_target_", "_numerics_"
"""A node's class, and the number of its algorithm where that is not 1."""
NO_OPTIONS = (TARGET, NUMERICS)
BOUNDS: dict[type, str] = {Gt: "gt", Ge: "ge", Lt: "lt", Le: "le"}
"""The bounds of annotated-types, and where each has its number."""
MARKS: dict[str, type] = {
    mark.__name__: mark for mark in (*BOUNDS, Alias, AtMost, Birth, Code, Idle)
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
    def alias(self) -> Alias | None:
        """The value that counts as another in identities; None: every value is its own."""
        return next((mark for mark in self.marks if isinstance(mark, Alias)), None)

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

    @property
    def code(self) -> bool:
        """Whether what it holds is run."""
        return any(isinstance(mark, Code) for mark in self.marks)


@cache
def signature(target: str) -> dict[str, Option]:
    """Return a `_target_`'s options and their annotations: what YAML must state.

    Raises:
        LookupError: there is no such class; the first argument says why, as a sentence.
    """
    annotated = _options(definition(target))
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
    for part in definition(target).body:
        match part:
            case ast.AnnAssign(target=ast.Name(id="numerics"), value=ast.Constant(value=int(n))):
                return n
            case ast.Assign(targets=[ast.Name(id="numerics")], value=ast.Constant(value=int(n))):
                return n
            case _:
                continue
    return 1


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
