"""The arms that the words of `flowpolicy sweep` name: every checkpoint on every task with every sampler."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from flowpolicy.checkpoint import Checkpoint, resolve_checkpoint
from flowpolicy.cli.samplers import samplers_for
from flowpolicy.cli.tasks import task_for
from flowpolicy.evaluation.arms import Arm, arm_names
from flowpolicy.plugins import options
from flowpolicy.results.comparison import Failure


def sweep_arms(argv: list[str], facts: dict[str, Any]) -> tuple[list[Arm], list[Failure]]:
    """Tasks outermost, then checkpoints, then steps: simulators change least often. Names are per task.

    And what cannot become an arm, since its config.json is damaged.
    """
    if not (isinstance(facts["checkpoints"], list) and facts["checkpoints"] and facts["num_steps"]):
        raise ValueError(
            "checkpoints and num_steps must be lists, as in checkpoints=[runs/a,runs/b] num_steps=[1,4], "
            f"got {facts['checkpoints']} and {facts['num_steps']}"
        )
    opened: dict[Path, Checkpoint] = {}
    damaged: dict[Path, str] = {}
    for place in map(Path, facts["checkpoints"]):
        resolve_checkpoint(place)  # one that is not there stops all
        try:
            opened[place] = Checkpoint.open(place)
        except (ValueError, OSError) as error:
            damaged[place] = str(error)
    arms, places, failed = [], [], []
    for wanted in facts["tasks"] or [""]:
        family, slash, rest = wanted.partition("/")
        known = bool(slash) and family in options("task")
        words = [*argv, *([f"task={family}", f"task.id={rest}"] if known else [f"task.id={wanted}"] if wanted else [])]
        for place in map(Path, facts["checkpoints"]):
            if place in damaged:
                failed.append(Failure(str(place), rest if known else wanted or "its own task", damaged[place]))
                continue
            task, settings = task_for("sweep", opened[place], words, trusted=facts["trusted"])
            drawn = samplers_for(facts, opened[place])
            arms += [Arm("", one, Path(), opened[place], task, settings) for one in drawn]
            places += [place] * len(drawn)
    labels = facts["names"] or ()
    if labels and len(labels) == len(facts["checkpoints"]):  # one per checkpoint, damaged ones included
        labels = [name for name, place in zip(labels, facts["checkpoints"], strict=True) if Path(place) in places]
    names = (
        arm_names(
            places, [arm.sampler for arm in arms], labels=labels, task_ids=[arm.task.id for arm in arms if arm.task]
        )
        if arms
        else []
    )
    return [replace(arm, name=name) for arm, name in zip(arms, names, strict=True)], failed
