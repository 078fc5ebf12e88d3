"""Imitation: minimise the head's loss over demonstrations; evaluate, checkpoint and resume bit for bit."""

import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from flowpolicy.checks import require_number
from flowpolicy.data.augment import Augmentation, augment
from flowpolicy.data.dataset import SequenceDataset
from flowpolicy.flow.exact import without_tf32
from flowpolicy.policy import FlowPolicy
from flowpolicy.seeding import derive
from flowpolicy.stopping import Stop, Terminated
from flowpolicy.tracking import Tracker
from flowpolicy.trainers.checkpoints import Checkpoints
from flowpolicy.trainers.ema import ExponentialMovingAverage
from flowpolicy.trainers.schedule import warmup_cosine
from flowpolicy.trainers.validation import Validation
from flowpolicy.types import Batch, LossOutput

Precision = Literal["auto", "fp32", "bf16"]
Loss = Callable[[Batch, torch.Generator], LossOutput]
Evaluate = Callable[[FlowPolicy, int], dict[str, float]]
"""(averaged policy, step) -> metrics, "eval/success_once" among them."""


@final
@dataclass(frozen=True)
class TrainerSettings:
    """Numbers of the imitation loop.

    lr 1e-3 and 200 warm-up steps suit the small nets that train on a CPU (MP1's 255 M U-Net: 1e-4, 500). It takes half
    a minute for an MLP and minutes for a U-Net before the first step. A resumed run may change steps (the cosine then
    ends there, so the learning rate jumps), log_every, eval_every, checkpoint_every, keep_best and max_hours; see
    `trainers.resume`.

    Args:
        steps: Optimiser steps.
        batch_size: Windows per step.
        lr: Of AdamW, after warm-up.
        warmup_steps: Steps of the linear rise.
        cosine_steps: Where the learning rate would be 0, for runs that end before, as MP1's; 0 is at `steps`.
        betas: diffusion_policy's.
        weight_decay: As `betas`.
        grad_clip: Largest gradient norm. ema_*: see the EMA module.
        ema_power: See `ExponentialMovingAverage`.
        ema_max_decay: See `ExponentialMovingAverage`.
        obs_noise: Standard deviation of the noise on state (`data.augment`), in normalised units: the training range
            [-1, 1] is 2 wide. On PickCube-v1, 0.02 took a regression policy from 0.76 to 0.96 (50 unseen seeds).
        augment: The same for clouds and images.
        log_every: In steps; 0 is never (the last step is always saved). Validation, where there are held-out episodes,
            goes with the checkpoints.
        eval_every: As `log_every`.
        checkpoint_every: As `log_every`.
        keep_best: How many of the best checkpoints to keep.
        max_hours: Of wall time, after which a checkpoint is written and the command ends; 0 or None is no limit.
        precision: "fp32", "bf16" or "auto", see `uses_bfloat16`. Whatever it is, derivatives, targets from a net and
            statistics of the batch are float32 without TF32; all of the rest in float32 convolves in TF32 on a GPU,
            unless `torch.backends` says otherwise.
        compile: The whole loss, Jacobian product included, through torch.compile, cut where random numbers are drawn;
            all of it without TF32.
    """

    steps: int = 6000
    batch_size: int = 128
    lr: float = 1e-3
    warmup_steps: int = 200
    cosine_steps: int = 0
    betas: tuple[float, float] = (0.95, 0.999)
    weight_decay: float = 1e-6
    grad_clip: float = 1.0
    ema_power: float = 0.75
    ema_max_decay: float = 0.9999
    obs_noise: float = 0.01
    augment: Augmentation = field(default_factory=Augmentation)
    log_every: int = 50
    eval_every: int = 0
    checkpoint_every: int = 1000
    keep_best: int = 2
    max_hours: float | None = None
    precision: Precision = "auto"
    compile: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError for a number out of its range, before anything is written."""
        least = {
            "steps": 1,
            "batch_size": 1,
            "warmup_steps": 0,
            "cosine_steps": 0,
            "log_every": 0,
            "eval_every": 0,
            "checkpoint_every": 0,
            "keep_best": 0,
        }
        for name, bound in least.items():
            require_number(f"`{name}`", getattr(self, name), least=bound, whole=True)
        for name in ("weight_decay", "obs_noise"):
            require_number(f"`{name}`", getattr(self, name), least=0)
        for name in ("lr", "grad_clip", "ema_power"):
            require_number(f"`{name}`", getattr(self, name), above=0)
        require_number("`ema_max_decay`", self.ema_max_decay, least=0, below=1)
        require_number("`max_hours`", self.max_hours or 0, least=0)
        if len(self.betas) != 2 or not all(isinstance(beta, int | float) and 0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"`betas` must be two numbers of at least 0 and below 1, got {list(self.betas)}")
        if self.precision not in get_args(Precision):
            raise ValueError(f"`precision` must be one of {', '.join(get_args(Precision))}, got {self.precision}")

    @staticmethod
    def from_dict(numbers: dict[str, Any]) -> "TrainerSettings":
        """From plain containers: the `trainer` node of a config.

        Args:
            numbers: Name -> value.
        """
        augmentation, betas = Augmentation(**numbers["augment"]), tuple(numbers["betas"] or ())
        return TrainerSettings(**{**numbers, "betas": betas, "augment": augmentation})


@final
class ImitationTrainer:
    """One loop for every head and observation kind.

    All randomness of step n is a function of (seed, n): which windows, which noise, which times. That is what makes
    a resumed run equal to an uninterrupted one without storing any generator state.

    Args:
        policy: The policy.
        dataset: The windows to train on.
        settings: Numbers of the loop.
        checkpoints: Where to save.
        tracker: Where numbers go.
        seed: Of the run.
        evaluate: Called with policy and step, returns metrics; None evaluates never.
        validate: The same on episodes that were kept from training.
        progress: Whether to show a progress bar.
    """

    def __init__(
        self,
        policy: FlowPolicy,
        dataset: SequenceDataset,
        *,
        settings: TrainerSettings,
        checkpoints: Checkpoints | None,
        tracker: Tracker,
        seed: int,
        evaluate: Evaluate | None = None,
        validate: Validation | None = None,
        progress: bool = True,
    ) -> None:
        if len(dataset) == 0:
            raise ValueError("the dataset has no windows; collect demonstrations first (`collect_episodes`)")
        policy.head.require_batch(min(settings.batch_size, settings.batch_size if validate is None else validate.size))
        self.policy, self.dataset, self.settings = policy.train(), dataset, settings
        self.checkpoints, self.tracker = checkpoints, tracker
        self.evaluate, self.validate = evaluate, validate
        self.seed, self.progress = seed, progress
        self.device = policy.device
        self.ema = ExponentialMovingAverage(policy, power=settings.ema_power, max_decay=settings.ema_max_decay)
        self.optimizer = torch.optim.AdamW(
            policy.parameters(),
            lr=settings.lr,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.half_precision = uses_bfloat16(settings.precision, self.device)
        self.loss = compiled(policy.loss, self.device) if settings.compile else policy.loss
        self.generator = torch.Generator(device=self.device)
        states = [key for key in policy.obs_keys if len(policy.embodiment.obs[key].shape) < 2]
        self.normalizers = {key: policy.normalizer(key) for key in states}
        self.step, self.stop = 0, Stop(settings.max_hours)
        self._order: tuple[int, Tensor] = (-1, torch.empty(0, dtype=torch.int64, device="cpu"))

    def resume(self) -> int:
        """Go on from the newest checkpoint; returns its step, 0 where there is none."""
        assert self.checkpoints is not None, "nothing to resume from"
        step = self.checkpoints.restore(policy=self.policy, ema=self.ema, optimizer=self.optimizer)
        self.step = step or 0
        if self.step > self.settings.steps:
            raise ValueError(f"the run is at step {self.step}, beyond `steps={self.settings.steps}`")
        return self.step

    def run(self) -> FlowPolicy:
        """Train to `settings.steps`, or until `max_hours` are over; returns the averaged policy.

        SIGTERM (in the main thread) writes a checkpoint and raises Terminated.
        time/step_ms and time/data_frac are about batches and updates: not logging, validation, evaluation, checkpoints.
        """
        settings, stopping = self.settings, False
        data_s, counted, window_start = 0.0, 0, time.perf_counter()
        bar = tqdm(total=settings.steps, initial=self.step, desc="train", unit="step", disable=not self.progress)
        with self.stop.watched(), bar:
            if self.step and self.checkpoints is not None:  # what a kill after the checkpoint left undone
                self.checkpoints.adopt(self.step)
                if self.pending:
                    self._evaluate()
            while self.step < settings.steps and not stopping:
                # 1. The windows of this step.
                before = time.perf_counter()
                batch = self.dataset.batch(self._indices(self.step))
                data_s += time.perf_counter() - before
                # 2. Loss, gradient, weights, their average.
                metrics = self._update(batch)
                self.step += 1
                counted += 1
                # 3. Numbers.
                if self._due(settings.log_every):
                    values = {name: float(value) for name, value in metrics.items()}  # waits for a GPU
                    window_s = time.perf_counter() - window_start
                    values |= {"time/data_frac": data_s / window_s, "time/step_ms": 1e3 * window_s / counted}
                    self._require_finite(metrics)
                    self.tracker.log(self.step, values)
                    bar.set_postfix_str(f"loss {values['train/loss']:.4f}, data {100 * data_s / window_s:.0f} %")
                    data_s, counted, window_start = 0.0, 0, time.perf_counter()
                # 4. Validation, checkpoint, evaluation, each where it is due.
                paused = time.perf_counter()
                bar.update()
                stopping = self._save_and_evaluate(metrics)
                window_start += time.perf_counter() - paused
            if stopping and self.stop.terminated:
                raise Terminated(self._stopped)
        return self.ema.module

    def _update(self, batch: Batch) -> dict[str, Tensor]:
        """One optimiser step; returns detached scalars."""
        settings = self.settings
        factor = warmup_cosine(self.step, steps=settings.cosine_steps or settings.steps, warmup=settings.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * factor
        # All randomness of a step comes from here: disturbances first, then the head's times and noise.
        self.generator.manual_seed(derive(self.seed, f"train_noise/{self.step}"))
        batch = augment(
            batch, self.normalizers, settings.augment, obs_noise=settings.obs_noise, generator=self.generator
        )
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half_precision):
            output = self.loss(batch, self.generator)
        self.optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), settings.grad_clip)
        self.optimizer.step()
        self.ema.update()
        self.policy.head.after_step((self.step + 1) / settings.steps)
        terms = {f"train/{name}": value for name, value in output.metrics.items()}
        lr = torch.tensor(settings.lr * factor, device="cpu", dtype=torch.float32)
        return {"train/loss": output.loss.detach(), "train/grad_norm": norm, "train/lr": lr, **terms}

    def _indices(self, step: int) -> Tensor:
        """Window indices of one step: consecutive slices of per-epoch permutations, wrapping into the next epoch."""
        size, total = self.settings.batch_size, len(self.dataset)
        position, wanted, parts = step * size, size, []
        while wanted:
            epoch, offset = divmod(position, total)
            part = self._permutation(epoch)[offset : offset + wanted]
            parts.append(part)
            position += len(part)
            wanted -= len(part)
        return torch.cat(parts)

    def _permutation(self, epoch: int) -> Tensor:
        if self._order[0] != epoch:
            generator = torch.Generator(device="cpu").manual_seed(derive(self.seed, f"data_order/{epoch}"))
            self._order = (epoch, torch.randperm(len(self.dataset), generator=generator, device="cpu"))
        return self._order[1]

    def _due(self, every: int) -> bool:
        return every > 0 and (self.step % every == 0 or self.step == self.settings.steps)

    @property
    def pending(self) -> bool:
        """Whether the checkpoint at this step is still to be evaluated: a kill, or a simulator that crashed."""
        due = self.evaluate is not None and self._due(self.settings.eval_every)
        return due and self.checkpoints is not None and self.checkpoints.score(self.step) is None

    @property
    def _stopped(self) -> str:
        return f"stopped by SIGTERM at step {self.step} of {self.settings.steps}; `resume=True` goes on from there"

    def _save_and_evaluate(self, metrics: dict[str, Tensor]) -> bool:
        """What is due after a step, and whether to end here. Saved first: an evaluation that fails costs nothing."""
        settings, stopping = self.settings, self.stop.due
        if self.validate is not None and self._due(settings.checkpoint_every):
            self.tracker.log(self.step, self.validate(self.ema.module))
        evaluating = self.evaluate is not None and self._due(settings.eval_every)
        if evaluating or stopping or self._due(settings.checkpoint_every) or self.step == settings.steps:
            self._require_finite(metrics)
            self.tracker.sync()
            if self.checkpoints is not None:
                self.checkpoints.save(self.step, policy=self.policy, ema=self.ema, optimizer=self.optimizer)
        if evaluating:
            self._evaluate()
        return stopping

    def _evaluate(self) -> None:
        """Evaluate the averaged policy, as the checkpoint of this step has it, and enter its score there."""
        assert self.evaluate is not None
        with self.stop.interruptible(self._stopped):
            found = self.evaluate(self.ema.module, self.step)
        self.tracker.log(self.step, found)
        self.tracker.sync()
        if self.checkpoints is not None:
            self.checkpoints.set_score(self.step, found["eval/success_once"])

    def _require_finite(self, metrics: dict[str, Tensor]) -> None:
        """Loss and gradient: a finite loss with a gradient of NaN has made weights of NaN already."""
        for name, value in (("loss", metrics["train/loss"]), ("gradient norm", metrics["train/grad_norm"])):
            if not math.isfinite(float(value)):
                folder = None if self.checkpoints is None else self.checkpoints.folder
                is_there = folder is not None and folder.is_dir()
                kept = f"the last good checkpoint is in {folder}" if is_there else "there is no checkpoint yet"
                raise ValueError(
                    f"the {name} is {float(value)} at step {self.step}; {kept}. Try a smaller `lr`, or look for "
                    "outliers with `validate_store(STORE)`"
                )


def compiled(loss: Loss, device: torch.device) -> Loss:
    """`loss` through torch.compile; shapes are the same at every step. Raises ValueError without a C++ compiler.

    Args:
        loss: The function to compile.
        device: Where torch computes, e.g. "cpu" or "cuda".
    """
    compiler = os.environ.get("CXX", "g++").split()[0]
    if device.type == "cpu" and not shutil.which(compiler):
        raise ValueError(f"`compile=True`: wanted a C++ compiler, found no {compiler}; install g++, or leave it out")
    traced = torch.compile(loss, dynamic=False)

    def run(batch: Batch, generator: torch.Generator) -> LossOutput:
        with without_tf32():  # the graph cannot switch between the parts that need it and those that do not
            return traced(batch, generator)

    return run


def uses_bfloat16(precision: Precision, device: torch.device) -> bool:
    """Whether forward and backward run under bfloat16 autocast.

    "auto" is where the hardware multiplies in it: a GPU, or a CPU with AMX or AVX512_BF16 (others emulate it, slower
    than float32).

    Args:
        precision: "auto", "bf16" or "fp32".
        device: Where torch computes, e.g. "cpu" or "cuda".
    """
    if precision != "auto":
        return precision == "bf16"
    return device.type == "cuda" or not {"amx_bf16", "avx512_bf16"}.isdisjoint(processor_flags())


def processor_flags() -> set[str]:
    """What the processor can do, in Linux's words; empty elsewhere."""
    file = Path("/proc/cpuinfo")
    return set(file.read_text().split()) if file.exists() else set()
