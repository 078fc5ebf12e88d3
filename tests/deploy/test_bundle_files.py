"""Every file of a bundle counts; the folder can be moved, locked and given to others; a policy can be handed over."""

import copy
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from flowpolicy.deploy.runtime import OnnxPolicy
from flowpolicy.evaluation.observations import Observed
from tests.helpers import RUNTIME_ALONE, observation, small_policy

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from flowpolicy.deploy import export  # noqa: E402
from flowpolicy.evaluation.certificate import export_with_certificate  # noqa: E402

ROOT = Path(__file__).parents[2]
FILES = {"policy.json", "policy.onnx", "policy.onnx.data", "embodiment.json", "preprocess.json", "certificate.json"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the weights beside the graph, as those that are too large for one file, and a certificate."""
    folder, seen = tmp_path_factory.mktemp("whole") / "bundle", Observed(observation(4), {}, "a test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_LARGEST_FILE", 0)
        export_with_certificate(small_policy().eval(), folder, seen, facts={}, warmup=0, repeats=1)
    return folder


@pytest.fixture
def bundle(whole: Path) -> Iterator[Path]:
    """A copy that any user of this computer may read."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        (copied := Path(folder) / "bundle").mkdir(mode=0o755)
        for file in whole.iterdir():
            (copied / file.name).write_bytes(file.read_bytes())
        yield copied


def arrays() -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in observation().items()}


def without_fingerprint(bundle: Path) -> None:
    record = json.loads((bundle / "policy.json").read_text())
    del record["fingerprint"]
    (bundle / "policy.json").write_text(json.dumps(record))


def test_policy_json_names_every_file(whole: Path) -> None:
    assert {file.name for file in whole.iterdir()} == FILES
    assert set(json.loads((whole / "policy.json").read_text())["fingerprint"]) == FILES


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("damage", ["zeroed", "cut", "gone"])
def test_a_file_that_is_not_as_exported_is_one_line(bundle: Path, name: str, damage: str) -> None:
    file = bundle / name
    size = file.stat().st_size
    if damage == "zeroed":
        file.write_bytes(file.read_bytes()[: size // 4] + bytes(size // 2) + file.read_bytes()[size // 4 + size // 2 :])
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[: size // 2])
    else:
        file.unlink()
    with pytest.raises((ValueError, FileNotFoundError), match="not as saved|damaged|missing|wanted") as caught:
        OnnxPolicy(bundle)
    said = str(caught.value)
    assert name in said and "\n" not in said and "Errno" not in said


def test_a_record_that_names_fewer_files_is_refused(bundle: Path) -> None:
    record = json.loads((bundle / "policy.json").read_text())
    record["fingerprint"] = {"policy.json": record["fingerprint"]["policy.json"]}
    (bundle / "policy.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="fingerprint: wanted file name -> SHA-256 of policy.json, policy.onnx, "):
        OnnxPolicy(bundle)


def test_weights_beside_the_graph_that_nothing_vouches_for_are_refused(bundle: Path) -> None:
    without_fingerprint(bundle)
    with pytest.raises(ValueError, match="policy.onnx.data: wanted its checksum in policy.json"):
        OnnxPolicy(bundle)
    assert OnnxPolicy(bundle, edited=True).predict(arrays()).shape == (1, 4, 3)


@pytest.mark.parametrize("name", ["policy.onnx", "policy.onnx.data"])
def test_what_onnxruntime_cannot_read_is_one_line_also_when_edited(bundle: Path, name: str) -> None:
    (bundle / name).write_bytes((bundle / name).read_bytes()[:200])
    with pytest.raises(ValueError, match="policy.onnx: onnxruntime cannot run it; copy the whole bundle") as caught:
        OnnxPolicy(bundle, edited=True)
    assert "\n" not in str(caught.value)


USE = (
    RUNTIME_ALONE
    + """
import os
import numpy as np
from flowpolicy.deploy.runtime import OnnxPolicy, import_onnxruntime
if sys.argv[2:]:  # after the imports: an interpreter may lie in a home that is closed to others
    import_onnxruntime()
    os.setgroups([])
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[2]))
policy = OnnxPolicy(sys.argv[1])
obs = {key: np.ones(spec["shape"], spec["dtype"]) for key, spec in policy.facts["obs"].items()}
sys.stdout.write(policy.predict(obs).tobytes().hex())
"""
)


def used(bundle: Path, *user: str, home: Path) -> str:
    """What somebody without torch gets from it; nothing may be said beside, or kept in their home."""
    done = subprocess.run(
        [sys.executable, "-B", "-c", USE, str(bundle), *user],
        capture_output=True,
        text=True,
        cwd="/",
        env={"PYTHONPATH": str(ROOT), "HOME": str(home)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_bundle_moved_locked_and_given_to_another_user_runs_without_torch(bundle: Path, tmp_path: Path) -> None:
    """And onnxruntime sends nothing, keeps nothing in the home folder and warns of nothing."""
    obs = {key: np.ones_like(value) for key, value in arrays().items()}
    wanted = OnnxPolicy(bundle).predict(obs).tobytes().hex()
    (home := tmp_path / "home").mkdir()
    moved = bundle.rename(bundle.with_name("moved"))
    for file in moved.iterdir():
        file.chmod(0o444)
    moved.chmod(0o555)
    try:
        assert used(moved, home=home) == wanted and not list(home.iterdir())
        if os.getuid() == 0:  # nobody else may become somebody else
            assert used(moved, "65534", home=Path("/nonexistent")) == wanted
    finally:
        moved.chmod(0o755)


def test_a_pickled_and_a_copied_policy_go_on_where_the_first_one_is(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle.parent)
    policy = OnnxPolicy("bundle", threads=1)
    policy.predict(arrays())
    data = pickle.dumps(policy)
    assert len(data) < 20_000  # the weights stay in the folder
    monkeypatch.chdir("/")
    others = [pickle.loads(data), copy.deepcopy(policy)]
    wanted = [policy.predict(arrays()) for _ in range(3)]
    for other in others:
        got = [other.predict(arrays()) for _ in range(3)]
        np.testing.assert_array_equal(got, wanted)
        assert other.facts == policy.facts and other.facts is not policy.facts and other.threads == 1


def test_a_pickle_does_not_open_another_bundle_in_the_same_place(bundle: Path) -> None:
    data = pickle.dumps(OnnxPolicy(bundle))
    for file in bundle.iterdir():
        file.unlink()
    export.write_bundle(small_policy(seed=1).eval(), bundle)
    with pytest.raises(ValueError, match="is another bundle than the one this policy ran"):
        pickle.loads(data)
