"""scripts/heads_table.py on episodes written by hand; and the two experiments that it reads are of one kind."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from flowpolicy.cli import config

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("heads_table", ROOT / "scripts" / "heads_table.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(out: Path, arms: list[str], cells: dict[tuple[str, str, int], str]) -> Path:
    """cells: (arm, task, training seed) -> an episode each, y for success."""
    (out / "sweep").mkdir(parents=True)
    (out / "protocol.json").write_text(json.dumps({"recipes": dict.fromkeys(arms, "")}))
    rows = [
        {
            "checkpoint": str(out / task / arm / f"seed_{seed}" / "checkpoints" / "3"),
            "num_steps": 1,
            "task_id": task,
            "seed": 60000 + i,
            "success_once": letter == "y",
        }
        for (arm, task, seed), letters in cells.items()
        for i, letter in enumerate(letters)
    ]
    (out / "sweep" / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return out


def test_deviation_is_of_training_seeds_and_an_unfinished_one_is_left_out(
    table: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = {
        ("good", "easy", 0): "yyyy",
        ("good", "hard", 0): "yynn",
        ("good", "easy", 1): "yyyy",
        ("good", "hard", 1): "yyyy",
        ("good", "easy", 2): "yyyy",
        ("good", "hard", 2): "yy",
        ("poor", "easy", 0): "nnnn",
        ("poor", "hard", 0): "nnnn",
    }
    table.print_table(table.read(write(tmp_path, ["poor", "good"], cells)))
    lines = capsys.readouterr().out.splitlines()
    # seeds 0 and 1: 0.75 and 1.0, 14 of 16 episodes
    assert lines[2] == "| good | 2 | 1.00 | 0.75 | 0.875 ± 0.177 (0.64 to 0.97) |"
    assert lines[3].startswith("| poor | 1 | 0.00 | 0.00 | 0.000 (0.00 to 0.32)")


def test_how_far_the_best_is_ahead_is_told_over_pairs_of_trainings(
    table: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = {
        ("good", "easy", 0): "yyyy",
        ("good", "easy", 1): "yyyy",
        ("poor", "easy", 0): "yyyn",
        ("poor", "easy", 1): "yynn",
        ("single", "easy", 0): "nnnn",
    }
    table.print_ahead(table.read(write(tmp_path, ["single", "poor", "good"], cells)))
    # gaps 0.25 and 0.5: mean 0.375, half an interval 12.706 * 0.1768 / sqrt(2)
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| good |  | – |",
        "| poor | +0.375 (-1.213 to 1.963) | – |",
        "| single | – | – |",
    ]


def test_the_best_setting_is_chosen_and_of_equal_ones_the_first_of_the_experiment(
    table: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = {
        ("a two", "easy", 0): "yn",
        ("a one", "easy", 0): "ny",
        ("b two", "easy", 0): "yy",
        ("b one", "easy", 0): "yn",
    }
    table.print_chosen(table.read(write(tmp_path, ["a one", "a two", "b one", "b two"], cells)))
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| a | one: 0.50 | two: 0.50 |",
        "| b | two: 1.00 | one: 0.50 |",
    ]


def test_every_head_is_tuned_by_as_many_settings_under_the_conditions_of_the_comparison() -> None:
    tuning, final = (
        config.plain(config.load("protocol", [f"experiment={name}", "dataset.path=none"]))
        for name in ("heads_tuning", "heads_metaworld")
    )
    heads = [arm.partition(" ")[0] for arm in tuning["arms"]]
    assert {heads.count(head) for head in heads} == {4}
    assert all(words[0] == f"policy/head={head}" for head, words in zip(heads, tuning["arms"].values(), strict=True))
    assert tuning["policy"] == final["policy"] and tuning["task"]["expert"] == final["task"]["expert"]
    assert {**tuning["trainer"], "steps": 0} == {**final["trainer"], "steps": 0}
    assert not set(tuning["seeds"]) & set(final["seeds"])
    selection = range(tuning["start_seed"], tuning["start_seed"] + tuning["episodes"])
    assert final["start_seed"] not in selection and set(tuning["tasks"]) <= set(final["tasks"])
    tuned = [sorted(words) for words in tuning["arms"].values()]
    for head in set(heads):
        assert sorted(final["arms"][head]) in tuned, f"{head} is compared at a setting that tuning has not tried"
