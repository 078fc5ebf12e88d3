"""Whether a package can be imported: `python -m flowpolicy.probes.imports PACKAGE`, or PACKAGE:NAME of what it has."""

import importlib
import sys


def main(wanted: str) -> None:
    """Raise whatever goes wrong.

    Args:
        wanted: The package, and after a colon something that must be callable there.
    """
    package, _, name = wanted.partition(":")
    module = importlib.import_module(package)
    assert not name or callable(getattr(module, name)), f"{package}.{name} cannot be called"


if __name__ == "__main__":
    main(*sys.argv[1:])
