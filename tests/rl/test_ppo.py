"""The update's parts against formulas, and what it may and may not move."""

import copy
from contextlib import closing
from functools import partial

import pytest
import torch

from flowpolicy.encoders.state import StateEncoder
from flowpolicy.exploration.flow_noise import FlowNoise
from flowpolicy.exploration.flow_sde import FlowSDE
from flowpolicy.exploration.langevin import Langevin
from flowpolicy.exploration.renoise import Renoise
from flowpolicy.heads.meanflow import MeanFlowHead
from flowpolicy.nets.mlp import ResidualMLP
from flowpolicy.policy import build_policy
from flowpolicy.rl import ppo as ppo_module
from flowpolicy.rl.actor_critic import ActorCritic
from flowpolicy.rl.bc import bc_loss
from flowpolicy.rl.collect import collect
from flowpolicy.rl.ppo import PPO, has_signal, normalized, policy_loss, value_loss
from flowpolicy.rl.rollout_buffer import minibatches
from flowpolicy.rl.settings import PPOSettings
from flowpolicy.rollout.chunk_env import ChunkResult
from tests.helpers import EMBODIMENT, small_policy
from tests.rl.toy import reach_env

EXPLORATIONS = {f"flow_noise_{k}": partial(FlowNoise, num_steps=k) for k in (1, 2, 4)}
EXPLORATIONS |= {f"flow_sde_{k}": FlowSDE(num_steps=k) for k in (1, 2, 4)}
EXPLORATIONS |= {"renoise": Renoise(), "langevin": Langevin()}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Scripted:
    """Chunk environments whose successors, rewards and ends a test writes down; observations are in EMBODIMENT."""

    def __init__(self, num_envs=8, *, truncate_every=4, terminate_every=7, reset_value=0.0, reward=None):
        self.embodiment, self.num_envs, self.step_number = EMBODIMENT, num_envs, 0
        self.truncate_every, self.terminate_every, self.reset_value = truncate_every, terminate_every, reset_value
        self.reward = reward

    def observe(self, value):
        rng = generator(self.step_number)
        return {k: value + torch.randn(self.num_envs, 2, *s.shape, generator=rng) for k, s in EMBODIMENT.obs.items()}

    def reset(self, seeds=()):
        self.step_number = 0
        return self.observe(self.reset_value)

    def step(self, chunk):
        self.step_number += 1
        final = self.observe(0.0)
        index = torch.arange(self.num_envs) + self.step_number
        truncated, terminated = index % self.truncate_every == 0, index % self.terminate_every == 0
        done = truncated | terminated
        start = self.observe(self.reset_value)
        now = {k: torch.where(done[:, None, None], start[k], v) for k, v in final.items()}
        reward = torch.randn(chunk.shape[:2], generator=generator(1000 + self.step_number)) * 0.1
        if self.reward is not None:
            reward = torch.full_like(reward, self.reward)
        steps = torch.full((self.num_envs,), chunk.shape[1])
        return ChunkResult(now, final, reward, steps, terminated, truncated, terminated)

    def close(self):
        pass


def model(exploration="flow_noise_1", **options):
    torch.manual_seed(0)
    return ActorCritic(small_policy(), EXPLORATIONS[exploration], **options)


def rolled_out(actor_critic, env=None, *, decisions=12):
    env = env or Scripted()
    return collect(actor_critic, env, env.reset(), decisions=decisions, generator=generator()).rollout


def run_update(actor_critic, rollout, *, actor="train", bc_weight=0.0, **settings):
    ppo = PPO(actor_critic, PPOSettings(**{"minibatches": 4, **settings}))
    reward = ppo.chunk_rewards(rollout)
    found = ppo.update(rollout, reward, actor=actor, bc_weight=bc_weight, order=generator(), noise=generator())
    return found, ppo


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(module, before):
    return all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("rows", ["auto", "executed", "all"])
@pytest.mark.parametrize("exploration", EXPLORATIONS)
def test_the_first_ratio_is_one_through_collection_and_minibatches(exploration, rows):
    actor_critic = model(exploration, rows=rows)
    rollout = rolled_out(actor_critic)
    zero = torch.zeros_like(rollout.log_prob)
    seen = 0
    for batch in minibatches(rollout, zero, zero, count=5, generator=generator()):
        score = actor_critic.score(actor_critic.features(batch.obs), batch.chain)
        # float32 rounds a matrix product differently for every batch size; over 24 entries that is 1.1e-5 at most
        assert ((score.log_prob - batch.log_prob).exp() - 1).abs().max() <= 2e-5
        seen += len(batch.log_prob)
    assert seen == rollout.log_prob.numel()


def test_the_policy_is_put_into_evaluation_mode():
    policy = small_policy().train()
    assert not any(module.training for module in ActorCritic(policy, Renoise()).modules())


def test_rows_that_do_not_run_count_only_where_they_reach_the_others():
    """horizon 8, 2 observed, 4 executed: rows 1 to 4 run."""
    whole = [("flow_noise_1", "all", True), ("renoise", "auto", True)]
    part = [("flow_noise_1", "auto", False), ("renoise", "executed", False)]
    for exploration, rows, moved_matters in [*whole, *part]:
        actor_critic = model(exploration, rows=rows)
        rollout = rolled_out(actor_critic, decisions=1)
        chain = type(rollout.chain)(*(value[0] for value in rollout.chain))
        cond = rollout.obs["features"][0]
        before = actor_critic.score(cond, chain).log_prob
        for row in (0, 5, 6, 7):
            after = chain.after.clone()
            after[:, :, row] += 0.3
            moved = actor_critic.score(cond, chain._replace(after=after)).log_prob
            assert (not torch.equal(moved, before)) == moved_matters
        after = chain.after.clone()
        after[:, :, 2] += 0.3
        assert not torch.equal(actor_critic.score(cond, chain._replace(after=after)).log_prob, before)


def test_the_clipped_objective_has_the_textbook_gradient():
    old = torch.zeros(6)
    log_prob = torch.tensor([0.5, 0.1, -0.5, -0.1, 0.5, -0.5], requires_grad=True)  # ratios 1.65, 1.11, 0.61, 0.90
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0, -2.0, 2.0])
    result = policy_loss(log_prob, old, advantage, clip_low=0.2, clip_high=0.2)
    result.loss.backward()
    ratio = log_prob.detach().exp()
    active = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 1.0])  # the first and third are beyond the clip, on the good side
    torch.testing.assert_close(log_prob.grad, -advantage * ratio * active / 6, rtol=0, atol=1e-6)
    assert float(result.clipped) == pytest.approx(4 / 6)
    assert float(result.kl) == pytest.approx(float((ratio - 1 - ratio.log()).mean()), abs=1e-6)


def test_value_losses_are_the_formulas():
    value, old, returns = torch.tensor([1.0, 3.0]), torch.tensor([0.0, 3.0]), torch.tensor([20.0, 1.0])

    def huber(x):
        return torch.where(x.abs() <= 10, 0.5 * x**2, 10 * (x.abs() - 5))

    kept = old + (value - old).clamp(-0.2, 0.2)
    wanted = torch.maximum(huber(value - returns), huber(kept - returns)).mean()
    torch.testing.assert_close(value_loss(value, old, returns, clip=0.2, huber=10.0), wanted)
    squared = (0.5 * (value - returns) ** 2).mean()
    torch.testing.assert_close(value_loss(value, old, returns, clip=0.0, huber=0.0), squared)


def test_advantages_are_normalised_over_valid_decisions_only():
    advantage, valid = torch.randn(50, 20, generator=generator()) * 7 + 3, torch.ones(50, 20, dtype=torch.bool)
    valid[40:], advantage[40:] = False, 1e6
    found = normalized(advantage, valid)[valid]
    assert abs(float(found.mean())) <= 1e-5 and abs(float(found.std(unbiased=False)) - 1) <= 1e-3


def test_decisions_that_were_none_change_no_weight():
    results = []
    for poison in (0.0, 1e6):
        actor_critic = model()
        rollout = rolled_out(actor_critic)
        valid, reward = rollout.valid.clone(), rollout.reward.clone()
        valid[-1], reward[-1] = False, poison  # nothing follows the last decision, so no trace reaches it
        done = rollout._replace(valid=valid, reward=reward, terminated=rollout.terminated | True)
        run_update(actor_critic, done)
        results.append(weights(actor_critic))
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_a_mean_density_with_a_small_clip_switches_where_the_sum_with_n_times_the_clip_does():
    per_entry, n = torch.linspace(-0.2, 0.2, 81), 28  # difference of each entry's log-density, the same in all
    one = torch.ones(81)
    mean = [policy_loss(x, 0 * x, one, clip_low=0.01, clip_high=0.01).clipped for x in per_entry[:, None]]
    total = [
        policy_loss(n * x, 0 * x, one, clip_low=1 - 0.99**n, clip_high=1.01**n - 1).clipped for x in per_entry[:, None]
    ]
    assert mean == total
    with pytest.raises(ValueError, match="mean log-density"):
        PPO(model(log_prob_reduction="mean"), PPOSettings())
    PPO(model(log_prob_reduction="mean"), PPOSettings(clip_low=0.02, clip_high=0.02))
    summed, averaged = model(), model(log_prob_reduction="mean")
    torch.testing.assert_close(rolled_out(summed).log_prob / 12, rolled_out(averaged).log_prob)  # 4 rows of 3 entries


def test_the_value_of_the_true_successor_is_used_never_that_of_the_next_episodes_start():
    actor_critic = model()
    final = actor_critic.critic.layers[-1]
    with torch.no_grad():
        final.weight.zero_()
        final.bias.fill_(0.5)
    # a value that is the mean observation: a start at 1e6 would show
    actor_critic.critic.forward = lambda cond: cond.mean(-1)
    rollout = rolled_out(actor_critic, Scripted(reset_value=1e6), decisions=8)
    assert rollout.done.any() and rollout.next_value[rollout.done].abs().max() < 1e3
    env = Scripted()
    env.step_number = 3
    true = env.observe(0.0)  # what step 3 really led to
    done = rollout.done[2]
    torch.testing.assert_close(rollout.next_value[2][done], actor_critic.value(true)[done])
    torch.testing.assert_close(rollout.next_value[2][~done], rollout.value[3][~done])


def test_in_warm_up_the_critic_alone_moves_and_afterwards_all_three():
    actor_critic = model()
    rollout = rolled_out(actor_critic)
    parts = (actor_critic.policy, actor_critic.exploration, actor_critic.critic)
    before = [weights(part) for part in parts]
    run_update(actor_critic, rollout, actor="hold")
    assert [same(part, old) for part, old in zip(parts, before)] == [True, True, False]
    before = [weights(part) for part in parts]
    found, _ = run_update(actor_critic, rollout)
    assert [same(part, old) for part, old in zip(parts, before)] == [False, False, False]
    told = (
        "approx_kl clip_fraction entropy std policy_loss value_loss explained_variance grad_norm_actor grad_norm_critic"
    )
    assert {f"rl/{name}" for name in told.split()} <= set(found)
    assert same(actor_critic.reference, weights(small_policy()))


def test_a_large_divergence_stops_the_actor_and_not_the_critic():
    actor_critic = model()
    rollout = rolled_out(actor_critic)
    ppo = PPO(actor_critic, PPOSettings(actor_lr=1e-2, target_kl=0.1, minibatches=4))
    steps = []
    for optimizer, name in ((ppo.actor_optimizer, "actor"), (ppo.critic_optimizer, "critic")):
        optimizer.register_step_post_hook(lambda *_, name=name: steps.append(name))
    found = ppo.update(
        rollout, ppo.chunk_rewards(rollout), actor="train", bc_weight=0.0, order=generator(), noise=generator()
    )
    assert found["rl/kl_stop"] == 1.0 and found["rl/approx_kl"] <= 0.1
    assert 1 <= steps.count("actor") < 4 and steps.count("critic") == 20  # within the first of 5 epochs
    assert "actor" not in steps[2 * steps.count("actor") :]


def test_a_gradient_that_is_not_finite_is_dropped_and_counted():
    actor_critic = model()
    rollout = rolled_out(actor_critic)
    calls = []
    last = actor_critic.policy.head.net.output.weight
    last.register_hook(lambda grad: calls.append(1) or (grad * float("nan") if len(calls) == 1 else grad))
    found, _ = run_update(actor_critic, rollout, epochs=1)
    assert found["rl/skipped_steps"] == 1 and len(calls) == 4
    assert all(torch.isfinite(value).all() for value in actor_critic.state_dict().values())


def test_without_exploration_the_noise_net_has_no_say():
    actor_critic = model("flow_noise_4")
    obs = {key: value[:3] for key, value in Scripted().reset().items()}
    before = actor_critic.policy.predict(obs, generator=generator())
    for parameter in actor_critic.exploration.parameters():
        torch.nn.init.normal_(parameter)
    assert torch.equal(actor_critic.policy.predict(obs, generator=generator()), before)


def test_no_signal_is_equal_rewards_or_too_few_successes():
    rollout, settings = rolled_out(model()), PPOSettings(min_success_episodes=4)
    equal = rollout._replace(reward=torch.full_like(rollout.reward, 0.25))
    assert not has_signal(equal, settings, sparse=False, successes=100)
    assert has_signal(rollout, settings, sparse=False, successes=0)
    assert not has_signal(rollout, settings, sparse=True, successes=3)
    assert has_signal(rollout, settings, sparse=True, successes=4)


@pytest.mark.parametrize("kind", ["paired", "velocity"])
def test_the_pull_is_zero_with_no_gradient_at_the_start_and_positive_afterwards(kind):
    actor_critic = model("renoise")
    policy, reference = actor_critic.policy, actor_critic.reference
    cond = torch.randn(16, policy.encoder.feature_dim, generator=generator())

    def pull():
        return bc_loss(policy, reference, cond, cond, kind=kind, num_steps=1, generator=generator())

    loss = pull()
    loss.backward()
    assert float(loss) == 0.0
    assert all(p.grad is None or not p.grad.any() for p in policy.parameters())
    with torch.no_grad():
        policy.head.net.output.bias.add_(0.1)
    assert float(pull()) > 1e-4


def test_the_anchor_alone_moves_the_policy_back():
    actor_critic = model()
    rollout = rolled_out(actor_critic)
    with torch.no_grad():
        actor_critic.policy.head.net.output.bias.add_(0.1)

    def distance():
        cond = rollout.obs["features"].flatten(0, 1)
        return float(
            bc_loss(
                actor_critic.policy,
                actor_critic.reference,
                cond,
                cond,
                kind="paired",
                num_steps=1,
                generator=generator(),
            )
        )

    before = distance()
    run_update(actor_critic, rollout, actor="anchor", bc_weight=1.0, actor_lr=1e-3)
    assert distance() < before


def test_every_term_moves_what_it_claims_to():
    """The ratio reaches the head, the noise net and an encoder that is trained; the critic's loss none of them."""
    net = partial(ResidualMLP, width=16, depth=1)
    policy = build_policy(
        embodiment=EMBODIMENT,
        encoder=EncoderWithWeights,
        net=net,
        head=MeanFlowHead,
        horizon=8,
        obs_horizon=2,
        action_horizon=4,
    )
    for frozen in (False, True):
        actor_critic = ActorCritic(copy.deepcopy(policy), EXPLORATIONS["flow_noise_2"], freeze_encoder=frozen)
        rollout = rolled_out(actor_critic, decisions=2)
        assert ("features" in rollout.obs) == frozen
        stored = {key: value.flatten(0, 1) for key, value in rollout.obs.items()}
        chain = type(rollout.chain)(*(value.flatten(0, 1) for value in rollout.chain))
        cond = actor_critic.features(stored)
        actor_critic.critic(cond.detach()).sum().backward()
        assert all(parameter.grad is None for parameter in actor_critic.actor_parameters())
        actor_critic.score(cond, chain).log_prob.sum().backward()
        moved = {name for name, p in actor_critic.named_parameters() if p.grad is not None and p.grad.any()}
        assert "policy.head.net.output.weight" in moved and "exploration.net.4.weight" in moved
        assert ("policy.encoder.layer.weight" in moved) == (not frozen)


class EncoderWithWeights(StateEncoder.__mro__[1]):
    """A linear layer over the states."""

    def __init__(self, *, obs_shapes, obs_horizon):
        super().__init__()
        self.inner = StateEncoder(obs_shapes=obs_shapes, obs_horizon=obs_horizon)
        self.feature_dim = 6
        self.layer = torch.nn.Linear(self.inner.feature_dim, 6)

    def forward(self, obs):
        return self.layer(self.inner(obs))


def test_a_broken_simulator_is_an_error():
    with pytest.raises(ValueError, match="reward that is not finite"):
        rolled_out(model(), Scripted(reward=float("nan")))


def test_a_start_that_is_not_finite_is_the_simulators_fault_and_not_the_policys():
    with pytest.raises(ValueError, match="observation agent_pos.* not finite"):
        rolled_out(model(), Scripted(reset_value=float("nan")))


def test_wrong_settings_are_refused():
    for bad in ({"gamma": 1.5}, {"epochs": 0}, {"actor_lr": -1.0}, {"bc_kind": "x"}, {"grad_clip": 0.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            PPOSettings(**bad)
    rollout = rolled_out(model(), decisions=1)
    with pytest.raises(ValueError, match="do not fill"):
        next(minibatches(rollout, rollout.value, rollout.value, count=9, generator=generator()))


def test_shuffled_advantages_are_what_the_negative_control_shuffles():
    """The learning tests replace `gae` in this module; should it move, they would control nothing."""
    assert ppo_module.gae.__module__ == "flowpolicy.rl.gae"


def test_collection_from_the_reach_task_adds_up():
    from tests.rl.toy import imitated

    actor_critic = ActorCritic(imitated(steps=1), Renoise())
    with closing(reach_env(16)) as env:
        obs = env.reset(list(range(16)))
        rollout = collect(actor_critic, env, obs, decisions=10, generator=generator()).rollout
    assert rollout.reward.shape == (10, 16, 4) and rollout.steps.min() >= 1
    assert (
        torch.equal(rollout.reward.sum(-1) == 1.0, rollout.success)
        and not (rollout.success & ~rollout.terminated).any()
    )
    for i in range(16):  # without a success the tenth decision of an episode meets the limit of 40 steps
        if not rollout.terminated[:, i].any():
            assert rollout.truncated[:, i].tolist() == [False] * 9 + [True]
