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
    """Return the static method `rules` of a class, if it has one: what options must keep to."""
    return own_static(target, "rules")


@cache
def own_static(target: str, name: str) -> Callable[..., Any] | None:
    """Return a static method of a class, if it has one; its module is not imported.

    The function is compiled alone: of its module's names it knows none, and imports in its body
    what it needs, from modules that do without torch. Its annotations are not evaluated. Like
    options, it counts in the class itself: nothing is inherited.
    """
    module, node = _found(target)
    for part in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(part, ast.FunctionDef) and part.name == name and _is_static(part):
            alone, names = ast.Module([part], type_ignores=[]), dict[str, Any](__name__=module)
            later = __future__.annotations.compiler_flag
            exec(compile(alone, str(source_of(module)), "exec", later, dont_inherit=True), names)
            return names[name]
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


def is_a(target: str, kind: str) -> bool:
    """Tell whether a `_target_` inherits from the class `kind`, or is a function that returns one.

    Both are dotted names. Bases are followed by their source through whatever packages they are
    in, and nothing is imported: a base that cannot be found that way is none.
    """
    ahead, seen = list(_bases(target)), {target}
    while ahead:
        name = ahead.pop(0)
        if name == kind:
            return True
        if name not in seen:
            seen.add(name)
            ahead += _bases(name)
    return False


@cache
def _bases(target: str) -> tuple[str, ...]:
    """Name the bases of a class, what a function returns, or where an imported name is from."""
    module, _, name = target.rpartition(".")
    try:
        body = _syntax(module).body
    except LookupError:
        return ()
    for node in body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            bases = (base.value if isinstance(base, ast.Subscript) else base for base in node.bases)
            return tuple(_origin(ast.unparse(base), module, body) for base in bases)
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return (_origin(ast.unparse(node.returns), module, body),) if node.returns else ()
    handed_on = _origin(name, module, body)
    return (handed_on,) if handed_on != target else ()


def _origin(name: str, module: str, body: list[ast.stmt]) -> str:
    """Write a name in a module with where it comes from: one that is imported, or this one."""
    first, dot, rest = name.partition(".")
    for node in body:
        for alias in node.names if isinstance(node, ast.Import | ast.ImportFrom) else ():
            if first == (alias.asname or alias.name):
                place = f"{_absolute(node, module)}." if isinstance(node, ast.ImportFrom) else ""
                return f"{place}{alias.name}{dot}{rest}"
    return name if dot else f"{module}.{name}"


def _absolute(node: ast.ImportFrom, module: str) -> str:
    """Name the module that a name is imported from, by a relative import perhaps."""
    if not node.level:
        return node.module or ""
    source = source_of(module)
    inside = source is not None and source.name == "__init__.py"
    home = module.split(".")[: None if inside and node.level == 1 else int(inside) - node.level]
    return ".".join([*home, *([node.module] if node.module else [])])


@cache
def _syntax(module: str) -> ast.Module:
    source = source_of(module)
    if source is None:
        raise LookupError(f"there is no module {module!r}.")
    if source.suffix != ".py":
        raise LookupError(f"{module} is not a Python source file.")
    try:
        return ast.parse(source.read_bytes(), filename=str(source))
    except (SyntaxError, ValueError) as error:
        raise LookupError(f"{source} cannot be read: {error}.") from None


def source_of(module: str) -> Path | None:
    """Find a module's file, and import nothing for it, not even the packages it is in.

    None for one that is not on the search path.
    """
    first, *rest = module.split(".")
    if not all(name.isidentifier() for name in (first, *rest)):
        return None  # a path among them would lead elsewhere
    try:
        spec = importlib.util.find_spec(first)
    except (ImportError, ValueError):
        return None
    if spec is None or not rest:
        return Path(spec.origin) if spec and spec.origin else None
    places = [Path(place, *rest) for place in spec.submodule_search_locations or ()]
    files = [file for p in places for file in (p / "__init__.py", p.with_name(f"{p.name}.py"))]
    return next((file for file in files if file.is_file()), None)
