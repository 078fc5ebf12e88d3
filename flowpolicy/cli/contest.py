"""What `flowpolicy protocol` does with arms: train each on every task, then one sweep over all of them."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from flowpolicy.cli import config, sweep, train
from flowpolicy.cli.recipe import recipe
from flowpolicy.evaluation.contest import Entry, train_all
from flowpolicy.evaluation.protocol import require_same
from flowpolicy.locks import only_writer
from flowpolicy.trainers.imitate import DEBUG_STEPS


@final
@dataclass(frozen=True)
class _Fit:
    """Trains an entry; picklable. words: of the command, for every entry.   arms: name -> words of its own."""

    words: Sequence[str]
    arms: Mapping[str, Sequence[str]]

    def __call__(self, entry: Entry, store: Path, run: Path) -> None:
        train.main(
            [
                *self.words,
                *self.arms[entry.arm],
                f"task.id={entry.task_id}",
                f"seed={entry.seed}",
                f"dataset.path={config.quoted(store)}",
                f"out={config.quoted(run)}",
                "resume=true",
            ]
        )


def run_contest(
    facts: Mapping[str, Any],
    words: Sequence[str],
    *,
    tasks: Sequence[str],
    out: Path,
    collect: Callable[[str, Path], None],
    same: Sequence[str],
) -> int:
    """Finish what is missing, then sweep, which prints the table and where the page is; its exit code.

    Args:
        words: Of `flowpolicy train`.
        collect: (task id, store to write).
        same: What a rerun may not change.
    """
    arms, seeds = _arms(facts), list(dict.fromkeys(facts["seeds"]))
    entries = [Entry(task, arm, seed) for task in tasks for arm in arms for seed in seeds]
    # before anything runs: a misspelt head would be found after hours
    steps, recipes = {}, {}
    for arm, own in arms.items():
        planned = config.plain(config.load("train", [*words, *own, "dataset.path=none"]))
        recipes[arm] = recipe(planned)
        steps[arm] = DEBUG_STEPS if planned["debug"] else planned["trainer"]["steps"]
    with only_writer(out):
        require_same(out / "protocol.json", same, recipes)
        train_all(entries, out, collect=collect, train=_Fit(words, arms), steps=steps, workers=facts["workers"])
    folders = [config.quoted(entry.run(out) / "checkpoints" / "last") for entry in entries]
    names = [f"{entry.arm} seed {entry.seed}" if len(seeds) > 1 else entry.arm for entry in entries]
    return sweep.main(
        [
            f"checkpoints=[{','.join(folders)}]",
            f"names={json.dumps(names)}",
            f"num_steps={facts['num_steps'] or [1]}",
            f"episodes={facts['episodes']}",
            f"seeds=[{facts['start_seed']}]",
            f"workers={facts['workers']}",
            f"device={facts['device']}",
            f"threads={facts['threads']}",
            f"out={config.quoted(out / 'sweep')}",
            f"allow_seen_seeds={facts['allow_seen_seeds']}",
            "may_differ=[action_horizon]",
        ]
    )


def _arms(facts: Mapping[str, Any]) -> dict[str, list[str]]:
    arms, only = facts["arms"], facts["only"]
    if not isinstance(arms, dict) or not all(isinstance(words, list) for words in arms.values()):
        raise ValueError(
            f"arms must be NAME: [words of flowpolicy train, …], as in experiment=heads_metaworld, got {arms!r}"
        )
    if only is None:
        return arms
    names = [only] if isinstance(only, str) else only
    if not names or (unknown := [name for name in names if name not in arms]):
        raise ValueError(f"only={unknown[0] if names else '[]'} is no arm; there are {', '.join(arms)}")
    return {name: arms[name] for name in names}
