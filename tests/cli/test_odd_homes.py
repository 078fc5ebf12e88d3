"""Where commands live: every long one does its work without a home, a name, a terminal, a network or a quiet life.

CI runs one command in each home; all: python -m pytest tests/cli/test_odd_homes.py -m ""
"""

import fcntl
import json
import os
import pty
import random
import select
import shutil
import signal
import stat
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from flowpolicy.checkpoint import load_policy
from flowpolicy.cli.main import main
from flowpolicy.data.store import EpisodeStore
from tests.cli.test_finetune import TINY

ROOT = Path(__file__).parents[2]
NET = [
    "policy.net.width=16",
    "policy.net.depth=1",
    "trainer.batch_size=8",
    "policy.horizon=4",
    "policy/head=meanflow",
    "policy.action_horizon=4",
]
ONCE = ["loop.iterations=1", "loop.eval_every=0", "preflight.episodes=0", "receipt.episodes=0", "ppo.warmup=0"]


class Done(NamedTuple):
    """errors: lines of stderr that are no progress bars."""

    code: int
    out: str
    errors: list[str]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """toy.zarr, reach.zarr, and next to untrained policies of both, toy and reach."""
    folder = tmp_path_factory.mktemp("given")
    for task in ("toy", "reach"):
        assert main(["data", "collect", f"task={task}", "episodes=4", f"out={folder / task}.zarr"]) == 0
        words = [f"dataset.path={folder / task}.zarr", f"out={folder / task}", "trainer.steps=2", *NET]
        assert main(["train", *words]) == 0
    return folder


def words(verb: str, given: Path, out: Path) -> list[str]:
    """A command of a second, which writes to `out` and can be given again after a SIGTERM."""
    return {
        "train": [
            "train",
            f"dataset.path={given / 'toy.zarr'}",
            *NET,
            "trainer.steps=40",
            "trainer.eval_every=20",
            "trainer.log_every=5",
            "eval.episodes=2",
            "resume=true",
        ],
        "evaluate": ["evaluate", f"checkpoint={given / 'toy'}", "episodes=6", "envs=2"],
        "collect": ["data", "collect", "task=toy", "episodes=6", "workers=2"],
        "finetune": ["finetune", f"checkpoint={given / 'reach'}", *TINY, *ONCE, "workers=2", "resume=true"],
        "sweep": ["sweep", f"checkpoints=[{given / 'toy'}]", "episodes=3", "num_steps=[1,2]", "workers=2"],
    }[verb] + [f"out={out}"]


def require_whole(verb: str, out: Path) -> None:
    """What a command leaves is there and can be used."""
    if verb in ("train", "finetune"):
        load_policy(out / "checkpoints/last")
    elif verb == "collect":
        assert EpisodeStore.open(out).num_episodes == 6
    else:
        rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
        assert len(rows) == 6 and (out / ("summary.json" if verb == "evaluate" else "sweep.html")).is_file()


def environment(**changes: str | None) -> dict[str, str]:
    """This one's with changes; None is without."""
    own = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'envs'}", "OMP_NUM_THREADS": "1", **changes}
    return {name: value for name, value in own.items() if value is not None}


def run(
    command: list[str],
    cwd: Path,
    *,
    python: tuple[str, ...] = (),
    before: tuple[str, ...] = (),
    program: tuple[str, ...] = ("-m", "flowpolicy"),
    **changes: str | None,
) -> Done:
    """A process of its own."""
    argv = [*before, sys.executable, *python, *program, *command]
    done = subprocess.run(argv, cwd=cwd, env=environment(**changes), capture_output=True, timeout=600)
    return Done(done.returncode, done.stdout.decode(errors="replace"), spoken(done.stderr.decode(errors="replace")))


def spoken(text: str) -> list[str]:
    """Lines that are no progress bars."""
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines()]
    return [line for line in lines if line and "%|" not in line and not line.startswith(("train:", "finetune:"))]


# ---- the homes: each runs a command and says how it ended


def no_home(command: list[str], cwd: Path) -> Done:
    return run(command, cwd, HOME=None, XDG_CACHE_HOME=None, USER=None, LOGNAME=None)


def nameless(command: list[str], cwd: Path) -> Done:
    """A user that /etc/passwd does not know, as in containers that are given any number, without HOME."""
    own = ("unshare", "--user", "--map-user=54321", "--")
    if not shutil.which("unshare") or subprocess.run([*own, "true"], capture_output=True).returncode:
        pytest.skip("needs user namespaces")
    return run(command, cwd, before=own, HOME=None, XDG_CACHE_HOME=None, USER=None, LOGNAME=None)


def read_only_package(command: list[str], cwd: Path) -> Done:
    """A package, beside no home, that cannot be written to: also not by root, who needs a mount for that."""
    package = cwd / "package"
    for name in ("flowpolicy", "envs", "configs"):
        shutil.copytree(ROOT / name, package / name, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    before: tuple[str, ...] = ()
    if os.geteuid() == 0:
        mounts = f"mount --bind {package} {package} && mount -o remount,ro,bind {package}"
        before = (
            "unshare",
            "--mount",
            "sh",
            "-c",
            f'{mounts} && ! touch {package}/file 2>/dev/null && exec "$@"',
            "sh",
        )
        if not shutil.which("unshare") or subprocess.run([*before, "true"], capture_output=True).returncode:
            pytest.skip("root needs to mount")
    else:
        for path in [package, *package.rglob("*")]:
            path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    done = run(command, cwd, before=before, HOME=None, XDG_CACHE_HOME=None, PYTHONPATH=f"{package}:{package / 'envs'}")
    for path in [package, *package.rglob("*")]:
        path.chmod(path.stat().st_mode | stat.S_IWUSR)
    return done


def closed_streams(command: list[str], cwd: Path) -> Done:
    return run(command, cwd, before=("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"))


def latin_1(command: list[str], cwd: Path) -> Done:
    return run(command, cwd, PYTHONIOENCODING="latin-1")


def optimised(command: list[str], cwd: Path) -> Done:
    return run(command, cwd, python=("-O",))


def narrow(command: list[str], cwd: Path) -> Done:
    """A terminal of 20 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 20, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "flowpolicy", *command],
        cwd=cwd,
        stdout=theirs,
        stderr=theirs,
        env=environment(COLUMNS=None),
    )
    os.close(theirs)
    said = bytearray()
    while process.poll() is None or select.select([ours], [], [], 0.1)[0]:
        try:
            said += os.read(ours, 4096)
        except OSError:  # Linux's way of saying that nobody writes any more
            break
    os.close(ours)
    return Done(process.wait(), said.decode(errors="replace"), [])


def no_network(command: list[str], cwd: Path) -> Done:
    """A key for wandb, whose server cannot be reached; where the command tracks at all."""
    tracked = ["wandb.enabled=true"] if command[0] in ("train", "finetune") else []
    if tracked:
        pytest.importorskip("wandb")
    done = run([*command, *tracked], cwd, WANDB_API_KEY="0" * 40, WANDB_BASE_URL="http://127.0.0.1:9", WANDB_MODE=None)
    offline = [line for line in done.errors if "recording offline, send it later with: wandb sync" in line]
    assert len(offline) == len(tracked), done
    out = Path(command[-1].removeprefix("out="))
    assert not tracked or list((out / "wandb").glob("offline-run-*/*.wandb"))
    return Done(done.code, done.out, [line for line in done.errors if line not in offline])


def stopped(command: list[str], cwd: Path) -> Done:
    """SIGTERM at a random moment after the command can hear it: one line and 143, and then the same again."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flowpolicy", *command],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None and not heard(status.read_text(), signal.SIGTERM):
        time.sleep(0.005)
    time.sleep(random.Random(command[0]).uniform(0.0, 4.0))
    process.terminate()
    _, error = process.communicate(timeout=120)
    assert process.returncode in (0, 143), error
    if process.returncode:
        (line,) = spoken(error)
        assert line.startswith(f"flowpolicy {command[0]}: ") and "stopped by SIGTERM" in line
    elif command[0] in ("evaluate", "sweep", "data"):  # done already
        return Done(0, "", [])
    return run(command, cwd)


def heard(status: str, number: int) -> bool:
    """Whether /proc/PID/status says that a signal has a handler."""
    caught = int(next(line for line in status.splitlines() if line.startswith("SigCgt")).split()[1], 16)
    return bool(caught >> (number - 1) & 1)


HYDRA = """
import sys
import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

@hydra.main(version_base="1.3", config_path=".", config_name="own")
def program(cfg):
    from flowpolicy.cli.main import main
    whose = GlobalHydra.instance().hydra
    code = main(words)
    assert GlobalHydra.instance().hydra is whose and HydraConfig.get().job.name == "program" and cfg.own == 1
    sys.exit(code)

if __name__ == "__main__":
    words = sys.argv.pop().split("\\n")
    program()
"""


def inside_hydra(command: list[str], cwd: Path) -> Done:
    """The main function, called by another program with a Hydra of its own."""
    (cwd / "program.py").write_text(HYDRA)
    (cwd / "own.yaml").write_text("own: 1\nhydra:\n  run:\n    dir: .\n")
    return run(["\n".join(command)], cwd, program=("program.py",))


HOMES: dict[str, tuple[Callable[[list[str], Path], Done], str]] = {  # home -> and what CI runs there
    "no home": (no_home, "train"),
    "nameless": (nameless, "finetune"),
    "read-only": (read_only_package, "collect"),
    "closed": (closed_streams, "evaluate"),
    "latin-1": (latin_1, "sweep"),
    "-O": (optimised, "train"),
    "20 columns": (narrow, "evaluate"),
    "no network": (no_network, "finetune"),
    "SIGTERM": (stopped, "collect"),
    "inside Hydra": (inside_hydra, "sweep"),
}
VERBS = ("train", "evaluate", "collect", "finetune", "sweep")


@pytest.mark.parametrize(
    ("home", "verb"),
    [
        pytest.param(home, verb, marks=[] if verb == chosen else pytest.mark.slow, id=f"{verb} {home}")
        for home, (_, chosen) in HOMES.items()
        for verb in VERBS
    ],
)
def test_the_work_is_done(home: str, verb: str, given: Path, tmp_path: Path) -> None:
    out = tmp_path / ("out.zarr" if verb == "collect" else "out")
    done = HOMES[home][0](words(verb, given, out), tmp_path)
    assert done.code == 0, done
    assert not any("Traceback" in line or "Error" in line for line in done.errors), done.errors
    require_whole(verb, out)
