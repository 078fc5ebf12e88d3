"""Group-relative advantages: the formula, which decisions count, groups of equal starts, and that they teach."""

from contextlib import closing

import pytest
import torch

from flowpolicy.rl.actor_critic import ActorCritic
from flowpolicy.rl.group import first_episodes, group_advantage
from flowpolicy.rl.settings import PPOSettings
from flowpolicy.trainers.finetune import _simulators
from flowpolicy.trainers.finetune_settings import FinetuneSettings
from flowpolicy.trainers.ppo import LoopSettings, PPOTrainer
from tests.rl.toy import WIDE, imitated, reach_env, success, train_in_groups


def test_advantages_are_returns_relative_to_the_group() -> None:
    generator = torch.Generator().manual_seed(0)
    reward, discount = torch.rand(5, 6, generator=generator), 0.9 + 0.1 * torch.rand(5, 6, generator=generator)
    valid = torch.ones(5, 6, dtype=torch.bool)
    valid[3:, 1], valid[1:, 5] = False, False
    found = group_advantage(reward, valid, discount=discount, group_size=3)
    returns = []
    for i in range(6):
        total, weight = 0.0, 1.0
        for j in range(5):
            total += weight * float(reward[j, i]) * bool(valid[j, i])
            weight *= float(discount[j, i])
        returns.append(total)
    for group in (slice(0, 3), slice(3, 6)):
        own = torch.tensor(returns[group])
        wanted = (own - own.mean()) / (own.std(unbiased=False) + 1e-4)
        assert torch.allclose(found.advantage[:, group], wanted.expand(5, 3), atol=1e-5)
    assert torch.equal(found.valid, valid) and found.used == 1.0


def test_a_group_of_equal_returns_says_nothing() -> None:
    reward = torch.tensor([[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    valid = torch.ones(2, 4, dtype=torch.bool)
    found = group_advantage(reward, valid, discount=torch.full((2, 4), 0.99), group_size=2)
    assert found.used == 0.5 and found.valid.tolist() == [[False, False, True, True]] * 2
    assert found.advantage[0].tolist() == pytest.approx([0.0, 0.0, 1.0, -1.0], abs=1e-3)


def test_only_the_first_episode_of_an_environment_counts() -> None:
    done = torch.tensor([[0, 0, 1], [1, 0, 0], [0, 0, 1], [1, 0, 0]]).bool()
    assert first_episodes(done).T.tolist() == [[True, True, False, False], [True] * 4, [True, False, False, False]]


class Starts:
    """A chunk environment that notes the seeds of its resets."""

    def __init__(self, env) -> None:
        self.env, self.num_envs, self.embodiment, self.seeds = env, env.num_envs, env.embodiment, []

    def reset(self, seeds):
        self.seeds.append(list(seeds))
        return self.env.reset(seeds)

    def step(self, chunk):
        return self.env.step(chunk)

    def close(self) -> None:
        self.env.close()


def test_each_iteration_starts_groups_alike_and_leaves_the_critic_alone() -> None:
    with closing(Starts(reach_env(16))) as env:
        model, trainer = train_in_groups(env, iterations=2, group_size=4)
        before = ActorCritic(imitated("meanflow", steps=300), WIDE).policy
    assert len(env.seeds) == 2 and env.seeds[0] != env.seeds[1]
    for seeds in env.seeds:
        assert [len(set(seeds[i : i + 4])) for i in range(0, 16, 4)] == [1] * 4 and len(set(seeds)) == 4
    assert not trainer.ppo.critic_optimizer.state
    assert any(not torch.equal(a, b) for a, b in zip(model.policy.parameters(), before.parameters(), strict=True))


def test_groups_must_be_whole() -> None:
    with closing(reach_env(12)) as env, pytest.raises(ValueError, match="multiple of `group_size=8`, got 12"):
        train_in_groups(env, iterations=1)
    with pytest.raises(ValueError, match="`group_size` must be at least 2"):
        PPOSettings(advantage="group", group_size=1)


def test_episodes_that_did_not_end_are_not_compared() -> None:
    model = ActorCritic(imitated("meanflow", steps=300), WIDE)
    settings = PPOSettings(advantage="group", minibatches=2)
    loop = LoopSettings(iterations=1, decisions=4, eval_every=0)  # of 10
    with closing(reach_env(16)) as env, pytest.raises(ValueError, match="did not end in `decisions=4`"):
        PPOTrainer(model, env, ppo=settings, loop=loop, sparse=True, seed=0, progress=False).run()


@pytest.mark.slow
def test_groups_make_a_half_good_policy_nearly_whole() -> None:
    """Measured 0.588 -> 1.000."""
    with closing(reach_env()) as env:
        model, _ = train_in_groups(env, iterations=60)
    assert success(model.policy) >= 0.95


class OneSeed(Starts):
    """A batch that seeds from its first environment alone, as ManiSkill's does."""

    def reset(self, seeds):
        return super().reset([seeds[0] + i for i in range(len(seeds))])


def test_starts_that_are_not_alike_are_refused() -> None:
    with closing(OneSeed(reach_env(16))) as env, pytest.raises(ValueError, match="began with different agent_pos"):
        train_in_groups(env, iterations=1)


def test_a_batch_of_simulators_is_refused_before_it_is_built() -> None:
    def never(*_):
        raise AssertionError("a simulator was made")

    settings = FinetuneSettings(ppo=PPOSettings(advantage="group"))
    with pytest.raises(ValueError, match="`advantage='group'` needs equal starts, which a batch does not give"):
        _simulators(imitated(steps=5), never, never, settings)
