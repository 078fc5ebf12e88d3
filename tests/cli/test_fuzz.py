"""Whatever is damaged, a verb ends with one line and code 2, or does its work; never with a traceback."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowpolicy.cli.main import main

SMALL = ["policy.net.width=8", "policy.net.depth=1", "trainer.batch_size=4", "threads=1", "task=toy"]
TRAIN = [
    "train",
    "dataset.path=demos.zarr",
    *SMALL,
    "trainer.steps=4",
    "trainer.checkpoint_every=2",
    "eval.episodes=1",
    "trainer.eval_every=2",
    "trainer.log_every=1",
]
ROLLOUT = ["episodes=1", "envs=1", "task.max_episode_steps=4"]
SWEEP = ["sweep", "checkpoints=[run]", "episodes=2", "num_steps=[1,2]", "out=swept", "task.max_episode_steps=4"]
COMPARE = ["compare", "run", "run:2", "episodes=2", "envs=1", "out=compared", "task.max_episode_steps=4"]
# folder -> what reads it
READERS = {
    "demos.zarr": [
        ["data", "inspect", "demos.zarr"],
        ["data", "validate", "demos.zarr"],
        [*TRAIN, "trainer.steps=1", "out=new"],
    ],
    "run": [
        [*TRAIN, "out=run", "resume=true", "trainer.steps=5"],
        ["evaluate", "checkpoint=run", *ROLLOUT, "out=new"],
        ["report", "run", "out=new.html"],
    ],
    "eval": [
        ["report", "eval", "out=new.html"],
        ["compare", "eval", "eval2", "out=new"],
        ["evaluate", "checkpoint=run", *ROLLOUT, "out=eval"],
    ],
    "compared": [COMPARE],
    "swept": [SWEEP],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of everything that a reader may find, from the toy task."""
    folder, before = tmp_path_factory.mktemp("made"), Path.cwd()
    os.chdir(folder)
    try:
        for words in (
            ["data", "collect", "task=toy", "episodes=3", "out=demos.zarr"],
            [*TRAIN, "out=run"],
            ["evaluate", "checkpoint=run", *ROLLOUT, "out=eval"],
            ["evaluate", "checkpoint=run", *ROLLOUT, "num_steps=2", "out=eval2"],
            COMPARE,
            SWEEP,
        ):
            assert main(words) == 0, words
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def require_clean(words: list[str], capsys: pytest.CaptureFixture) -> str:
    """Code 0 or 1, or code 2 and one line; returns that line."""
    capsys.readouterr()
    code = main(words)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip() and "it/s" not in line]
    said = [line for line in lines if line.startswith("flowpolicy")]
    assert code in (0, 1, 2) and not any("Traceback" in line for line in lines), lines
    assert code != 2 or len(said) == 1, lines
    return said[0] if code == 2 else ""


# ---- damage


def empty(file: Path, rng: random.Random) -> None:
    file.write_bytes(b"")


def truncate(file: Path, rng: random.Random) -> None:
    file.write_bytes(file.read_bytes()[: rng.randrange(max(1, file.stat().st_size))])


def flip(file: Path, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    for _ in range(3 if data else 0):
        data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
    file.write_bytes(bytes(data))


def remove(file: Path, rng: random.Random) -> None:
    file.unlink()


VALUES = (None, "x", -1, 0, 1e308, [], {}, True, float("nan"), [None], "é" * 300)


def _somewhere(content: Any, rng: random.Random, act: Callable[[Any, Any], None]) -> None:
    """`act(container, key)` at a random place of a JSON value."""
    while True:
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        key = rng.choice(keys)
        if isinstance(content[key], dict | list) and content[key] and rng.random() < 0.7:
            content = content[key]
            continue
        return act(content, key)


def _edited(file: Path, rng: random.Random, act: Callable[[Any, Any], None]) -> None:
    """One JSON value of the file, or of one of its lines."""
    lines = [file.read_text()] if file.suffix != ".jsonl" else file.read_text().splitlines()
    where = rng.randrange(len(lines))
    content = [json.loads(lines[where])]
    _somewhere(content, rng, act)
    lines[where] = json.dumps(content[0]) if content else ""
    file.write_text("\n".join(lines) + "\n")


def other_value(file: Path, rng: random.Random) -> None:
    _edited(file, rng, lambda content, key: content.__setitem__(key, rng.choice(VALUES)))


def missing_key(file: Path, rng: random.Random) -> None:
    _edited(file, rng, lambda content, key: content.__delitem__(key))


RAW, JSON = (empty, truncate, flip, remove), (other_value, missing_key)


def damages(file: Path) -> tuple[Callable[[Path, random.Random], None], ...]:
    """Those that make sense for the file."""
    return RAW + JSON * 3 if file.suffix in (".json", ".jsonl") or file.name.startswith(".z") else RAW


def damage_something(folder: Path, rng: random.Random) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".html")
    file = rng.choice(files)
    damage = rng.choice(damages(file))
    damage(file, rng)
    return f"{damage.__name__} {file}"


def fuzz_files(seed: int, here: Path, capsys: pytest.CaptureFixture) -> None:
    rng = random.Random(seed)
    folder = rng.choice(list(READERS))
    done = damage_something(here / folder, rng)
    words = rng.choice(READERS[folder])
    print(done, words)
    require_clean(words, capsys)


@pytest.mark.parametrize("seed", [*range(40), 1138, 1144, 1178, 1453, 1570])  # the latter found something
def test_damaged_files(here: Path, capsys: pytest.CaptureFixture, seed: int):
    fuzz_files(seed, here, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1600))
def test_more_damaged_files(here: Path, capsys: pytest.CaptureFixture, seed: int):
    fuzz_files(seed, here, capsys)


# ---- values


KEYS = {
    "train": "dataset.path dataset.val_episodes out seed device threads resume debug trainer.steps trainer.batch_size "
    "trainer.lr trainer.eval_every trainer.checkpoint_every trainer.log_every eval.episodes eval.start_seed "
    "eval.envs policy.horizon policy.obs_horizon policy.action_horizon policy.obs_keys policy.net.width "
    "normalization.action task.id task.env policy.head.p_equal trainer.betas trainer.augment.image_shift "
    "policy.encoder policy.net task trainer",
    "evaluate": "checkpoint out episodes num_steps envs video start_seed demonstrations trusted device threads task.id "
    "task",
    "compare": "out episodes num_steps envs start_seed sequential max_episodes alpha require margin names threads",
    "sweep": "checkpoints names tasks num_steps seeds episodes out workers part trusted device threads",
    "bench": "checkpoint hz num_steps threads cpus repeats warmup observations out trusted device",
    "protocol": "tasks seeds demonstrations demonstration_seed episodes start_seed workers envs arms only num_steps",
    "finetune": "checkpoint out envs workers loop.iterations loop.decisions ppo.epochs exploration reward.success "
    "rl.total_steps",
}
COMMON = {
    "train": [*TRAIN, "out=new", "trainer.steps=1", "trainer.eval_every=0"],
    "evaluate": ["evaluate", "checkpoint=run", *ROLLOUT, "out=new"],
    "compare": ["compare", "eval", "eval2", "out=new"],
    "sweep": [*SWEEP, "episodes=1", "out=new"],
    "bench": ["bench", "checkpoint=run", "repeats=1", "warmup=1", "out=new"],
    "protocol": ["protocol", "dataset.path=none", *SMALL, "out=run/checkpoints/index.json/new"],
    "finetune": ["finetune", "checkpoint=none"],
}
WORDS = (
    "null",
    "-1",
    "0",
    "1e400",
    "nan",
    "5",
    "x",
    "[]",
    "[null]",
    "{}",
    "true",
    "1.5",
    "99999999999999999999",
    "''",
    "[a,b]",
    "'${seed'",
    "${nothing}",
)
HUGE = {("99999999999999999999", key) for key in ("episodes", "trainer.steps", "repeats", "warmup", "demonstrations")}


def fuzz_values(seed: int, capsys: pytest.CaptureFixture) -> None:
    rng = random.Random(seed)
    verb = rng.choice(list(KEYS))
    key, value = rng.choice(KEYS[verb].split()), rng.choice(WORDS)
    if (value, key) not in HUGE:
        print(verb, f"{key}={value}")
        require_clean([*COMMON[verb], f"{key}={value}"], capsys)


@pytest.mark.parametrize("seed", [*range(40), 1080, 1243, 1272, 1304])
def test_odd_values(here: Path, capsys: pytest.CaptureFixture, seed: int):
    fuzz_values(seed, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1600))
def test_more_odd_values(here: Path, capsys: pytest.CaptureFixture, seed: int):
    fuzz_values(seed, capsys)
