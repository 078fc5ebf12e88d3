"""`env/success_once` of a fine-tuning run is the policy's success with noise, whatever the length of an iteration."""

import math
from contextlib import closing
from typing import Any

import pytest

from flowpolicy.rl import collect
from flowpolicy.rl.actor_critic import ActorCritic
from flowpolicy.rl.settings import PPOSettings
from flowpolicy.rollout.chunk_env import ChunkEnv
from flowpolicy.tracking import Tracker
from flowpolicy.trainers import preflight
from flowpolicy.trainers.ppo import LoopSettings, PPOTrainer
from flowpolicy.trainers.preflight import run_preflight
from tests.rl.test_preflight import Fast, flown
from tests.rl.toy import WIDE, imitated, reach_env


class Lines(Tracker):
    """What was logged, in memory."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.lines.append(metrics)

    def sync(self) -> None: ...

    def truncate_after(self, step: int, *, evaluation: bool = False) -> None: ...

    def close(self) -> None: ...


def held(env: ChunkEnv, *, decisions: int, every: int, iterations: int, **changes: Any) -> list[tuple[float, float]]:
    """(episodes, success) of each line of a run whose actor does not move."""
    settings = PPOSettings(**{"actor_lr": 0.0, "minibatches": 1, "epochs": 1, "warmup": 100, **changes})
    loop = LoopSettings(iterations=iterations, decisions=decisions, eval_every=0, checkpoint_every=every)
    tracker, model = Lines(), ActorCritic(imitated(steps=60), WIDE)
    PPOTrainer(model, env, ppo=settings, loop=loop, sparse=True, seed=0, tracker=tracker, progress=False).run()
    return [(x["env/episodes"], x["env/success_once"]) for x in tracker.lines if "env/success_once" in x]


def agrees(share: float, episodes: float, wanted: float, of: float = math.inf) -> bool:
    """Within four standard errors."""
    return abs(share - wanted) <= 4.0 * math.sqrt(wanted * (1.0 - wanted) * (1.0 / episodes + 1.0 / of))


@pytest.mark.parametrize(
    ("decisions", "every", "iterations", "words"),
    [
        (5, 1, 4, {}),
        (10, 1, 4, {}),
        (10, 1, 4, {"advantage": "group", "group_size": 2}),
        (15, 1, 3, {}),
        (10, 3, 6, {}),
        (3, 4, 8, {}),
        (4, 10, 10, {}),
    ],
)
def test_success_with_noise_is_the_same_for_every_length_of_an_iteration(decisions, every, iterations, words):
    """Half of the seeds succeed in the first decision, the others fail in the tenth."""
    with closing(reach_env(48, make=Fast)) as env:
        told = held(env, decisions=decisions, every=every, iterations=iterations, **words)
    total = sum(count for count, _ in told)
    assert total >= 96
    assert agrees(sum(count * share for count, share in told) / total, total, 0.5)
    assert all(agrees(share, count, 0.5) for count, share in told), "a line of the short episodes alone"


def test_iterations_shorter_than_an_episode_agree_with_the_preflight():
    """The reach task, where failures alone last ten decisions."""
    model = ActorCritic(imitated(steps=60), WIDE)
    with closing(reach_env(64)) as env:
        found = run_preflight(
            model, env, ppo=PPOSettings(), loop=LoopSettings(), sparse=True, seed=7, episodes=256, min_success=0.0
        )
        told = held(env, decisions=5, every=1, iterations=4)
    total = sum(count for count, _ in told)
    assert total == 256, "every episode that was begun after a restart counts, once"
    assert agrees(sum(count * share for count, share in told) / total, total, found.noisy_success, found.episodes)


class Long(Fast):
    """The failures last 400 decisions."""

    def __init__(self) -> None:
        super().__init__()
        self.env.max_episode_steps = 1600


def test_the_preflight_waits_for_long_failures_too():
    """It gave up after 1,024 decisions, with the episodes that had ended by then."""
    found = flown(ActorCritic(imitated(steps=60), WIDE), envs=2, episodes=16, make=Long)
    assert found.episodes == 16


class Endless(Fast):
    """The failures last for ever."""

    def step(self, action: Any) -> Any:
        obs, reward, terminated, _, info = super().step(action)
        return obs, reward, terminated, False, info


def test_an_episode_without_an_end_is_an_error(monkeypatch: pytest.MonkeyPatch):
    for module in (collect, preflight):
        monkeypatch.setattr(module, "MAX_EPISODE", 20)
    with pytest.raises(ValueError, match="preflight: 1 episodes .* did not end within 20 decisions each"):
        flown(ActorCritic(imitated(steps=60), WIDE), make=Endless)
    with closing(reach_env(8, make=Endless)) as env, pytest.raises(ValueError, match="an episode did not end within"):
        held(env, decisions=5, every=1, iterations=1)
