"""GAE against a brute-force sum, by hand at the two kinds of end, with discounts per chunk and per control step."""

import numpy as np
import pytest
import torch

from flowpolicy.rl.gae import chunk_reward, discounts, gae
from flowpolicy.rl.reward_scaler import RewardScaler


def brute_force(reward, value, next_value, terminated, done, discount, lam):
    """Sum over all later deltas with their product of discounts, O(T^2)."""
    steps, envs = reward.shape
    advantage = np.zeros((steps, envs))
    for n in range(envs):
        for start in range(steps):
            weight = 1.0
            for j in range(start, steps):
                after = 0.0 if terminated[j, n] else next_value[j, n]
                advantage[start, n] += weight * (reward[j, n] + discount[j, n] * after - value[j, n])
                weight *= discount[j, n] * lam
                if done[j, n]:
                    break
    return advantage


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("kind", ["per_chunk", "per_substep"])
@pytest.mark.parametrize("ends", ["none", "terminated", "truncated", "both"])
def test_gae_is_the_brute_force_sum(ends, kind, dtype, tolerance):
    rng = np.random.default_rng(0)
    reward, value, next_value = rng.normal(size=(3, 37, 11))
    end = rng.random((37, 11)) < 0.2
    terminated = end & (rng.random((37, 11)) < 0.5) if ends == "both" else end & (ends == "terminated")
    done = end & (ends != "none")
    discount = discounts(torch.from_numpy(rng.integers(1, 6, (37, 11))), gamma=0.97, kind=kind)
    tensors = [torch.tensor(x, dtype=dtype) for x in (reward, value, next_value)]
    advantage, returns = gae(
        *tensors, torch.tensor(terminated), torch.tensor(done), discount=discount.to(dtype), lam=0.9
    )
    wanted = brute_force(reward, value, next_value, terminated, done, discount.double().numpy(), 0.9)
    assert np.abs(advantage.double().numpy() - wanted).max() <= tolerance
    torch.testing.assert_close(returns, advantage + tensors[1])


def test_truncation_bootstraps_but_termination_does_not():
    """gamma 0.9, lam 0.8; rewards 1, value 2, true successors worth 5, two decisions; the first one ends."""
    reward, value, after = torch.ones(2, 1), torch.full((2, 1), 2.0), torch.full((2, 1), 5.0)
    ended, never = torch.tensor([[True], [False]]), torch.zeros(2, 1, dtype=torch.bool)
    options = {"discount": torch.full((2, 1), 0.9), "lam": 0.8}
    truncated, _ = gae(reward, value, after, never, ended, **options)
    terminated, _ = gae(reward, value, after, ended, ended, **options)
    going_on, _ = gae(reward, value, after, never, never, **options)
    last = 1 + 0.9 * 5 - 2  # 3.5
    assert truncated.flatten().tolist() == pytest.approx([1 + 0.9 * 5 - 2, last])
    assert terminated.flatten().tolist() == pytest.approx([1 - 2, last])
    assert going_on.flatten().tolist() == pytest.approx([3.5 + 0.9 * 0.8 * last, last])


def test_the_value_of_an_endless_task_is_right_only_when_time_limits_bootstrap():
    """Reward 1, gamma 0.9, a limit of 5 steps that the observation does not show: the value is 10 everywhere."""

    def converge(bootstraps: bool) -> float:
        value = torch.zeros(())
        for _ in range(400):
            limit = torch.zeros(20, 1, dtype=torch.bool)
            limit[4::5] = True
            values = value.expand(20, 1)
            _, returns = gae(
                torch.ones(20, 1),
                values,
                values,
                limit & (not bootstraps),
                limit,
                discount=torch.full((20, 1), 0.9),
                lam=0.95,
            )
            value = value + 0.5 * (returns.mean() - value)
        return float(value)

    assert converge(True) == pytest.approx(10.0, abs=0.1)
    assert converge(False) < 10.0 - 3.0


def test_rewards_inside_a_chunk_are_summed_or_discounted():
    reward = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    assert float(chunk_reward(reward, gamma=0.5, kind="per_chunk")) == 3.0
    assert float(chunk_reward(reward, gamma=0.5, kind="per_substep")) == 1.75
    assert discounts(torch.tensor([1, 3]), gamma=0.5, kind="per_substep").tolist() == [0.5, 0.125]
    assert discounts(torch.tensor([1, 3]), gamma=0.5, kind="per_chunk").tolist() == [0.5, 0.5]


@pytest.mark.parametrize("kind", ["per_chunk", "per_substep"])
def test_scaled_rewards_have_a_discounted_return_of_spread_one(kind):
    scaler, rng = RewardScaler(4), torch.Generator().manual_seed(0)
    reward = 3.0 * torch.randn(10_000, 4, generator=rng)
    done = torch.rand(10_000, 4, generator=rng) < 0.01
    steps = torch.randint(1, 9, (10_000, 4), generator=rng)
    discount = discounts(steps, gamma=0.99, kind=kind)
    parts = zip(reward.split(100), discount.split(100), done.split(100), strict=True)
    scaled = torch.cat([scaler(*part) for part in parts])[2000:]
    total, returns = torch.zeros(4), []
    for step, gamma, ended in zip(scaled, discount[2000:], done[2000:], strict=True):
        total = total + step
        returns.append(total.clone())
        total = torch.where(ended, 0.0, gamma * total)
    assert 0.8 <= float(torch.stack(returns).std()) <= 1.25


def test_the_scaler_forgets_at_an_episodes_start_and_keeps_its_statistics():
    one, two = RewardScaler(1), RewardScaler(1)
    one(
        torch.tensor([[1.0], [1.0], [5.0]]), torch.ones(3, 1), torch.tensor([[False], [True], [False]])
    )  # returns 1, 2, 5
    assert one.std == pytest.approx(float(np.std([1, 2, 5])))
    two.load(one.state())
    assert two.std == one.std and RewardScaler(1).std == 1.0
