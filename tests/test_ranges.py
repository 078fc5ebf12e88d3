"""Every number of the yaml files has its bounds, which are held before anything runs."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flowpolicy.cli import config, own_hydra
from flowpolicy.cli.main import main
from flowpolicy.paths import config_dir
from flowpolicy.ranges import RANGES, require_ranges

# null in the yaml, and a number where it is set
NULL = ("hz", "cpus", "num_steps", "rl.total_steps", "loop.max_hours", "trainer.max_hours")


def numbers(content: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """(dotted key, value) of each number; a list has several."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield from numbers(value, f"{key}.{name}" if key else name)
    elif isinstance(content, list):
        for value in content:
            yield from numbers(value, key)
    elif isinstance(content, int | float) and not isinstance(content, bool):
        yield key, content


def offered() -> dict[str, list[float]]:
    """Dotted key, as on the command line -> the values that it has in all yaml files."""
    found: dict[str, list[float]] = {}
    for file in sorted(config_dir().rglob("*.yaml")):
        folders = file.relative_to(config_dir()).parts[:-1]
        start = {"experiment": ""}.get(folders[0], ".".join(folders)) if folders else ""
        start = "policy" if folders == ("policy",) else start
        content = {key: value for key, value in yaml.safe_load(file.read_text()).items() if key != "defaults"}
        for key, value in numbers(content, start):
            found.setdefault(key, []).append(value)
    return found


OFFERED = offered()


def test_every_number_that_can_be_set_has_a_range_and_lies_in_it() -> None:
    assert len(OFFERED) > 140 and {"trainer.lr", "policy.net.width", "task.view.points", "seeds"} <= OFFERED.keys()
    assert not {*OFFERED, *NULL} - RANGES.keys(), "say in flowpolicy/ranges.py between which bounds"
    assert not RANGES.keys() - {*OFFERED, *NULL}, "of keys that no yaml file has"
    for key, values in OFFERED.items():
        for value in values:
            require_ranges("export" if key == "episodes" else "", nested(key, value))


def nested(key: str, value: Any) -> dict[str, Any]:
    """{"a": {"b": value}} for "a.b"."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def outside(bounds: dict[str, Any]) -> list[float]:
    """Values just beyond each bound, of the wrong kind, and not finite."""
    step = 1 if bounds.get("whole") else 1e-9
    near = [(bounds[name] + sign * step) for name, sign in (("least", -1), ("most", 1)) if name in bounds]
    near += [bounds[name] for name in ("above", "below") if name in bounds]
    return [*near, math.nan, math.inf, *([0.5] if bounds.get("whole") else [])]


@pytest.mark.parametrize("key", RANGES)
def test_values_outside_are_refused_by_name_and_those_on_a_bound_are_not(key: str) -> None:
    bounds = RANGES[key]
    for value in outside(bounds):
        with pytest.raises(ValueError, match=f"^{key} must be "):
            require_ranges("", nested(key, value))
        with pytest.raises(ValueError, match=f"^{key} must be "):
            require_ranges("", nested(key, [value]))
    for name in ("least", "most"):
        require_ranges("", nested(key, bounds.get(name, 0.5)) if not bounds.get("above", 1.0) else {})


def test_an_interpolation_and_a_word_are_left_to_others() -> None:
    require_ranges("", {"trainer": {"lr": "${seed}"}, "seed": None, "own": -1, "seeds": True})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "dataset.path=none", "seed=-1"], "seed must be between 0 and 2147483647, got -1"),
        (["train", "dataset.path=none", "eval.start_seed=-5"], "eval.start_seed must be between 0 and"),
        (["train", "dataset.path=none", "policy.net.width=-8"], "policy.net.width must be at least 1, got -8"),
        (["train", "dataset.path=none", "-m", "seed=-1,0"], "seed must be between 0 and 2147483647, got -1"),
        (["finetune", "checkpoint=none", "receipt.start_seed=-200"], "receipt.start_seed must be between 0 and"),
        (["train", "dataset.path=none", "trainer.augment.image_crop=1.1"], "image_crop must be at most 1, got 1.1"),
        (["finetune", "checkpoint=none", "ppo.gamma=1.5"], "ppo.gamma must be between 0 and 1, got 1.5"),
        (["evaluate", "checkpoint=none", "start_seed=4294967296"], "start_seed must be between 0 and 2147483647"),
        (["evaluate", "checkpoint=none", "num_steps=[1,0]"], "num_steps must be at least 1, got 0"),
        (["evaluate", "checkpoint=none", "threads=0"], "threads must be at least 1, got 0"),
        (["compare", "none", "none", "out=new", "alpha=1"], "alpha must be below 1, got 1"),
        (["sweep", "checkpoints=[none]", "out=new", "seeds=[100000,-1]"], "seeds must be between 0 and"),
        (["protocol", "out=new", "seeds=[-1]"], "seeds must be between 0 and 2147483647, got -1"),
        (["bench", "checkpoint=none", "hz=-3"], "hz must be positive, got -3"),
        (["export", "checkpoint=none", "out=new", "tolerance=0"], "tolerance must be positive, got 0"),
        (["data", "collect", "task=toy", "out=new.zarr", "seed=-1"], "seed must be between 0 and 2147483647, got -1"),
    ],
)
def test_a_command_says_so_before_anything_else(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and not list(tmp_path.iterdir())


def test_an_experiment_is_held_to_them_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(config_dir(), tmp_path / "configs")
    (tmp_path / "configs/experiment/own.yaml").write_text("# @package _global_\ntrainer:\n  lr: -1.0\n")
    monkeypatch.setattr(own_hydra, "config_dir", lambda: tmp_path / "configs")
    with pytest.raises(ValueError, match="trainer.lr must be positive, got -1.0"):
        config.load("train", ["experiment=own", "dataset.path=none"])
