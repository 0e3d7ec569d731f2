"""Packages whose names are imported when they are first used.

Such a package has a table `_HOMES` of its public names and the modules that define them. Whoever
takes one name of it imports one module, and no others.
"""

import importlib
from collections.abc import Callable, Mapping


def lazily(package: str, homes: Mapping[str, str]) -> Callable[[str], object]:
    """Return the `__getattr__` of a package that imports a name's module when the name is used.

    Args:
        package: its `__name__`.
        homes: each public name, and the module below the package that defines it.
    """

    def __getattr__(name: str) -> object:
        if name in homes:
            return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return __getattr__
