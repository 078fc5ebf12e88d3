"""Checkpoints rebuild the policy exactly, run no foreign code and say what is wrong with a bad one."""

import json
from pathlib import Path

import pytest
import torch

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


def test_a_config_that_names_foreign_code_is_refused_unless_trusted(run: Path) -> None:
    file = run / "checkpoints/000010/policy/config.json"
    record = json.loads(file.read_text())
    record["policy"]["encoder"]["_target_"] = "os.system"
    file.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="names os.system"):
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
