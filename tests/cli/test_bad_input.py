"""Bad input to every verb: exit code 2, one line that says what to do, nothing half-written, nothing old lost."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr

from flowpolicy.checkpoint import load_policy
from flowpolicy.cli.main import main
from flowpolicy.data.store import EpisodeStore
from flowpolicy.extras import how_to_install
from tests.helpers import last, named, write_store

ROOT = Path(__file__).parents[2]
SMALL = ["policy.net.width=16", "policy.net.depth=1", "trainer.batch_size=8", "trainer.steps=4", "threads=1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """demos.zarr of the toy task, and run/, which was trained on it."""
    folder = tmp_path_factory.mktemp("made")
    assert main(["data", "collect", "task=toy", "episodes=4", f"out={folder / 'demos.zarr'}"]) == 0
    assert main(["train", f"dataset.path={folder / 'demos.zarr'}", *SMALL, f"out={folder / 'run'}"]) == 0
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of both, as the current folder."""
    shutil.copytree(made, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes | str]:
    """Every file, folder and link below `folder`."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        if path.is_file()
        else "link"
        if path.is_symlink()
        else "folder"
        for path in sorted(folder.rglob("*"))
    }


def complaint(capsys: pytest.CaptureFixture, *words: str, code: int = 2) -> str:
    """The one line that the command left on stderr; the current folder is as it was before."""
    before = contents(Path.cwd())
    capsys.readouterr()
    assert main(list(words)) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and len(lines[0]) < 400, lines
    assert contents(Path.cwd()) == before
    return lines[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainer.step=3"], "there is no key trainer.step; did you mean trainer.steps?"),
        (["policy.head.kind=3"], "there is no key policy.head.kind; there are derivative, direction, dispersive"),
        (["trainr.steps=3"], "there is no key trainr; did you mean trainer?"),
        (["policy/haed=dm1"], "there is no key policy/haed; did you mean policy/head?"),
        (["policy/head=meanflw"], "there is no policy/head=meanflw; did you mean meanflow?"),
        (["policy/head=transformer"], "there are alpha_flow, consistency,"),
        (["task=tyo"], "there is no task=tyo; did you mean toy?"),
        (["experiment=none"], "there is no experiment=none; there are"),
        (["policy.head=meanflow"], "policy.head must be a group (policy/head=NAME or policy.head.KEY=VALUE)"),
        (["policy.head.p_equal=2"], "policy.head.p_equal must be between 0 and 1, got 2"),
        (["policy.head.p_start=-1"], "policy.head.p_start must be between 0 and 1, got -1"),
        (["policy.head.p_equal=most"], "policy.head.p_equal must be a number (default 0.75), got 'most'"),
        (["policy.head.objective=mean"], "objective must be 'meanflow' or 'imf', got 'mean'"),
        (["policy.net.width=1.5"], "policy.net.width must be a whole number"),
        (["policy.net.depth=0"], "depth must be at least 1"),
        (["policy.horizon=2"], "action_horizon must be at most horizon"),
        (["policy.obs_keys=[wrist]"], "unknown ['wrist']; the embodiment has ['agent_pos', 'env_state']"),
        (["policy.action_representation=relative"], "use absolute"),
        (["normalization.obs=max"], "use minmax, quantile, meanstd"),
        (["trainer.steps=many"], "trainer.steps must be a whole number (default 6000), got 'many'"),
        (["trainer.steps=null"], "trainer.steps must be a whole number"),
        (["trainer.batch_size=0"], "trainer.batch_size must be at least 1, got 0"),
        (["trainer.lr=-1"], "trainer.lr must be positive, got -1"),
        (["trainer.precision=fp8"], "must be one of auto, fp32, bf16, got fp8"),
        (
            ["trainer.augment.shift=3"],
            "there is no key trainer.augment.shift; did you mean trainer.augment.image_shift?",
        ),
        (["trainer.augment.point_dropout=1"], "trainer.augment.point_dropout must be below 1, got 1"),
        (["resume=perhaps"], "resume must be true or false (default False), got 'perhaps'"),
        (["seed=x"], "seed must be a whole number"),
        (["device=gpu"], "device must be auto, cpu, cuda or cuda:N, got gpu"),
        (["wandb"], "wanted key=value, got wandb"),
        (["dataset.path=none.zarr"], "none.zarr does not exist"),
        (["dataset.path=run"], "is not a zarr store"),
        (["out=run"], "resume=true goes on with it, or choose another out="),
        (["out=run", "resume=true", "seed=1"], "begun with seed 0, now 1; set seed=0"),
        (["out=run", "resume=true", "trainer.lr=0.1"], "begun with trainer.lr 0.001, now 0.1"),
        (["out=run", "resume=true", "policy.net.width=8"], "begun with policy.net.width 16, now 8"),
        (["out=run", "resume=true", "trainer.steps=3"], "beyond trainer.steps=3"),
        (["+trainer.foo=1"], "+trainer.foo=1: wanted KEY=VALUE for a key that exists"),
        (["~trainer.betas"], "+ and ~ work below policy and task only"),
        (["+eval.foo=1", "trainer.eval_every=2"], "+eval.foo=1: wanted"),
        (["++seed=1"], "++seed=1: wanted"),
        (["+policy.head.foo=1"], "does not fit its parts: "),
        (["policy/head=regression", "policy/times=one_step"], "or the group (as policy/times, policy/weighting), that"),
        (["trainer.betas=[0.9]"], "trainer.betas must be two numbers of at least 0 and below 1, got [0.9]"),
        (["trainer.betas=[0.9,1.0]"], "trainer.betas must be below 1, got 1.0"),
        (["trainer.betas=[a,b]"], "trainer.betas must be"),
        (["trainer.betas=null"], "trainer.betas must be"),
        (["task.env=null", "trainer.eval_every=2"], "trainer.eval_every=2 needs a simulator, but task.env is null"),
        (["out=null", "policy.obs_keys=[wrist]"], "unknown ['wrist']"),  # its default folder goes again
    ],
)
def test_train_refuses(here: Path, capsys: pytest.CaptureFixture, words: list[str], said: str):
    line = complaint(capsys, "train", "dataset.path=demos.zarr", *SMALL, "out=new", *words)
    assert line.startswith("flowpolicy train: ") and said in line
    load_policy(here / "run")


def test_train_needs_a_dataset(here: Path, capsys: pytest.CaptureFixture):
    assert "dataset.path=... is required" in complaint(capsys, "train", *SMALL, "out=new")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "flowpolicy: unknown verb 'trian'; verbs are data, train, finetune"),
        (["data"], "wanted one of collect, convert, inspect, validate, view, finish, trim, got 'nothing'"),
        (["data", "colect"], "wanted one of collect, convert, inspect, validate, view, finish, trim, got 'colect'"),
        (["data", "collect", "task=toy"], "pass out=PATH"),
        (["data", "collect", "episodes=0", "out=new.zarr"], "episodes must be at least 1, got 0"),
        (["data", "collect", "episode=3", "out=new.zarr"], "did you mean episodes?"),
        (["data", "collect", "task.id=three-ways", "out=new.zarr"], "toy has id=two-ways"),
        (["data", "collect", "out=demos.zarr"], "already exists; choose another path or pass overwrite=true"),
        (["data", "inspect", "none.zarr"], "does not exist"),
        (["data", "validate", "none.zarr"], "does not exist"),
        (["evaluate"], "checkpoint=... is required"),
        (["evaluate", "checkpoint=none"], "no checkpoint at none"),
        (["evaluate", "checkpoint=demos.zarr"], "no checkpoint at demos.zarr"),
        (["evaluate", "checkpoint=run", "episodes=many"], "episodes must be a whole number"),
        (["evaluate", "checkpoint=run", "envs=0"], "envs must be"),
        (["evaluate", "checkpoint=run", "policy.sampler=x"], "there is no key policy; there are "),
        (
            ["evaluate", "checkpoint=run", "policy/head=dm1"],
            "there is no group policy/head here; there are sampler, task",
        ),
        (["finetune", "checkpoint=run", "exporation=x"], "there is no key exporation; did you mean exploration?"),
        (["train", "policy/head=dm1,mp1"], "policy/head=dm1,mp1: one at a time; `flowpolicy train -m` takes several"),
        (["train", "dataset.path=none", "dataset.in_memory=3"], "dataset.in_memory must be text or true or false"),
        (["train", "experiment=[a,b]"], "experiment must be the name of one yaml file, got"),
        (
            ["finetune", "checkpoint=run", "sampler=flow_sde"],
            "sampler=flow_sde: how fine-tuning explores is exploration=",
        ),
        (["evaluate", "checkpoint=run", "num_stpes=2"], "did you mean num_steps?"),
        (["report", "none"], "none is not a folder"),
        (["report", "demos.zarr"], "nothing to report"),
        (["info", "verbose=true"], "takes no options"),
        (["doctor", "only=teapot"], "no check is named like 'teapot'"),
    ],
)
def test_the_other_verbs_refuse(here: Path, capsys: pytest.CaptureFixture, words: list[str], said: str):
    assert said in complaint(capsys, *words)


# ---- damaged data: training refuses it and points to validate, which names it and exits with 1


def cut_chunk(store: Path) -> None:
    chunk = store / "data/action/0.0"
    chunk.write_bytes(chunk.read_bytes()[:-40])


def no_episodes(store: Path) -> None:
    for name in ("episode_ends", "episode_seed", "episode_success"):
        old = zarr.open_array(store / "meta" / name)
        zarr.open_group(store / "meta").create_array(name, shape=(0,), dtype=old.dtype, overwrite=True)


def nan_action(store: Path) -> None:
    zarr.open_array(store / "data/action")[3, 1] = np.nan


def other_width(store: Path) -> None:
    """One action entry more than the embodiment record says."""
    array = zarr.open_array(store / "data/action")[...]
    wide = np.concatenate([array, array[:, :1]], axis=1)
    zarr.open_group(store / "data").create_array("action", data=wide, overwrite=True)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut_chunk, "data/action: chunk 0.0 is truncated"),
        (no_episodes, "the store is empty (0 episodes); collect"),
        (nan_action, "NaN or infinity in action, episode 0, step 3"),
        (other_width, "action: wanted (2,) per step as in the embodiment record, got (3,)"),
    ],
)
def test_damaged_demonstrations(here: Path, capsys: pytest.CaptureFixture, damage, said: str):
    damage(here / "demos.zarr")
    assert said in complaint(capsys, "train", "dataset.path=demos.zarr", *SMALL, "out=new")
    assert main(["data", "validate", "demos.zarr"]) == 1
    out, err = capsys.readouterr()
    assert not err and "error: " in out and "Traceback" not in out


# ---- parts that do not fit each other


def test_a_dataset_of_another_robot_is_refused_before_training(here: Path, capsys: pytest.CaptureFixture):
    write_store(here / "arm.zarr")
    words = ["dataset.path=arm.zarr", "task=toy", "trainer.eval_every=2", "out=new", *SMALL]
    line = complaint(capsys, "train", *words)
    assert "dataset and task disagree on the embodiment: " in line and "wanted test arm, got point mass" in line


def test_a_checkpoint_of_another_robot_is_not_evaluated(here: Path, capsys: pytest.CaptureFixture):
    write_store(here / "arm.zarr")
    assert main(["train", "dataset.path=arm.zarr", "task=toy", "out=arm", *SMALL]) == 0
    line = complaint(capsys, "evaluate", "checkpoint=arm", "envs=1", "episodes=1", "out=eval")
    assert "checkpoint and task disagree on the embodiment: " in line and "wanted test arm, got point mass" in line


def test_a_damaged_checkpoint_is_named(here: Path, capsys: pytest.CaptureFixture):
    weights = last(here / "run") / "policy/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors" in complaint(capsys, "evaluate", "checkpoint=run", "envs=1", "out=eval")
    (weights.parent / "config.json").write_text("{")
    assert "config.json" in complaint(capsys, "evaluate", "checkpoint=run", "envs=1", "out=eval")


# ---- what is not installed


@pytest.mark.parametrize(
    ("module", "words", "extra"),
    [
        ("metaworld", ["data", "collect", "task=metaworld", "out=new.zarr"], "metaworld"),
        ("mani_skill", ["data", "collect", "task=maniskill", "out=new.zarr"], "maniskill"),
        ("metaworld", ["evaluate", "checkpoint=run", "task=metaworld", "envs=1", "out=new"], "metaworld"),
        ("wandb", ["train", "wandb.enabled=true", "out=new"], "wandb"),
        ("imageio", ["evaluate", "checkpoint=run", "video=1", "envs=1", "out=new"], "video"),
    ],
)
def test_a_missing_extra_is_named(
    here: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, module, words, extra
):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)  # importing it raises ImportError
    words = [*words, "dataset.path=demos.zarr", *SMALL] if words[0] == "train" else words
    assert how_to_install(extra) in complaint(capsys, *words)


@pytest.mark.slow
@pytest.mark.ci
def test_a_video_without_a_renderer(here: Path):
    """On every machine: Vulkan's loader is told of a driver that does not exist."""
    pytest.importorskip("mani_skill")
    words = ["evaluate", "checkpoint=run", "task=maniskill", "episodes=1", "envs=1", "video=1", "out=eval"]
    code, lines = run_cli(*words, VK_ICD_FILENAMES=str(here / "none.json"), VK_DRIVER_FILES=str(here / "none.json"))
    assert code == 2 and len(lines) == 1, lines
    assert "no Vulkan device can draw; install a Vulkan driver" in lines[0] and not (here / "eval").exists()


# ---- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 400 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if os.name != "posix" or os.geteuid() != 0 or mount is None:
        pytest.skip("mounting a small tmpfs needs root")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", "size=400k", "none", str(disk)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no tmpfs here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def run_cli(*words: str, **variables: str) -> tuple[int, list[str]]:
    """Exit code and stderr without progress bars, of a process of its own: its last breath must be clean as well."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'envs'}",
        "OMP_NUM_THREADS": "1",
        **variables,
    }
    done = subprocess.run([sys.executable, "-m", "flowpolicy", *words], capture_output=True, text=True, env=environment)
    return done.returncode, [line for line in done.stderr.splitlines() if line.strip() and "%|" not in line]


def test_collecting_onto_a_full_disk_leaves_nothing(small_disk: Path):
    (small_disk / "ballast").write_bytes(b"x" * 360_000)
    code, lines = run_cli("data", "collect", "task=toy", "episodes=50", f"out={small_disk / 'demos.zarr'}")
    assert code == 2 and len(lines) == 1 and "disk full while writing" in lines[0] and "free some space" in lines[0]
    assert os.listdir(small_disk) == ["ballast"]


@pytest.mark.slow
@pytest.mark.ci
def test_training_onto_a_full_disk_keeps_the_checkpoint_before_and_can_be_resumed(made: Path, small_disk: Path):
    words = [
        "train",
        f"dataset.path={made / 'demos.zarr'}",
        f"out={small_disk / 'run'}",
        *SMALL,
        "policy.net.width=48",
        "trainer.steps=20",
        "trainer.checkpoint_every=10",
        "trainer.log_every=5",
        "resume=true",
    ]
    code, lines = run_cli(*words)
    assert code == 2 and len(lines) == 1 and "disk full" in lines[0] and "resume=true" in lines[0]
    checkpoints = small_disk / "run/checkpoints"
    assert named(checkpoints / "last") == "000010"
    assert sorted(os.listdir(checkpoints)) == ["000010", "index.json", "last"]
    load_policy(small_disk / "run")
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert run_cli(*words) == (0, [])
    assert named(checkpoints / "last") == "000020"
    steps = [json.loads(line)["step"] for line in (small_disk / "run/metrics.jsonl").read_text().splitlines()]
    assert steps == [5, 10, 15, 20]


@pytest.mark.slow
def test_logging_onto_a_full_disk_is_one_line_too(made: Path, small_disk: Path):
    (small_disk / "ballast").write_bytes(b"x" * 320_000)
    words = [
        "train",
        f"dataset.path={made / 'demos.zarr'}",
        f"out={small_disk / 'run'}",
        *SMALL,
        "trainer.steps=600",
        "trainer.checkpoint_every=0",
        "trainer.log_every=1",
        "resume=true",
    ]
    code, lines = run_cli(*words)
    assert code == 2 and len(lines) == 1 and "disk full" in lines[0]
    text = (small_disk / "run/metrics.jsonl").read_text()
    assert len(text) > 10_000
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert run_cli(*words) == (0, [])
    steps = [json.loads(line)["step"] for line in (small_disk / "run/metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 601))


def test_the_stores_of_the_tests_are_sound(made: Path):
    """What the tests above damage was good before."""
    assert (
        EpisodeStore.open(made / "demos.zarr").num_episodes == 4
        and main(["data", "validate", str(made / "demos.zarr")]) == 0
    )
