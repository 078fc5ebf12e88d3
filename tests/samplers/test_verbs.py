"""Every verb takes a sampler: rows, folders, names of arms, bundles and errors say which; rows of before are jumps."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from flowpolicy.checkpoint import Checkpoint, load_policy
from flowpolicy.cli import bench, compare, evaluate, export, sweep, train
from flowpolicy.data.store import EpisodeStore
from flowpolicy.deploy.runtime import OnnxPolicy
from flowpolicy.evaluation import evaluate as evaluating, sweep as sweeping
from flowpolicy.evaluation.certificate import sampler_of
from flowpolicy.inference import measure_latency
from flowpolicy.samplers import Heun, WarmStart, create_sampler, shift_chunk
from flowpolicy.seeding import stream
from tests.catalogue import observations, toy_run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_run(tmp_path_factory.mktemp("samplers") / "run").parent


@pytest.fixture
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run, without what other tests have evaluated there; latencies of two calls are enough."""
    for module in (evaluating, sweeping):
        monkeypatch.setattr(module, "measure_latency", partial(measure_latency, warmup=0, repeats=2))
    monkeypatch.chdir(made)
    shutil.rmtree(made / "run" / "evaluation", ignore_errors=True)
    return made


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_evaluate_says_in_rows_summary_folder_and_table_how_chunks_were_drawn(here: Path, capsys) -> None:
    evaluate.main(["checkpoint=run", "sampler=heun", "num_steps=[1,3]", "episodes=2", "envs=1"])
    folder = here / "run" / "evaluation" / "000010"
    assert [path.name for path in sorted(folder.glob("[!.]*[0-9]"))] == ["heun_steps_1", "heun_steps_3"]
    for row in rows(folder / "heun_steps_3"):
        assert (row["num_steps"], row["sampler"], row["evaluations"]) == (3, "heun", 5)
    summary = json.loads((folder / "heun_steps_3" / "summary.json").read_text())
    assert (summary["num_steps"], summary["sampler"], summary["evaluations"]) == (3, "heun", 5)
    assert "heun, 5 network evaluations" in capsys.readouterr().out


def test_rows_of_jumps_are_as_they_always_were_and_old_folders_go_on(here: Path) -> None:
    words = ["checkpoint=run", "episodes=2", "envs=1", "num_steps=2", "out=jumps"]
    evaluate.main(words)
    assert not {"sampler", "evaluations"} & set(rows(here / "jumps")[0])
    before = (here / "jumps" / "results.jsonl").read_bytes()
    evaluate.main([*words, "sampler=jump"])  # the same, said
    assert (here / "jumps" / "results.jsonl").read_bytes() == before
    with pytest.raises(ValueError, match='was begun with sampler "jump", now "heun"; choose another `out=`'):
        evaluate.main([*words, "sampler=heun"])


def test_arms_may_differ_in_their_sampler_and_are_named_by_it(here: Path, capsys) -> None:
    words = ["run", "samplers=[jump,heun]", "num_steps=2", "episodes=2", "envs=1", "out=compared"]
    compare.main(words)
    assert "run · jump" in (said := capsys.readouterr().out) and "run · heun" in said
    arms = json.loads((here / "compared" / "compare.json").read_text())["arms"]
    assert [(arm["sampler"], arm["num_steps"], arm["evaluations"]) for arm in arms] == [("jump", 2, 2), ("heun", 2, 3)]
    compare.main(words)  # a rerun rolls nothing out
    folders = [f"compared/arms/run/{name}steps_2" for name in ("", "heun_")]
    compare.main([*folders, "out=again"])  # recorded arms, too
    again = json.loads((here / "again" / "compare.json").read_text())["arms"]
    assert [arm["sampler"] for arm in again] == ["jump", "heun"] and "heun_steps_2" in again[1]["name"]
    with pytest.raises(ValueError, match=r"sampler=… and samplers=\[…\] both name samplers"):
        compare.main([*words, "sampler=heun"])


def test_a_sweep_has_an_arm_for_every_sampler_and_number_of_steps_and_leaves_out_what_a_head_cannot(
    here: Path, capsys
) -> None:
    words = ["checkpoints=[run]", "episodes=2", "num_steps=[1,2]", "out=swept"]
    assert sweep.main([*words, "samplers=[jump,heun,ancestral]"]) == 0
    said = capsys.readouterr().out
    assert "left out, since the head does not take that sampler" in said and "run · ancestral · 1 step" in said
    (task,) = json.loads((here / "swept" / "sweep.json").read_text())["tasks"]
    assert {arm["name"]: arm["evaluations"] for arm in task["arms"]} == {
        "run · jump · 1 step": 1,
        "run · jump · 2 steps": 2,
        "run · heun · 1 step": 1,
        "run · heun · 2 steps": 3,
    }
    assert len(rows(here / "swept")) == 8
    assert sweep.main([*words, "samplers=[jump,heun,ancestral]"]) == 0 and len(rows(here / "swept")) == 8


def test_bench_measures_a_sampler_with_its_prepared_policy_where_there_is_one(here: Path, capsys) -> None:
    words = ["checkpoint=run", "num_steps=2", "repeats=4", "warmup=0"]
    for name, prepared in (("heun", True), ("hybrid", False)):
        bench.main([*words, f"sampler={name}", f"out={name}"])
        (report,) = json.loads((here / name / "bench.json").read_text())["reports"]
        assert report["sampler"] == name and (report["prepared_ms"] is not None) == prepared
        assert f"{name} in 2 steps" in capsys.readouterr().out


def test_a_bundle_holds_a_sampler_and_says_which(here: Path) -> None:
    pytest.importorskip("onnxruntime")
    words = ["checkpoint=run", "episodes=1", "observations=2", "repeats=2", "warmup=0", "overwrite=true"]
    assert export.main([*words, "out=bundle", "sampler=heun", "num_steps=2"]) == 0
    bundle, policy = OnnxPolicy("bundle"), load_policy("run")
    assert sampler_of(bundle) == Heun(num_steps=2) and bundle.num_steps == 2
    obs, noise = observations(policy), torch.randn(1, policy.horizon, 2, generator=stream(0, "n"))
    chunk = bundle.predict({key: value.numpy() for key, value in obs.items()}, noise=noise.numpy())
    wanted = policy.predict(obs, sampler=Heun(num_steps=2), noise=noise)
    torch.testing.assert_close(torch.from_numpy(chunk), wanted, rtol=0, atol=1e-5)
    assert not torch.allclose(wanted, policy.predict(obs, num_steps=2, noise=noise), atol=1e-4)
    for name, reason in (("hybrid", "draws fresh noise"), ("warm_start", "begins at the chunk before")):
        with pytest.raises(ValueError, match=f"sampler={name} {reason}"):
            export.main([*words, "out=none", f"sampler={name}", "num_steps=2"])
        assert not (here / "none").exists()


def test_training_is_checked_with_a_sampler_which_the_other_verbs_then_take(here: Path) -> None:
    store = _demonstrations(here / "demos.zarr")
    words = [f"dataset.path={store}", "task.max_episode_steps=20", "policy.net.width=16", "trainer.steps=2"]
    words += ["trainer.warmup_steps=1", "trainer.eval_every=2", "eval.episodes=1", "eval.num_steps=2", "out=trained"]
    train.main([*words, "eval.sampler=heun"])
    checkpoint = Checkpoint.open(here / "trained")
    assert create_sampler(checkpoint.record["sampler"]) == Heun(num_steps=2) and checkpoint.num_steps == 2
    evaluate.main(["checkpoint=trained", "episodes=1", "envs=1"])
    evaluate.main(["checkpoint=trained", "episodes=1", "envs=1", "sampler=jump"])
    folder = here / "trained" / "evaluation" / "000002"
    assert {path.name for path in folder.glob("[!.]*_2")} == {"heun_steps_2", "steps_2"}


def test_a_warm_start_begins_every_chunk_but_the_first_at_the_rest_of_the_last(here: Path) -> None:
    evaluate.main(["checkpoint=run", "sampler=warm_start", "sampler.time=0.5", "episodes=2", "envs=2", "out=warm"])
    assert rows(here / "warm")[0]["sampler"] == "warm_start time=0.5"
    panel = json.loads((here / "warm" / "chunks.json").read_text())["panels"][0]
    played = torch.tensor(panel["actions"])
    from flowpolicy_envs.toy import make_env  # the same episode by hand

    policy, env, whole, said = load_policy("run"), make_env("two-ways", max_episode_steps=20), None, []
    obs, _ = env.reset(seed=100000)
    generator, over, ahead = stream(100000, "policy_noise"), False, policy.action_horizon
    while not over:
        seen = {key: torch.as_tensor(obs[key])[None, None] for key in policy.obs_keys}
        start = None if whole is None else shift_chunk(whole, ahead)
        sampler = WarmStart(time=0.5)
        whole = policy.predict(seen, sampler=sampler, generator=generator, start=start, whole=True)
        for action in whole[0, :ahead]:
            said.append(action)
            obs, _, terminated, truncated, _ = env.step(action.numpy())
            if over := terminated or truncated:
                break
    torch.testing.assert_close(played, torch.stack(said), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("verb", "words", "message"),
    [
        (
            evaluate,
            ["checkpoint=run", "sampler=ancestral"],
            "MeanFlowHead has no noise levels, which sampler=ancestral",
        ),
        (evaluate, ["checkpoint=run", "sampler=euler"], "there is no sampler=euler; "),
        (evaluate, ["checkpoint=run", "sampler=heun", "sampler.tau=0.1"], "there is no key sampler.tau"),
        (evaluate, ["checkpoint=run", "sampler=hybrid", "sampler.tau=1"], "sampler.tau must be below 1"),
        (evaluate, ["checkpoint=run", "sampler=hybrid", "num_steps=1"], "num_steps >= 2"),
        (bench, ["checkpoint=run", "sampler=ancestral"], "MeanFlowHead has no noise levels"),
        (sweep, ["checkpoints=[run]", "samplers=[jumps]", "out=x"], "there is no sampler=jumps; did you mean jump?"),
        (compare, ["run", "samplers=heun", "out=x"], "samplers must be a list"),
        (train, ["dataset.path=none", "eval.sampler=7"], "eval.sampler must be text"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_runs(here: Path, verb, words: list[str], message: str) -> None:
    with pytest.raises(ValueError) as refused:
        verb.main(words)
    assert message in str(refused.value)
    assert not (here / "run" / "evaluation").exists() and not (here / "x").exists()


def _demonstrations(path: Path) -> Path:
    from flowpolicy.cli import data

    if not path.exists():
        data.main(["collect", "task=toy", "episodes=2", f"out={path}"])
    assert EpisodeStore.open(path).num_episodes == 2
    return path
