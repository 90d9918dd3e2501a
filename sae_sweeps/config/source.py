"""Reads classes in their source text: to import a variant's module would load torch."""

import ast
import importlib.util
from functools import cache
from pathlib import Path

from sae_sweeps.errors import did_you_mean


def definition(target: str) -> ast.ClassDef | ast.FunctionDef:
    """Return the class that a `_target_` names, or a function that stands for one.

    Raises:
        LookupError: there is no such class; the first argument says why, as a sentence.
    """
    module, _, name = target.rpartition(".")
    tree = _syntax(module)
    top = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef)}
    if name in top:
        return top[name]
    handed_on = _origin(name, module, tree.body)
    if handed_on != target:
        return definition(handed_on)
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
