"""What `flowpolicy protocol` does with arms: train each on every task, then one sweep over all of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from flowpolicy.cli import config, data, sweep, train
from flowpolicy.evaluation.contest import Entry, train_all
from flowpolicy.evaluation.protocol import require_same


@final
@dataclass(frozen=True)
class _Fit:
    """Trains an entry; picklable. words: of the command, for every entry.   arms: name -> words of its own."""

    words: Sequence[str]
    arms: Mapping[str, Sequence[str]]

    def __call__(self, entry: Entry, store: Path, run: Path) -> None:
        train.main([*self.words, *self.arms[entry.arm], f"task.id={entry.task_id}", f"seed={entry.seed}",
                    f"dataset.path={quoted(store)}", f"out={quoted(run)}", "resume=true"])  # fmt: skip


def run_contest(facts: Mapping[str, Any], words: Sequence[str], *, tasks: Sequence[str], out: Path,
                same: Sequence[str]) -> None:  # fmt: skip
    """Finish what is missing, then sweep; the sweep prints the table and where the page is.

    words: of `flowpolicy train`.   same: what a rerun may not change.
    """
    arms = _arms(facts)
    entries = [Entry(task, arm, seed) for task in tasks for arm in arms for seed in facts["seeds"]]
    for own in arms.values():  # before anything runs: a misspelt head would be found after hours
        config.plain(config.load("train", [*words, *own, "dataset.path=none"]))
    require_same(out / "protocol.json", same)

    def collect(task: str, store: Path) -> None:
        cfg = config.load("train", [*words, f"task.id={task}", f"dataset.path={quoted(store)}"])
        data.record(cfg.task, store, episodes=facts["demonstrations"], seed=facts["demonstration_seed"],
                    workers=facts["workers"])  # fmt: skip

    train_all(entries, out, collect=collect, train=_Fit(words, arms), steps=facts["trainer"]["steps"],
              workers=facts["workers"])  # fmt: skip
    folders = [quoted(entry.run(out) / "checkpoints" / "last") for entry in entries]
    names = [f"{entry.arm} seed {entry.seed}" if len(facts["seeds"]) > 1 else entry.arm for entry in entries]
    sweep.main([
        f"checkpoints=[{','.join(folders)}]", f"names={json.dumps(names)}", f"num_steps={facts['num_steps']}",
        f"episodes={facts['episodes']}", f"seeds=[{facts['start_seed']}]", f"workers={facts['workers']}",
        f"device={facts['device']}", f"threads={facts['threads']}", f"out={quoted(out / 'sweep')}",
    ])  # fmt: skip


def _arms(facts: Mapping[str, Any]) -> dict[str, list[str]]:
    arms, only = facts["arms"], facts["only"]
    if only is None:
        return arms
    if unknown := [name for name in only if name not in arms]:
        raise ValueError(f"only={unknown[0]} is no arm; there are {', '.join(arms)}")
    return {name: arms[name] for name in only}


def quoted(path: Path) -> str:
    """For Hydra, whose words may not hold spaces or commas otherwise."""
    return json.dumps(str(path))
