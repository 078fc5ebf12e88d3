"""`flowpolicy finetune` end to end on the reach task, in seconds."""

import itertools
import json
import math
import multiprocessing
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from flowpolicy.checkpoint import Checkpoint, load_policy
from flowpolicy.cli import config
from flowpolicy.cli.finetune import _batch
from flowpolicy.cli.main import main
from flowpolicy.data.collect import collect_episodes
from flowpolicy.exploration.base import Exploration
from flowpolicy.rl.settings import PPOSettings
from flowpolicy.trainers.finetune import finetune as run_finetuning
from flowpolicy.trainers.finetune_settings import FinetuneSettings
from flowpolicy.trainers.ppo import PPOTrainer
from flowpolicy.trainers.receipt import paired_test, write_receipt
from flowpolicy_envs.experts.reach import make_expert
from flowpolicy_envs.reach import ReachEnv, make_env
from tests.helpers import last, rerecord

TINY = (
    "envs=4",
    "workers=1",
    "loop.iterations=4",
    "loop.decisions=4",
    "loop.eval_every=2",
    "loop.checkpoint_every=2",
    "ppo.warmup=1",
    "ppo.minibatches=2",
    "ppo.guard=false",
    "eval.episodes=2",
    "preflight.episodes=4",
    "preflight.min_success=0",
    "receipt.episodes=4",
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `train` with next to no training."""
    folder = tmp_path_factory.mktemp("reach")
    collect_episodes(partial(make_expert), folder / "reach.zarr", episodes=6, attrs={"task": "reach"})
    words = [f"dataset.path={folder / 'reach.zarr'}", f"out={folder / 'run'}", "trainer.steps=2", "policy.horizon=4"]
    assert main(["train", "task=reach", "policy/head=meanflow", "policy.net.width=16", *words]) == 0
    return folder / "run"


def finetune(base: Path, out: Path, *words: str) -> int:
    return main(["finetune", f"checkpoint={base}", f"out={out}", *TINY, *words])


def metrics(out: Path) -> list[dict]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: v for key, v in line.items() if not key.startswith("time")} for line in lines]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    files = sorted(folder.rglob("*.safetensors"))
    return {f"{file.name}/{name}": value for file in files for name, value in load_file(file).items()}


def test_a_run_leaves_a_policy_without_noise_net_its_numbers_and_a_receipt(base, tmp_path, capsys):
    out = tmp_path / "rl"
    assert finetune(base, out) == 0
    said = capsys.readouterr().out
    assert "preflight   first ratio 1" in said and "receipt " in said
    names = {path.name for path in out.iterdir()}
    assert {
        ".hydra",
        "run.json",
        "metrics.jsonl",
        "checkpoints",
        "base",
        "preflight.json",
        "receipt.json",
        "receipt.html",
    } <= names
    policy_files = {path.name for path in (last(out) / "policy").iterdir()}
    assert policy_files == {"config.json", "embodiment.json", "model.safetensors"}
    before, after = load_policy(base).state_dict(), load_policy(out).state_dict()
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    record = Checkpoint.open(out / "checkpoints/last").record
    assert record["task"]["id"] == "reach" and record["num_steps"] == 1 and record["weights"] == "last"
    lines = metrics(out)
    assert [line["step"] for line in lines] == [0, 1, 2, 2, 3, 4, 4]
    wanted = {
        "rl/approx_kl",
        "rl/clip_fraction",
        "rl/explained_variance",
        "rl/value_loss",
        "rl/std",
        "rl/entropy",
        "env/steps",
    }
    assert wanted <= set(lines[4])
    assert "rl/approx_kl" not in lines[1], "the first iteration trains the critic alone"
    receipt = json.loads((out / "receipt.json").read_text())
    assert receipt["episodes"] == 4 and receipt["verdict"] in ("better", "worse", "no difference")
    assert main(["evaluate", f"checkpoint={out}", "episodes=2", "envs=1"]) == 0


def cut_short(base: Path, folder: Path, *words: str) -> tuple[Path, Path]:
    """A whole run, and one that was stopped in its fourth iteration and went on from the checkpoint of the second."""
    import flowpolicy.trainers.ppo as module

    whole, cut = folder / "whole", folder / "cut"
    assert finetune(base, whole, *words) == 0
    iterate, calls = module.PPOTrainer._iterate, []

    def killed(self):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return iterate(self)

    module.PPOTrainer._iterate = killed
    try:
        assert finetune(base, cut, *words) == 130
    finally:
        module.PPOTrainer._iterate = iterate
    assert max(line["step"] for line in metrics(cut)) == 3
    assert finetune(base, cut, *words, "resume=true") == 0
    return whole, cut


def require_equal(whole: Path, cut: Path) -> None:
    """To the bit."""
    assert metrics(cut) == metrics(whole)
    one, two = tensors(whole / "checkpoints/000004"), tensors(cut / "checkpoints/000004")
    assert one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.parametrize("every", [2, 4])
def test_a_run_cut_short_goes_on_bit_for_bit(base, tmp_path, every):
    """Stopped after iteration 3, between checkpoints; what was logged after the checkpoint is logged again. The
    evaluation after iteration 2 writes one whatever loop.checkpoint_every says."""
    require_equal(*cut_short(base, tmp_path, f"loop.checkpoint_every={every}"))


def test_scaled_rewards_decaying_rates_and_a_pull_go_on_bit_for_bit(base, tmp_path, monkeypatch):
    step = ReachEnv.step

    def dense(self, action):
        obs, _, *rest = step(self, action)
        return obs, -float(abs(obs["agent_pos"] - obs["env_state"]).sum()), *rest

    monkeypatch.setattr(ReachEnv, "step", dense)
    words = (
        "reward.env=1",
        "ppo.scale_rewards=true",
        "ppo.final_lr=0.1",
        "ppo.bc_weight=0.5",
        "ppo.bc_final=0.1",
        "preflight.episodes=0",
        "receipt.episodes=0",
        "loop.eval_every=0",
    )
    whole, cut = cut_short(base, tmp_path, *words)
    lines = metrics(whole)
    assert len({line["rl/lr"] for line in lines}) == len({line["rl/bc_weight"] for line in lines}) == 4
    assert all(line["rl/bc_loss"] > 0.0 for line in lines[2:])
    count, _, square = tensors(whole / "checkpoints/000004")["scaler.safetensors/state"].tolist()
    assert count == 4 * 4 * 4 and square > 0.0, "every decision of four iterations in four simulators is in the scale"
    require_equal(whole, cut)


def test_without_learning_rates_the_receipt_says_no_difference(base, tmp_path):
    out = tmp_path / "rl"
    assert finetune(base, out, "ppo.actor_lr=0", "ppo.critic_lr=0") == 0
    receipt = json.loads((out / "receipt.json").read_text())
    assert receipt["verdict"] == "no difference" and receipt["p_value"] == 1.0
    assert receipt["before"] == receipt["after"] and receipt["gained"] == receipt["lost"] == 0
    before, after = load_policy(base).state_dict(), load_policy(out).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_reward_that_is_no_number_ends_the_run_and_keeps_the_last_checkpoint(base, tmp_path, capsys, monkeypatch):
    step, count = ReachEnv.step, itertools.count()

    def broken(self, action):
        obs, reward, *rest = step(self, action)
        return obs, math.nan if next(count) == 200 else reward, *rest

    monkeypatch.setattr(ReachEnv, "step", broken)
    words = ("preflight.episodes=0", "loop.eval_every=0", "loop.checkpoint_every=1")
    assert finetune(base, tmp_path / "rl", *words) != 0
    assert "reward that is not finite" in capsys.readouterr().err
    assert math.isfinite(sum(float(value.sum()) for value in load_policy(tmp_path / "rl").state_dict().values()))


def test_a_simulator_that_dies_ends_the_run_and_keeps_the_last_checkpoint(base, tmp_path, capsys, monkeypatch):
    iterate = PPOTrainer._iterate

    def shot(self, *arguments):
        if self.iteration == 2:
            multiprocessing.active_children()[0].kill()
        return iterate(self, *arguments)

    monkeypatch.setattr(PPOTrainer, "_iterate", shot)
    words = ("workers=2", "preflight.episodes=0", "loop.eval_every=0", "loop.checkpoint_every=1")
    assert finetune(base, tmp_path / "rl", *words) != 0
    assert "simulator process" in capsys.readouterr().err
    assert load_policy(tmp_path / "rl").embodiment == load_policy(base).embodiment


def test_what_cannot_work_is_said_in_one_line(base, tmp_path, capsys):
    def error(*words: str) -> str:
        assert main(["finetune", f"checkpoint={base}", f"out={tmp_path / 'x'}", *TINY, *words]) == 2
        assert not (tmp_path / "x").exists()
        return capsys.readouterr().err

    assert "nothing to learn from" in error("preflight.min_success=0.9")
    assert "checkpoint and task" in error("task=toy")
    assert "ppo.gamma" in error("ppo.gamma=2")
    assert "multiple of workers" in error("workers=3")
    assert "did you mean" in error("ppo.actor_l=1")
    assert "share seeds" in error("eval.start_seed=99999")
    assert "nothing is rewarded" in error("reward.success=0")
    assert "rl.total_steps" in error("rl.total_steps=0")
    assert main(["export", f"checkpoint={base}", f"out={tmp_path / 'bundle'}", "repeats=5"]) == 0
    assert "no checkpoint" in error(f"checkpoint={tmp_path / 'bundle'}")
    assert main(["finetune", f"out={tmp_path / 'x'}"]) == 2
    assert "checkpoint=... is required" in capsys.readouterr().err


def test_only_what_simulates_as_one_batch_may_be_batched(base, tmp_path, capsys):
    assert finetune(base, tmp_path / "x", "batched=true") == 2
    assert "only task=maniskill" in capsys.readouterr().err and not (tmp_path / "x").exists()
    cfg = config.load("finetune", ["checkpoint=none", "task=maniskill", "batched=true", "ppo.advantage=group"])
    with pytest.raises(ValueError, match="equal starts"):
        _batch(cfg)
    cfg.ppo.advantage = "gae"
    make = _batch(cfg)
    assert make is not None and make.keywords == {"id": "PickCube-v1", "max_episode_steps": 200}


def test_total_steps_take_the_place_of_iterations(base, tmp_path):
    """4 environments x 4 decisions x 4 rows: 64 control steps where no episode ends early."""
    words = ("preflight.episodes=0", "receipt.episodes=0", "loop.eval_every=0")
    assert finetune(base, tmp_path / "a", *words, "rl.total_steps=129") == 0
    assert [line["step"] for line in metrics(tmp_path / "a")] == [1, 2, 3]
    assert finetune(base, tmp_path / "a", *words, "rl.total_steps=300", "resume=true") == 0
    assert metrics(tmp_path / "a")[-1]["step"] == 5


def test_a_run_from_before_explorations_were_called_so_goes_on(base, tmp_path):
    words = ("preflight.episodes=0", "receipt.episodes=0", "loop.eval_every=0")
    assert finetune(base, tmp_path / "a", *words, "rl.total_steps=64") == 0
    file = last(tmp_path / "a") / "policy/config.json"
    numbers = json.loads(file.read_text().replace("flowpolicy.exploration.", "flowpolicy.samplers."))["finetune"]
    numbers["sampler"] = numbers.pop("exploration")
    rerecord(file, finetune=numbers)
    assert finetune(base, tmp_path / "a", *words, "rl.total_steps=128", "resume=true") == 0
    assert [line["step"] for line in metrics(tmp_path / "a")] == [1, 2]


def test_groups_have_a_debug_mode_too(base, tmp_path):
    words = [f"checkpoint={base}", f"out={tmp_path / 'x'}", "debug=true", "ppo.advantage=group", "loop.decisions=10"]
    assert main(["finetune", *words]) == 0


def test_a_receipt_counts_what_was_gained_and_lost():
    found = paired_test([True, True, False, False, False], [True, False, True, True, False])
    assert (found["gained"], found["lost"], found["verdict"]) == (2, 1, "no difference")
    assert (found["before"]["success_once"], found["after"]["success_once"]) == (0.4, 0.6)
    assert paired_test([False] * 8, [True] * 8)["verdict"] == "better"
    assert paired_test([True] * 8, [False] * 8)["verdict"] == "worse"


def test_a_receipt_shows_the_best_checkpoint_beside_the_last(base, tmp_path):
    out = tmp_path / "rl"
    assert finetune(base, out, "loop.eval_every=0", "preflight.episodes=0", "receipt.episodes=2") == 0
    assert "best" not in json.loads((out / "receipt.json").read_text())  # nothing was evaluated, so nothing chosen
    places = {"before": out / "base", "after": out / "checkpoints/000004", "best": out / "base"}
    found = write_receipt(out, make_env, **places, num_steps=1, episodes=3)
    assert found["best"]["checkpoint"].endswith("base") and 0.0 <= found["best"]["success_once"] <= 1.0
    assert "best, chosen on other seeds" in (out / "receipt.html").read_text()


def test_a_second_run_in_the_same_folder_and_other_numbers_on_resume_are_refused(base, tmp_path, capsys):
    out = tmp_path / "rl"
    assert finetune(base, out, "receipt.episodes=0", "preflight.episodes=0", "loop.eval_every=0") == 0
    assert finetune(base, out) == 2
    assert "resume=true" in capsys.readouterr().err
    words = ("receipt.episodes=0", "preflight.episodes=0", "loop.eval_every=0", "resume=true")
    assert finetune(base, out, *words, "ppo.gamma=0.5") == 2
    assert "begun with ppo.gamma 0.99, now 0.5" in capsys.readouterr().err


@pytest.fixture
def chosen(base: Path, tmp_path: Path) -> Path:
    """The base as if its checkpoint had been chosen on the seeds from 50000."""
    shutil.copytree(base, tmp_path / "base", symlinks=True)
    rerecord(last(tmp_path / "base") / "policy/config.json", selection_seeds=[[50_000, 50_019]])
    return tmp_path / "base"


def test_a_receipt_is_of_seeds_that_the_base_has_not_seen(chosen, tmp_path, capsys):
    """Its demonstrations are the seeds 0 to 5."""
    for start, said in (
        (3, "3 (of its demonstrations)"),
        (50_000, "4 (that chose the checkpoint)"),
        (1_000_000, "4 (that reinforcement learning draws from)"),
    ):
        words = (f"receipt.start_seed={start}", "eval.start_seed=60000")
        assert finetune(chosen, tmp_path / "rl", *words) == 2
        assert f"receipt: the policy has seen {said} of the 4 seeds" in capsys.readouterr().err
        assert not (tmp_path / "rl").exists()


def test_what_chose_a_fine_tuned_policy_is_no_result(chosen, tmp_path, capsys):
    out = tmp_path / "rl"
    words = ("loop.iterations=2", "preflight.episodes=0", "receipt.episodes=0", "eval.start_seed=60000")
    assert finetune(chosen, out, *words) == 0
    for start in (50_000, 60_000):
        assert main(["evaluate", f"checkpoint={out}", "episodes=2", "envs=1", f"start_seed={start}"]) == 2
        assert "has seen 2 (that chose the checkpoint) of the 2 seeds" in capsys.readouterr().err


def test_groups_of_a_batch_are_refused_from_python_too(base, tmp_path):
    """Before a simulator is made or anything is written."""

    def never(*_):
        raise AssertionError("something was made")

    with pytest.raises(ValueError, match="`advantage='group'` needs equal starts, which a batch does not give"):
        run_finetuning(
            base,
            never,
            never,
            out=tmp_path / "rl",
            settings=FinetuneSettings(ppo=PPOSettings(advantage="group")),
            make_batch=never,
            facts={},
            start=never,
            seed=0,
        )
    assert not (tmp_path / "rl").exists()


def test_a_policy_of_regression_meets_only_the_explorations_that_it_can(base, tmp_path, capsys):
    store = base.parent / "reach.zarr"
    words = ["trainer.steps=1", "policy.horizon=4", "policy.net.width=16", f"out={tmp_path / 'regression'}"]
    assert main(["train", "task=reach", "policy/head=regression", f"dataset.path={store}", *words]) == 0
    assert finetune(tmp_path / "regression", tmp_path / "no", "exploration=renoise") == 2
    assert "flow map" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["rl_toy", "rl_metaworld", "rl_maniskill", "pi_rl_maniskill"])
def test_every_recipe_composes(name):
    for exploration in (None, "renoise", "flow_sde", "langevin"):
        words = ["checkpoint=x", f"experiment={name}", *([f"exploration={exploration}"] if exploration else [])]
        cfg = config.load("finetune", words)
        settings = FinetuneSettings.from_dict(config.plain(cfg))
        assert settings.envs % settings.workers == 0
        made = config.instantiate(cfg.exploration)
        made = made if isinstance(made, Exploration) else made(action_dim=2, horizon=4, cond_dim=3)
        assert made.num_steps == {"pi_rl_maniskill": 4}.get(name, 1) if exploration is None else made.num_steps >= 2
    if name == "pi_rl_maniskill":
        assert (settings.envs, settings.ppo.actor_lr, settings.ppo.minibatches) == (320, 7.91e-6, 1)
