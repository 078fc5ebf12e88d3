"""Toy policies for the tests of `compare` and `sweep`, each trained for seconds."""

from pathlib import Path

import pytest

from flowpolicy.cli.main import main


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders good/ (MeanFlow, 1.00 in 40 episodes), poor/ (flow matching, 0.65 in one step), single/ (regression).

    Their demonstrations all go the same way round the obstacle, which takes a tenth of the training of both ways.
    """
    pytest.importorskip("gymnasium")
    from flowpolicy.data.store import EpisodeWriter
    from flowpolicy_envs.experts.toy import make_expert

    folder = tmp_path_factory.mktemp("trained")
    expert = make_expert("two-ways", obs="state", max_episode_steps=60)
    with EpisodeWriter(folder / "left.zarr", expert.embodiment, {"task": "toy"}) as writer:
        for episode in map(expert.episode, range(120)):
            height = episode.obs["agent_pos"][:, 1]
            if episode.success and height[len(height) // 2] > 0:
                writer.add(episode)
    small = [
        "task=toy",
        f"dataset.path={folder / 'left.zarr'}",
        "policy.net.width=64",
        "policy.net.depth=2",
        "trainer.batch_size=64",
        "trainer.warmup_steps=20",
    ]
    poor = ["policy/head=flow_matching", "policy/times=logit_normal", "policy/weighting=squared_error"]
    for name, words, steps in (
        ("good", ["policy/head=meanflow"], 400),
        ("poor", poor, 400),
        ("single", ["policy/head=regression"], 60),
    ):
        assert main(["train", *small, *words, f"trainer.steps={steps}", f"out={folder / name}"]) == 0
    return folder
