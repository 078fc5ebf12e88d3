"""What a success rate may be of: unseen seeds, episodes that were left to solve, the same rules on both sides."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowpolicy.checkpoint import Checkpoint, resolve_checkpoint
from flowpolicy.cli.main import main
from flowpolicy.data.collect import collect_episodes
from flowpolicy.evaluation.arms import Arm, recorded_arm, require_comparable
from flowpolicy.evaluation.evaluate import Task, evaluate
from flowpolicy.json_files import write_json
from flowpolicy.results.arm_result import ArmResult
from flowpolicy.results.comparison import conclude, format_comparison
from flowpolicy.results.seen_seeds import require_selection, seen_seeds
from flowpolicy.rollout.episodes import EpisodeResult, left_to_solve
from flowpolicy.rollout.vector_env import make_vector_env
from flowpolicy.seeding import seed_ranges, seeds_of
from flowpolicy_envs.experts.toy import make_expert
from tests.catalogue import toy_run
from tests.evaluation.test_evaluate import TASK, Point, lines, measured, run  # noqa: F401  fixtures

# ---- seeds that the policy has seen


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the seeds 0 to 3, whose checkpoint was chosen on 500 and 501."""
    folder = tmp_path_factory.mktemp("seen")
    facts = {"task": "toy", "task_id": "two-ways"}
    collect_episodes(partial(make_expert), folder / "demos.zarr", episodes=4, attrs=facts, progress=False)
    words = ["policy.net.width=16", "policy.net.depth=1", "debug=true", "eval.start_seed=500"]
    assert main(["train", f"dataset.path={folder / 'demos.zarr'}", f"out={folder / 'run'}", *words]) == 0
    return folder


def test_a_checkpoint_says_which_seeds_its_policy_has_seen(trained: Path):
    recorded = Checkpoint.open(trained / "run").record
    assert recorded["dataset"]["seeds"] == [[0, 3]] and recorded["selection_seeds"] == [[500, 501]]
    seen = partial(seen_seeds, recorded, ("toy", "two-ways"))
    assert seen(range(100_000, 100_100)) == {}
    assert seen(range(2, 600)) == {"demonstrations": 2, "selection": 2}
    assert seen_seeds(recorded, ("toy", "three-ways"), range(2, 600)) == {}  # there they are other episodes
    assert seen_seeds({"task": recorded["task"]}, ("toy", "two-ways"), range(9)) == {}  # an older checkpoint
    nameless = {"selection_seeds": [[50_000, 50_019]]}  # made in Python, without a word on the task
    assert seen_seeds(nameless, ("toy", "two-ways"), range(50_010, 50_100)) == {"selection": 10}
    tuned = recorded | {"finetune": {}}
    assert seen_seeds(tuned, ("toy", "two-ways"), range(1_000_000, 1_000_007)) == {"training": 7}


def test_seeds_are_short_in_a_file_and_come_back():
    seeds = [7, 3, 1, 2, 9, 3]
    assert seed_ranges(seeds) == [[1, 3], [7, 7], [9, 9]] == seed_ranges(np.array(seeds[:3]), seeds[3:])
    assert list(seeds_of([[1, 3], [7, 7]])) == [1, 2, 3, 7] and seed_ranges([]) == []


@pytest.mark.parametrize(
    ("start", "said"), [(2, "has seen 2 (of its demonstrations)"), (501, "has seen 1 (that chose the checkpoint)")]
)
@pytest.mark.parametrize("verb", ["evaluate", "compare", "sweep"])
def test_seen_seeds_are_refused_or_marked_everywhere(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    start: int,
    said: str,
    verb: str,
):
    monkeypatch.chdir(tmp_path)
    run = trained / "run"  # noqa: F811
    words = {
        "evaluate": [f"checkpoint={run}", "envs=1", f"start_seed={start}"],
        "compare": [str(run), f"{run}:2", "envs=1", f"start_seed={start}"],
        "sweep": [f"checkpoints=[{run}]", f"seeds=[{start}]"],
    }[verb]
    assert main([verb, *words, "episodes=2", "out=out"]) == 2
    error = capsys.readouterr().err
    assert "allow_seen_seeds=true, which marks the result" in error and not Path("out").exists()
    assert said in error
    assert main([verb, *words, "episodes=2", "out=out", "allow_seen_seeds=true"]) == 0
    marked = "not a result on unseen episodes"
    assert marked in capsys.readouterr().out
    seen = {2: {"demonstrations": 2}, 501: {"selection": 1}}[start]
    if verb == "evaluate":
        assert json.loads(Path("out/summary.json").read_text())["seen_seeds"] == seen
        assert main(["report", "out"]) == 0 and marked in Path("out/report.html").read_text()
        return
    found = json.loads(Path(f"out/{verb}.json").read_text())
    arms = found["arms"] if verb == "compare" else found["tasks"][0]["arms"]
    assert [arm["seen_seeds"] for arm in arms] == [seen] * len(arms)
    assert marked in Path(f"out/{verb}.html").read_text()
    assert verb == "compare" or marked in Path("out/sweep.md").read_text()


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (3, "1 of the 2 seeds from start_seed=3 are those of the demonstrations"),
        (99_999, "choose the checkpoint, and seeds from 100000 on are reported"),
        (100_000, "are reported"),
    ],
)
def test_training_does_not_choose_on_demonstrations_or_on_reported_seeds(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture, start: int, said: str
):
    words = [f"dataset.path={trained / 'demos.zarr'}", f"out={tmp_path / 'run'}", "policy.net.width=16", "debug=true"]
    assert main(["train", *words, f"eval.start_seed={start}"]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_resumed_run_remembers_all_seeds_that_it_was_chosen_on(trained: Path, tmp_path: Path):
    shutil.copytree(trained / "run", tmp_path / "run", symlinks=True)
    words = [
        f"dataset.path={trained / 'demos.zarr'}",
        f"out={tmp_path / 'run'}",
        "policy.net.width=16",
        "policy.net.depth=1",
        "debug=true",
        "resume=true",
        "eval.start_seed=600",
        "trainer.steps=20",
    ]
    from flowpolicy.trainers import imitate as module

    kept, module.DEBUG_STEPS = module.DEBUG_STEPS, 30
    try:
        assert main(["train", *words]) == 0
    finally:
        module.DEBUG_STEPS = kept
    assert Checkpoint.open(tmp_path / "run/checkpoints/last").record["selection_seeds"] == [[500, 501], [600, 601]]


def test_no_seed_is_chosen_on_without_evaluations():
    assert require_selection(range(0), [[0, 9]]) == [] and require_selection(range(20, 22), [[0, 9]]) == [[20, 21]]


# ---- episodes that were solved at reset


class Given(Point):
    """Every third seed is solved before it begins, and says so."""

    def reset(self, *, seed=None, options=None):
        obs, _ = super().reset(seed=seed)
        self.given = (seed or 0) % 3 == 0
        return obs, {"success": self.given}

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated or self.given, truncated, info | {"success": info["success"] or self.given}


@pytest.mark.usefixtures("measured")
def test_what_was_solved_at_reset_is_no_success_of_the_policy(run: Path, tmp_path: Path):  # noqa: F811
    task = Task("point", "Given-v0", Given)
    (found,) = evaluate(run, task, outs={1: tmp_path / "eval"}, episodes=12, start_seed=0, envs=2, progress=False)
    rows = lines(tmp_path / "eval/results.jsonl")
    assert [row["seed"] for row in rows if row["solved_at_reset"]] == [0, 3, 6, 9] and len(rows) == 12
    summary = found.summary
    assert (summary["n"], summary["episodes"], summary["solved_at_reset"]) == (8, 12, 4)
    assert summary["success_once"] == 4 / 8  # 2, 4, 8, 10 of the eight that were left; 8 of 12 with the four given ones
    assert main(["report", str(tmp_path / "eval")]) == 0
    assert "4 more episodes were solved at reset and count neither way" in (tmp_path / "eval/report.html").read_text()


def test_an_arm_of_a_comparison_is_held_to_what_was_left_to_solve():
    facts = {"task": "t", "task_id": "a", "checkpoint": "c", "num_steps": 1, "failure": "", "episode_len": 1}
    rows = [facts | {"seed": i, "success_once": i < 6, "solved_at_reset": i < 2} for i in range(10)]
    arm = ArmResult("a", rows, {})
    assert (arm.n, arm.successes, sorted(arm.outcomes())) == (8, 4, list(range(2, 10)))
    found = conclude([arm, ArmResult("b", rows, {})])
    assert [one["solved_at_reset"] for one in found.to_dict()["arms"]] == [2, 2] and found.pairs[0].a == (4, 8)
    assert "a: 2 more episodes were solved at reset" in format_comparison(found)


def test_nothing_but_solved_episodes_is_an_error():
    given = EpisodeResult(5, True, True, 1.0, 1, "", [], solved_at_reset=True)
    with pytest.raises(ValueError, match="all 1 episodes from seed 5 on were solved at reset"):
        left_to_solve([given])
    assert left_to_solve([given, given._replace(solved_at_reset=False)]) == [given._replace(solved_at_reset=False)]


def test_the_reach_task_says_where_it_starts_at_the_goal():
    from flowpolicy_envs.reach import make_env

    env = make_env()
    solved = [seed for seed in range(2000) if env.reset(seed=seed)[1]["success"]]
    assert solved and len(solved) < 12  # pi 0.05^2 / 4: four of 2,000
    near = env.reset(seed=solved[0])[0]
    assert float(np.linalg.norm(near["agent_pos"] - near["env_state"])) < 0.05
    vector = make_vector_env(make_env, 1)
    import torch

    for seed in (solved[0], 1):
        vector.reset([seed])
        assert vector.step(torch.zeros(1, 2)).solved_at_reset.tolist() == [seed == solved[0]]
    vector.close()


def test_metaworld_says_whether_it_begins_solved_and_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch):
    """window-close leaves its sites where they were until the first step: asked naively, every seed is a success."""
    pytest.importorskip("metaworld", reason="needs the extra metaworld")
    from flowpolicy_envs.metaworld import MetaWorldEnv, make_env

    actions = np.random.default_rng(0).uniform(-1, 1, (5, 4))
    for id in ("window-close-v3", "bin-picking-v3"):
        env = make_env(id)
        assert env.reset(seed=1)[1] == {"success": False}
        asked = [env.step(action) for action in actions]
        with monkeypatch.context() as patch:
            patch.setattr(MetaWorldEnv, "_solved", lambda self: False)
            fresh = make_env(id)
            fresh.reset(seed=1)
            for one, other in zip(asked, [fresh.step(action) for action in actions], strict=True):
                assert one[1] == other[1] and all(np.array_equal(one[0][key], other[0][key]) for key in one[0])
    env = make_env("window-close-v3")
    env.reset(seed=1)
    env.step(np.zeros(4))
    assert not env._solved()
    env.base._target_pos = env.base._get_pos_objects()
    assert env._solved()


# ---- rules that two evaluations must share


def record(folder: Path, **rules: Any) -> Arm:
    """An evaluation of the past."""
    facts = {"task": "toy", "task_id": "two-ways", "checkpoint": str(folder), "num_steps": 1}
    folder.mkdir()
    (folder / "results.jsonl").write_text(json.dumps(facts | {"seed": 1, "success_once": True, "failure": ""}) + "\n")
    numbers = (
        "num_steps",
        "n",
        "success_once",
        "ci_low",
        "ci_high",
        "success_at_end",
        "return_mean",
        "env_steps_per_s",
    )
    times = {"latency_ms": dict.fromkeys(("p50", "p95", "p99"), 1.0)}
    write_json(folder / "summary.json", dict.fromkeys(numbers, 1) | times | rules)
    return recorded_arm(folder.name, folder)


RULES = {"settings": {"max_episode_steps": 60, "obs": "state"}, "action_horizon": 8, "control_hz": 10.0}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"settings": {"max_episode_steps": 90, "obs": "state"}},
            "a is evaluated with max_episode_steps=60, b with "
            "max_episode_steps=90; evaluate both alike, or pass `may_differ=['max_episode_steps']`",
        ),
        ({"action_horizon": 4}, "action_horizon=8, b with action_horizon=4"),
        ({"control_hz": 20.0}, "control_hz"),
    ],
)
def test_recorded_evaluations_under_other_rules_are_not_compared(tmp_path: Path, changes: dict, said: str):
    arms = [record(tmp_path / "a", **RULES), record(tmp_path / "b", **RULES | changes)]
    with pytest.raises(ValueError, match=said.replace("[", r"\[").replace("]", r"\]")):
        require_comparable(arms)
    require_comparable(arms, may_differ=["max_episode_steps", "action_horizon", "control_hz"])
    require_comparable([arms[0], record(tmp_path / "old")])  # an older summary.json does not say
    eyes = RULES["settings"] | {"obs": "rgb", "view": {}}
    require_comparable([arms[0], record(tmp_path / "eyes", **RULES | {"settings": eyes})])


def test_another_simulator_is_another_rule(tmp_path: Path):
    arms = [record(tmp_path / name, versions={"mujoco": version}) for name, version in (("a", "3.2"), ("b", "3.3"))]
    require_comparable(arms)  # the toy task has none
    for arm in arms:
        file = arm.folder / "results.jsonl"
        file.write_text(file.read_text().replace('"toy"', '"metaworld"'))
    with pytest.raises(ValueError, match="a is evaluated with mujoco=3.2, b with mujoco=3.3"):
        require_comparable(arms)


def test_a_summary_says_what_two_evaluations_must_share(tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = toy_run(tmp_path / "run")
    assert main(["evaluate", f"checkpoint={folder}", "episodes=2", "envs=1", f"out={tmp_path / 'eval'}"]) == 0
    summary = json.loads((tmp_path / "eval/summary.json").read_text())
    assert summary["settings"] == {"id": "two-ways", "obs": "state", "max_episode_steps": 20}
    assert (summary["control_hz"], summary["start_seed"], summary["threads"]) == (10.0, 100_000, 1)
    assert summary["action_horizon"] == Checkpoint.open(folder).record["policy"]["action_horizon"]
    assert {"sampler", "noise", "weights", "device", "versions"} <= set(summary)
    # so a checkpoint under another limit is not compared with it
    words = [str(folder), str(tmp_path / "eval"), "episodes=2", f"out={tmp_path / 'out'}", "task.max_episode_steps=30"]
    assert main(["compare", *words]) == 2
    assert "is evaluated with max_episode_steps=30, eval with max_episode_steps=20" in capsys.readouterr().err
    assert resolve_checkpoint(folder).name == "000010"
