"""config_dir finds the yaml files of a checkout and of an installed wheel."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from flowpolicy import paths

ROOT = Path(__file__).resolve().parents[1]


def test_a_checkout_uses_its_own_configs():
    assert paths.config_dir() == ROOT / "configs"


def test_the_copy_inside_the_package_wins_over_a_neighbour_called_configs(tmp_path, monkeypatch):
    package = tmp_path / "flowpolicy"
    for place in (package / "configs", tmp_path / "configs"):
        place.mkdir(parents=True)
        (place / "train.yaml").write_text("{}")
    monkeypatch.setattr(paths, "_PACKAGE", package)
    assert paths.config_dir() == package / "configs"


def test_missing_configs_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "_PACKAGE", tmp_path / "flowpolicy")
    with pytest.raises(FileNotFoundError, match="train.yaml"):
        paths.config_dir()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(ROOT)], check=True)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_both_packages_and_every_yaml_once(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert len(names) == len(set(names))
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"flowpolicy", "flowpolicy_envs"}
    shipped = {name for name in names if name.endswith(".yaml")}
    assert shipped == {f"flowpolicy/configs/{p.relative_to(ROOT / 'configs')}" for p in ROOT.glob("configs/**/*.yaml")}
    for package, home in (("flowpolicy", ROOT), ("flowpolicy_envs", ROOT / "envs")):
        modules = {str(p.relative_to(home)) for p in (home / package).rglob("*.py")} | {f"{package}/py.typed"}
        assert modules <= set(names)


def test_an_installed_wheel_finds_its_own_configs(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)  # what pip does with a pure wheel
    code = "from flowpolicy.paths import config_dir; print(config_dir())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == tmp_path / "flowpolicy" / "configs"
