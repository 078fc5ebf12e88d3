"""PolicySpec: whoever built a policy, it can be saved, loaded and used by every verb."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from flowpolicy.checkpoint import Checkpoint, create_policy, load_policy, save_policy
from flowpolicy.encoders.state import StateEncoder
from flowpolicy.heads.meanflow import MeanFlowHead
from flowpolicy.heads.terms.direction import DirectionAlignment
from flowpolicy.heads.terms.dispersive import DispersiveRegularizer
from flowpolicy.heads.terms.guidance import Guidance
from flowpolicy.nets.mlp import ResidualMLP
from flowpolicy.policy import FlowPolicy, build_policy
from flowpolicy.spec import PolicySpec
from tests.catalogue import SEEING, options, policy_config
from tests.helpers import EMBODIMENT, observation


def built(**changes) -> FlowPolicy:
    arguments = {
        "encoder": StateEncoder,
        "net": partial(ResidualMLP, width=16, depth=1),
        "head": partial(
            MeanFlowHead,
            p_equal=0.5,
            dispersive=DispersiveRegularizer(taps=["mid"], weight=0.3),
            direction=DirectionAlignment(decay=True),
            guidance=partial(Guidance, omega=1.5),
        ),
        "horizon": 8,
        "obs_horizon": 2,
        "action_horizon": 4,
    }
    torch.manual_seed(3)
    return build_policy(embodiment=EMBODIMENT, **arguments | changes)


def test_a_policy_built_in_python_is_saved_and_loaded_without_hydra(tmp_path: Path) -> None:
    policy, obs = built(), observation()
    folder = save_policy(policy, tmp_path / "mine", facts={"note": "hello"})
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "embodiment.json", "model.safetensors"]
    for place in (folder, str(folder)):
        loaded = load_policy(place)
        torch.testing.assert_close(loaded.predict(obs, noise="zero"), policy.predict(obs, noise="zero"), rtol=0, atol=0)
        assert loaded.spec.to_dict() == policy.spec.to_dict()
        assert loaded.head.dispersive.weight == 0.3 and loaded.head.direction.decay
        assert loaded.head.guidance.omega == 1.5
    opened = Checkpoint.open(folder)
    assert (opened.record["note"], opened.task, opened.num_steps) == ("hello", {}, 1)
    assert Checkpoint.open(opened) is opened and opened.embodiment == EMBODIMENT


def test_saving_is_whole_or_not_at_all_and_replaces_only_when_told(tmp_path: Path) -> None:
    folder = save_policy(built(), tmp_path / "mine")
    before = (folder / "config.json").read_bytes()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save_policy(built(horizon=6), folder)
    assert (folder / "config.json").read_bytes() == before
    save_policy(built(horizon=6), folder, overwrite=True)
    assert load_policy(folder).horizon == 6
    for changes in ({"encoder": lambda **shapes: StateEncoder(**shapes)}, {"obs_keys": map(str, EMBODIMENT.obs)}):
        with pytest.raises(ValueError, match=f"{[*changes][0]} is .* cannot be written down: wanted a class"):
            save_policy(built(**changes), tmp_path / "other")
        assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("head", options("head"))
def test_what_hydra_composed_and_what_the_classes_say_is_the_same_spec(head: str) -> None:
    config = policy_config(head=head)
    spec = PolicySpec.from_dict(config)
    assert spec.to_dict() == config == json.loads(json.dumps(config))
    parts = spec.constructors()
    of_classes = PolicySpec(parts["encoder"], parts["net"], parts["head"], spec.numbers).to_dict()
    assert of_classes == config
    assert create_policy(config, EMBODIMENT).spec == spec


def test_a_folder_with_more_than_a_policy_is_never_replaced(tmp_path: Path) -> None:
    folder = save_policy(built(), tmp_path / "mine")
    (folder / "evaluation").mkdir()
    with pytest.raises(FileExistsError, match="holds evaluation too, which would go"):
        save_policy(built(), folder, overwrite=True)
    assert load_policy(folder).horizon == 8 and (folder / "evaluation").is_dir()


def test_what_a_spec_leaves_out_is_written_down_with_its_default(tmp_path: Path) -> None:
    config = {key: value for key, value in policy_config().items() if key != "action_representation"}
    policy = create_policy(config, EMBODIMENT)
    assert policy.spec.to_dict()["action_representation"] == "absolute"  # of build_policy


def test_a_facts_entry_cannot_take_the_place_of_the_spec(tmp_path: Path) -> None:
    folder = save_policy(built(), tmp_path / "mine", facts={"policy": {}, "schema_version": 7})
    assert load_policy(folder).horizon == 8


def test_a_config_json_in_a_run_folder_hides_no_checkpoint(tmp_path: Path) -> None:
    save_policy(built(), tmp_path / "run/checkpoints/000010/policy")
    (tmp_path / "run/config.json").write_text("{}")
    assert Checkpoint.open(tmp_path / "run").folder.name == "000010"


def test_a_class_that_nobody_can_import_again_is_named(tmp_path: Path) -> None:
    class Local(StateEncoder):
        pass

    with pytest.raises(ValueError, match="encoder is of .*Local, which nobody could import again"):
        save_policy(built(encoder=Local), tmp_path / "mine")


def test_a_loaded_policy_still_names_the_weights_that_its_encoder_began_with(tmp_path: Path) -> None:
    """And needs that file no longer."""
    policy = create_policy(policy_config(encoder="resnet18"), SEEING)
    encoder = {**policy.spec.encoder, "image": {**policy.spec.encoder["image"], "weights": "gone.pth"}}
    policy.spec = replace(policy.spec, encoder=encoder)
    loaded = load_policy(save_policy(policy, tmp_path / "mine"))
    assert loaded.spec.to_dict() == policy.spec.to_dict() and loaded.spec.encoder["image"]["weights"] == "gone.pth"
