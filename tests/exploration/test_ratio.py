"""The first PPO ratio is 1, for every exploration and head that go together; the test would notice if it were not."""

import warnings
from functools import partial

import pytest
import torch

from flowpolicy.exploration.base import chain_log_prob, require_support, sample_chain
from flowpolicy.exploration.flow_noise import FlowNoise
from flowpolicy.exploration.flow_sde import FlowSDE
from flowpolicy.exploration.langevin import Langevin
from flowpolicy.exploration.renoise import Renoise
from flowpolicy.flow.times import time_grid
from flowpolicy.heads.consistency import ConsistencyHead
from flowpolicy.heads.diffusion import DiffusionHead
from flowpolicy.heads.flow_matching import FlowMatchingHead
from flowpolicy.heads.meanflow import MeanFlowHead
from flowpolicy.heads.regression import RegressionHead
from flowpolicy.heads.terms.dispersive import DispersiveRegularizer
from flowpolicy.nets.mlp import ResidualMLP
from flowpolicy.rl.actor_critic import ActorCritic
from tests.catalogue import catalogue_policy, observations, options

SHAPE = {"action_dim": 3, "horizon": 4, "cond_dim": 5}
HEADS = {
    "meanflow": MeanFlowHead,
    "meanflow_u": partial(MeanFlowHead, parameterization="u"),
    "dm1": partial(MeanFlowHead, dispersive=DispersiveRegularizer()),
    "flow_matching": FlowMatchingHead,
    "consistency": ConsistencyHead,
    "diffusion": DiffusionHead,
    "regression": RegressionHead,
}
EXPLORATIONS = {f"flow_noise_{k}": partial(FlowNoise, num_steps=k, **SHAPE) for k in (1, 2, 4)}
EXPLORATIONS |= {
    f"flow_noise_state_{k}": partial(FlowNoise, num_steps=k, std_inputs="state", **SHAPE) for k in (1, 2, 4)
}
EXPLORATIONS |= {
    f"flow_sde_{mode}_{k}": partial(FlowSDE, num_steps=k, mode=mode) for k in (1, 2, 4) for mode in ("hybrid", "full")
}
EXPLORATIONS |= {f"flow_sde_window_{k}": partial(FlowSDE, num_steps=k, mode="window") for k in (2, 4)}
EXPLORATIONS |= {"renoise": Renoise} | {f"langevin_{k}": partial(Langevin, num_steps=k) for k in (2, 4)}
BATCH = 64
CATALOGUE_EXPLORATIONS = {f"flow_noise_{k}": partial(FlowNoise, num_steps=k) for k in (1, 2, 4)}
CATALOGUE_EXPLORATIONS |= {name: make() for name, make in EXPLORATIONS.items() if not name.startswith("flow_noise")}


def parts(head, exploration):
    torch.manual_seed(0)
    net = ResidualMLP(width=64, **SHAPE)
    made, drawn = HEADS[head](net), EXPLORATIONS[exploration]()
    for name, parameter in drawn.named_parameters():
        if name.startswith("net.4"):
            torch.nn.init.normal_(parameter, std=0.3)  # a noise net that is not at its start
    return made, drawn


def log_ratio(head, exploration, *, rows=slice(None), between=lambda: None):
    generator = torch.Generator().manual_seed(1)
    noise, cond = torch.randn(BATCH, 4, 3, generator=generator), torch.randn(BATCH, 5, generator=generator)
    chain = sample_chain(exploration, head.velocity, noise, cond, generator)
    between()
    picked = type(chain)(*(value[rows] for value in chain))
    new = chain_log_prob(exploration, head.velocity, picked, cond[rows])
    return new.log_prob.sum((1, 2, 3)) - picked.log_prob.sum((1, 2, 3))


def works_together(head, exploration):
    try:
        require_support(exploration, head)
    except ValueError:
        return False
    return True


PAIRS = [
    (head, exploration) for head in HEADS for exploration in EXPLORATIONS if works_together(*parts(head, exploration))
]


@pytest.mark.parametrize(("head", "exploration"), PAIRS)
def test_the_first_ratio_is_one(head, exploration):
    made, drawn = parts(head, exploration)
    whole = log_ratio(made, drawn)
    # one stochastic step per sample: rollout and update see batches of different shape, hence other rounding
    if getattr(drawn, "mode", "full") == "hybrid" and drawn.num_steps > 1:
        assert (whole.exp() - 1).abs().max() <= 1e-5
    else:
        assert whole.abs().max() == 0
    assert (log_ratio(made, drawn, rows=slice(3, 20)).exp() - 1).abs().max() <= 1e-5


@pytest.mark.parametrize("head", options("head"))
def test_the_first_ratio_is_one_for_every_head_of_the_catalogue(head):
    policy = catalogue_policy(head=head)
    obs, own = observations(policy, 8), policy.head
    for name, exploration in CATALOGUE_EXPLORATIONS.items():
        steps = int(name[-1]) if name[-1].isdigit() else 2
        kind = name.split("_")[0]
        wanted = {"flow": own.has_velocity if "sde" in name else True}.get(kind, own.has_flow_map)
        if not wanted or (own.max_steps is not None and steps > own.max_steps):
            with pytest.raises(ValueError, match="needs the head's|takes"):
                ActorCritic(policy, exploration)
            continue
        model = ActorCritic(policy, exploration)
        decision = model.act(obs, torch.Generator().manual_seed(0))
        score = model.score(model.features(decision.stored), decision.chain)
        assert ((score.log_prob - decision.log_prob).exp() - 1).abs().max() <= 1e-5, name


def test_what_goes_together():
    """Flow-Noise with every head; the SDE with a velocity; renoise and Langevin with a flow map."""
    pairs = {(head, exploration.rstrip("_0123456789")) for head, exploration in PAIRS}
    assert {h for h, s in pairs if s == "flow_noise"} == set(HEADS)
    assert {h for h, s in pairs if s == "flow_sde_full"} == {"meanflow", "meanflow_u", "dm1", "flow_matching"}
    assert {h for h, s in pairs if s == "renoise"} == {"meanflow", "meanflow_u", "dm1"}
    assert {h for h, s in pairs if s == "langevin"} == {"meanflow", "meanflow_u", "dm1"}
    with pytest.raises(ValueError, match="at most 1"):
        require_support(FlowNoise(num_steps=2, **SHAPE), RegressionHead(ResidualMLP(width=8, **SHAPE)))


@pytest.mark.parametrize(
    ("exploration", "unlucky"),
    [("renoise", True), ("langevin_2", True), ("flow_noise_1", False), ("flow_sde_full_4", False)],
)
def test_a_flow_map_that_predicts_the_action_is_warned_of(exploration, unlucky):
    for head, warns in (("meanflow", unlucky), ("meanflow_u", False)):
        made, drawn = parts(head, exploration)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            require_support(drawn, made)
        assert ["parameterization='u'" in str(warning.message) for warning in seen] == [True] * warns


def test_a_wrong_time_grid_is_noticed(monkeypatch):
    """Mutation: sampling on linspace(0, 1, K), scoring on linspace(0, 1 - 1/K, K), as one public code does."""
    head, exploration = parts("meanflow", "flow_noise_4")
    shifted = torch.cat([time_grid(4)[1:], torch.zeros(1)])
    ratio = log_ratio(head, exploration, between=lambda: monkeypatch.setattr(FlowNoise, "times", lambda self: shifted))
    assert (ratio.exp() - 1).abs().max() > 1e-3


def test_dropout_in_training_mode_is_noticed_and_in_evaluation_mode_it_is_not():
    head, exploration = parts("meanflow", "flow_noise_1")
    head.net.output = torch.nn.Sequential(torch.nn.Dropout(0.1), head.net.output)
    assert (log_ratio(head.train(), exploration).exp() - 1).abs().max() > 1e-3
    assert log_ratio(head.eval(), exploration).abs().max() == 0


def test_every_sample_draws_its_own_stochastic_step():
    step = FlowSDE(num_steps=4).pick_steps(4000, torch.Generator().manual_seed(0))
    assert step.shape == (4000, 1)
    assert torch.bincount(step[:, 0]).tolist() == pytest.approx([1000] * 4, abs=120)


def test_the_window_moves_from_the_noisiest_step_to_the_cleanest():
    exploration, seen = FlowSDE(num_steps=4, mode="window", window=2), []
    for progress in (0.0, 0.4, 0.7, 1.0):
        exploration.set_progress(progress)
        seen.append(exploration.pick_steps(1, torch.Generator())[0].tolist())
    assert seen == [[0, 1], [1, 2], [2, 3], [2, 3]]
