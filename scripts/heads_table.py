"""Tables of `flowpolicy protocol experiment=heads_tuning` and `experiment=heads_metaworld`, from their episodes.

  python scripts/heads_table.py runs/heads            # a line per arm: success for each number of steps
  python scripts/heads_table.py runs/heads --ahead    # the best arm against each other, many steps against few
  python scripts/heads_table.py runs/tuning --chosen  # a line per head: its settings, the best first

Success of a cell is the mean over tasks and training seeds; ± is the standard deviation over training seeds of a
seed's mean over the tasks; in brackets Wilson's 95 % interval of all episodes, which holds no spread of trainings.
Told are the training seeds that have finished on all tasks; of equal settings the first of the experiment is chosen.
--ahead: mean difference over pairs of trainings of one task and seed, with Student's 95 % interval, uncorrected.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from scipy.stats import t as student

from flowpolicy.statistics.tests import wilson_interval


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


def finished(cells: list[Cell], tasks: list[str], episodes: int) -> list[Cell]:
    """Those of the training seeds that have run every episode on every task."""
    whole = [cell for cell in cells if len(cell.successes) == episodes]
    done = {seed for seed in {cell.seed for cell in whole} if {c.task for c in whole if c.seed == seed} == set(tasks)}
    return [cell for cell in whole if cell.seed in done]


def summary(cells: list[Cell], tasks: list[str]) -> str:
    """Training seeds, each task's success, then mean ± deviation (interval)."""
    if not cells:
        return " | ".join("–" * (len(tasks) + 2))
    per_task = [fmean([cell.rate for cell in cells if cell.task == task]) for task in tasks]
    seeds = sorted({cell.seed for cell in cells})
    means = [fmean([cell.rate for cell in cells if cell.seed == seed]) for seed in seeds]
    every = [success for cell in cells for success in cell.successes]
    low, high = wilson_interval(sum(every), len(every))
    spread = f" ± {stdev(means):.3f}" if len(means) > 1 else ""
    told = [*(f"{rate:.2f}" for rate in per_task), f"{fmean(means):.3f}{spread} ({low:.2f} to {high:.2f})"]
    return " | ".join([str(len(seeds)), *told])


def print_table(found: Cells) -> None:
    """Best arm in the fewest steps first."""
    every = [cell for steps in found.values() for cells in steps.values() for cell in cells]
    tasks, episodes = sorted({cell.task for cell in every}), max(len(cell.successes) for cell in every)
    numbers = sorted({number for steps in found.values() for number in steps})
    heading = " | ".join(f"{number} step{'s' * (number > 1)}: seeds | {' | '.join(tasks)} | mean" for number in numbers)
    print(f"| arm | {heading} |\n|---|{'---:|' * (len(numbers) * (len(tasks) + 2))}")
    done = {
        arm: {number: finished(steps.get(number, []), tasks, episodes) for number in numbers}
        for arm, steps in found.items()
    }

    def order(arm: str) -> float:
        rates = [cell.rate for cell in done[arm][numbers[0]]]
        return -fmean(rates) if rates else 0.0

    for arm in sorted(done, key=order):
        print(f"| {arm} | {' | '.join(summary(done[arm][number], tasks) for number in numbers)} |")


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


def ahead(cells: list[Cell], others: list[Cell]) -> str:
    """How far `cells` are ahead, over the trainings that both have: mean (interval); – for fewer than two."""
    rates = {(cell.task, cell.seed): cell.rate for cell in others}
    gaps = [cell.rate - rates[key] for cell in cells if (key := (cell.task, cell.seed)) in rates]
    if len(gaps) < 2:
        return "–"
    mean, half = fmean(gaps), student.ppf(0.975, len(gaps) - 1) * stdev(gaps) / len(gaps) ** 0.5
    return f"{mean:+.3f} ({mean - half:.3f} to {mean + half:.3f})"


def print_ahead(found: Cells) -> None:
    """A line per arm, the best in the fewest steps first."""
    numbers = {number for steps in found.values() for number in steps}
    few, many = min(numbers), max(numbers)
    begun = [arm for arm, steps in found.items() if steps.get(few)]
    ranked = sorted(begun, key=lambda arm: -fmean(cell.rate for cell in found[arm][few]))
    print(f"| arm | {ranked[0]} is ahead by, in {few} | {many} ahead of {few} |\n|---|---:|---:|")
    for arm in ranked:
        gap = ahead(found[ranked[0]][few], found[arm][few]) if arm != ranked[0] else ""
        print(f"| {arm} | {gap} | {ahead(found[arm].get(many, []), found[arm][few]) if many != few else '–'} |")


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder of the protocol")
    parser.add_argument("--chosen", action="store_true", help="a line per head: what tuning chose")
    parser.add_argument("--ahead", action="store_true", help="differences with intervals")
    options = parser.parse_args()
    (print_chosen if options.chosen else print_ahead if options.ahead else print_table)(read(options.out))


if __name__ == "__main__":
    main()
