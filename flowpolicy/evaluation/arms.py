"""An arm of a comparison: one policy and one sampler on a task, and the episodes it has run."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, final

import torch

from flowpolicy.checkpoint import Checkpoint
from flowpolicy.evaluation.evaluate import Task, check_samplers, describe, rules_of
from flowpolicy.matching import require_match
from flowpolicy.policy import FlowPolicy
from flowpolicy.provenance import numerics
from flowpolicy.results.episodes import episode_row, facts_of, weights_digest
from flowpolicy.results.folders import read_json, read_lines, short_names
from flowpolicy.results.seen_seeds import seen_seeds
from flowpolicy.rollout.episodes import run_episodes
from flowpolicy.rollout.vector_env import VectorEnv, make_vector_env
from flowpolicy.samplers.base import Sampler

_SIMULATORS = {"metaworld": ("metaworld", "mujoco"), "maniskill": ("mani_skill", "sapien")}  # family -> distributions
_EYES = ("obs", "view")  # of an environment's settings: what the policy sees, which may differ from arm to arm


# What a comparison needs of a line of results.jsonl: less than `evaluate` writes
_EPISODE = {
    "task": str,
    "task_id": str,
    "num_steps": int,
    "sampler?": str,
    "evaluations?": int,
    "seed": int,
    "success_once": bool,
    "failure?": (str, type(None)),
    "episode_len?": int,
}


class RecordedSampler(NamedTuple):
    """What lines of results.jsonl say of the sampler that drew them; as in `Sampler`.

    Args:
        label: As `Sampler.label`.
        num_steps: Network evaluations per chunk.
    """

    label: str
    num_steps: int


@final
@dataclass(frozen=True)
class Arm:
    """A policy to roll out, or episodes recorded earlier.

    Args:
        name: For people, one of its own per arm.
        sampler: How its chunks are drawn.
        folder: Where its results.jsonl lies, or will.
        checkpoint: None for recorded episodes, to which none is added.
        task: As `checkpoint`.
        conditions: JSON-ready settings of its environment, apart from the seed.
    """

    name: str
    sampler: Sampler | RecordedSampler
    folder: Path
    checkpoint: Checkpoint | None = None
    task: Task | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """The checkpoint's folder, as results say it."""
        assert self.checkpoint is not None
        return str(self.checkpoint.folder)

    def facts(self) -> dict[str, Any]:
        """What each of its lines in results.jsonl says beside the seed's outcome."""
        assert self.task is not None
        own = {"task": self.task.name, "task_id": self.task.id, "checkpoint": self.place}
        return own | self.drawn.facts

    @property
    def num_steps(self) -> int:
        """Of its sampler."""
        return self.sampler.num_steps

    @property
    def drawn(self) -> Sampler:
        """The sampler of an arm that is rolled out."""
        assert isinstance(self.sampler, Sampler)
        return self.sampler

    def seen(self, seeds: range) -> dict[str, int]:
        """How many of `seeds` its policy has seen, see `seen_seeds`.

        Args:
            seeds: Of an evaluation.
        """
        assert self.task is not None and self.checkpoint is not None
        return seen_seeds(self.checkpoint.record, (self.task.name, self.task.id), seeds)

    def rows(self) -> dict[int, dict[str, Any]]:
        """Seed -> line, of every finished episode. Raises ValueError for a line of another policy."""
        rows = {row["seed"]: row for row in read_lines(self.folder / "results.jsonl", _EPISODE)}
        for row in rows.values() if self.task is not None else ():
            if self.facts() != (found := facts_of(row)):
                raise ValueError(
                    f"{self.folder / 'results.jsonl'} has episodes of {row.get('checkpoint')} at "
                    f"num_steps={row['num_steps']}{_by(found)} on {row['task_id']}; choose another `out=`"
                )
        return rows


def arm_names(
    places: Sequence[Path],
    samplers: Sequence[Sampler | RecordedSampler],
    *,
    labels: Sequence[str] = (),
    task_ids: Sequence[str] = (),
) -> list[str]:
    """A name per arm: as little of its path as tells it apart; its sampler and its steps unless all have the same.

    Args:
        places: The folder that was named for each arm.
        samplers: Per arm.
        labels: Instead of paths, one per place in order of appearance.
        task_ids: Per arm; folders of that name say nothing that the task does not.
    """
    folders = list(dict.fromkeys(place.absolute() for place in places))
    if labels and len(labels) != len(folders):
        raise ValueError(f"names: wanted one for each of the {len(folders)} folders, got {', '.join(labels)}")
    short = dict(zip(folders, labels, strict=True)) if labels else short_names(folders)
    names = []
    differ = [len({getattr(one, what) for one in samplers}) > 1 for what in ("label", "num_steps")]
    for i, (place, sampler) in enumerate(zip(places, samplers, strict=True)):
        parts = short[place.absolute()].split("/")
        own = [part for part in parts if part not in task_ids[i : i + 1]] or parts
        steps = f"{sampler.num_steps} step{'' if sampler.num_steps == 1 else 's'}"
        said = [word for word, wanted in zip((sampler.label, steps), differ, strict=True) if wanted]
        names.append(" · ".join(["/".join(own), *said]))
    return names


def recorded_arm(name: str, folder: Path) -> Arm:
    """The arm of an evaluation folder. Raises ValueError when its results.jsonl is empty or of several policies.

    Args:
        name: For people.
        folder: Of the evaluation.
    """
    policies = {tuple(facts_of(row).items()) for row in read_lines(folder / "results.jsonl", _EPISODE)}
    if len(policies) != 1:
        found = f"{len(policies)} of them" if policies else "no episode"
        raise ValueError(
            f"{folder / 'results.jsonl'}: wanted episodes of one policy on one task, got {found}; "
            "pass the folder of an evaluation"
        )
    facts = dict(policies.pop())
    return Arm(name, RecordedSampler(facts.get("sampler", "jump"), facts["num_steps"]), folder)


def _by(facts: Mapping[str, Any]) -> str:
    return f" sampler={facts['sampler']}" if "sampler" in facts else ""


def require_comparable(arms: Sequence[Arm], *, may_differ: Sequence[str] = ()) -> None:
    """Raise ValueError unless there are two arms or more, with names of their own, all on the same task and rules.

    Args:
        arms: In the order in which they were named.
        may_differ: Names of rules, as the error names them, that need not be the same. Recorded episodes are held to
            what their summary.json says; older ones do not say all.
    """
    if len(arms) < 2:
        raise ValueError(
            f"wanted at least two arms, got {len(arms)}; pass two policies, or one with `num_steps=[1, 4]`"
        )
    if twice := [name for name, count in Counter(arm.name for arm in arms).items() if count > 1]:
        raise ValueError(
            f"{twice[0]} is there twice; name every policy and sampler once, or tell folders of one "
            "name apart by `names=[...]`"
        )
    seen = {arm.name: _task_of(arm) for arm in arms}
    first = arms[0].name
    for name, task in seen.items():
        if task != seen[first]:
            raise ValueError(f"{first} is on {seen[first]}, {name} on {task}; pass `task=...` `id=...` for all")
    told: dict[str, tuple[str, Any]] = {}  # rule -> the first arm that says it, and its value
    for arm in arms:
        for key, value in _rules(arm).items():
            name, other = told.setdefault(key, (arm.name, value))
            if value != other and key not in may_differ:
                fix = (
                    f"pass `{key}=...` for all"
                    if arm.task is not None and key in arm.conditions
                    else (f"evaluate both alike, or pass `may_differ=[{key!r}]`")
                )
                raise ValueError(f"{name} is evaluated with {key}={other}, {arm.name} with {key}={value}; {fix}")


def _rules(arm: Arm) -> dict[str, Any]:
    """What the arms of a comparison must share, as far as it is known: settings of the environment but for what the
    policy sees, executed steps of a chunk, control rate, versions of the simulator."""
    if arm.task is None:
        summary = read_json(arm.folder / "summary.json") or {}
        settings, found = summary.get("settings") or {}, summary.get("versions") or {}
        rules = {key: summary[key] for key in ("action_horizon", "control_hz") if key in summary}
    else:
        assert arm.checkpoint is not None
        settings, found = arm.conditions, numerics()
        rules = {"action_horizon": arm.checkpoint.record["policy"].get("action_horizon")}
    rules |= {key: value for key, value in settings.items() if key not in _EYES}
    name = arm.task.name if arm.task is not None else next(iter(arm.rows().values()))["task"]
    return rules | {package: found[package] for package in _SIMULATORS.get(name, ()) if package in found}


def asked_of(arm: Arm) -> dict[str, Any]:
    """What decides the outcomes of an arm that is rolled out; a rerun must ask for the same.

    Args:
        arm: One that is rolled out.
    """
    assert arm.checkpoint is not None
    return arm.facts() | {"settings": dict(arm.conditions), "weights": weights_digest(arm.checkpoint.files)[:16]}


def _task_of(arm: Arm) -> str:
    if arm.task is not None:
        return f"{arm.task.name} {arm.task.id}"
    row = next(iter(arm.rows().values()))
    return f"{row['task']} {row['task_id']}"


@final
class Rollouts:
    """Policies and simulators of arms, made when they are first needed; close it after use.

    Args:
        envs: Parallel simulators per kind of environment; the results do not depend on it.
        device: Where torch computes, e.g. "cpu" or "cuda".
        trusted_modules: Packages outside flowpolicy whose classes a checkpoint may name.
        edited: Take checkpoint files that are not as they were saved, see `Checkpoint.policy`.
    """

    def __init__(
        self, *, envs: int, device: torch.device | str, trusted_modules: Sequence[str] = (), edited: bool = False
    ) -> None:
        self._num_envs = envs
        self._load = partial(Checkpoint.policy, device=device, trusted_modules=trusted_modules, edited=edited)
        self._policies: dict[str, FlowPolicy] = {}
        self._envs: dict[str, VectorEnv] = {}

    def open(self, arms: Sequence[Arm]) -> None:
        """Load and check everything, so that nothing fails between two episodes; what is open stays as it is.

        Args:
            arms: Whose policies and simulators.

        Raises:
            ValueError: When a policy and its environment disagree, or a head does not take that many steps.
        """
        for arm in arms:
            policy = self.policy(arm)
            check_samplers(policy, [arm.drawn])
            assert arm.task is not None
            if (key := _simulator(arm)) not in self._envs:
                self._envs[key] = make_vector_env(arm.task.make_env, self._num_envs)
            require_match(policy.embodiment, self._envs[key].embodiment, what=f"{arm.name} and task")

    def policy(self, arm: Arm) -> FlowPolicy:
        """The arm's, loaded once.

        Args:
            arm: Whose.
        """
        assert arm.checkpoint is not None
        if (key := arm.place) not in self._policies:
            self._policies[key] = self._load(arm.checkpoint)
        return self._policies[key]

    def roll(self, arm: Arm, seeds: Sequence[int]) -> list[dict[str, Any]]:
        """Run these episodes; their lines for results.jsonl.

        Args:
            arm: Whose episodes.
            seeds: Of the episodes.
        """
        self.open([arm])
        facts, env = arm.facts(), self._envs[_simulator(arm)]
        return [episode_row(facts, one) for one in run_episodes(self.policy(arm), env, seeds, sampler=arm.drawn)]

    def describe(self, arm: Arm, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The summary of the episodes that count, measured where summary.json does not hold it already.

        Args:
            arm: Whose.
            rows: Lines of results.jsonl, one per episode.
        """
        found = read_json(arm.folder / "summary.json") or {}
        if arm.task is None or (found.get("episodes"), found.get("start_seed")) == (len(rows), rows[0]["seed"]):
            return found
        self.open([arm])
        assert arm.checkpoint is not None
        policy, seeds = self.policy(arm), range(rows[0]["seed"], rows[-1]["seed"] + 1)
        rules = rules_of(policy, arm.checkpoint, arm.conditions) | {"seen_seeds": arm.seen(seeds)}
        return describe(policy, self._envs[_simulator(arm)], rows, sampler=arm.drawn, out=arm.folder, rules=rules)

    def keep(self, arm: Arm | None) -> None:
        """Give up all policies and simulators but those of `arm`.

        Args:
            arm: The one to keep; None is none.
        """
        for key in [key for key in self._envs if arm is None or key != _simulator(arm)]:
            self._envs.pop(key).close()
        self._policies = {key: policy for key, policy in self._policies.items() if arm and key == arm.place}

    def close(self) -> None:
        """End the simulators."""
        self.keep(None)


def _simulator(arm: Arm) -> str:
    """The same text for arms that can take turns in one simulator."""
    assert arm.task is not None
    return json.dumps([arm.task.name, arm.task.id, dict(arm.conditions)], sort_keys=True)
