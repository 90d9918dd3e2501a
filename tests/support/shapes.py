"""Checks of what calls bring and give, where a signature tells a shape.

What tells none is called as it is, since plain types are for pyright. What was found good once is
not checked again: to check costs 0.1 ms, which is more than most calls cost themselves, and finds
in the same shapes what it found before.
"""

from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from functools import wraps
from inspect import isclass
from typing import Any, cast
from unittest.mock import patch

import jaxtyping
import numpy as np
from torch import Tensor

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


def check(modules: Sequence[str]) -> None:
    """Have these modules checked when they are imported."""
    jaxtyping.install_import_hook(modules, "beartype.beartype")
    jaxtyped = jaxtyping.jaxtyped

    def once(*, typechecker: Any) -> Wrap:
        """Give what the hook decorates each class and function with."""
        return lambda it: checked(it, jaxtyped(typechecker=typechecker))

    patch("jaxtyping.jaxtyped", once).start()


def checked(it: Any, wrap: Wrap) -> Any:
    """Give a function, or a data class, that `wrap` checks whenever it meets something new."""
    if isclass(it):
        if is_dataclass(it) and "__init__" in vars(it):  # which has the fields of its bases too
            it.__init__ = checked(it.__init__, wrap)
        return it
    tells = any("jaxtyping" in repr(told) for told in it.__annotations__.values())
    return at_first(it, wrap) if tells else it


def at_first(plain: Callable[..., Any], wrap: Wrap) -> Callable[..., Any]:
    """Call a function as it is, where such arguments have led to such a value before."""
    good: dict[object, set[object]] = {}
    whole = wrap(plain)

    @wraps(plain)
    def call(*args: Any, **kwargs: Any) -> Any:
        if jaxtyping.config.jaxtyping_disable:  # or what nobody checked would count as good
            return plain(*args, **kwargs)
        brought = kind(args), kind(kwargs)
        if brought not in good:
            value = whole(*args, **kwargs)
            good[brought] = {kind(value)}
            return value
        value = plain(*args, **kwargs)
        if kind(value) not in good[brought]:
            wrap(wraps(plain)(lambda *_, **__: value))(*args, **kwargs)  # checks this value
            good[brought].add(kind(value))
        return value

    return call


def kind(value: object) -> object:
    """Give all of a value that a signature may tell: types, shapes and kinds of numbers."""
    if isinstance(value, Tensor | np.ndarray):
        return type(value), value.shape, value.dtype
    if isinstance(value, tuple | list):
        return type(value), *map(kind, cast("Sequence[object]", value))
    if isinstance(value, dict):
        return tuple((key, kind(each)) for key, each in cast("dict[object, object]", value).items())
    return type(value)
