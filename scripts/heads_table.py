"""Tables of `flowpolicy protocol experiment=heads_tuning` and `experiment=heads_metaworld`, from their episodes.

  python scripts/heads_table.py runs/heads            # a line per arm: success for each number of steps
  python scripts/heads_table.py runs/tuning --chosen  # a line per head: its settings, the best first

Success of a cell is the mean over tasks and training seeds; ± is the standard deviation over training seeds of a
seed's mean over the tasks; in brackets Wilson's 95 % interval of all episodes, which holds no spread of trainings.
Only cells that have finished on all tasks and training seeds of their arm are told; of equal settings the first wins.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from flowpolicy.evaluation.statistics import wilson_interval


class Cell(NamedTuple):
    """One policy: training seed and task. successes: of each episode."""

    task: str
    seed: str
    successes: list[bool]

    @property
    def rate(self) -> float:
        """Share of successes."""
        return fmean(self.successes)


Cells = dict[str, dict[int, list[Cell]]]  # arm -> number of steps -> cells


def read(out: Path) -> Cells:
    """What out/sweep/results.jsonl holds, arms in the order of the experiment."""
    episodes: dict[tuple[str, int, str, str], list[bool]] = defaultdict(list)
    for line in (out / "sweep" / "results.jsonl").read_text().splitlines():
        row = json.loads(line)
        parts = Path(row["checkpoint"]).parts
        at = next(i for i, part in enumerate(parts) if part.startswith("seed_"))
        episodes[parts[at - 1], row["num_steps"], row["task_id"], parts[at]].append(row["success_once"])
    cells: Cells = {arm: defaultdict(list) for arm in json.loads((out / "protocol.json").read_text())["recipes"]}
    for (arm, num_steps, task, seed), successes in episodes.items():
        cells[arm][num_steps].append(Cell(task, seed, successes))
    return {arm: steps for arm, steps in cells.items() if steps}


def summary(cells: list[Cell], tasks: list[str]) -> str:
    """Each task's success, then mean ± deviation (interval); of how many training seeds where it is not three."""
    per_task = [fmean([cell.rate for cell in cells if cell.task == task]) for task in tasks]
    seeds = sorted({cell.seed for cell in cells})
    means = [fmean([cell.rate for cell in cells if cell.seed == seed]) for seed in seeds]
    every = [success for cell in cells for success in cell.successes]
    low, high = wilson_interval(sum(every), len(every))
    spread = f" ± {stdev(means):.3f}" if len(means) > 1 else ""
    return " | ".join([*(f"{rate:.2f}" for rate in per_task), f"{fmean(means):.3f}{spread} ({low:.2f} to {high:.2f})"])


def print_table(found: Cells) -> None:
    """Best one-step arm first."""
    tasks = sorted({cell.task for steps in found.values() for cells in steps.values() for cell in cells})
    numbers = sorted({number for steps in found.values() for number in steps})
    heading = " | ".join(f"{number}: {' | '.join(tasks)} | mean" for number in numbers)
    print(f"| arm | seeds | {heading} |\n|---|---:|{'---:|' * (len(numbers) * (len(tasks) + 1))}")
    full = {arm: {number: cells for number, cells in steps.items() if len({cell.task for cell in cells}) == len(tasks)}
            for arm, steps in found.items()}  # fmt: skip

    def order(arm: str) -> float:
        return -fmean(cell.rate for cell in full[arm].get(numbers[0], [])) if numbers[0] in full[arm] else 0.0

    for arm in sorted(full, key=order):
        told = [summary(full[arm][number], tasks) if number in full[arm] else " | ".join("–" * (len(tasks) + 1))
                for number in numbers]  # fmt: skip
        seeds = {cell.seed for cells in full[arm].values() for cell in cells}
        print(f"| {arm} | {len(seeds)} | {' | '.join(told)} |")


def print_chosen(found: Cells) -> None:
    """An arm's name is its head and its setting."""
    heads: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for arm, steps in found.items():
        head, _, setting = arm.partition(" ")
        rates = [cell.rate for cells in steps.values() for cell in cells]
        heads[head].append((setting, fmean(rates)))
    print("| head | chosen | others |\n|---|---|---|")
    for head, settings in heads.items():
        ranked = [f"{setting}: {rate:.2f}" for setting, rate in sorted(settings, key=lambda pair: -pair[1])]
        print(f"| {head} | {ranked[0]} | {'; '.join(ranked[1:])} |")


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder of the protocol")
    parser.add_argument("--chosen", action="store_true", help="a line per head: what tuning chose")
    options = parser.parse_args()
    (print_chosen if options.chosen else print_table)(read(options.out))


if __name__ == "__main__":
    main()
