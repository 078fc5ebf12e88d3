"""What `flowpolicy protocol` does with arms: train each on every task, then one sweep over all of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from omegaconf import OmegaConf

from flowpolicy.cli import config, sweep, train
from flowpolicy.data.store import EpisodeStore
from flowpolicy.evaluation.protocol import Cell, require_same, train_all
from flowpolicy.locks import only_writer
from flowpolicy.provenance import recipe
from flowpolicy.trainers.imitate import DEBUG_STEPS


@final
@dataclass(frozen=True)
class Fit:
    """Trains a cell; picklable.

    Args:
        planned: Arm -> the composed train.yaml, plain but for its interpolations.
        words: Arm -> what was typed for it, for the run's record.
    """

    planned: Mapping[str, Mapping[str, Any]]
    words: Mapping[str, Sequence[str]]

    def __call__(self, cell: Cell, store: Path, run: Path) -> None:
        """Train, going on where an earlier call stopped.

        Args:
            cell: What to train.
            store: Its demonstrations.
            run: Where to.
        """
        cfg = OmegaConf.create(dict(self.planned[cell.arm]))
        own = {"task.id": cell.task_id, "seed": cell.seed, "dataset.path": str(store), "out": str(run)}
        for key, value in own.items():
            OmegaConf.update(cfg, key, value)
        cfg.resume = True
        typed = [f"{key}={value}" for key, value in own.items()]
        train.run(cfg, EpisodeStore.open(store), [*self.words[cell.arm], *typed, "resume=true"])


def run_arms(
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
        facts: The composed protocol.yaml, plain.
        words: Of `flowpolicy train`.
        tasks: Ids.
        out: Folder of the protocol.
        collect: (task id, store to write).
        same: What a rerun may not change.
    """
    arms, seeds = _arms(facts), list(dict.fromkeys(facts["seeds"]))
    cells = [Cell(task, seed, arm) for task in tasks for arm in arms for seed in seeds]
    # before anything runs: a misspelt head would be found after hours
    typed = {arm: [*words, *own] for arm, own in arms.items()}
    composed = {arm: config.load("train", [*own, "dataset.path=none"]) for arm, own in typed.items()}
    plain = {arm: config.plain(cfg) for arm, cfg in composed.items()}
    steps = {arm: DEBUG_STEPS if one["debug"] else one["trainer"]["steps"] for arm, one in plain.items()}
    fit = Fit({arm: OmegaConf.to_container(cfg) for arm, cfg in composed.items()}, typed)  # type: ignore[arg-type]
    with only_writer(out):
        require_same(out / "protocol.json", same, {arm: recipe(one) for arm, one in plain.items()})
        train_all(cells, out, collect=collect, train=fit, steps=steps, workers=facts["workers"])
    asked = {
        "checkpoints": [str(cell.run(out) / "checkpoints" / "last") for cell in cells],
        "names": [f"{cell.arm} seed {cell.seed}" if len(seeds) > 1 else cell.arm for cell in cells],
        "num_steps": facts["num_steps"] or [1],
        "seeds": [facts["start_seed"]],
        "out": str(out / "sweep"),
        "may_differ": ["action_horizon"],
    }
    asked |= {name: facts[name] for name in ("episodes", "workers", "device", "threads", "allow_seen_seeds")}
    return sweep.run(config.plain(config.load("sweep", ["checkpoints=[]"])) | asked, [])


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
