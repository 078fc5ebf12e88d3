"""Public names of a package, imported when somebody asks for one of them: `import flowpolicy` loads no torch."""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def exported(
    package: str, names: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """What a package's `__init__` binds to `__getattr__`, `__dir__` and `__all__` (PEP 562).

    Type checkers do not run this: the package imports the same names under `if TYPE_CHECKING` besides.

    Args:
        package: The package's own `__name__`.
        names: Module below the package -> the names that it gives.

    Returns:
        The three, in this order.
    """
    homes = {name: f"{package}.{module}" for module, given in names.items() for name in given}

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            value = getattr(importlib.import_module(homes[name]), name)
        except ModuleNotFoundError as error:
            from flowpolicy.extras import missing_extra

            if (fix := missing_extra(error)) is None:
                raise
            raise ImportError(f"{package}.{name}: {fix}", name=error.name) from error
        setattr(sys.modules[package], name, value)  # from now on Python finds it without asking here
        return value

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes} - {"TYPE_CHECKING", "exported"})

    return get, listed, sorted(homes)
