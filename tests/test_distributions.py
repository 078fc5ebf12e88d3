"""The source distribution and the wheel hold what they should; `scripts/wheels` installs and runs them."""

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.test_architecture import ROOT, project_files
from tests.test_lanes import PROJECT

PYTHONS = ("3.11", "3.12", "3.13")
TRACKED = [str(path.relative_to(ROOT)) for path in project_files()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both, the wheel made of the unpacked source distribution."""
    out = tmp_path_factory.mktemp("dist")
    hatchling = [sys.executable, "-m", "hatchling", "build", "-d", str(out), "-t"]
    subprocess.run([*hatchling, "sdist"], cwd=ROOT, check=True, capture_output=True)
    (archive,) = out.glob("*.tar.gz")
    with tarfile.open(archive) as source:
        source.extractall(out, filter="data")
    subprocess.run([*hatchling, "wheel"], cwd=out / archive.name[: -len(".tar.gz")], check=True, capture_output=True)
    return out


def test_the_source_distribution_holds_the_checkout_and_nothing_else(built: Path):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as source:
        held = {name.partition("/")[2] for name in source.getnames()}
    wanted = {name for name in TRACKED if not name.startswith((".ci/", ".github/"))}
    assert held - wanted == {"PKG-INFO"} and not wanted - held


def test_the_wheel_of_the_source_distribution_holds_the_packages_and_their_configs(built: Path):
    (wheel,) = built.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    moved = {"envs/flowpolicy_envs": "flowpolicy_envs", "configs": "flowpolicy/configs", "flowpolicy": "flowpolicy"}
    wanted = {
        new + name.removeprefix(old) for name in TRACKED for old, new in moved.items() if name.startswith(f"{old}/")
    }
    assert held == wanted and "flowpolicy/py.typed" in held
    assert not [name for name in held if name.split("/")[0] not in ("flowpolicy", "flowpolicy_envs")]


def test_both_say_what_they_are(built: Path):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as held:
        (folder,) = {name.split("/")[0] for name in held.namelist() if ".dist-info/" in name}
        assert "flowpolicy = flowpolicy.cli.main:entry" in held.read(f"{folder}/entry_points.txt").decode()
        said = held.read(f"{folder}/METADATA").decode()
        assert held.read(f"{folder}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert "Description-Content-Type: text/markdown" in said and "License-Expression: MIT" in said


def test_every_python_that_is_named_is_tried():
    named = [re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line) for line in PROJECT["classifiers"]]
    assert tuple(match[1] for match in named if match) == PYTHONS
    tried = (ROOT / "scripts" / "wheels").read_text()
    assert re.findall(r"\[(3\.\d+)\]=", tried) == [*PYTHONS, *PYTHONS]
