"""The main job on a real simulator: demonstrations, a one-step policy from several seeds, evaluation, one report.

  scripts/quickstart [--out DIR] [--seeds N] [--steps N]

Every stage is a `flowpolicy` command, printed before it runs, with its output in DIR/logs. A stage whose result is
there already is skipped, so a second run goes on where the first one stopped.
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
    (out / "logs").mkdir(parents=True, exist_ok=True)
    demos = out / "pickcube.zarr"

    _stage(f"{EPISODES} demonstrations by the motion planner")
    collect = ["data", "collect", *TASK, f"episodes={EPISODES}", f"out={demos}", "workers=2"]
    _run_all({} if demos.exists() else {"collect": collect}, out, "demonstrations")

    _stage(f"{options.seeds} policies from them (DM1 head, state observations)")
    trains = {}
    for seed in seeds:
        if not (out / f"seed_{seed}" / "done").exists():
            trains[f"train_{seed}"] = ["train", *TASK, f"dataset.path={demos}", f"seed={seed}", "resume=true",
                                       f"out={out / f'seed_{seed}'}", "policy/head=dm1",
                                       f"trainer.steps={options.steps}"]  # fmt: skip
    _run_all(trains, out, "training", total=options.steps * len(seeds), done=lambda: _trained(out, seeds))
    for seed in seeds:
        (out / f"seed_{seed}" / "done").touch()

    _stage(f"{EPISODES} episodes on unseen seeds, for each policy and number of network evaluations")
    evaluations = {}
    for seed in seeds:
        # every policy is judged at one step; the first one also at more, and filmed where a renderer exists
        steps = NUM_STEPS if seed == 0 else NUM_STEPS[:1]
        folder = out / f"eval_{seed}"
        if not all((folder / f"steps_{k}" / "summary.json").exists() for k in steps):
            evaluations[f"evaluate_{seed}"] = ["evaluate", f"checkpoint={out / f'seed_{seed}'}", f"out={folder}",
                                               f"num_steps=[{','.join(map(str, steps))}]", f"episodes={EPISODES}",
                                               "envs=1"]  # fmt: skip
    _run_all(evaluations, out, "evaluation")

    _stage("report")
    folders = [str(out / f"{kind}_{seed}") for seed in seeds for kind in ("seed", "eval")]
    _run_all({"report": ["report", *folders, f"out={out / 'report.html'}"]}, out, "report")
    _print_table(out, seeds)
    print(f"\nreport  {out / 'report.html'}\ndone in {(time.monotonic() - began) / 60:.1f} minutes")
    return 0


def _stage(title: str) -> None:
    print(f"\n== {title}", flush=True)


def _run_all(
    commands: dict[str, list[str]],
    out: Path,
    what: str,
    *,
    total: int | None = None,
    done: Callable[[], int] | None = None,
) -> None:
    """Run named `flowpolicy` commands, two at a time; stop with the end of the log when one fails.

    total, done: what the progress bar counts instead of finished commands.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    waiting, running, began = dict(commands), {}, time.monotonic()
    unit = "job" if done is None else "step"
    with tqdm(total=total or len(commands), desc=what, unit=unit, disable=not commands) as bar:
        while waiting or running:
            while waiting and len(running) < 2:
                name, words = next(iter(waiting.items()))
                del waiting[name]
                tqdm.write(f"flowpolicy {shlex.join(words)}")
                log = (out / "logs" / f"{name}.log").open("w")
                command = [sys.executable, "-m", "flowpolicy", *words]
                running[name] = (subprocess.Popen(command, stdout=log, stderr=log, env=environment), log)
            time.sleep(0.5)
            for name, (process, log) in list(running.items()):
                if process.poll() is None:
                    continue
                log.close()
                del running[name]
                if process.returncode:
                    for other, _ in running.values():
                        other.terminate()
                    text = Path(log.name).read_text()[-2000:]
                    sys.exit(f"\n{text}\n{name} failed with exit code {process.returncode}; whole log: {log.name}")
                if done is None:
                    bar.update()
            if done is not None:
                bar.update(done() - bar.n)
    print(f"{what}: {time.monotonic() - began:.0f} s", flush=True)


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
            print(f"{seed} | {k} | {summary['success_once']:.2f} | {summary['ci_low']:.2f} to {summary['ci_high']:.2f} "
                  f"| {latency['p50']:.2f} ms | {latency['p95']:.2f} ms")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
