"""The environments of scripts/lanes hold what they say: the floors of pyproject.toml, and newer than numpy 1."""

import re
import tomllib

import pytest

from tests.test_architecture import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pinned(name: str) -> dict[str, str]:
    """Package -> version of a constraints file."""
    lines = (ROOT / "scripts" / f"constraints-{name}.txt").read_text().splitlines()
    return dict(line.lower().split("==") for line in lines if not line.startswith("#"))


FLOORS = [
    re.match(r"([\w-]+)>=([\d.]+)", requirement).groups()  # pyright: ignore[reportOptionalMemberAccess]
    for requirement in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["train"]]
]


@pytest.mark.parametrize(("package", "floor"), FLOORS)
def test_the_floor_lane_runs_the_oldest_version_that_is_admitted(package: str, floor: str):
    """1.11 is also tried by 1.11.1, where an index has no 1.11.0."""
    assert f"{pinned('floor')[package]}.".startswith(f"{floor}.")


def test_the_newest_lane_has_numpy_2_and_every_package_at_least_at_its_floor():
    newest = {name: tuple(map(int, re.findall(r"\d+", version))) for name, version in pinned("newest").items()}
    assert newest["numpy"] >= (2, 4)
    for package, floor in FLOORS:
        assert newest[package] > tuple(map(int, floor.split("."))) or package == "numcodecs"
