"""Arithmetic in float32: rounding is no signal, masks select, log ratios are bounded, one divergence for all."""

import pytest
import torch

from flowpolicy.rl.gae import gae
from flowpolicy.rl.group import group_advantage
from flowpolicy.rl.ppo import explained_variance, has_signal, normalized, policy_loss
from flowpolicy.rl.reward_scaler import RewardScaler
from flowpolicy.rl.settings import PPOSettings
from tests.rl.test_ppo import generator, model, rolled_out, run_update, weights

NAN = float("nan")


def jittered(magnitude: float, shape: tuple[int, ...]) -> torch.Tensor:
    """float32 numbers that differ by one rounding unit at most."""
    base = torch.full(shape, magnitude)
    up = torch.nextafter(base, torch.tensor(float("inf")))
    return torch.where(torch.rand(shape, generator=generator()) < 0.3, up, base)


@pytest.mark.parametrize("magnitude", [1e-3, 1.0, 1e4, 1e5, 1e8])
def test_returns_that_differ_by_rounding_say_nothing(magnitude: float) -> None:
    """At 1e4 and 1e5 the advantages were 2.2 to 2.7."""
    reward, valid = jittered(magnitude, (1, 8)), torch.ones(1, 8, dtype=torch.bool)
    assert len(reward.unique()) == 2
    found = group_advantage(reward, valid, discount=torch.ones(1, 8), group_size=8)
    assert found.used == 0.0 and not found.valid.any() and not found.advantage.any()
    real = magnitude * (1.0 + 1e-4 * torch.arange(8.0))[None]
    assert group_advantage(real, valid, discount=torch.ones(1, 8), group_size=8).used == 1.0


def test_terms_that_cancel_leave_rounding_and_no_return() -> None:
    reward = torch.stack([jittered(1e4, (8,)), torch.full((8,), -1e4)])
    found = group_advantage(reward, torch.ones(2, 8, dtype=torch.bool), discount=torch.ones(2, 8), group_size=8)
    assert found.used == 0.0 and not found.advantage.any()


@pytest.mark.parametrize("magnitude", [1.0, 1e4, 1e5])
def test_rewards_that_differ_by_rounding_are_no_signal(magnitude: float) -> None:
    rollout, settings = rolled_out(model()), PPOSettings()
    equal = jittered(magnitude, tuple(rollout.reward.shape))
    assert not has_signal(rollout._replace(reward=equal), settings, sparse=False, successes=100)
    equal[0, 0, 0] *= 1.001
    assert has_signal(rollout._replace(reward=equal), settings, sparse=False, successes=100)


@pytest.mark.parametrize("magnitude", [1.0, 1e4, 1e5])
def test_advantages_that_differ_by_rounding_become_zero(magnitude: float) -> None:
    valid = torch.ones(4, 8, dtype=torch.bool)
    assert not normalized(jittered(magnitude, (4, 8)), valid).any()


def test_a_return_that_never_changed_is_not_scaled_up() -> None:
    scaler, reward = RewardScaler(8), jittered(1e4, (4, 8))
    scaled = scaler(reward, torch.zeros(4, 8), torch.zeros(4, 8, dtype=torch.bool))
    assert scaler.std == 1.0 and torch.equal(scaled, torch.full((4, 8), scaler.clip))


def test_a_critic_explains_nothing_of_returns_that_do_not_differ() -> None:
    rollout = rolled_out(model())
    assert explained_variance(rollout, jittered(1e5, tuple(rollout.value.shape))) == 0.0


def test_nothing_under_a_mask_reaches_an_advantage() -> None:
    reward, valid = torch.rand(3, 4, generator=generator()), torch.ones(3, 4, dtype=torch.bool)
    valid[2, 1], valid[1:, 3] = False, False
    poisoned, discount = torch.where(valid, reward, NAN), torch.full((3, 4), 0.9)
    one, other = (group_advantage(r, valid, discount=discount, group_size=2) for r in (reward, poisoned))
    assert torch.equal(one.advantage, other.advantage) and torch.equal(one.valid, other.valid)
    assert torch.isfinite(normalized(poisoned, valid)).all()


def test_nothing_after_the_end_of_an_episode_reaches_an_advantage() -> None:
    """The value after a terminated decision, and whatever a later episode is made of."""
    value = torch.rand(4, 1, generator=generator())
    terminated = torch.tensor([[False], [True], [False], [False]])
    following = torch.where(terminated, NAN, 1.0)
    reward = torch.tensor([[1.0], [2.0], [NAN], [3.0]])
    advantage, returns = gae(
        reward, value, following, terminated, terminated, discount=torch.full((4, 1), 0.9), lam=0.9
    )
    assert torch.isfinite(advantage[:2]).all() and torch.isfinite(returns[:2]).all()
    assert torch.allclose(advantage[1], reward[1] - value[1])


def test_a_row_that_does_not_count_reaches_no_density() -> None:
    actor_critic = model("flow_noise_1", rows="executed")
    rollout = rolled_out(actor_critic, decisions=1)
    chain = type(rollout.chain)(*(value[0] for value in rollout.chain))
    after = chain.after.clone()
    after[:, :, 7] = NAN  # rows 1 to 4 of 8 run
    score = actor_critic.score(rollout.obs["features"][0], chain._replace(after=after))
    assert torch.isfinite(score.log_prob).all()


@pytest.mark.parametrize("log_ratio", [200.0, 88.8, -200.0])
def test_a_log_ratio_however_large_has_a_finite_loss(log_ratio: float) -> None:
    log_prob = torch.tensor([log_ratio, 0.1, log_ratio], requires_grad=True)
    found = policy_loss(log_prob, torch.zeros(3), torch.tensor([1.0, 1.0, -1.0]), clip_low=0.2, clip_high=0.2)
    found.loss.backward()
    assert all(torch.isfinite(value).all() for value in (*found, log_prob.grad))
    assert torch.isfinite(policy_loss(log_prob, 0 * log_prob, 0 * log_prob, clip_low=0.2, clip_high=0.2).loss)
    assert float(found.kl) > 10.0 and float(found.clipped) == pytest.approx(2 / 3)


def test_the_same_change_of_weights_has_the_same_divergence_whatever_the_reduction() -> None:
    """The mean over 12 entries had a 144th of it, as its log ratio is a twelfth."""
    found = {}
    for reduction in ("sum", "mean"):
        actor_critic = model("flow_noise_1", log_prob_reduction=reduction)
        rollout = rolled_out(actor_critic)
        with torch.no_grad():
            actor_critic.policy.head.net.output.bias.add_(0.01)
        metrics, _ = run_update(actor_critic, rollout, epochs=1, minibatches=1, actor_lr=0.0, allow_large_clip=True)
        found[reduction] = metrics["rl/approx_kl"]
    assert found["sum"] > 1e-3 and found["mean"] == pytest.approx(found["sum"], rel=1e-3)


def test_the_target_stops_both_reductions_at_the_same_divergence() -> None:
    for reduction in ("sum", "mean"):
        actor_critic = model("flow_noise_1", log_prob_reduction=reduction)
        rollout = rolled_out(actor_critic)
        with torch.no_grad():
            actor_critic.policy.head.net.output.bias.add_(0.03)
        before = weights(actor_critic.policy)
        metrics, _ = run_update(actor_critic, rollout, target_kl=0.1, allow_large_clip=True)
        assert metrics["rl/kl_stop"] == 1.0
        assert all(torch.equal(value, before[name]) for name, value in actor_critic.policy.state_dict().items())


def test_a_density_that_is_not_a_number_is_an_error() -> None:
    """nan > target_kl is False."""
    actor_critic = model()
    rollout = rolled_out(actor_critic)
    rollout = rollout._replace(log_prob=torch.full_like(rollout.log_prob, NAN))
    with pytest.raises(ValueError, match="density of the policy is not finite"):
        run_update(actor_critic, rollout, target_kl=0.1)


@pytest.mark.parametrize("part", ["actor", "critic"])
def test_an_update_of_which_no_step_is_finite_is_an_error(part: str) -> None:
    """All of them were skipped, iteration after iteration, to the end of the run."""
    actor_critic = model()
    rollout = rolled_out(actor_critic)
    last = actor_critic.policy.head.net.output if part == "actor" else actor_critic.critic.layers[-1]
    last.weight.register_hook(lambda grad: grad * NAN)
    with pytest.raises(ValueError, match=f"no gradient of the {part} was finite"):
        run_update(actor_critic, rollout)


def test_settings_that_are_no_numbers_are_refused() -> None:
    """nan < least is False."""
    for name in ("epochs", "minibatches", "group_size", "actor_lr", "entropy_weight", "bc_weight", "target_kl"):
        for bad in (NAN, float("inf")):
            with pytest.raises(ValueError, match=f"`{name}`"):
                PPOSettings(**{name: bad})


def test_nothing_moves_where_nothing_was_wrong() -> None:
    """Masks by selection and bounds give the same bits as products and no bounds."""
    actor_critic = model("flow_noise_4")
    rollout = rolled_out(actor_critic)
    chain = type(rollout.chain)(*(value.flatten(0, 1) for value in rollout.chain))
    score = actor_critic.score(rollout.obs["features"].flatten(0, 1), chain)
    assert torch.equal(score.entries, torch.ones_like(score.log_prob))
    discount = torch.full(rollout.value.shape, 0.99)
    reward = rollout.reward.sum(-1)
    found, _ = gae(
        reward, rollout.value, rollout.next_value, rollout.terminated, rollout.done, discount=discount, lam=0.95
    )
    delta = reward + discount * rollout.next_value * ~rollout.terminated - rollout.value
    wanted, following = torch.empty_like(delta), torch.zeros_like(delta[0])
    for j in reversed(range(len(delta))):
        following = delta[j] + discount[j] * 0.95 * ~rollout.done[j] * following
        wanted[j] = following
    assert torch.equal(found, wanted)
