"""Training state on disk: everything that `resume` needs to go on as if nothing had happened."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from safetensors.torch import load as load_tensors

from flowpolicy.checkpoint import load_weights, save_policy, write_tensors
from flowpolicy.files import atomic_directory, atomic_symlink, remove_folder, remove_leftovers, write_atomic
from flowpolicy.policy import FlowPolicy
from flowpolicy.trainers.ema import ExponentialMovingAverage


@final
class Checkpoints:
    """The checkpoints/ folder of a run: numbered folders, `last` and `best` links, index.json with the scores.

    config, facts: what `save_policy` writes beside the weights.
    keep_best: how many of the highest-scoring checkpoints survive, besides the last one; 0 makes no `best` link.
    """

    def __init__(self, folder: Path, *, config: dict[str, Any], facts: dict[str, Any], keep_best: int = 2) -> None:
        self.folder, self.config, self.facts, self.keep_best = folder, config, facts, keep_best

    def save(
        self,
        step: int,
        *,
        policy: FlowPolicy,
        ema: ExponentialMovingAverage[FlowPolicy],
        optimizer: torch.optim.Optimizer,
        score: float | None,
    ) -> Path:
        """Write checkpoint `step` whole or not at all, move the links, drop what is no longer among the best.

        The policy/ folder holds the averaged weights, state/ the raw ones, the optimiser and the counters.
        score: success rate of the in-training evaluation at this step, None where there was none.
        """
        state = {"model": policy.state_dict(), "optimizer": optimizer_tensors(optimizer)}
        counters = {"ema_updates": ema.updates}
        return self.write(step, policy=ema.module, weights="ema", state=state, counters=counters, score=score)

    def write(
        self,
        step: int,
        *,
        policy: FlowPolicy,
        weights: str,
        state: Mapping[str, Mapping[str, torch.Tensor]],
        counters: Mapping[str, int],
        score: float | None,
    ) -> Path:
        """The same for any trainer: `policy` to policy/, each entry of `state` to state/<name>.safetensors.

        weights: what config.json calls the policy's.   counters: whole numbers for state/step.json.
        """
        remove_leftovers(self.folder / "last", name=".+")  # of any checkpoint: the folder has no other writer
        target = self.folder / f"{step:06d}"
        with atomic_directory(target, replace=True) as folder:
            facts = {**self.facts, "step": step, "weights": weights}
            save_policy(policy, folder / "policy", config=self.config, facts=facts)
            (folder / "state").mkdir()
            for name, tensors in state.items():
                write_tensors(dict(tensors), folder / "state" / f"{name}.safetensors")
            write_atomic(folder / "state" / "step.json", json.dumps({"step": step, **counters, "score": score}) + "\n")
        atomic_symlink(self.folder / "last", target.name)
        self.index(step)
        return target

    def restore(
        self, *, policy: FlowPolicy, ema: ExponentialMovingAverage[FlowPolicy], optimizer: torch.optim.Optimizer
    ) -> int | None:
        """Load the newest checkpoint into the three; returns its step, None where there is no checkpoint."""
        last = self.folder / "last"
        if not last.exists():
            return None
        counters = json.loads((last / "state" / "step.json").read_text())
        load_weights(policy, last / "state" / "model.safetensors")
        load_weights(ema.module, last / "policy" / "model.safetensors")
        ema.updates = counters["ema_updates"]
        restore_optimizer(optimizer, load_tensors((last / "state" / "optimizer.safetensors").read_bytes()))
        return counters["step"]

    def index(self, last_step: int) -> None:
        """Rebuild index.json and `best` from the checkpoints on disk up to `last_step`, then prune the rest.

        In this order, so that a kill at any moment leaves nothing that points to a pruned folder.
        """
        scores: dict[int, float | None] = {}
        folders = {int(path.name): path for path in self.folder.iterdir() if path.name.isdecimal()}
        for step, folder in sorted(folders.items()):
            if step <= last_step and (file := folder / "state" / "step.json").is_file():
                scores[step] = json.loads(file.read_text())["score"]
        # ties go to the later checkpoint: it has seen more data
        scored = [(score, step) for step, score in scores.items() if score is not None]
        best = [step for _, step in sorted(scored, reverse=True)[: self.keep_best]]
        keep = sorted({last_step, *best})
        index = {folders[step].name: scores[step] for step in keep}
        write_atomic(self.folder / "index.json", json.dumps(index, indent=2) + "\n")
        if best:
            atomic_symlink(self.folder / "best", folders[best[0]].name)
        else:
            (self.folder / "best").unlink(missing_ok=True)
        for step in scores.keys() - keep:
            remove_folder(folders[step])


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Flat names "<parameter index>.<entry>" for the per-parameter state."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value) for index, entry in state.items() for name, value in entry.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Inverse of `optimizer_tensors`; the groups' options come from the run's config."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        index, entry = name.split(".", 1)
        state.setdefault(int(index), {})[entry] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
