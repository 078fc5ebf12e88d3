"""`train -m`: jobs are looked at before the first one trains, equal runs alone, and one that fails stops no other."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from flowpolicy.cli import config
from flowpolicy.cli.main import main
from flowpolicy.paths import config_dir
from tests.cli.test_bad_input import complaint
from tests.helpers import last

SMALL = [
    "dataset.path=toy.zarr",
    "policy.net.width=16",
    "policy.net.depth=1",
    "trainer.batch_size=8",
    "trainer.steps=4",
    "trainer.log_every=1",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("made") / "toy.zarr"
    assert main(["data", "collect", "task=toy", "episodes=4", f"out={store}"]) == 0
    return store


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with toy.zarr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.zarr").symlink_to(made)
    return tmp_path


def said(capsys: pytest.CaptureFixture) -> list[str]:
    """Lines of stderr that are no progress bars."""
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    return [line for line in lines if line.strip() and "%|" not in line]


def test_a_job_that_diverges_stops_no_other_and_the_exit_code_counts(here: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["-m", *SMALL, "trainer.warmup_steps=0", "trainer.lr=1e30,1e-3,1e29,1e-4", "out=runs/${trainer.lr}"]
    assert main(["train", *words]) == 2
    first, second, both = said(capsys)
    assert first.startswith("job 1 of 4 (trainer.lr=1e+30): the ") and "; there is no checkpoint yet. Try a" in first
    assert second.startswith("job 3 of 4 (trainer.lr=1e+29): the ")
    assert both == "2 of 4 jobs failed: job 1 of 4 (trainer.lr=1e+30), job 3 of 4 (trainer.lr=1e+29)"
    done = sorted(folder.name for folder in (here / "runs").iterdir() if (folder / "checkpoints/000004").is_dir())
    assert done == ["0.0001", "0.001"]


def test_a_single_job_fails_as_without_the_flag(here: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["train", "-m", *SMALL, "trainer.warmup_steps=0", "trainer.lr=1e30", "out=run"]) == 2
    (line,) = said(capsys)
    assert line.startswith("flowpolicy train: the ")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["seed=0,1", "out=runs/same"], "2 jobs would write to "),
        (["seed=0,1,2", "out=runs/a,runs/b"], "3 jobs would write to "),
        (["seed=0,1", "out=runs/a,runs/x/../a"], "4 jobs would write to "),
        (["seed=0,1", "out=r_${seed}", "policy/head=mip,mipp"], "there is no policy/head=mipp; did you mean mip?"),
        (["trainer.lr=1e-3,-1", "out=r_${trainer.lr}"], "trainer.lr must be positive, got -1"),
        (["seed=0,1", "out=r_${seed}", "hydra.sweep.dir=x"], "hydra.sweep.dir=x: Hydra does not run this command"),
    ],
)
def test_what_is_wrong_with_any_job_is_said_before_the_first_one(
    here: Path, capsys: pytest.CaptureFixture, words: list[str], reason: str
) -> None:
    assert reason in complaint(capsys, "train", "-m", *SMALL, *words)


@pytest.mark.parametrize("word", ["hydra.run.dir=x", "hydra/job_logging=none", "+hydra.job.name=a", "hydra=x"])
def test_what_would_be_ignored_is_refused(here: Path, capsys: pytest.CaptureFixture, word: str) -> None:
    assert f"{word}: Hydra does not run this command, so that changes nothing" in complaint(
        capsys, "train", *SMALL, "out=run", word
    )


def test_globs_and_paths_with_an_equals_sign(here: Path) -> None:
    jobs = config.expand(["-m", *SMALL, "policy/head=glob(dm*)", "out=runs/lr=0.1"])
    assert [job[-2] for job in jobs] == ["policy/head=dm1", "policy/head=dm1_legacy"]
    assert main(["train", *SMALL, "out=ep=1/lr=0.1"]) == 0
    assert main(["evaluate", "checkpoint=ep=1/lr=0.1", "episodes=1", "envs=1", "out=ep=1/e=1"]) == 0
    assert (here / "ep=1/e=1/summary.json").is_file()


def test_jobs_are_the_runs_that_they_would_be_alone(here: Path) -> None:
    """Of train -m, and the cells of a sweep."""
    assert main(["train", "-m", *SMALL, "seed=0,1", "out=many/${seed}"]) == 0
    assert main(["train", *SMALL, "seed=1", "out=alone"]) == 0
    weights = [last(here / run) / "policy/model.safetensors" for run in ("many/1", "alone", "many/0")]
    assert weights[0].read_bytes() == weights[1].read_bytes() != weights[2].read_bytes()
    common = ["episodes=3", "num_steps=[1,2]", "out=swept"]
    assert main(["sweep", "checkpoints=[many/0,many/1]", *common]) == 0
    rows = [json.loads(line) for line in (here / "swept/results.jsonl").read_text().splitlines()]
    for run in ("many/0", "many/1"):
        assert main(["evaluate", f"checkpoint={run}", "episodes=3", "envs=1", "num_steps=[1,2]", f"out={run}/e"]) == 0
        alone = [
            json.loads(line)
            for k in (1, 2)
            for line in (here / run / f"e/steps_{k}/results.jsonl").read_text().splitlines()
        ]
        of_sweep = [row for row in rows if row["checkpoint"] == alone[0]["checkpoint"]]
        assert sorted(of_sweep, key=lambda row: (row["num_steps"], row["seed"])) == alone and len(alone) == 6


def test_another_programs_hydra_is_its_own_again(here: Path) -> None:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        whose = GlobalHydra.instance().hydra
        assert main(["train", "-m", *SMALL, "seed=0,1", "out=run_${seed}"]) == 0
        assert GlobalHydra.instance().hydra is whose is not None and compose("evaluate").episodes == 100
    assert GlobalHydra.instance().hydra is None
