"""How to install an extra: the one place that says it. flowpolicy is on no package index, its dependencies are."""

import re
from importlib import metadata
from pathlib import Path

_HOME = Path(__file__).resolve().parents[1]  # the checkout, or site-packages
_TRAIN = ("zarr", "numcodecs", "numba", "gymnasium")  # what `train` brings


def missing_extra(error: ImportError) -> str | None:
    """What to say where a package of the extra `train` is not installed; None where another one is missing.

    Args:
        error: As an import raised it.
    """
    package = (error.name or "").partition(".")[0]
    return f"{package} is not installed; {how_to_install('train')}" if package in _TRAIN else None


def how_to_install(extra: str = "") -> str:
    """The command that brings what `extra` needs: `pip install -e` in a checkout, the packages by name elsewhere.

    Args:
        extra: a name of pyproject's optional dependencies; "" is the core.

    Raises:
        ValueError: For an extra that does not exist.
    """
    if (_HOME / "pyproject.toml").is_file():
        return f'pip install -e "{_HOME}{f"[{extra}]" if extra else ""}"'
    wanted = _requirements(extra)
    if not wanted:
        raise ValueError(f"flowpolicy has no extra {extra!r}")
    return "pip install " + " ".join(f'"{requirement}"' for requirement in wanted)


def _requirements(extra: str) -> list[str]:
    """What the installed flowpolicy's metadata asks for: lines like `zarr>=3.1; extra == 'train'`."""
    marker = re.compile(rf"extra == ['\"]{re.escape(extra)}['\"]")
    lines = [line.partition(";") for line in metadata.requires("flowpolicy") or []]
    return [name.strip() for name, _, condition in lines if (marker.search(condition) if extra else not condition)]
