"""What the messages about missing packages tell the user to run really works, and is said in one place."""

import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from flowpolicy.diagnostics import PROBES
from flowpolicy.extras import how_to_install
from tests.test_architecture import EVERYTHING, ROOT, project_files

EXTRAS = ("train", "maniskill", "metaworld", "wandb", "video", "export")


def test_a_checkout_names_itself():
    assert how_to_install("wandb") == f'pip install -e "{ROOT}[wandb]"'
    assert how_to_install() == f'pip install -e "{ROOT}"'


def test_pip_understands_the_command_of_a_checkout():
    pip, install, editable, what = shlex.split(how_to_install("wandb"))
    assert (pip, install, editable) == ("pip", "install", "-e")  # which asks for a package more than a test has
    options = ["--dry-run", "--no-deps", "--no-build-isolation", "--quiet"]
    done = subprocess.run([sys.executable, "-m", pip, install, what, *options], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder like site-packages with the wheel in it."""
    out = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(ROOT)], check=True)
    (built,) = out.glob("*.whl")
    zipfile.ZipFile(built).extractall(out / "site")
    return out / "site"


def test_an_installed_wheel_names_packages_that_an_index_has(installed: Path):
    code = f"""
from flowpolicy.extras import how_to_install
for extra in {("", *EXTRAS, "all")}:
    print(how_to_install(extra))
try:
    how_to_install("teapot")
except ValueError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=installed, env={}, capture_output=True, text=True, check=True
    )
    core, *extras, everything, unknown = done.stdout.splitlines()
    said = dict(zip(EXTRAS, extras, strict=True))
    assert said["wandb"] == 'pip install "wandb>=0.31"'
    assert all(word in said["maniskill"] for word in ('"mani-skill>=3.0.1"', '"numpy<2"', '"numba'))  # and of `train`
    assert '"torch>=2.6"' in core and '"onnx>=' in everything and '"metaworld>=' in everything
    assert not re.search("flowpolicy|extra", done.stdout.removesuffix(unknown + "\n"))
    assert unknown == "flowpolicy has no extra 'teapot'"


def test_the_probes_ask_for_extras_that_exist():
    assert {probe.install for probe in PROBES} - {""} == {how_to_install(extra) for extra in ("", *EXTRAS)}


def test_nothing_tells_a_user_to_install_flowpolicy_from_an_index():
    """Its name is not registered there."""
    wrong = re.compile(r"pip install\b[^\n`]*?[\s\"']flowpolicy(?![-\w]|/)")
    texts = [path for path in project_files() if path.suffix in (".md", ".yaml", ".toml", ".sh") or not path.suffix]
    files = [path for path in [*EVERYTHING, *texts] if "tests" not in path.relative_to(ROOT).parts]
    assert not [f"{path.relative_to(ROOT)}: {match[0]}" for path in files for match in wrong.finditer(path.read_text())]
