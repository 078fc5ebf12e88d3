"""A run of the library as it was on 28 November 2026, commit c661ff9, before PolicySpec: it loads, answers as it did
and its training state is restored. tests/golden/run: 40 steps of `flowpolicy train task=toy policy/head=mp1_small
policy.net.width=16 policy.net.depth=1`, of which expected.json holds the actions for one observation without noise."""

import json
from pathlib import Path

import pytest
import torch

from flowpolicy.checkpoint import Checkpoint, load_policy, save_policy
from flowpolicy.policy import FlowPolicy
from flowpolicy.spec import with_names_of_today
from flowpolicy.trainers.checkpoints import IMITATION_STATE, Checkpoints, newest
from flowpolicy.trainers.ema import ExponentialMovingAverage

GOLDEN = Path(__file__).parent / "golden"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())


def answers(policy: FlowPolicy) -> dict[str, torch.Tensor]:
    obs = {
        key: torch.linspace(-0.5, 0.5, spec.shape[0]).reshape(1, 1, -1) for key, spec in policy.embodiment.obs.items()
    }
    return {steps: policy.predict(obs, noise="zero", num_steps=int(steps)).flatten() for steps in EXPECTED}


@pytest.mark.parametrize(
    "place", ["run", "run/checkpoints/last", "run/checkpoints/000040", "run/checkpoints/000040/policy"]
)
def test_it_loads_and_answers_as_it_did(place: str, tmp_path: Path) -> None:
    policy = load_policy(GOLDEN / place)
    for again in (policy, load_policy(save_policy(policy, tmp_path / "copy"))):
        for steps, action in answers(again).items():
            torch.testing.assert_close(action, torch.tensor(EXPECTED[steps]), rtol=0, atol=1e-5)


def test_it_says_what_it_said() -> None:
    checkpoint = Checkpoint.open(GOLDEN / "run")
    assert checkpoint.folder.name == "000040" and checkpoint.num_steps == 1
    assert (checkpoint.task["name"], checkpoint.task["id"]) == ("toy", "two-ways")
    policy = checkpoint.policy().spec.to_dict()
    assert with_names_of_today(checkpoint.record["policy"]) == policy != checkpoint.record["policy"]  # terms/ is new


def test_its_training_state_is_restored() -> None:
    folder = GOLDEN / "run/checkpoints"
    assert newest(folder, IMITATION_STATE) == folder / "000040"
    policy = Checkpoint.open(GOLDEN / "run").policy()
    policy.requires_grad_(True)
    ema = ExponentialMovingAverage(policy)
    optimizer = torch.optim.AdamW(policy.parameters())
    assert Checkpoints(folder, facts={}).restore(policy=policy, ema=ema, optimizer=optimizer) == 40
    assert ema.updates == 40 and all(float(entry["step"]) == 40 for entry in optimizer.state.values())


def test_it_is_small() -> None:
    assert sum(file.stat().st_size for file in GOLDEN.rglob("*") if file.is_file()) < 300_000
