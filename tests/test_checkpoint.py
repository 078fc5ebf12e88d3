"""Checkpoints rebuild the policy exactly, run no foreign code and say what is wrong with a bad one."""

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from flowpolicy.checkpoint import Checkpoint, create_policy, load_policy, resolve_checkpoint, save_policy
from flowpolicy.seeding import stream
from tests.catalogue import SEEING, policy_config
from tests.helpers import EMBODIMENT, POLICY_CONFIG, observation


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    policy = create_policy(POLICY_CONFIG, EMBODIMENT)
    policy.action_normalizer.offset.fill_(0.25)
    facts = {"step": 10, "normalization": {"obs": "minmax", "action": "minmax"}}
    save_policy(policy, tmp_path / "checkpoints/000010/policy", facts=facts)
    (tmp_path / "checkpoints/last").symlink_to("000010")
    return tmp_path


def edit(run: Path, name: str, change: Callable[[Any], Any]) -> Path:
    """Write what `change` makes of a file of the checkpoint: of JSON's content, of the tensors."""
    file = run / "checkpoints/000010/policy" / name
    if file.suffix == ".json":
        file.write_text(json.dumps(change(json.loads(file.read_text())), indent=2))
    else:
        save_file(change(load_file(file)), file)
    return file


def test_a_loaded_policy_predicts_the_same_bit_for_bit(run: Path) -> None:
    torch.manual_seed(0)
    original = create_policy(POLICY_CONFIG, EMBODIMENT)
    original.action_normalizer.offset.fill_(0.25)
    loaded = load_policy(run)
    assert loaded.embodiment == EMBODIMENT and not loaded.training
    obs = observation()
    assert torch.equal(original.predict(obs, generator=stream(0, "n")), loaded.predict(obs, generator=stream(0, "n")))


def test_run_checkpoint_and_policy_folders_all_name_the_checkpoint(run: Path) -> None:
    wanted = (run / "checkpoints/000010").resolve()
    for path in (run, run / "checkpoints/000010", run / "checkpoints/last", run / "checkpoints/last/policy"):
        assert resolve_checkpoint(path) == wanted
    (run / "checkpoints/000020").mkdir()
    (run / "checkpoints/best").symlink_to("000010")
    assert resolve_checkpoint(run) == wanted
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        resolve_checkpoint(run / "checkpoints/000020")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):  # not the folder around a misspelt name
        resolve_checkpoint(run / "checkpoints/000010/polcy")


@pytest.mark.parametrize(
    "payload",
    [
        {"_target_": "os.system", "_args_": ["touch FILE"]},
        {"_target_": "flowpolicy.tracking._git", "_args_": [".", "-c", "alias.z=!touch FILE", "z"]},
        {"_target_": "flowpolicy.policy.torch.load", "_args_": ["FILE"]},
        {"_target_": "flowpolicy.heads.meanflow.torch.nn.Linear", "_args_": [1, 1]},
        {"_target_": "flowpolicy.heads.base.check_parameterization", "_args_": ["u"]},
        {"_target_": "flowpolicy.tracking.JsonlTracker", "_args_": ["FILE"]},
        {"_target_": "flowpolicy.policy.build_policy.__globals__", "_partial_": True},
        "${oc.decode:'{_target_: os.system, _args_: [touch FILE]}'}",
    ],
)
def test_a_config_that_names_anything_but_our_parts_is_refused_and_runs_nothing(run: Path, payload) -> None:
    encoder = json.loads(json.dumps(payload).replace("FILE", str(run / "ran")))
    edit(run, "config.json", lambda record: {**record, "policy": {**record["policy"], "net": encoder}})
    with pytest.raises(ValueError, match="the policy config (names|must be resolved)"):
        load_policy(run, edited=True)
    assert not (run / "ran").exists()


def test_a_trusted_package_may_give_classes_and_nothing_else(run: Path) -> None:
    config = {**POLICY_CONFIG, "encoder": {"_target_": "tests.helpers.OwnEncoder", "_partial_": True}}
    with pytest.raises(ValueError, match=r"names tests.helpers.OwnEncoder: .*pass `trusted_modules=\['tests'\]`"):
        create_policy(config, EMBODIMENT)
    assert type(create_policy(config, EMBODIMENT, trusted_modules=["tests"]).encoder).__name__ == "OwnEncoder"
    for name in ("small_policy", "torch.nn.Linear"):
        foreign = {"_target_": f"tests.helpers.{name}", "_partial_": True}
        with pytest.raises(ValueError, match="names tests.helpers"):
            create_policy({**POLICY_CONFIG, "encoder": foreign}, EMBODIMENT, trusted_modules=["tests"])


def test_arguments_that_a_part_does_not_take_are_named(run: Path) -> None:
    with pytest.raises(ValueError, match="does not fit its parts: .*'typo'"):
        create_policy({**POLICY_CONFIG, "head": {**POLICY_CONFIG["head"], "typo": 1}}, EMBODIMENT)


def without_range(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("chunk_")}


def test_a_checkpoint_from_before_the_range_was_kept_clamps_at_one_as_it_did(run: Path) -> None:
    whole = load_policy(run)
    edit(run, "model.safetensors", without_range)
    old, obs = load_policy(run, edited=True), observation()
    assert old.chunk_low.tolist() == [-1.0] * 3 and old.chunk_high.tolist() == [1.0] * 3
    assert torch.equal(old.predict(obs, generator=stream(0, "n")), whole.predict(obs, generator=stream(0, "n")))


def test_a_checkpoint_from_before_commands_were_kept_has_the_embodiments_bounds(run: Path) -> None:
    edit(run, "model.safetensors", lambda tensors: {n: t for n, t in tensors.items() if not n.startswith("command_")})
    edit(run, "config.json", lambda record: {**record, "normalization": {"obs": "minmax", "action": "meanstd"}})
    old = load_policy(run, edited=True)
    assert torch.equal(old.command_low, old.action_low) and torch.equal(old.command_high, old.action_high)


@pytest.mark.parametrize(
    "modes", [{"obs": "minmax", "action": "meanstd"}, {"obs": "minmax", "action": "quantile"}, None]
)
def test_a_range_that_is_missing_is_not_made_up_where_one_would_be_wrong(run: Path, modes: Any) -> None:
    edit(run, "model.safetensors", without_range)
    edit(run, "config.json", lambda record: {**record, "normalization": modes})
    with pytest.raises(ValueError, match='model.safetensors does not fit .* "chunk_low", "chunk_high"'):
        load_policy(run, edited=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda record: "{", "embodiment.json: "),
        (lambda record: json.dumps([1]), "embodiment.json: "),
        (lambda record: json.dumps({**record, "schema_version": 2}), "embodiment.json: .*schema_version 1, got 2"),
        (lambda record: json.dumps({**record, "colour": "red"}), r"embodiment.json: .*unknown keys \['colour'\]"),
        (lambda record: json.dumps({**record, "action": {"shape": [3], "colour": "red"}}), "embodiment: action: want"),
        (lambda record: json.dumps({**record, "obs": {"agent_pos": {"unit": "m"}}}), "embodiment: obs.agent_pos: want"),
    ],
)
def test_a_damaged_or_foreign_embodiment_is_named(run: Path, change, said: str) -> None:
    file = run / "checkpoints/000010/policy/embodiment.json"
    file.write_text(change(json.loads(file.read_text())))
    with pytest.raises(ValueError, match=said):
        load_policy(run, edited=True)
    with pytest.raises(ValueError, match="embodiment.json is not as saved"):
        load_policy(run)


def test_truncated_weights_and_other_schemas_are_clear_errors(run: Path) -> None:
    weights = run / "checkpoints/000010/policy/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ValueError, match="is damaged"):
        load_policy(run, edited=True)
    with pytest.raises(ValueError, match="model.safetensors is not as saved: edited by hand, damaged, or of another"):
        load_policy(run)
    edit(run, "config.json", lambda record: {**record, "schema_version": 99})
    with pytest.raises(ValueError, match="schema_version 99"):
        Checkpoint.open(run)


def put(name: str, index: int, value: float, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    tensors[name].view(-1)[index] = value
    return tensors


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("action_normalizer.scale", 0.0, r"action_normalizer.scale\[1\]: wanted 1e-08 to 1e\+08, got 0;"),
        ("action_normalizer.scale", 1e-12, r"action_normalizer.scale\[1\]: wanted 1e-08 to 1e\+08, got 1e-12;"),
        ("action_normalizer.scale", -1.0, r"action_normalizer.scale\[1\]: wanted .*, got -1;"),
        ("action_normalizer.scale", float("inf"), "action_normalizer.scale: wanted finite numbers, got 1 of 3"),
        ("action_normalizer.scale", float("nan"), "action_normalizer.scale: wanted finite numbers, got 1 of 3"),
        ("action_normalizer.offset", float("nan"), "action_normalizer.offset: wanted finite numbers"),
        ("obs_normalizer.agent_pos.scale", float("inf"), "obs_normalizer.agent_pos.scale: wanted finite numbers"),
        ("obs_normalizer.agent_pos.scale", 1e12, r"obs_normalizer.agent_pos.scale\[1\]: wanted .*, got 1e\+12"),
        ("chunk_low", 1.5, r"chunk_low\[1\]: wanted at most chunk_high\[1\] = 1, got 1.5"),
        ("chunk_high", float("inf"), "chunk_high: wanted finite numbers"),
        (
            "command_low",
            -2.5,
            r"command_low\[1\] and .*: wanted bounds within .*, -2 to 2, got -2.5 and 2",
        ),
        ("command_high", -2.5, r"command_low\[1\] and .*, got -2 and -2.5"),
        ("command_high", 2.5, r"command_low\[1\] and .*, got -2 and 2.5"),
        ("head.net.output.weight", float("nan"), "head.net.output.weight: wanted finite numbers, got 1 of"),
    ],
)
def test_numbers_that_no_training_gives_are_refused_by_name(run: Path, name: str, value: float, said: str) -> None:
    edit(run, "model.safetensors", partial(put, name, 1, value))
    with pytest.raises(ValueError, match=f"model.safetensors: {said}.*take another checkpoint"):
        load_policy(run, edited=True)
    with pytest.raises(ValueError, match="model.safetensors is not as saved"):
        load_policy(run)


@pytest.mark.parametrize("name", ["action_normalizer.scale", "obs_normalizer.env_state.offset", "chunk_high"])
def test_a_policy_of_impossible_numbers_is_not_saved(tmp_path: Path, name: str) -> None:
    policy = create_policy(POLICY_CONFIG, EMBODIMENT)
    policy.state_dict()[name][0] = float("nan")
    with pytest.raises(ValueError, match=f"save_policy: {name}: wanted finite numbers"):
        save_policy(policy, tmp_path / "policy")
    assert not (tmp_path / "policy").exists()


def swapped(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "obs": dict(reversed(record["obs"].items()))}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("embodiment.json", lambda record: {**record, "reference_index": [0, 1, -1]}),
        ("embodiment.json", swapped),
        ("embodiment.json", lambda record: {**record, "action_high": [20.0, 2.0, 1.0]}),
        ("config.json", lambda record: {**record, "step": 11}),
        ("config.json", lambda record: {**record, "policy": {**record["policy"], "action_horizon": 5}}),
        ("model.safetensors", partial(put, "action_normalizer.offset", 0, 0.26)),
    ],
)
def test_what_was_edited_by_hand_is_named_and_needs_edited(run: Path, name: str, change) -> None:
    edit(run, name, change)
    with pytest.raises(ValueError, match=rf"{name} is not as saved: .* or pass `edited=True`"):
        load_policy(run)
    assert not load_policy(run, edited=True).training


def test_a_checkpoint_of_other_indentation_is_the_same_one(run: Path) -> None:
    for name in ("config.json", "embodiment.json"):
        file = run / "checkpoints/000010/policy" / name
        file.write_bytes(json.dumps(json.loads(file.read_text()), indent=7).replace("\n", "\r\n").encode())
    load_policy(run)


@pytest.mark.parametrize("entry", [{}, 3, {"config.json": "0"}, {"config.json": "0", "../x": "0"}])
def test_a_fingerprint_that_is_none_is_refused(run: Path, entry: Any) -> None:
    edit(run, "config.json", lambda record: {**record, "fingerprint": entry})
    with pytest.raises(ValueError, match=r"config.json(: fingerprint: wanted| is not as saved)"):
        load_policy(run)


def test_a_checkpoint_from_before_the_fingerprint_loads_with_all_other_checks(run: Path) -> None:
    edit(run, "config.json", lambda record: {k: v for k, v in record.items() if k != "fingerprint"})
    load_policy(run)
    edit(run, "model.safetensors", partial(put, "action_normalizer.scale", 0, 0.0))
    with pytest.raises(ValueError, match="action_normalizer.scale"):
        load_policy(run)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"normalization": {"obs": "minmax", "action": "minmaxx"}},
            "normalization: wanted .* minmax, quantile, meanstd",
        ),
        ({"normalization": "minmax"}, "normalization: wanted"),
        ({"policy": [1]}, "policy: wanted an object with encoder"),
        ({"policy": {}}, "policy: wanted an object with encoder"),
        ({"policy": {**POLICY_CONFIG, "encoder": None}}, "policy: wanted an object with encoder"),
        (
            {"policy": {**POLICY_CONFIG, "_target_": POLICY_CONFIG["net"]["_target_"]}},
            "must be an object with _target_",
        ),
        ({"policy": {**POLICY_CONFIG, "net": 3}}, "does not fit its parts"),
        ({"policy": {**POLICY_CONFIG, "head": "MeanFlowHead"}}, "does not fit its parts"),
        ({"policy": {**POLICY_CONFIG, "horizon": "8"}}, "does not fit its parts"),
        ({"policy": {**POLICY_CONFIG, "horizon": 8.5}}, "does not fit its parts"),
        ({"policy": {**POLICY_CONFIG, "obs_keys": 3}}, "does not fit its parts"),
        ({"policy": {**POLICY_CONFIG, "action_representation": [1]}}, "action_representation must be|does not fit"),
        ({"policy": {**POLICY_CONFIG, "net": {**POLICY_CONFIG["net"], "width": -32}}}, "config.json: "),
        ({"policy": {**POLICY_CONFIG, "net": {**POLICY_CONFIG["net"], "width": "32"}}}, "does not fit its parts"),
        ({"policy": {**POLICY_CONFIG, "net": {**POLICY_CONFIG["net"], "_args_": [1]}}}, "does not fit its parts"),
        ({"policy": {**POLICY_CONFIG, "net": {**POLICY_CONFIG["net"], "_target_": 7}}}, "the policy config names 7"),
        (
            {"policy": {**POLICY_CONFIG, "net": {**POLICY_CONFIG["net"], "_target_": "flowpolicy.nets.x.Y"}}},
            "config.json: ",
        ),
    ],
)
def test_a_config_of_another_form_is_one_line_that_names_the_file(run: Path, change: dict[str, Any], said: str) -> None:
    edit(run, "config.json", lambda record: {**record, **change})
    with pytest.raises(ValueError, match=said) as error:
        load_policy(run, edited=True)
    assert "config.json" in str(error.value) and "\n" not in str(error.value)


def states() -> list[Any]:
    return [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]  # noqa: NPY002


@pytest.mark.parametrize(
    "parts",
    [
        {"head": "imf_dual", "net": "joint_transformer"},
        {"encoder": "point_cloud", "net": "unet1d", "head": "diffusion"},
        {"encoder": "resnet18", "head": "flow_matching"},
        {"encoder": "vit", "head": "drift"},
    ],
)
def test_building_and_loading_a_policy_leaves_the_global_generators_as_they_are(tmp_path: Path, parts: Any) -> None:
    config = policy_config(**parts)
    before = states()
    save_policy(create_policy(config, SEEING), tmp_path / "policy")
    assert states() == before
    load_policy(tmp_path)
    assert states() == before


def test_the_weights_of_a_new_policy_follow_the_global_seed() -> None:
    torch.manual_seed(3)
    first = create_policy(POLICY_CONFIG, EMBODIMENT)
    torch.manual_seed(3)
    again = create_policy(POLICY_CONFIG, EMBODIMENT)
    torch.manual_seed(4)
    other = create_policy(POLICY_CONFIG, EMBODIMENT)
    pairs = list(zip(first.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs) and not all(torch.equal(a, c) for a, _, c in pairs)
