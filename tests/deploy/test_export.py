"""Exported graphs predict what the policy predicts, hold no training branch, and run where there is no torch."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowpolicy.actions import REPRESENTATIONS
from flowpolicy.deploy.runtime import OnnxPolicy
from flowpolicy.pointcloud.cloud import make_cloud
from flowpolicy.policy import FlowPolicy
from flowpolicy.seeding import stream
from flowpolicy.trainers.fitting import fit_normalizers
from tests.catalogue import CLOUD, SEEING, catalogue_policy, observations, options
from tests.helpers import RUNTIME_ALONE, observation, small_policy
from tests.test_policy import constant_commands

pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from flowpolicy.deploy.export import refuse_existing, write_bundle  # noqa: E402

ROOT, NAN = Path(__file__).parents[2], float("nan")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a policy with a state, a cloud and a picture."""
    folder = tmp_path_factory.mktemp("bundle")
    write_bundle(catalogue_policy(encoder="vit"), folder, facts={"checkpoint": "here"})
    return folder


def deviation(policy: FlowPolicy, folder: Path, *, num_steps: int = 1) -> float:
    """Largest difference between bundle and `predict`, robot units."""
    bundle, worst = OnnxPolicy(folder), 0.0
    for seed in range(4):
        obs, noise = observations(policy, seed=seed), torch.randn(1, 8, 3, generator=stream(seed, "n"))
        wanted = policy.predict(obs, num_steps=num_steps, noise=noise).numpy()
        got = bundle.predict({key: value.numpy() for key, value in obs.items()}, noise=noise.numpy())
        assert got.shape == wanted.shape and float(wanted.std()) > 0.01
        worst = max(worst, float(np.abs(got - wanted).max()))
    return worst


@pytest.mark.parametrize("kind", REPRESENTATIONS)
def test_a_command_that_never_changed_comes_back_exactly(tmp_path: Path, kind: str) -> None:
    policy = small_policy(action_representation=kind)
    fit_normalizers(policy, constant_commands())
    write_bundle(policy.eval(), tmp_path)
    obs = {key: value.numpy() for key, value in observation().items()}
    chunk = OnnxPolicy(tmp_path).predict(obs, noise=np.ones((1, 8, 3), np.float32))
    assert set(chunk[..., 0].ravel()) == {np.float32(0.3)} and set(chunk[..., 2].ravel()) == {np.float32(0.25)}


def test_states_clouds_and_pictures_go_through_one_graph(bundle: Path) -> None:
    assert deviation(catalogue_policy(encoder="vit"), bundle) < 2e-6
    graph = onnx.load(bundle / "policy.onnx").graph
    assert [value.name for value in graph.input] == ["obs.agent_pos", "obs.point_cloud", "obs.image_front", "noise"]
    assert not {"Unique", "GatherElements"} & {node.op_type for node in graph.node}  # PointNet's way in training


@pytest.mark.slow
@pytest.mark.parametrize("net", options("net"))
@pytest.mark.parametrize("encoder", options("encoder"))
def test_every_encoder_and_net_predicts_the_same(encoder: str, net: str, tmp_path: Path) -> None:
    policy = catalogue_policy(encoder=encoder, net=net)
    write_bundle(policy, tmp_path)
    assert deviation(policy, tmp_path) < 2e-6


@pytest.mark.slow
@pytest.mark.parametrize("head", options("head"))
def test_every_head_predicts_the_same_in_unrolled_steps(head: str, tmp_path: Path) -> None:
    policy = catalogue_policy(head=head)
    num_steps = min(3, policy.head.max_steps or 3)
    write_bundle(policy, tmp_path, num_steps=num_steps)
    assert deviation(policy, tmp_path, num_steps=num_steps) < 2e-6


@pytest.mark.parametrize("kind", ["absolute", "delta"])
def test_every_action_representation_predicts_the_same(kind: str, tmp_path: Path) -> None:
    policy = catalogue_policy(action_representation=kind)
    write_bundle(policy, tmp_path, num_steps=2)
    assert deviation(policy, tmp_path, num_steps=2) < 2e-6
    nodes = [node.op_type for node in onnx.load(tmp_path / "policy.onnx").graph.node]
    layers = 1 + 2 * 2 + 1  # of the net: input, two in each of two blocks, output; those of the condition may be shared
    assert "Loop" not in nodes and sum(nodes.count(name) for name in ("Gemm", "MatMul")) >= 2 * layers


def test_exporting_leaves_the_policy_as_it_is(tmp_path: Path) -> None:
    policy = catalogue_policy().train()
    write_bundle(policy, tmp_path)
    assert policy.training


def test_the_files_say_what_the_robot_needs_to_know(bundle: Path) -> None:
    facts = json.loads((bundle / "policy.json").read_text())
    assert facts["obs"]["image_front"] == {"shape": [1, 2, 40, 36, 3], "dtype": "uint8"}
    assert (facts["num_steps"], facts["noise"], facts["action"]) == (1, [1, 8, 3], [1, 4, 3])
    assert facts["checkpoint"] == "here" and facts["versions"]["onnx"] == onnx.__version__
    made = json.loads((bundle / "preprocess.json").read_text())
    assert made["point_cloud"]["crop_low"] == list(CLOUD.crop_low) and made["point_cloud"]["points"] == 24
    assert made["image_front"]["height_width"] == [40, 36] and made["history"]["observations"] == 2
    assert OnnxPolicy(bundle).embodiment == SEEING


def test_more_steps_than_the_head_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at most 1 step"):
        write_bundle(catalogue_policy(head="regression"), tmp_path, num_steps=2)


def test_only_a_bundle_may_be_replaced(tmp_path: Path) -> None:
    refuse_existing(tmp_path / "new", overwrite=False)
    with pytest.raises(FileExistsError, match="pass `overwrite=True`"):
        refuse_existing(tmp_path, overwrite=False)
    with pytest.raises(FileExistsError, match="will not replace it"):
        refuse_existing(tmp_path, overwrite=True)
    (tmp_path / "policy.onnx").touch()
    refuse_existing(tmp_path, overwrite=True)


WITHOUT_TORCH = (
    RUNTIME_ALONE
    + """
try:
    import torch
except ImportError:
    pass
else:
    raise SystemExit("torch is there")
import numpy as np
from flowpolicy.deploy.runtime import OnnxPolicy
from flowpolicy.pointcloud.cloud import make_cloud

policy = OnnxPolicy(sys.argv[1])
given = dict(np.load(sys.argv[1] + "/given.npz", allow_pickle=False))
points = given.pop("points")
cloud = make_cloud(points, policy.embodiment.obs["point_cloud"].cloud)
given["obs.point_cloud"] = np.stack([cloud, cloud])[None]
obs = {key.removeprefix("obs."): value for key, value in given.items() if key.startswith("obs.")}
np.save(sys.argv[1] + "/action.npy", policy.predict(obs, noise=given["noise"]))
drawn = [policy.predict(obs, rng=np.random.default_rng(seed)) for seed in (0, 0, 1)]
assert (drawn[0] == drawn[1]).all() and (drawn[0] != drawn[2]).any()
assert not set(absent) & {name.partition(".")[0] for name in sys.modules}
"""
)


def test_a_bundle_runs_where_importing_torch_fails(tmp_path: Path) -> None:
    policy = catalogue_policy(encoder="point_cloud", net="unet1d")
    write_bundle(policy, tmp_path)
    points = np.random.default_rng(0).uniform([-0.4, 0.3, -0.1], [0.4, 1.0, 0.3], (400, 3)).astype(np.float32)
    cloud = torch.from_numpy(make_cloud(points, CLOUD))
    obs = {"agent_pos": observations(policy)["agent_pos"], "point_cloud": torch.stack([cloud, cloud])[None]}
    noise = torch.randn(1, 8, 3, generator=stream(0, "n"))
    np.savez(tmp_path / "given.npz", **{"obs.agent_pos": obs["agent_pos"].numpy()}, noise=noise.numpy(), points=points)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    wanted = policy.predict(obs, noise=noise).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "action.npy"), wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("changes", "words", "message"),
    [
        ({"agent_pos": None}, {}, "'agent_pos' is missing"),
        ({"agent_pos": np.zeros((2, 2, 4), np.float32)}, {}, r"must be float32 \(1, 2, 4\), got float32 \(2, 2, 4\)"),
        ({"agent_pos": np.zeros((1, 2, 4))}, {}, "got float64"),
        ({"image_front": np.zeros((1, 2, 40, 36, 3), np.float32)}, {}, "must be uint8"),
        ({}, {"noise": "one"}, "noise must be float32 .* got str 'one'"),
        ({}, {"noise": np.zeros((1, 4, 3), np.float32)}, r"noise must be float32 \(1, 8, 3\), got float32 \(1, 4, 3\)"),
        ({}, {"noise": np.zeros((1, 8, 3))}, "noise must be float32 .* got float64"),
    ],
)
def test_a_bundle_refuses_what_does_not_fit(bundle: Path, changes: dict, words: dict, message: str) -> None:
    obs = {key: value.numpy() for key, value in observations(catalogue_policy(encoder="vit")).items()} | changes
    words = {"rng": np.random.default_rng(0)} | words
    with pytest.raises(ValueError, match=message):
        OnnxPolicy(bundle).predict({key: value for key, value in obs.items() if value is not None}, **words)


def copied(bundle: Path, tmp_path: Path) -> Path:
    for file in bundle.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_damaged_and_foreign_bundles_are_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="export_with_certificate"):
        OnnxPolicy(tmp_path)
    folder = copied(bundle, tmp_path)
    whole = (folder / "policy.onnx").read_bytes()
    (folder / "policy.onnx").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="policy.onnx is not as saved"):
        OnnxPolicy(folder)
    (folder / "policy.onnx").write_bytes(whole)
    facts = json.loads((folder / "policy.json").read_text())
    (folder / "policy.json").write_text(json.dumps(facts | {"schema_version": 99}))
    with pytest.raises(ValueError, match="wanted schema_version 1, got 99"):
        OnnxPolicy(folder)
    for text in ("{", "[]"):
        (folder / "policy.json").write_text(text)
        with pytest.raises(ValueError, match="policy.json"):
            OnnxPolicy(folder)
    with pytest.raises(ValueError, match="at least 1 thread"):
        OnnxPolicy(bundle, threads=0)


def changed(folder: Path, name: str, **changes: Any) -> None:
    record = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(record | changes, indent=1))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("embodiment.json", {"action_high": [9.0, 1.0, 1.0]}),
        ("embodiment.json", {"reference_index": [1, 0, -1]}),
        ("preprocess.json", {"point_cloud": {"kind": "point cloud", "points": 24}}),
        ("policy.json", {"checkpoint": "there"}),
    ],
)
def test_a_bundle_that_was_edited_says_so_and_needs_edited(
    bundle: Path, tmp_path: Path, name: str, change: dict
) -> None:
    folder = copied(bundle, tmp_path)
    changed(folder, name, **change)
    with pytest.raises(ValueError, match=f"{name} is not as saved: edited by hand, damaged, .*pass `edited=True`"):
        OnnxPolicy(folder)
    assert OnnxPolicy(folder, edited=True).num_steps == 1


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("embodiment.json", {"action_low": [NAN, -1.0, -1.0]}, "action_low: wanted finite numbers, got nan"),
        ("embodiment.json", {"control_hz": 0}, "control_hz: wanted a number above 0"),
        (
            "embodiment.json",
            {"action": {"shape": [2]}, "action_low": [0, 0], "action_high": [1, 1], "reference_index": [0, 1]},
            "policy.json: noise: wanted .*1, 8, 2.*, got .*1, 8, 3",
        ),
        ("policy.json", {"obs": {"agent_pos": {"shape": [1, 2, 5], "dtype": "float32"}}}, "policy.json: obs: wanted"),
        ("policy.json", {"obs": {}}, "policy.json: wanted num_steps, and obs, noise and action"),
        ("policy.json", {"obs": 3}, "policy.json: wanted num_steps, and obs, noise and action"),
        ("policy.json", {"noise": None}, "policy.json: wanted num_steps, and obs, noise and action"),
        ("policy.json", {"action": [1, 9, 3]}, "policy.json: wanted whole numbers >= 1"),
        ("policy.json", {"action": [1, 3, 3]}, "policy.onnx: wanted actions"),
        ("policy.json", {"noise": [1, 9, 3]}, "policy.onnx: wanted the inputs of policy.json"),
        ("policy.json", {"num_steps": "1"}, "policy.json: wanted whole numbers >= 1"),
    ],
)
def test_files_that_contradict_each_other_are_refused_also_when_edited(
    bundle: Path, tmp_path: Path, name: str, change: dict, said: str
) -> None:
    folder = copied(bundle, tmp_path)
    changed(folder, name, **change)
    with pytest.raises(ValueError, match=said):
        OnnxPolicy(folder, edited=True)


def test_weights_that_are_not_finite_are_not_exported_and_not_run(tmp_path: Path) -> None:
    policy = catalogue_policy()
    write_bundle(policy, tmp_path)
    graph = onnx.load(tmp_path / "policy.onnx")
    (bias, *_) = [value for value in graph.graph.initializer if value.dims == [32]]
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(32, NAN, np.float32), bias.name))
    onnx.save(graph, tmp_path / "policy.onnx")
    with pytest.raises(ValueError, match="policy.onnx: zeros give an action that is not finite"):
        OnnxPolicy(tmp_path, edited=True)
    next(policy.parameters()).view(-1)[0] = NAN
    with pytest.raises(ValueError, match="export: .*: wanted finite numbers, got 1 of"):
        write_bundle(policy, tmp_path / "another")
    assert not (tmp_path / "another").exists()


def test_a_bundle_from_before_the_fingerprint_is_held_against_its_checksum(bundle: Path, tmp_path: Path) -> None:
    folder = copied(bundle, tmp_path)
    record = {k: v for k, v in json.loads((folder / "policy.json").read_text()).items() if k != "fingerprint"}
    (folder / "policy.json").write_text(json.dumps(record))
    OnnxPolicy(folder)
    (folder / "policy.onnx").write_bytes((folder / "policy.onnx").read_bytes() + b" ")
    with pytest.raises(ValueError, match="copy the whole bundle again"):
        OnnxPolicy(folder)
