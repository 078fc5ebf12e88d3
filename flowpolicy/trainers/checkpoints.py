"""Training state on disk: everything that `resume` needs to go on as if nothing had happened."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch

from flowpolicy.checkpoint import load_weights, read_tensors, write_policy, write_tensors
from flowpolicy.files import atomic_directory, remove_folder, remove_leftovers, write_atomic
from flowpolicy.json_files import read_object
from flowpolicy.pointers import POLICY_FILES, STEP_FILE, choose, damage, remove_pointer, write_pointer
from flowpolicy.policy import FlowPolicy
from flowpolicy.trainers.ema import ExponentialMovingAverage

IMITATION_STATE = ("model", "optimizer")
"""What `Checkpoints.save` writes to state/, beside step.json."""


def newest(folder: Path, state: Sequence[str]) -> Path | None:
    """The checkpoint to go on from, see `choose`; None where `folder` has none.

    Args:
        folder: checkpoints/ of a run.
        state: Names that it must have.
    """
    return choose(folder, "last", (*POLICY_FILES, STEP_FILE, *(f"state/{name}.safetensors" for name in state)))


def begun(out: Path, state: Sequence[str], *, resume: bool) -> Path | None:
    """`newest` of the run `out`.

    Args:
        out: Folder of the run.
        state: Files of the training state that must be there.
        resume: Go on where there is a checkpoint.

    Raises:
        FileExistsError: Where there is one and the run is not to be resumed.
    """
    if (last := newest(out / "checkpoints", state)) is not None and not resume:
        raise FileExistsError(f"{out} holds a run already; `resume=True` goes on with it, or choose another `out=`")
    return last


@final
class Checkpoints:
    """The checkpoints/ folder of a run: numbered folders, pointers `last` and `best`, index.json with the scores.

    Args:
        folder: checkpoints/ of a run.
        facts: What config.json says beside what the policy was built from.
        keep_best: How many of the highest-scoring checkpoints survive, besides the last one; 0 makes no `best`.
    """

    def __init__(self, folder: Path, *, facts: dict[str, Any], keep_best: int = 2) -> None:
        self.folder, self.facts, self.keep_best = folder, facts, keep_best

    def save(
        self,
        step: int,
        *,
        policy: FlowPolicy,
        ema: ExponentialMovingAverage[FlowPolicy],
        optimizer: torch.optim.Optimizer,
        score: float | None = None,
    ) -> Path:
        """Write checkpoint `step` whole or not at all, move the pointers, drop what is no longer among the best.

        The policy/ folder holds the averaged weights, state/ the raw ones, the optimiser and the counters.

        Args:
            step: Its number.
            policy: The policy.
            ema: The averaged weights.
            optimizer: The optimiser whose state it is.
            score: Success rate of the evaluation at this step, None where there was none yet, see `set_score`.

        Raises:
            ValueError: And writes nothing, for a weight that is not finite.
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
        score: float | None = None,
    ) -> Path:
        """The same for any trainer: `policy` to policy/, each entry of `state` to state/<name>.safetensors.

        Args:
            step: Its number.
            policy: The policy.
            weights: What config.json calls the policy's.
            state: Name -> tensors.
            counters: Whole numbers for state/step.json.
            score: By which checkpoints are ranked; None where there is none.
        """
        for part, tensors in {"policy": policy.state_dict(), **state}.items():
            self._require_finite(step, part, tensors)
        remove_leftovers(self.folder / "last", name=".+")  # of any checkpoint: the folder has no other writer
        target = self.folder / f"{step:06d}"
        with atomic_directory(target, replace=True) as folder:
            facts = {**self.facts, "step": step, "weights": weights}
            write_policy(policy, folder / "policy", facts=facts)
            (folder / "state").mkdir()
            for name, tensors in state.items():
                write_tensors(dict(tensors), folder / "state" / f"{name}.safetensors")
            write_atomic(folder / STEP_FILE, json.dumps({"step": step, **counters, "score": score}) + "\n")
        self.adopt(step)
        return target

    def _require_finite(self, step: int, part: str, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise ValueError(
                    f"step {step}: {name} ({part}) is not finite, so no checkpoint is written; the last good one is in "
                    f"{self.folder}. Try a smaller learning rate"
                )

    def adopt(self, step: int) -> None:
        """Make checkpoint `step` the one that `last` names, and bring `best` and index.json up to it.

        Args:
            step: Its number.
        """
        write_pointer(self.folder / "last", f"{step:06d}")
        self.index(step)

    def score(self, step: int) -> float | None:
        """What the evaluation of checkpoint `step` gave; None where there was none.

        Args:
            step: Its number.
        """
        return json.loads((self.folder / f"{step:06d}" / STEP_FILE).read_text())["score"]

    def set_score(self, step: int, score: float) -> None:
        """Enter the score of the evaluation that followed checkpoint `step`, and rank the checkpoints anew.

        Args:
            step: Its number.
            score: By which checkpoints are ranked.
        """
        file = self.folder / f"{step:06d}" / STEP_FILE
        write_atomic(file, json.dumps(json.loads(file.read_text()) | {"score": score}) + "\n")
        self.index(step)

    def restore(
        self, *, policy: FlowPolicy, ema: ExponentialMovingAverage[FlowPolicy], optimizer: torch.optim.Optimizer
    ) -> int | None:
        """Load the newest checkpoint into the three; returns its step, None where there is no checkpoint.

        Args:
            policy: The policy.
            ema: Gets the averaged weights.
            optimizer: The optimiser whose state it is.
        """
        if (last := newest(self.folder, IMITATION_STATE)) is None:
            return None
        counters = read_object(last / STEP_FILE, {"step": int, "ema_updates": int})
        load_weights(policy, last / "state" / "model.safetensors")
        load_weights(ema.module, last / "policy" / "model.safetensors")
        ema.updates = counters["ema_updates"]
        restore_optimizer(optimizer, last / "state" / "optimizer.safetensors")
        return counters["step"]

    def index(self, last_step: int) -> None:
        """Rebuild index.json and `best` from the checkpoints on disk up to `last_step`, then prune the rest.

        In this order, so that a kill at any moment leaves nothing that points to a pruned folder.

        Args:
            last_step: Of the run as it is to go on.
        """
        scores: dict[int, float | None] = {}
        folders = {int(path.name): path for path in self.folder.iterdir() if path.name.isdecimal()}
        for step, folder in sorted(folders.items()):
            if step <= last_step and damage(folder, (STEP_FILE,)) is None:
                scores[step] = read_object(folder / STEP_FILE, {"score": (float, type(None))})["score"]
        # ties go to the later checkpoint: it has seen more data
        scored = [(score, step) for step, score in scores.items() if score is not None]
        best = [step for _, step in sorted(scored, reverse=True)[: self.keep_best]]
        keep = sorted({last_step, *best})
        index = {folders[step].name: scores[step] for step in keep}
        write_atomic(self.folder / "index.json", json.dumps(index, indent=2) + "\n")
        if best:
            write_pointer(self.folder / "best", folders[best[0]].name)
        else:
            remove_pointer(self.folder / "best")
        for step in scores.keys() - keep:
            remove_folder(folders[step])


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Flat names "<parameter index>.<entry>" for the per-parameter state.

    Args:
        optimizer: The optimiser whose state it is.
    """
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value) for index, entry in state.items() for name, value in entry.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, file: Path) -> None:
    """Inverse of `optimizer_tensors`, from a file; the groups' options come from the run's config.

    Args:
        optimizer: The optimiser whose state it is.
        file: The safetensors file.

    Raises:
        ValueError: Naming the file where it is damaged or of other parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in read_tensors(file).items():
        index, _, entry = name.partition(".")
        if not index.isdecimal() or int(index) >= len(parameters):
            raise ValueError(f"{file}: {name} is of none of the optimiser's {len(parameters)} parameters")
        if tensor.dim() and tensor.shape != parameters[int(index)].shape:
            raise ValueError(
                f"{file}: {name} has shape {list(tensor.shape)}, its parameter {list(parameters[int(index)].shape)}"
            )
        state.setdefault(int(index), {})[entry] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
