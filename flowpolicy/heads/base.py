"""What every head must offer."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from flowpolicy.flow.path import velocity_from_action
from flowpolicy.flow.sources import GaussianSource, Source
from flowpolicy.nets.base import VelocityNet
from flowpolicy.types import LossOutput

Parameterization = Literal["u", "x"]


class Head(nn.Module, ABC):
    """A velocity and a loss over one net.

    Attributes:
        min_batch: Fewest rows of a batch with which every term of its loss is trained; see `require_batch`.
        max_steps: Most network evaluations that make sense, None where any number does (1 for heads without an ODE).
        has_velocity: Whether velocity(x_t, t, t) is the instantaneous one of the straight path between action and
            noise.
        has_flow_map: Whether velocity(x_t, t, r) is trained as the average over [r, t] for every r, also to r = 0.
        has_noise_levels: Whether it walks down noise levels: `ancestral_step`.
        parameterization: What the net of a head with a flow map predicts, "u" the velocity, "x" the action; None:
            unsaid.
        has_source: Whether the starting noise plays a part; not where the answer is a regression's.
        source: What flows start from, in `loss` as in sampling; `set_source` sets another one.
    """

    net: VelocityNet
    min_batch: int = 1
    max_steps: int | None = None
    has_velocity: bool = False
    has_flow_map: bool = False
    has_noise_levels: bool = False
    parameterization: Parameterization | None = None
    has_source: bool = True
    source: Source

    def __init__(self) -> None:
        super().__init__()
        self.source = GaussianSource()

    @abstractmethod
    def velocity(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
        """Average velocity over [r, t] at x_t, (B, H, A); instantaneous where r = t.

        Args:
            x_t: (B, H, A).
            t: (B,), r <= t.
            r: As `t`.
            cond: (B, D).
        """

    @abstractmethod
    def loss(self, action: Tensor, cond: Tensor, mask: Tensor, generator: torch.Generator) -> LossOutput:
        """Training loss on normalised chunks.

        Args:
            action: (B, H, A).
            cond: (B, D).
            mask: (B, H).
            generator: On the tensors' device.
        """

    def forward(
        self, action: Tensor, cond: Tensor, mask: Tensor | None = None, generator: torch.Generator | None = None
    ) -> LossOutput:
        """The `loss` for a training loop of your own, what it is given checked: `head(action, cond).loss.backward()`.

        Args:
            action: (B, H, A), normalised to about [-1, 1].
            cond: (B, D), any features of the observation.
            mask: (B, H), 1 where a step counts; None is everywhere.
            generator: On the tensors' device; None is one that `torch.manual_seed` fixes.

        Returns:
            A scalar to differentiate, and metrics.

        Raises:
            ValueError: For shapes that are not those of each other and of the net.
        """
        name, shape = type(self).__name__, self.net.shape
        if action.ndim != 3 or (shape is not None and action.shape[1:] != shape):
            wanted = "(B, H, A)" if shape is None else f"(B, {shape[0]}, {shape[1]}) = (B, H, A), as the net was made"
            raise ValueError(f"{name}: action must be {wanted}, got {tuple(action.shape)}")
        if cond.shape != (wanted := (len(action), self.net.cond_dim)):
            raise ValueError(f"{name}: cond must be {wanted} = (B, cond_dim of the net), got {tuple(cond.shape)}")
        mask = action.new_ones(action.shape[:2]) if mask is None else mask
        if mask.shape != action.shape[:2]:
            raise ValueError(f"{name}: mask must be {tuple(action.shape[:2])} = (B, H), got {tuple(mask.shape)}")
        if generator is None:
            seed = int(torch.randint(2**63 - 1, (), device="cpu"))
            generator = torch.Generator(device=action.device).manual_seed(seed)
        return self.loss(action, cond, mask, generator)

    def ancestral_step(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor, noise: Tensor) -> Tensor:
        """The state at r, drawn given that at t; for heads with noise levels.

        Arguments as for `velocity`.

        Args:
            x_t: (B, H, A), the state at flow time t.
            t: (B,), flow time, 1 noise, 0 action.
            r: (B,), flow time to go to, r <= t.
            cond: (B, D), the condition.
            noise: (B, H, A), fresh.

        Raises:
            ValueError: For all others.
        """
        raise ValueError(f"{type(self).__name__} has no noise levels, which ancestral sampling walks down; use jump")

    def set_source(self, source: Source) -> None:
        """Let flows start elsewhere, from the next batch on.

        Args:
            source: For the shapes of the head's net.

        Raises:
            ValueError: For another source than the Gaussian where the starting noise plays no part.
        """
        if not self.has_source and not source.is_gaussian:
            raise ValueError(f"{type(self).__name__} starts from no noise that a source could make; leave source out")
        self.source = source

    def require_batch(self, batch: int) -> None:
        """Raise ValueError for a batch of fewer rows than `min_batch`: a term would go untrained, or be NaN.

        Args:
            batch: Rows.
        """
        if batch < self.min_batch:
            raise ValueError(
                f"{type(self).__name__}: wanted at least {self.min_batch} rows in a batch, so that every term of its "
                f"loss has some, got {batch}; raise `batch_size`"
            )

    def set_action_range(self, low: Tensor, high: Tensor) -> None:
        """The range of the demonstrated actions, normalised, (A,) each; for heads that clamp on their way to one.

        Args:
            low: (A,), normalised.
            high: (A,), normalised.
        """

    def after_step(self, progress: float) -> None:
        """Called after every optimiser step with the share of training done; for teachers and schedules.

        Args:
            progress: Share of training that is done, 0 to 1.
        """


def check_parameterization(parameterization: str) -> None:
    """Raise ValueError unless the net predicts "u" (a velocity) or "x" (the action).

    Args:
        parameterization: "u" or "x".
    """
    if parameterization not in ("u", "x"):
        raise ValueError(f"parameterization must be 'u' (velocity) or 'x' (action), got {parameterization!r}")


def to_velocity(output: Tensor, x_t: Tensor, t: Tensor, parameterization: Parameterization, *, t_min: float) -> Tensor:
    """The net's output as a velocity, (B, H, A): itself for "u"; for "x", the action, (x_t - x) / max(t, t_min).

    Args:
        output: (B, H, A), the net's.
        x_t: (B, H, A), the state at flow time t.
        t: (B,), flow time, 1 noise, 0 action.
        parameterization: "u" or "x".
        t_min: Bounds the factor 1/t of a net that predicts the action, which has no limit at t = 0.
    """
    return output if parameterization == "u" else velocity_from_action(x_t, output, t, t_min=t_min)
