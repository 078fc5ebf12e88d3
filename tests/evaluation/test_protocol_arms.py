"""A protocol with arms: what is missing is trained, several at a time; a kill loses nothing; then one sweep."""

import json
import os
from functools import partial
from pathlib import Path

import pytest

from flowpolicy.cli.main import main
from flowpolicy.evaluation.protocol import Cell, train_all
from flowpolicy.json_files import write_json
from flowpolicy.results.one_step import MANY
from tests.helpers import last

CELLS = [Cell(task, 0, arm) for task in ("a", "b") for arm in ("x", "y")]


def train(cell: Cell, store: Path, run: Path, *, fails: str) -> None:
    """What a training leaves behind; picklable."""
    assert store.exists()
    print(f"training {cell.arm}")
    if f"{cell.task_id}{cell.arm}" == fails:
        raise ValueError(f"loss of {cell.arm} is NaN")
    with (run.parent / "calls").open("a") as file:
        file.write("1")
    write_json(run / "checkpoints/last/state/step.json", {"step": 7})


def test_one_failure_stops_no_other_and_what_is_there_is_not_done_again(tmp_path: Path) -> None:
    collected = []

    def collect(task: str, store: Path) -> None:
        collected.append(task)
        store.mkdir(parents=True)

    run = partial(train_all, CELLS, tmp_path, collect=collect, steps={"x": 7, "y": 5}, workers=2)
    with pytest.raises(RuntimeError, match="1 of 4 trainings failed.*b x seed 0: loss of x is NaN; see .*seed_0.log"):
        run(train=partial(train, fails="bx"))
    assert "Traceback" in (tmp_path / "b/x/seed_0.log").read_text()
    run(train=partial(train, fails=""))
    run(train=partial(train, fails="ax"))  # nothing is missing
    assert collected == ["a", "b"]
    assert [(tmp_path / task / arm / "calls").read_text() for task, _, arm in CELLS] == ["1"] * 4
    assert (tmp_path / "b/x/seed_0.log").read_text().count("training x\n") == 2


def test_an_arm_is_complete_at_its_own_number_of_steps(tmp_path: Path) -> None:
    run = partial(train_all, CELLS[:2], tmp_path, collect=lambda _, store: store.mkdir(parents=True), workers=1)
    run(train=partial(train, fails=""), steps={"x": 7, "y": 7})
    with pytest.raises(RuntimeError, match=r"a/y/seed_0 stopped at step 7 of 8 \(`max_hours`\)"):
        run(train=partial(train, fails=""), steps={"x": 7, "y": 8})
    assert [(tmp_path / "a" / arm / "calls").read_text() for arm in "xy"] == ["1", "11"]


def dies(cell: Cell, store: Path, run: Path) -> None:
    """A training whose process is killed; picklable."""
    if cell.arm == "x":
        os._exit(9)
    train(cell, store, run, fails="")


def test_a_training_that_takes_its_process_with_it_is_named_and_stops_no_other(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="2 of 4 trainings failed.*a x seed 0: a worker process died.*; see .*log"):
        train_all(
            CELLS,
            tmp_path,
            collect=lambda _, store: store.mkdir(parents=True),
            train=dies,
            steps={"x": 7, "y": 7},
            workers=2,
        )
    assert [(tmp_path / task / "y" / "calls").read_text() for task in "ab"] == ["1", "1"]


WORDS = [
    "task=toy",
    "demonstrations=3",
    "episodes=3",
    "workers=2",
    "policy.net.width=32",
    "trainer.steps=4",
    "trainer.batch_size=8",
    "seeds=[0]",
    "num_steps=[1,4]",
    "arms={dm1:['policy/head=dm1'],mse:['policy/head=regression']}",
]


@pytest.mark.slow
def test_the_verb_trains_every_arm_and_sweeps(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["protocol", *WORDS, f"out='{tmp_path / 'a, b'}'"]
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert "left out, since the head does not take that many steps: mse · 4 steps" in text
    assert "  dm1 · 1 step: " in text and "  mse · 1 step: " in text  # each against dm1 in 4 steps
    sweep = tmp_path / "a, b" / "sweep"
    assert (
        text.splitlines()[-1] == str(sweep / "sweep.html")
        and "One step against many" in (sweep / "sweep.html").read_text()
    )
    (task,) = json.loads((sweep / "sweep.json").read_text())["tasks"]
    assert [(arm["name"], arm["n"]) for arm in task["arms"]] == [
        ("dm1 · 1 step", 3),
        ("dm1 · 4 steps", 3),
        ("mse · 1 step", 3),
    ]
    heads = [
        json.loads((last(tmp_path / "a, b/two-ways" / arm / "seed_0") / "policy/config.json").read_text())
        for arm in ("dm1", "mse")
    ]
    assert ["DM1" if "dispersive" in json.dumps(head) else "MSE" for head in heads] == ["DM1", "MSE"]

    def never(*job: object) -> None:
        raise AssertionError(job)

    monkeypatch.setattr("flowpolicy.cli.train.run", never)
    assert main([*argv, "only=[mse]", "num_steps=[1]"]) == 0
    other = "arms={dm1:['policy/head=dm1'],mse:['policy/head=idp']}"
    assert main([*argv[:-2], other, argv[-1]]) == 2 and "begun with" in capsys.readouterr().err
    assert main([*argv, "trainer.lr=0.1"]) == 2 and "begun with" in capsys.readouterr().err


def test_a_misspelt_arm_or_head_is_found_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    assert main(["protocol", *WORDS, "only=[dm2]", f"out={out}"]) == 2
    assert "only=dm2 is no arm; there are dm1, mse" in capsys.readouterr().err
    assert main(["protocol", *WORDS, "only=[]", f"out={out}"]) == 2
    assert "only=[] is no arm" in capsys.readouterr().err
    assert main(["protocol", *WORDS[:-1], "only=dm1", "trainer.eval_every=2", f"out={out}"]) == 2
    assert "choose among arms" in capsys.readouterr().err
    assert main(["protocol", *WORDS[:-1], "arms={x:['policy/head=meanflw']}", f"out={out}"]) == 2
    assert "meanflow" in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize("name", ["heads_metaworld", "nets_metaworld"])
def test_the_experiments_name_arms_that_compose(name: str) -> None:
    from flowpolicy.cli import config
    from flowpolicy.paths import config_dir

    facts = config.plain(config.load("protocol", [f"experiment={name}", "dataset.path=none"]))
    assert len(facts["tasks"]) >= 2 and 1 in facts["num_steps"]
    for words in facts["arms"].values():
        config.plain(config.load("train", [f"experiment={name}", *words, "dataset.path=none"]))
    if name == "heads_metaworld":
        assert max(facts["num_steps"]) >= MANY
        known = {file.stem for file in (config_dir() / "policy" / "head").glob("*.yaml")}
        assert len(facts["arms"]) >= 20 and {*facts["arms"]} <= known
