"""Reads classes in their source text: to import a variant's module would load torch."""

import __future__

import ast
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from sae_sweeps.errors import did_you_mean

Rules = Callable[[Mapping[str, Any]], Iterator[str]]
"""What a class says of a whole checked config: complaints, one line each."""


def definition(target: str) -> ast.ClassDef | ast.FunctionDef:
    """Return the class that a `_target_` names, or a function that stands for one.

    Raises:
        LookupError: there is no such class; the first argument says why, as a sentence.
    """
    return _found(target)[1]


@cache
def own_rules(target: str) -> Rules | None:
    """Return the static method `rules` of a class, if it has one; its module is not imported.

    The function is compiled alone: of its module's names it knows none, and imports in its body
    what it needs, from modules that do without torch. Its annotations are not evaluated. Like
    options, rules count in the class itself: nothing is inherited.
    """
    module, node = _found(target)
    for part in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(part, ast.FunctionDef) and part.name == "rules" and _is_static(part):
            alone, names = ast.Module([part], type_ignores=[]), dict[str, Any](__name__=module)
            later = __future__.annotations.compiler_flag
            exec(compile(alone, str(_source(module)), "exec", later, dont_inherit=True), names)
            return names["rules"]
    return None


def _is_static(function: ast.FunctionDef) -> bool:
    return any(ast.unparse(decorator) == "staticmethod" for decorator in function.decorator_list)


def _found(target: str) -> tuple[str, ast.ClassDef | ast.FunctionDef]:
    """Follow a `_target_` to the module that defines it."""
    module, _, name = target.rpartition(".")
    tree = _syntax(module)
    top = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef)}
    if name in top:
        return module, top[name]
    handed_on = _origin(name, module, tree.body)
    if handed_on != target:
        return _found(handed_on)
    raise LookupError(f"{module} defines no {name!r}.{did_you_mean(name, top)}")


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
