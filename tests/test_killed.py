"""kill -9 at random moments of every long command: the folder is usable, and the same command ends as if undisturbed.

The short version trains through three kills. All: KILLS=50 python -m pytest tests/test_killed.py -m slow -s
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.numpy import load_file

from flowpolicy.checkpoint import load_policy, resolve_checkpoint
from flowpolicy.data.store import EpisodeStore
from tests.cli.test_finetune import TINY

KILLS = int(os.environ.get("KILLS", "10"))  # of all commands together
ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'envs'}", "OMP_NUM_THREADS": "1"}
NET = ["policy.net.width=16", "policy.net.depth=1", "trainer.batch_size=8"]
SEEDS = "seeds=[100000,100020,100040,100060]"


class Command(NamedTuple):
    """words: given before, folder with what it needs, and out.   usable: raises for a folder that is of no use.

    result: what must be equal in the end.
    """

    words: Callable[[Path, Path], list[str]]
    usable: Callable[[Path], object]
    result: Callable[[Path], Any]


def rows(out: Path, name: str = "results.jsonl") -> list[dict[str, Any]]:
    """Whole lines of JSON-lines files, without times, sorted."""
    found = []
    for file in out.rglob(name):
        whole = file.read_text().rpartition("\n")[0]
        found += [json.loads(line) for line in whole.splitlines()]
    timeless = [{key: value for key, value in row.items() if not key.startswith("time")} for row in found]
    return sorted(timeless, key=json.dumps)


def run_result(out: Path) -> Any:
    """Tensors of the last checkpoint as bytes, what was logged, and which checkpoints are the best."""
    last = resolve_checkpoint(out / "checkpoints/last")
    tensors = {
        f"{file.name}/{name}": value.tobytes()
        for file in sorted(last.rglob("*.safetensors"))
        for name, value in load_file(file).items()
    }
    return tensors, rows(out, "metrics.jsonl"), (out / "checkpoints/index.json").read_text()


def run_usable(out: Path) -> None:
    """Any checkpoint that is there can be loaded, so can the one that the run means."""
    rows(out, "metrics.jsonl")
    if any(out.glob("checkpoints/0*")):
        load_policy(out)
        load_policy(out / "checkpoints/last")


def store_usable(out: Path) -> None:
    if out.exists():
        EpisodeStore.open(out).content_hash()


def summaries(out: Path) -> list[Any]:
    keys = ("seed", "success_once", "return", "episode_len", "num_steps", "n", "start_seed")
    return [
        {key: value for key, value in row.items() if key in keys}
        for row in [*rows(out), *(json.loads(file.read_text()) for file in sorted(out.rglob("summary.json")))]
    ]


COMMANDS = {
    "train": Command(
        lambda given, out: [
            "train",
            f"dataset.path={given / 'toy.zarr'}",
            f"out={out}",
            *NET,
            "resume=true",
            "trainer.steps=120",
            "trainer.checkpoint_every=10",
            "trainer.log_every=5",
            "trainer.eval_every=40",
            "eval.episodes=2",
        ],
        run_usable,
        run_result,
    ),
    "finetune": Command(
        lambda given, out: [
            "finetune",
            f"checkpoint={given / 'reach'}",
            f"out={out}",
            *TINY,
            "loop.iterations=8",
            "resume=true",
        ],
        run_usable,
        run_result,
    ),
    "evaluate": Command(
        lambda given, out: ["evaluate", f"checkpoint={given / 'toy'}", f"out={out}", "episodes=80", "envs=1"],
        rows,
        summaries,
    ),
    "sweep": Command(
        lambda given, out: ["sweep", f"checkpoints=[{given / 'toy'}]", f"out={out}", "episodes=20", SEEDS, "workers=1"],
        rows,
        summaries,
    ),
    "collect": Command(
        lambda given, out: ["data", "collect", "task=toy", "episodes=300", f"out={out}", "workers=1"],
        store_usable,
        lambda out: EpisodeStore.open(out).content_hash(),
    ),
}


SERVER = """
import importlib, json, os, sys
from flowpolicy.cli.main import main
import flowpolicy_envs.toy, flowpolicy_envs.reach, flowpolicy_envs.experts.reach
for verb in ("train", "finetune", "evaluate", "sweep", "data"):
    importlib.import_module(f"flowpolicy.cli.{verb}")
for line in sys.stdin:
    asked = json.loads(line)
    if isinstance(asked, list):
        answer = os.fork()
        if not answer:
            null = os.open(os.devnull, os.O_RDWR)
            log = os.open(asked.pop(), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for stream, target in ((0, null), (1, log), (2, log)):
                os.dup2(target, stream)
            os._exit(main(asked))
    else:
        pid, status = os.waitpid(asked, os.WNOHANG)
        answer = os.waitstatus_to_exitcode(status) if pid else None
    print(json.dumps(answer), flush=True)
"""


class Server:
    """A process that has imported everything and forks one that runs a command: imports take longest of all."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", SERVER]
        self._process = subprocess.Popen(
            command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, question: list[str] | int) -> int | None:
        """Words and a log file: the id of the process that runs them.   An id: its exit code, None while it runs."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


class Running:
    """A command in a process of its own. log: where its words go."""

    def __init__(self, server: Server, words: list[str], log: Path) -> None:
        self._server, self._code = server, None
        self.pid = server.ask([*words, str(log)])

    def poll(self) -> int | None:
        if self._code is None:
            self._code = self._server.ask(self.pid)
        return self._code

    def wait(self) -> int:
        while (code := self.poll()) is None:
            time.sleep(0.005)
        return code

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def given(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demonstrations and next to untrained policies of the toy and the reaching task."""
    folder = tmp_path_factory.mktemp("given")
    net = [*NET, "policy.horizon=4", "policy.action_horizon=4", "policy/head=meanflow"]
    for task in ("toy", "reach"):
        store = folder / f"{task}.zarr"
        for words in (
            ["data", "collect", f"task={task}", "episodes=4", f"out={store}"],
            ["train", f"dataset.path={store}", f"out={folder / task}", "trainer.steps=2", *net],
        ):
            assert Running(server, words, folder / "log").wait() == 0
    return folder


def changes(folder: Path) -> set[tuple[str, int]]:
    """What is there, and when it was changed."""
    found = set()
    for root, _, names in os.walk(folder):
        for name in [*names, "."]:
            try:
                found.add((os.path.join(root, name), os.lstat(os.path.join(root, name)).st_mtime_ns))
            except FileNotFoundError:  # gone since it was listed
                continue
    return found


def begin(server: Server, words: list[str], folder: Path) -> tuple[Running, float]:
    """The process, and the time at which it first changed something in `folder` (or ended)."""
    before, process = changes(folder), Running(server, words, folder.with_name(f"{folder.name}.log"))
    while process.poll() is None and changes(folder) == before:
        time.sleep(0.002)
    return process, time.monotonic()


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("train", marks=pytest.mark.ci), *list(COMMANDS)[1:]])
def test_a_command_killed_at_random_moments_ends_as_if_undisturbed(
    name: str, server: Server, given: Path, tmp_path: Path
) -> None:
    command, kills = COMMANDS[name], 3 if KILLS < 15 else KILLS // len(COMMANDS)
    (tmp_path / "whole").mkdir()
    process, begun = begin(server, command.words(given, tmp_path / "whole/out"), tmp_path / "whole")
    assert process.wait() == 0
    seconds, wanted = time.monotonic() - begun, command.result(tmp_path / "whole/out")
    moments, done, rounds = random.Random(name), 0, 0
    while done < kills:
        rounds += 1
        (folder := tmp_path / str(rounds)).mkdir()
        code = None
        while code != 0:
            process, begun = begin(server, command.words(given, folder / "out"), folder)
            if done < kills:
                delay = moments.uniform(0.0, seconds)
                while process.poll() is None and time.monotonic() < begun + delay:
                    time.sleep(0.001)
                process.kill()
            code = process.wait()
            assert code in (0, -signal.SIGKILL), f"{name} ended with {code} after {done} kills; see {folder}.log"
            done += code != 0
            seconds = min(seconds, time.monotonic() - begun) if code == 0 else seconds
            command.usable(folder / "out")
        assert command.result(folder / "out") == wanted, f"{name}: round {rounds}, after {done} kills"
    print(f"{name}: {done} kills in {rounds} runs of {seconds:.1f} s each, every one as if undisturbed")
