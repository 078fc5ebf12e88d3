"""The public names: each one is there, loads no more than it needs, and is what a type checker takes it for."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import flowpolicy
from flowpolicy.extras import how_to_install
from tests.helpers import RUNTIME_ALONE
from tests.test_architecture import ROOT, fresh_interpreter, module_name, python_files, tree

PACKAGES = [
    path for path in python_files("flowpolicy") if path.name == "__init__.py" and "exported(" in path.read_text()
]


def type_checked(path: Path) -> dict[str, str]:
    """Name -> module, as the imports under `if TYPE_CHECKING` say it."""
    block = next(node for node in tree(path).body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert len(imports) == len(block.body)
    assert all(alias.name == alias.asname for node in imports for alias in node.names)  # else private to a checker
    return {alias.name: str(node.module) for node in imports for alias in node.names}


@pytest.mark.parametrize("path", PACKAGES, ids=module_name)
def test_every_exported_name_is_there_for_python_and_for_type_checkers(path: Path) -> None:
    package = importlib.import_module(module_name(path))
    seen = type_checked(path)
    assert sorted(seen) == package.__all__ and set(package.__all__) <= set(dir(package))
    for name, module in seen.items():
        assert getattr(package, name) is getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("path", PACKAGES, ids=module_name)
def test_no_exported_name_is_that_of_a_module(path: Path) -> None:
    """Importing the module would put it in the name's place."""
    modules = {other.stem for other in path.parent.iterdir() if other.suffix == ".py" or other.is_dir()}
    assert not modules & set(type_checked(path))


def test_the_names_that_a_reader_looks_for() -> None:
    assert {"load_policy", "save_policy", "build_policy", "Checkpoint", "Embodiment", "FlowPolicy"} <= set(
        dir(flowpolicy)
    )
    for package in ("heads", "nets", "encoders", "exploration", "data", "pointcloud", "rollout", "inference", "deploy"):
        assert ROOT / "flowpolicy" / package / "__init__.py" in PACKAGES


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'flowpolicy' has no attribute 'load_polices'"):
        _ = flowpolicy.load_polices
    with pytest.raises(ImportError, match="cannot import name 'MeanFlow' from 'flowpolicy.heads'"):
        from flowpolicy.heads import MeanFlow  # noqa: F401


def test_a_name_loads_its_own_module_and_no_other() -> None:
    assert "torch" not in fresh_interpreter("from flowpolicy.statistics import wilson_interval")
    loaded = fresh_interpreter("from flowpolicy import *\nfrom flowpolicy.heads import *\nload_policy, MeanFlowHead")
    assert "torch" in loaded and not {"zarr", "numba", "onnxruntime", "gymnasium", "hydra"} & set(loaded)


def test_the_robot_side_needs_no_torch() -> None:
    code = "from flowpolicy import Embodiment\nfrom flowpolicy.deploy import OnnxPolicy\n"
    code += "from flowpolicy.pointcloud import make_cloud\nimport sys\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", RUNTIME_ALONE + code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_a_name_whose_extra_is_missing_says_how_to_install_it() -> None:
    code = f"{RUNTIME_ALONE}\ntry:\n    from flowpolicy.data import EpisodeStore\nexcept ImportError as error:\n"
    code += "    print(error)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == (f"flowpolicy.data.EpisodeStore: zarr is not installed; {how_to_install('train')}"), (
        done.stderr
    )


def test_the_file_that_pyright_checks_runs() -> None:
    assert importlib.import_module("tests.seen_types").build
