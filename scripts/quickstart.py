"""The main job on a real simulator: demonstrations, a one-step policy from several seeds, evaluation, one report.

  scripts/quickstart [--out DIR] [--seeds N] [--steps N]

Every stage is a `flowpolicy` command, printed before it runs, with its output in DIR/logs. A stage that the same
command has finished already is skipped, so a second run goes on where the first one stopped.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, final

from tqdm import tqdm

TASK = ["task=maniskill", "task.id=PickCube-v1"]
EPISODES = 100
NUM_STEPS = (1, 2, 4, 10)


def main() -> int:
    """Run the stages; returns 0 when all of them did their work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="folder for everything it writes")
    parser.add_argument("--seeds", type=int, default=3, help="training seeds 0 ... N-1")
    parser.add_argument("--steps", type=int, default=6000, help="training steps of each policy")
    options = parser.parse_args()
    out, seeds, began = options.out.absolute(), range(options.seeds), time.monotonic()
    stages = _Stages(out)
    demos = out / "pickcube.zarr"

    _stage(f"{EPISODES} demonstrations by the motion planner")
    collect = ["data", "collect", *TASK, f"episodes={EPISODES}", f"out={demos}", "workers=2", "overwrite=true"]
    stages.run({"collect": collect}, "demonstrations")

    _stage(f"{options.seeds} policies from them (DM1 head, state observations)")
    trains = {
        f"train_{seed}": [
            "train",
            *TASK,
            f"dataset.path={demos}",
            f"seed={seed}",
            "resume=true",
            f"out={out / f'seed_{seed}'}",
            "policy/head=dm1",
            f"trainer.steps={options.steps}",
        ]
        for seed in seeds
    }
    # all at once: three on two cores take 1.5 times as long as one, where two and then one take twice as long
    stages.run(
        trains, "training", at_once=options.seeds, total=options.steps * len(seeds), done=lambda: _trained(out, seeds)
    )

    _stage(f"{EPISODES} episodes on unseen seeds, for each policy and number of network evaluations")
    evaluations = {}
    for seed in seeds:
        # every policy is judged at one step, the first one also at more
        steps = NUM_STEPS if seed == 0 else NUM_STEPS[:1]
        evaluations[f"evaluate_{seed}"] = [
            "evaluate",
            f"checkpoint={out / f'seed_{seed}'}",
            f"out={out}/eval_{seed}",
            f"num_steps=[{','.join(map(str, steps))}]",
            f"episodes={EPISODES}",
            "envs=1",
        ]
    stages.run(evaluations, "evaluation")

    _stage("report")
    folders = [str(out / f"{kind}_{seed}") for seed in seeds for kind in ("seed", "eval")]
    stages.run({"report": ["report", *folders, f"out={out / 'report.html'}"]}, "report")
    _print_table(out, seeds)
    print(f"\nreport  {out / 'report.html'}\ndone in {(time.monotonic() - began) / 60:.1f} minutes")
    return 0


def _stage(title: str) -> None:
    print(f"\n== {title}", flush=True)


@final
class _Stages:
    """Runs named `flowpolicy` commands; a command is skipped when it and everything before it is as it was last time.

    out: folder with the logs, and a mark beside the log of each command that has finished.
    """

    def __init__(self, out: Path) -> None:
        self.logs = out / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self._before = ""  # all commands of the stages so far, one per line

    def run(
        self,
        commands: dict[str, list[str]],
        what: str,
        *,
        at_once: int = 2,
        total: int | None = None,
        done: Callable[[], int] | None = None,
    ) -> None:
        """Run one stage; stop with the end of the log when a command fails.

        total, done: what the progress bar counts instead of finished commands.
        """
        marks = {name: f"{self._before}{shlex.join(words)}\n" for name, words in commands.items()}
        self._before += "".join(f"{shlex.join(words)}\n" for words in commands.values())
        waiting = [name for name in commands if not _reads(self.logs / f"{name}.done", marks[name])]
        running, began = {}, time.monotonic()
        unit = "job" if done is None else "step"
        with tqdm(total=total or len(waiting), desc=what, unit=unit, disable=not waiting) as bar:
            while waiting or running:
                while waiting and len(running) < at_once:
                    name = waiting.pop(0)
                    running[name] = self._start(name, commands[name])
                time.sleep(0.5)
                for name, process in list(running.items()):
                    if process.poll() is None:
                        continue
                    del running[name]
                    if process.returncode:
                        self._fail(name, process.returncode, running)
                    (self.logs / f"{name}.done").write_text(marks[name])
                    if done is None:
                        bar.update()
                if done is not None:
                    bar.update(done() - bar.n)
        print(f"{what}: {time.monotonic() - began:.0f} s", flush=True)

    def _start(self, name: str, words: list[str]) -> subprocess.Popen[bytes]:
        tqdm.write(f"flowpolicy {shlex.join(words)}")
        with (self.logs / f"{name}.log").open("w") as log:
            command = [sys.executable, "-m", "flowpolicy", *words]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def _fail(self, name: str, code: int, others: dict[str, subprocess.Popen[bytes]]) -> NoReturn:
        for other in others.values():
            other.terminate()
        log = self.logs / f"{name}.log"
        sys.exit(f"\n{log.read_text()[-2000:]}\n{name} failed with exit code {code}; whole log: {log}")


def _reads(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


def _trained(out: Path, seeds: range) -> int:
    """Training steps done so far over all seeds, from the runs' own metrics."""
    done = 0
    for seed in seeds:
        metrics = out / f"seed_{seed}" / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        if lines and lines[-1].endswith("}"):
            done += json.loads(lines[-1])["step"]
    return done


def _print_table(out: Path, seeds: range) -> None:
    """Success with its 95 % Wilson interval and batch-1 latency, from the evaluations' summaries."""
    print("\nManiSkill PickCube-v1, state observations, 100 demonstrations, DM1 head, 100 unseen seeds\n")
    print("training seed | network evaluations | success | 95 % interval | latency p50 | p95")
    print("---:|---:|---:|:---:|---:|---:")
    for seed in seeds:
        for k in NUM_STEPS if seed == 0 else NUM_STEPS[:1]:
            summary = json.loads((out / f"eval_{seed}" / f"steps_{k}" / "summary.json").read_text())
            latency = summary["latency_ms"]
            print(
                f"{seed} | {k} | {summary['success_once']:.2f} | {summary['ci_low']:.2f} to {summary['ci_high']:.2f} "
                f"| {latency['p50']:.2f} ms | {latency['p95']:.2f} ms"
            )


if __name__ == "__main__":
    sys.exit(main())
