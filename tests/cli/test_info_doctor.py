"""`info` lists, `doctor` tries: a crash in a probe is a finding, a missing extra is no failure."""

import importlib
import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from flowpolicy import diagnostics
from flowpolicy.cli import doctor
from flowpolicy.cli.main import main
from flowpolicy.diagnostics import PROBES, Finding, Probe, describe_machine, run_probe
from tests.test_architecture import ROOT


@pytest.fixture
def probe(tmp_path: Path) -> Callable[..., Finding]:
    """Runs a program of one line as a probe."""
    path = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}

    def run(code: str, *, needs: tuple[str, ...] = ("numpy",), driver: bool = False) -> Finding:
        (tmp_path / "the_program.py").write_text(code)
        fixes = ("pip install thing", "pip install --force thing")
        return run_probe(Probe("thing", needs, "the_program", *fixes, env=path, driver=driver))

    return run


def test_what_runs_is_ok_with_its_version(probe):
    import numpy

    assert probe("import numpy") == Finding("thing", "ok", f"numpy {numpy.__version__}")


def test_what_is_not_installed_is_missing_and_not_run(probe):
    finding = probe("import os; os.abort()", needs=("numpy", "no-such-distribution"))
    assert finding == Finding("thing", "missing", "no-such-distribution not installed", "pip install thing")


def test_a_segmentation_fault_is_a_finding(probe):
    finding = probe("import ctypes; ctypes.string_at(0)")
    assert finding.status == "broken" and "crashed (SIGSEGV)" in finding.detail
    assert finding.fix == "pip install --force thing"


def test_an_exception_is_broken_and_its_line_is_shown(probe):
    finding = probe("print('noise'); raise RuntimeError('no device found')")
    assert finding.status == "broken" and finding.detail.endswith("RuntimeError: no device found")


def test_a_missing_driver_is_missing_but_a_crashing_one_is_broken(probe):
    assert probe("raise OSError('libEGL.so.1')", driver=True).status == "missing"
    assert probe("import os; os.abort()", driver=True).status == "broken"


@pytest.mark.parametrize("name", ["EGL (MuJoCo)", "OSMesa (MuJoCo)"])
def test_a_renderer_without_its_library_is_missing_and_the_library_named(tmp_path: Path, name: str):
    pytest.importorskip("mujoco", reason="needs the extra metaworld")
    (one,) = [one for one in PROBES if one.name == name]
    (tmp_path / "without.py").write_text(
        "from flowpolicy.probes import mujoco_frame as one\n"
        "one.LIBRARIES = {key: [f'lib{key}-gone.so'] for key in one.LIBRARIES}\n"
        "one.main()\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    finding = run_probe(replace(one, program="without", env={**one.env, "PYTHONPATH": path}))
    assert finding.status == "missing" and "OSError: no library lib" in finding.detail
    assert finding.fix.startswith("apt-get install -y lib")


def test_what_hangs_is_broken(probe, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(diagnostics, "TIMEOUT_S", 0.5)
    assert "no answer within 0.5 s" in probe("import time; time.sleep(60)").detail


def test_the_planner_on_numpy_2_is_known_to_crash(probe, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(diagnostics, "_version", {"mplib": "0.1.1", "numpy": "2.4.6"}.get)
    finding = probe("pass", needs=("mplib",))
    assert finding.status == "broken" and "numpy 2.4.6" in finding.detail and finding.fix == 'pip install "numpy<2"'
    monkeypatch.setattr(diagnostics, "_version", {"mplib": "0.1.1", "numpy": "1.26.4"}.get)
    assert probe("pass", needs=("mplib",)).status == "ok"


def test_a_torchvision_of_another_torch_is_recognised(probe):
    finding = probe("raise RuntimeError('operator torchvision::nms does not exist')")
    assert finding.status == "broken" and finding.fix.startswith("pip uninstall torchvision")


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("missing", 0), ("broken", 1)])
def test_only_what_is_installed_and_broken_fails(monkeypatch, capsys, status, code):
    fix = "" if status == "ok" else "the fix"
    monkeypatch.setattr(doctor, "run_probe", lambda one: Finding(one.name, status, "detail", fix))
    assert main(["doctor"]) == code
    out = capsys.readouterr().out
    assert all(one.name in out for one in PROBES) and ("the fix" in out) == (status != "ok")


def test_one_check_can_be_chosen(capsys: pytest.CaptureFixture):
    assert main(["doctor", "only=core"]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[:-1]] == [["ok", "core"]]


@pytest.mark.parametrize("arguments", [["fast"], ["all=1"], ["only=nothing-like-it"]])
def test_wrong_options_are_refused(capsys: pytest.CaptureFixture, arguments: list[str]):
    assert main(["doctor", *arguments]) == 2
    assert capsys.readouterr().err.startswith("flowpolicy doctor: ")


def test_every_probe_is_a_program_and_names_its_fix():
    for one in PROBES:
        given = inspect.signature(importlib.import_module(one.program).main).parameters
        assert len(given) == len(one.arguments) and one.needs and one.fix


def test_no_probe_is_forgotten():
    there = {f"flowpolicy.probes.{path.stem}" for path in (ROOT / "flowpolicy" / "probes").glob("*.py")}
    assert there - {"flowpolicy.probes.__init__"} == {one.program for one in PROBES}


@pytest.mark.slow
@pytest.mark.parametrize("name", [one.name for one in PROBES])
def test_no_probe_crashes_here(name: str):
    (one,) = [one for one in PROBES if one.name == name]
    assert run_probe(one).status in ("ok", "missing")


def test_info_names_versions_device_and_extras(capsys: pytest.CaptureFixture):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    for word in ("python", "torch", "numpy", "device", "cpus", "renderer libraries", "maniskill", "wandb"):
        assert word in out
    assert main(["info", "more"]) == 2


def test_info_imports_no_extra():
    code = "import sys; from flowpolicy.cli.main import main; main(['info']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert not loaded & {"mani_skill", "sapien", "metaworld", "mujoco", "gymnasium", "wandb", "zarr", "numba"}


def test_the_machine_has_at_least_one_processor():
    assert int(describe_machine()["cpus"]) >= 1


def test_a_reader_that_leaves_early_is_no_error():
    command = f"{sys.executable} -m flowpolicy info | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode in (0, 141) and done.stderr == "" and done.stdout.count("\n") == 1
