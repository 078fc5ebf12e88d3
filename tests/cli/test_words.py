"""Paths as users have them, in every place where a verb takes one; sweeps and interpolation as before."""

import re
import shlex
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from flowpolicy.cli import config, words
from flowpolicy.cli.main import VERBS, main
from flowpolicy.cli.tasks import without_task

AWKWARD = [
    "josé/own.zarr",
    "x (1).zarr",
    "a b/c.zarr",
    "a,b.zarr",
    "{a}=b#c.zarr",
    "a\"b'c.zarr",
    "100%!@&;.zarr",
    "日本/データ.zarr",
    "5",
    "true",
    "a:b",
    "a\\b",
    "a\\",
    '\\"',
    "a*[1].zarr",
    "$x",
]


@pytest.mark.parametrize("path", AWKWARD)
def test_hydra_gives_back_the_path_that_was_typed(path: str):
    cfg = config.load("evaluate", [f"checkpoint={path}", f"out={path}", f"demonstrations={config.quoted(Path(path))}"])
    assert cfg.checkpoint == cfg.out == cfg.demonstrations == path


def test_every_path_of_every_yaml_is_quoted():
    path = "x (1).zarr"
    given = {
        "train": ["dataset.path", "out"],
        "export": ["checkpoint", "out", "dataset.path"],
        "bench": ["out"],
        "collect": ["out"],
        "finetune": ["checkpoint", "out"],
        "sweep": ["out"],
        "compare": ["out"],
    }
    for name, keys in given.items():
        cfg = config.load(name, [f"{key}={path}" for key in keys])
        assert [OmegaConf.select(cfg, key) for key in keys] == [path] * len(keys), name
    image = ["policy/encoder=resnet18", f"policy.encoder.image.weights={path}"]
    assert config.load("train", image).policy.encoder.image.weights == path


def test_lists_and_sweeps_of_paths_come_back_too():
    paths = [path for path in AWKWARD if "," not in path and "'" not in path]
    assert config.load("sweep", [f"checkpoints=[{', '.join(paths)}]"]).checkpoints == paths
    jobs = config.expand([f"out={','.join(paths)}", "seed=0", "-m"])
    assert [config.load("collect", job).out for job in jobs] == paths


def test_a_path_with_a_comma_can_be_quoted_in_a_list():
    assert config.load("sweep", ["checkpoints=['a,b',\"c d\"]"]).checkpoints == ["a,b", "c d"]


def test_the_home_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home folder")
    assert config.load("train", ["dataset.path=~/own.zarr"]).dataset.path == "/home folder/own.zarr"
    assert config.load("sweep", ["checkpoints=[~/a,b/~]"]).checkpoints == ["/home folder/a", "b/~"]
    assert config.load("evaluate", ["checkpoint=~", "out=~/a"]).checkpoint == "/home folder"


def test_sweeps_and_interpolation_stay():
    jobs = config.expand(["-m", "seed=0,1", "dataset.path=x (1).zarr", "out=runs/é_${seed}"])
    loaded = [config.load("train", job) for job in jobs]
    assert [cfg.out for cfg in loaded] == ["runs/é_0", "runs/é_1"]
    assert [cfg.dataset.path for cfg in loaded] == ["x (1).zarr"] * 2
    jobs = config.expand(["-m", "dataset.path=a b.zarr,c.zarr", "out=choice(p,q)"])
    pairs = [(cfg.dataset.path, cfg.out) for cfg in (config.load("train", job) for job in jobs)]
    assert pairs == [("a b.zarr", "p"), ("a b.zarr", "q"), ("c.zarr", "p"), ("c.zarr", "q")]
    assert config.load("train", ["dataset.path=a", "out=null"]).out is None


def test_what_is_no_path_stays_as_it_was_typed():
    typed = [
        "seed=0",
        "demonstrations=10",
        "policy/head=dm1",
        "num_steps=[1,2]",
        "~policy.head",
        "names=[a,b]",
        "part=1/2",
    ]
    assert words.path_words(typed) == typed


def test_every_verb_takes_such_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    store, run = "~/josé (1)/own data.zarr", "~/runs é/a (1)"
    small = ["policy.net.width=8", "policy.net.depth=1", "trainer.batch_size=4", "trainer.steps=2", "task=toy"]
    for argv in (
        ["data", "collect", "task=toy", "episodes=2", f"out={store}"],
        ["data", "inspect", store],
        ["data", "validate", store],
        ["data", "view", store, "out=~/view (1).html", "episodes=1"],
        ["train", f"dataset.path={store}", f"out={run}", *small],
        ["evaluate", f"checkpoint={run}", "episodes=1", "envs=1", f"demonstrations={store}", "out=~/eval é"],
        ["report", "~/eval é", "out=~/page (1).html"],
        ["bench", f"checkpoint={run}", "repeats=2", "warmup=1", "out=~/bench (1)"],
        ["compare", "~/eval é", f"{run}:2", "episodes=1", "envs=1", "out=~/compare (1)"],
        ["sweep", f"checkpoints=[{run}]", "episodes=1", "out=~/sweep (1)"],
    ):
        assert main(argv) in (0, 1), (argv, capsys.readouterr().err)  # 1: data validate finds so few episodes odd
    made = {"josé (1)", "view (1).html", "runs é", "eval é", "page (1).html", "bench (1)", "compare (1)", "sweep (1)"}
    assert made == {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("verb", sorted({*VERBS} - {"data", "report", "compare", "info", "doctor"}))
def test_the_examples_of_the_help_compose(capsys: pytest.CaptureFixture, verb: str):
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out.replace("\\\n", " ")
    examples = re.findall(rf"^  flowpolicy {verb} (.*)$", text, re.MULTILINE)
    assert examples
    for example in examples:
        typed = [word for word in shlex.split(example, comments=True) if "…" not in word]
        for job in config.expand([word.replace("$SLURM_ARRAY_TASK_ID", "1") for word in typed]):
            needed = ["dataset.path=a"] if verb == "protocol" else []
            config.load(verb, [*(job if verb in ("train", "protocol") else without_task(job)), *needed])
