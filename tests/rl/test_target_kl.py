"""The divergence that stops the actor: it is logged, the step that crossed it is shortened, and the end is measured."""

import warnings
from typing import Any

import pytest
import torch

from flowpolicy.exploration.base import Chain
from flowpolicy.rl.actor_critic import ActorCritic
from flowpolicy.rl.losses import policy_loss
from flowpolicy.rl.ppo import PPO
from flowpolicy.rl.rollout_buffer import Rollout
from flowpolicy.rl.settings import PPOSettings
from tests.rl.test_ppo import generator, model, rolled_out, run_update, same, weights


def divergence(actor_critic: ActorCritic, rollout: Rollout) -> tuple[float, float]:
    """Estimate over all decisions at once, and the share beyond the clip."""
    stored = {key: value.flatten(0, 1) for key, value in rollout.obs.items()}
    chain = Chain(*(value.flatten(0, 1) for value in rollout.chain))
    with torch.no_grad():
        score = actor_critic.score(actor_critic.features(stored), chain)
        old = rollout.log_prob.flatten()
        found = policy_loss(score.log_prob, old, torch.zeros_like(old), clip_low=0.2, clip_high=0.2)
    return float(found.kl), float(found.clipped)


def updated(**settings: Any) -> tuple[dict[str, float], ActorCritic, Rollout, list[dict[str, torch.Tensor]]]:
    """Metrics, model and rollout of one update, and the policy before each step of the actor and after the last."""
    actor_critic = model()
    rollout = rolled_out(actor_critic)
    ppo, seen = PPO(actor_critic, PPOSettings(**{"minibatches": 4, **settings})), [weights(actor_critic.policy)]
    ppo.actor_optimizer.register_step_post_hook(lambda *_: seen.append(weights(actor_critic.policy)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = ppo.update(
            rollout, ppo.chunk_rewards(rollout), actor="train", bc_weight=0.0, order=generator(), noise=generator()
        )
    return found, actor_critic, rollout, seen


@pytest.mark.parametrize("rate", [3e-3, 1e-1])
def test_a_first_step_far_too_large_is_logged_and_shortened_until_it_fits(rate: float) -> None:
    """Logged were 0.0 and a clip fraction of 0.0, and the policy was left where the step had thrown it."""
    found, actor_critic, rollout, seen = updated(actor_lr=rate, target_kl=0.05)
    assert found["rl/kl_stop"] == 1.0 and found["rl/kl_at_stop"] > 0.05
    assert len(seen) == 2, "one step, and no more in this iteration"
    kl, clipped = divergence(actor_critic, rollout)
    assert 0.01 < kl <= 0.05 * (1.0 + 1e-4)
    assert (found["rl/approx_kl"], found["rl/clip_fraction"]) == pytest.approx((kl, clipped), rel=1e-3)
    assert 0.0 < found["rl/step_kept"] < 1.0
    for name, value in actor_critic.policy.state_dict().items():
        wanted = torch.lerp(seen[0][name], seen[1][name], found["rl/step_kept"])
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-6)


def test_the_step_that_crossed_is_shortened_and_those_before_it_stay() -> None:
    found, actor_critic, _, seen = updated(actor_lr=3e-5, target_kl=0.05)
    assert found["rl/kl_stop"] == 1.0 and len(seen) > 2 and found["rl/step_kept"] < 1.0
    for name, value in actor_critic.policy.state_dict().items():
        wanted = torch.lerp(seen[-2][name], seen[-1][name], found["rl/step_kept"])
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-6)


def test_the_last_step_of_an_iteration_is_held_to_the_target_too() -> None:
    """No minibatch comes after it that could have noticed."""
    found, actor_critic, rollout, seen = updated(actor_lr=3e-2, target_kl=0.05, minibatches=1, epochs=1)
    assert len(seen) == 2 and found["rl/kl_stop"] == 1.0 and found["rl/kl_at_stop"] > 0.05
    kl, _ = divergence(actor_critic, rollout)
    assert 0.0 < kl <= 0.05 * (1.0 + 1e-4) and found["rl/approx_kl"] == pytest.approx(kl, rel=1e-3)


@pytest.mark.parametrize("target", [0.0, 10.0])
def test_without_a_stop_the_divergence_is_that_of_the_end_over_the_whole_batch(target: float) -> None:
    found, actor_critic, rollout, seen = updated(actor_lr=1e-5, target_kl=target)
    assert found["rl/kl_stop"] == 0.0 and not {"rl/kl_at_stop", "rl/step_kept"} & set(found) and len(seen) == 21
    assert (found["rl/approx_kl"], found["rl/clip_fraction"]) == pytest.approx(divergence(actor_critic, rollout))
    assert same(actor_critic.policy, seen[-1]), "nothing was taken back"


def test_the_pull_alone_has_a_divergence_too() -> None:
    actor_critic = model()
    rollout = rolled_out(actor_critic)
    with torch.no_grad():
        actor_critic.policy.head.net.output.bias.add_(0.03)
    found, _ = run_update(actor_critic, rollout, actor="anchor", bc_weight=1.0, actor_lr=1e-3)
    assert found["rl/approx_kl"] == pytest.approx(divergence(actor_critic, rollout)[0], rel=1e-3)


def test_a_learning_rate_whose_first_step_crosses_gets_one_warning() -> None:
    actor_critic = model()
    ppo = PPO(actor_critic, PPOSettings(actor_lr=1e-1, target_kl=0.05, minibatches=4))
    with pytest.warns(UserWarning, match=r"one step of `actor_lr=0.1` .* `target_kl=0.05`") as caught:
        for _ in range(3):
            rollout = rolled_out(actor_critic)
            ppo.update(
                rollout, ppo.chunk_rewards(rollout), actor="train", bc_weight=0.0, order=generator(), noise=generator()
            )
    assert len(caught) == 1
