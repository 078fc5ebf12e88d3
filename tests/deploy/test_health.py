"""The health check of a robot's container: a bundle that runs, one that is damaged, one that is too slow."""

import subprocess
import sys
from pathlib import Path

import pytest

from flowpolicy.deploy.health import check_health, main
from tests.helpers import RUNTIME_ALONE, small_policy
from tests.test_architecture import ROOT

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from flowpolicy.deploy.export import write_bundle  # noqa: E402


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("health") / "bundle"
    write_bundle(small_policy(), folder)
    return folder


def test_a_sound_bundle_is_healthy(bundle: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(bundle)]) == 0 and main([str(bundle), "60000"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"healthy: {bundle} predicts in ") and not said.err


def test_a_slow_one_and_a_missing_one_are_not(bundle: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(bundle), "0.000001"]) == 1
    assert "wanted a prediction within 1e-06 ms, got " in capsys.readouterr().err
    assert main([str(bundle.parent / "nothing")]) == 1
    assert "unhealthy: no bundle at" in capsys.readouterr().err


def test_a_damaged_one_is_not(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for file in bundle.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes() + b" " * (file.name == "policy.onnx"))
    assert main([str(tmp_path)]) == 1
    assert "policy.onnx" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["a", "fast"], ["a", "1", "2"]])
def test_wrong_words_are_usage(words: list[str]):
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2


def test_a_limit_is_a_positive_number(bundle: Path):
    for limit in (0.0, float("nan")):
        with pytest.raises(ValueError, match="within_ms"):
            check_health(str(bundle), within_ms=limit)


def test_it_runs_where_there_is_no_torch(bundle: Path):
    code = RUNTIME_ALONE + "\nfrom flowpolicy.deploy.health import main\nsys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, str(bundle)],
        capture_output=True,
        text=True,
        cwd="/",
        env={"PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("healthy")
