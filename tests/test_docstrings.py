"""Every parameter of every public function is documented, as a documentation tool (griffe, Google style) reads it."""

from collections.abc import Iterator
from pathlib import Path

import griffe
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"flowpolicy": ROOT, "flowpolicy_envs": ROOT / "envs"}


def is_public(member: griffe.Object | griffe.Alias) -> bool:
    """cli/ is a command line, which --help documents, and no interface of Python's."""
    if member.path == "flowpolicy.cli":
        return False
    return not member.is_alias and (not member.name.startswith("_") or member.name == "__call__")


def documented(member: griffe.Object) -> set[str]:
    """Names of the parameters and attributes that the tool finds in a docstring."""
    if member.docstring is None:
        return set()
    names = set()
    for section in member.docstring.parse("google", warnings=False):
        if section.kind.value in ("parameters", "other parameters", "attributes"):
            names |= {item.name.lstrip("*") for item in section.value}
    return names


def fields(cls: griffe.Class) -> list[str] | None:
    """Public fields of a dataclass, NamedTuple or TypedDict, its own; None for other classes."""
    kinds = [str(mark.value).split("(")[0] for mark in cls.decorators] + [str(base) for base in cls.bases]
    if not any(kind.split(".")[-1] in ("dataclass", "NamedTuple", "TypedDict") for kind in kinds):
        return None
    attributes = [one for one in cls.members.values() if one.is_attribute and "instance-attribute" in one.labels]
    return [one.name for one in attributes if not one.name.startswith("_")]


def overrides(cls: griffe.Class, name: str) -> bool:
    """Whether a class of ours further up documents the method already."""
    return any(name in base.members for base in cls.mro() if base.package.name in PACKAGES)


def wanted(member: griffe.Object, owner: griffe.Class | None = None) -> Iterator[tuple[str, set[str], list[str]]]:
    """(path, documented names, wanted names) of everything public below a module or a class."""
    for child in member.members.values():
        if not is_public(child):
            continue
        if child.is_module and not child.name.startswith("_"):
            yield from wanted(child)
        elif child.is_class:
            init = child.members.get("__init__")
            names, own = fields(child), documented(child)
            if names is None and init is not None and init.is_function:
                names = [one.name for one in init.parameters if one.name != "self"]
                own |= documented(init)
            yield child.path, own, names or []
            yield from wanted(child, child)
        elif child.is_function and not (owner is not None and overrides(owner, child.name)):
            names = [one.name.lstrip("*") for one in child.parameters if one.name not in ("self", "cls")]
            yield child.path, documented(child), names


def missing(package: str) -> list[str]:
    root = griffe.load(package, search_paths=[str(PACKAGES[package])], resolve_aliases=False)
    found = []
    for path, own, names in wanted(root):
        found += [f"{path}: {name}" for name in names if name not in own]
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_every_parameter_is_documented(package: str) -> None:
    assert not missing(package)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_docstring_names_what_is_not_there(package: str, caplog: pytest.LogCaptureFixture) -> None:
    root = griffe.load(package, search_paths=[str(PACKAGES[package])], resolve_aliases=False)
    wrong = []
    for path, own, names in wanted(root):
        if names and root.name == package and not root[path.removeprefix(f"{package}.")].is_class:
            wrong += [f"{path}: {name}" for name in own if name not in names]
    assert not wrong


def test_the_check_sees_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "sample.py").write_text(
        'def f(a: int, b: int) -> None:\n    """Do.\n\n    Args:\n        a: One.\n    """\n'
    )
    root = griffe.load("sample", search_paths=[str(tmp_path)])
    assert [(path, names - {"a"}, sorted(set(w) - names)) for path, names, w in wanted(root)] == [
        ("sample.f", set(), ["b"])
    ]
