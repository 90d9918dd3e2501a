"""Packages that are imported and not used: a data-set library, loggers."""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class Anything:
    """Takes whatever it is made with."""

    def __init__(self, *args: Any, **options: Any) -> None:
        del args, options


class Stub(ModuleType):
    """A module in which every name is a class of that name."""

    def __getattr__(self, name: str) -> Any:
        if name == "__version__":
            return "99.0"
        if name.startswith("__"):
            raise AttributeError(name)
        value = type(name, (Anything,), {})
        setattr(self, name, value)
        return value


class Finder:
    """Finds a stub for each module of some packages."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """As the import system asks."""
        del path, target
        if name.partition(".")[0] in self.names:
            return ModuleSpec(name, self, is_package=True)  # pyright: ignore[reportArgumentType]
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """As the import system asks."""
        return Stub(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Leave it empty."""


def stub(*names: str) -> None:
    """Have stubs stand for these packages, whether they are installed or not."""
    sys.meta_path.insert(0, Finder(names))  # pyright: ignore[reportArgumentType]
