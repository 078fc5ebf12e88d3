"""Two ways round an obstacle, collection to rollout: one step of MeanFlow takes both, heads that average collide."""

from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch

from flowpolicy.checkpoint import create_policy
from flowpolicy.cli import config
from flowpolicy.data.collect import collect_episodes
from flowpolicy.data.dataset import SequenceDataset
from flowpolicy.data.store import EpisodeStore
from flowpolicy.policy import FlowPolicy
from flowpolicy.rollout.episodes import run_episodes
from flowpolicy.rollout.vector_env import make_vector_env
from flowpolicy.seeding import derive
from flowpolicy.tracking import JsonlTracker
from flowpolicy.trainers.checkpoints import Checkpoints
from flowpolicy.trainers.fitting import fit_normalizers
from flowpolicy.trainers.imitation import ImitationTrainer, TrainerSettings

pytest.importorskip("gymnasium")

QUIET = {"checkpoint_every": 0, "log_every": 0}
SEEDS = range(100_000, 100_100)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    """1,000 demonstrations, half of them each way: from 200, a regression learns by heart which went where."""
    from flowpolicy_envs.experts.toy import make_expert

    path = tmp_path_factory.mktemp("toy") / "demos.zarr"
    collect_episodes(make_expert, path, episodes=1000, progress=False)
    return EpisodeStore.open(path)


def train(words: list[str], store: EpisodeStore, out: Path, *, seed: int = 0) -> FlowPolicy:
    """The averaged policy that `flowpolicy train` makes of `words`."""
    facts = config.plain(config.load("train", ["dataset.path=none", *words]))
    assert store.embodiment is not None
    torch.manual_seed(derive(seed, "model"))
    policy = create_policy(facts["policy"], store.embodiment)
    dataset = SequenceDataset.from_store(
        store, horizon=policy.horizon, obs_horizon=policy.obs_horizon, keys=policy.obs_keys
    )
    fit_normalizers(policy, dataset)
    numbers = facts["trainer"] | {"betas": tuple(facts["trainer"]["betas"])} | QUIET
    return ImitationTrainer(
        policy,
        dataset,
        settings=TrainerSettings(**numbers),
        checkpoints=Checkpoints(out, facts={}),
        tracker=JsonlTracker(out / "metrics.jsonl"),
        seed=seed,
        progress=False,
    ).run()


def roll(policy: FlowPolicy) -> tuple[float, dict[str, float]]:
    """Success rate of one-step sampling on seeds that no demonstration has, and the share of episodes per outcome."""
    from flowpolicy_envs.toy import make_env

    env = make_vector_env(partial(make_env, "two-ways", max_episode_steps=60), 1)
    results = run_episodes(policy, env, SEEDS, num_steps=1)
    env.close()
    shares = {way: count / len(results) for way, count in Counter(result.outcome for result in results).items()}
    return sum(result.success_once for result in results) / len(results), shares


@pytest.mark.slow
def test_one_step_of_meanflow_takes_both_ways(store: EpisodeStore, tmp_path: Path):
    """What fails falls between the two ways; the figure over 300 seeds is in docs/results/two_ways.md."""
    success, shares = roll(train(["experiment=toy_two_ways"], store, tmp_path))
    assert success >= 0.9, (success, shares)
    assert min(shares["left"], shares["right"]) >= 0.3, shares


@pytest.mark.slow
@pytest.mark.parametrize("head", ["regression", "flow_matching"])
def test_one_step_of_a_head_that_averages_collides(store: EpisodeStore, tmp_path: Path, head: str):
    words = ["task=toy", f"policy/head={head}", "policy.net.width=256", "trainer.steps=12000"]
    success, shares = roll(train(words, store, tmp_path))
    assert success < 0.6 and shares["collision"] > 0.3, (success, shares)
