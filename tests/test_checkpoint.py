"""Checkpoints rebuild the policy exactly, run no foreign code and say what is wrong with a bad one."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flowpolicy.checkpoint import create_policy, load_policy, read_config, resolve_checkpoint, save_policy
from flowpolicy.seeding import stream
from tests.helpers import EMBODIMENT, POLICY_CONFIG, observation


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    policy = create_policy(POLICY_CONFIG, EMBODIMENT)
    policy.action_normalizer.offset.fill_(0.25)
    save_policy(policy, tmp_path / "checkpoints/000010/policy", config=POLICY_CONFIG, facts={"step": 10})
    (tmp_path / "checkpoints/last").symlink_to("000010")
    return tmp_path


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
    file = run / "checkpoints/000010/policy/config.json"
    record = json.loads(file.read_text())
    record["policy"]["encoder"] = json.loads(json.dumps(payload).replace("FILE", str(run / "ran")))
    file.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="the policy config (names|must be resolved)"):
        load_policy(run)
    assert not (run / "ran").exists()


def test_a_trusted_package_may_give_classes_and_nothing_else(run: Path) -> None:
    config = {**POLICY_CONFIG, "encoder": {"_target_": "tests.helpers.OwnEncoder", "_partial_": True}}
    with pytest.raises(ValueError, match=r"names tests.helpers.OwnEncoder: .*pass trusted=\[tests\]"):
        create_policy(config, EMBODIMENT)
    assert type(create_policy(config, EMBODIMENT, trusted_modules=["tests"]).encoder).__name__ == "OwnEncoder"
    for name in ("small_policy", "torch.nn.Linear"):
        foreign = {"_target_": f"tests.helpers.{name}", "_partial_": True}
        with pytest.raises(ValueError, match="names tests.helpers"):
            create_policy({**POLICY_CONFIG, "encoder": foreign}, EMBODIMENT, trusted_modules=["tests"])


def test_arguments_that_a_part_does_not_take_are_named(run: Path) -> None:
    with pytest.raises(ValueError, match="does not fit its parts: .*'typo'"):
        create_policy({**POLICY_CONFIG, "head": {**POLICY_CONFIG["head"], "typo": 1}}, EMBODIMENT)


def test_a_checkpoint_from_before_the_range_was_kept_clamps_at_one_as_it_did(run: Path) -> None:
    weights = run / "checkpoints/000010/policy/model.safetensors"
    whole = load_policy(run)
    assert {"chunk_low", "chunk_high"} <= load_file(weights).keys()
    save_file({k: v for k, v in load_file(weights).items() if not k.startswith("chunk_")}, weights)
    old, obs = load_policy(run), observation()
    assert old.chunk_low.tolist() == [-1.0] * 3 and old.chunk_high.tolist() == [1.0] * 3
    assert torch.equal(old.predict(obs, generator=stream(0, "n")), whole.predict(obs, generator=stream(0, "n")))


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
        load_policy(run)


def test_truncated_weights_and_other_schemas_are_clear_errors(run: Path) -> None:
    weights = run / "checkpoints/000010/policy/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ValueError, match="does not fit"):
        load_policy(run)
    file = run / "checkpoints/000010/policy/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema_version": 99}))
    with pytest.raises(ValueError, match="schema_version 99"):
        read_config(run)
