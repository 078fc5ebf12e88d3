"""Where flows start: the Gaussian is the noise itself, and another source is one class and one yaml."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flowpolicy.checkpoint import create_policy, load_policy
from flowpolicy.cli import config, main, own_hydra
from flowpolicy.exploration.base import require_support
from flowpolicy.exploration.flow_noise import FlowNoise
from flowpolicy.exploration.flow_sde import FlowSDE
from flowpolicy.flow.sources import GaussianSource, Source
from flowpolicy.heads.base import Head
from flowpolicy.heads.diffusion import DiffusionHead
from flowpolicy.heads.regression import RegressionHead
from flowpolicy.inference import prepare
from flowpolicy.paths import config_dir
from flowpolicy.policy import FlowPolicy
from flowpolicy.rl.actor_critic import ActorCritic
from flowpolicy.rl.bc import bc_loss
from flowpolicy.seeding import stream
from flowpolicy.types import Batch
from tests.helpers import EMBODIMENT, observation, small_policy, write_store

HEADS = sorted(file.stem for file in (config_dir() / "policy" / "head").glob("*.yaml"))


class Elsewhere(Source):
    """Always the same state, whatever the noise: what is computed from it does not depend on the noise any more."""

    def __init__(self, *, action_dim: int, horizon: int, cond_dim: int, offset: float = 0.5) -> None:
        super().__init__()
        self.register_buffer("offset", torch.full((horizon, action_dim), offset))
        self.cond_dim, self.asked = cond_dim, []

    def forward(self, noise: Tensor, cond: Tensor, action: Tensor | None = None) -> Tensor:
        assert cond.shape == (len(noise), self.cond_dim) and (action is None or action.shape == noise.shape)
        self.asked.append("sampling" if action is None else "training")
        return self.offset.expand_as(noise)


def batch(size: int = 8) -> Batch:
    action = torch.randn(size, 8, EMBODIMENT.action_dim, generator=stream(0, "action"))
    return Batch(observation(size), action, torch.ones(size, 8))


def elsewhere() -> tuple[FlowPolicy, Elsewhere]:
    policy = small_policy(source=Elsewhere)
    assert isinstance(policy.head.source, Elsewhere)
    return policy, policy.head.source


def test_the_gaussian_source_is_the_noise_itself():
    noise, action = torch.randn(2, 8, 3), torch.zeros(2, 8, 3)
    assert GaussianSource()(noise, torch.zeros(2, 1)) is noise
    drawn = GaussianSource().draw(action, torch.zeros(2, 1), stream(0, "noise"))
    torch.testing.assert_close(drawn, torch.randn(2, 8, 3, generator=stream(0, "noise")), rtol=0, atol=0)


@pytest.mark.parametrize("name", HEADS)
def test_every_head_draws_from_its_source_or_refuses_it(name):
    words = ["dataset.path=none", f"policy/head={name}", "policy.horizon=8", "policy.action_horizon=4"]
    composed = config.plain(config.load("train", [*words, "policy/net=unet1d", "policy.net.dims=[8,16]"]))["policy"]
    assert "source" not in composed
    head: Head = create_policy(composed, EMBODIMENT).head
    source = Elsewhere(action_dim=EMBODIMENT.action_dim, horizon=8, cond_dim=head.net.cond_dim)
    if not head.has_source:
        with pytest.raises(ValueError, match="starts from no noise"):
            head.set_source(source)
        return
    head.set_source(source)
    data = batch(16)
    head.loss(data.action, torch.zeros(16, head.net.cond_dim), data.mask, stream(0, "noise"))
    assert source.asked and set(source.asked) == {"training"}


def test_another_source_changes_the_loss():
    policy, source = elsewhere()
    loss = policy.loss(batch(), stream(0, "noise")).loss
    assert loss != small_policy().loss(batch(), stream(0, "noise")).loss
    assert source.asked == ["training"]


def test_every_way_to_a_chunk_goes_through_the_source():
    policy, source = elsewhere()
    chunk = policy.predict(observation(2), generator=stream(0, "noise"))
    wanted = small_policy().predict(observation(2), noise=torch.full((2, 8, EMBODIMENT.action_dim), 0.5))
    torch.testing.assert_close(chunk, wanted, rtol=0, atol=0)
    torch.testing.assert_close(policy.predict(observation(2), noise="zero"), wanted, rtol=0, atol=0)
    prepared = prepare(policy, batch=2).predict(observation(2), generator=stream(0, "noise"))
    torch.testing.assert_close(prepared, wanted, rtol=0, atol=1e-5)
    assert set(source.asked) == {"sampling"}


def test_exploration_and_its_anchor_start_at_the_source():
    policy, source = elsewhere()
    critic = ActorCritic(policy, partial(FlowNoise, num_steps=1))
    decision = critic.act(observation(2), stream(0, "noise"))
    assert (decision.chain.before == 0.5).all() and source.asked == ["sampling"]
    cond = policy.encode(observation(2)).detach()
    same = bc_loss(policy, critic.reference, cond, cond, kind="paired", num_steps=1, generator=stream(0, "bc"))
    assert same == 0.0 and source.asked == ["sampling"] * 2


def test_what_needs_the_normal_density_refuses_another_source():
    policy, _ = elsewhere()
    with pytest.raises(ValueError, match="FlowSDE computes with standard normal starting noise, which Elsewhere does"):
        require_support(FlowSDE(), policy.head)
    with pytest.raises(ValueError, match="Elsewhere gives no normal noise, as sampler=ancestral draws"):
        small_policy(head=DiffusionHead, source=Elsewhere).predict(observation(), sampler="ancestral")


def test_a_head_without_noise_takes_the_gaussian_source_alone():
    small_policy(head=RegressionHead, source=GaussianSource)
    with pytest.raises(ValueError, match="RegressionHead starts from no noise that a source could make"):
        small_policy(head=RegressionHead, source=Elsewhere)


SHIFTED = '''"""A source for a test."""

from typing import final

import torch
from torch import Tensor

from flowpolicy.flow.sources import Source


@final
class ShiftedSource(Source):
    """Narrow noise around a point that is saved with the policy."""

    def __init__(self, *, action_dim: int, horizon: int, cond_dim: int, to: float) -> None:
        super().__init__()
        self.register_buffer("middle", torch.full((horizon, action_dim), to))

    def forward(self, noise: Tensor, cond: Tensor, action: Tensor | None = None) -> Tensor:
        return self.middle + 0.1 * noise
'''
SHIFTED_YAML = "_target_: a_source.ShiftedSource\n_partial_: true\nto: 0.25\n"


def test_a_new_source_is_one_class_and_one_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`policy/source=shifted` trains, saves and loads it."""
    configs = tmp_path / "configs"
    for file in config_dir().rglob("*.yaml"):
        copy = configs / file.relative_to(config_dir())
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(file.read_text())
    (tmp_path / "a_source.py").write_text(SHIFTED)
    (configs / "policy" / "source" / "shifted.yaml").write_text(SHIFTED_YAML)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(own_hydra, "config_dir", lambda: configs)
    store = write_store(tmp_path / "demos.zarr")
    words = ["policy.horizon=8", "policy.action_horizon=4", "policy.net.width=16", "policy.net.depth=1"]
    words += ["policy/head=flow_matching", "trainer.steps=2", "task=toy", "task.env=null", f"dataset.path={store}"]

    def weights(run: str, *more: str) -> FlowPolicy:
        assert main.main(["train", *words, *more, f"out={tmp_path / run}"]) == 0
        return load_policy(tmp_path / run, trusted_modules=["a_source"])

    plain, named = weights("plain"), weights("named", "policy/source=gaussian")
    shifted = weights("shifted", "policy/source=shifted", "policy.source.to=0.5")
    assert (shifted.head.source.middle == 0.5).all()  # type: ignore[union-attr]
    states = [policy.head.net.state_dict() for policy in (plain, named, shifted)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not all(torch.equal(value, states[2][name]) for name, value in states[0].items())
    with torch.no_grad():
        there = shifted.head.source(torch.zeros(1, 8, EMBODIMENT.action_dim), torch.zeros(1))
    shifted.head.set_source(GaussianSource())
    seen = observation(1, 1)
    torch.testing.assert_close(
        load_policy(tmp_path / "shifted", trusted_modules=["a_source"]).predict(seen, noise="zero"),
        shifted.predict(seen, noise=there),
    )
