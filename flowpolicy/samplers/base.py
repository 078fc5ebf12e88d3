"""What every sampler offers: a way from noise to an action chunk with a head, and what it costs and asks for."""

import re
from abc import ABC, abstractmethod
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from flowpolicy.flow.times import time_grid
from flowpolicy.heads.base import Head

Need = Literal["velocity", "flow_map", "noise_levels", "straight_path", "gaussian_source"]
"""What a head must give beside jumps: an instantaneous velocity at r = t; a flow map to every r; noise levels; states
on the straight path between action and noise, at which sampling may begin; a start that is standard normal."""


class State(NamedTuple):
    """Where sampling begins.

    Args:
        x: (B, H, A), normalised.
        time: Flow time of x, 1 where x is the noise itself.
        noise: (B, H, A), what x was made with.
    """

    x: Tensor
    time: float
    noise: Tensor


@dataclass(frozen=True, kw_only=True)
class Sampler(ABC):
    """A frozen description of how a chunk is drawn, which can be called.

    A sampler of your own is one final dataclass with `evaluations`, `needs`, `draws` and `walk`, and one yaml. Its
    fields are numbers, text or other samplers.

    Args:
        num_steps: K, intervals of flow time; `evaluations` says how often the network is asked for them.
    """

    num_steps: int = 1

    def __post_init__(self) -> None:
        """Raise ValueError for numbers that no head can follow."""
        if isinstance(self.num_steps, bool) or not isinstance(self.num_steps, int) or self.num_steps < 1:
            raise ValueError(
                f"sampler {self.name}: num_steps must be a whole number of at least 1 network evaluation, got "
                f"{self.num_steps!r}"
            )

    @property
    @abstractmethod
    def evaluations(self) -> int:
        """Network evaluations for one chunk."""

    @property
    @abstractmethod
    def needs(self) -> frozenset[Need]:
        """What the head must give."""

    @property
    @abstractmethod
    def draws(self) -> bool:
        """Whether it draws noise on the way, so that one starting noise does not decide the chunk."""

    @abstractmethod
    def walk(self, head: Head, state: State, cond: Tensor, generator: torch.Generator | None) -> Tensor:
        """The chunk (B, H, A) from a state on the way to it.

        Args:
            head: Gives what `needs` says.
            state: Where to begin, normalised (B, H, A).
            cond: (B, D).
            generator: Of noise that is drawn on the way; the one that drew the starting noise as a rule.
        """

    def __call__(self, head: Head, noise: Tensor, cond: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A normalised chunk (B, H, A), not clamped yet, from noise (B, H, A).

        Args:
            head: See `require_support`.
            noise: Standard normal, (B, H, A); the head's source makes the start of it.
            cond: (B, D).
            generator: As in `walk`.
        """
        start = head.source(noise, cond)
        return self.walk(head, State(start, 1.0, start), cond, generator)

    @property
    def name(self) -> str:
        """ "warm_start" of a class WarmStart."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()

    @property
    def label(self) -> str:
        """The name and every number that is not the default, but for num_steps: "hybrid tau=0.2"."""
        words = [self.name]
        for field in fields(self):
            value = getattr(self, field.name)
            default = field.default_factory() if field.default_factory is not MISSING else field.default
            if field.name != "num_steps" and field.repr:
                changed = _text(value) if default is MISSING or _text(value) != _text(default) else ""
                words += [f"{field.name}={changed}"] if changed else []
        return " ".join(words)

    @property
    def words(self) -> str:
        """In an error or a progress bar: "num_steps=4", and "sampler=heun num_steps=4" of others than jumps."""
        count = f"num_steps={self.num_steps}"
        return count if self.label == "jump" else f"sampler={self.label} {count}"

    @property
    def folder(self) -> str:
        """Name of a folder for what it gives: "steps_4", and "hybrid_tau_0.2_steps_4" of others than jumps."""
        count = f"steps_{self.num_steps}"
        words = re.findall(r"[\w.-]+", self.label)
        return count if self.label == "jump" else "_".join([*words, count])

    @property
    def facts(self) -> dict[str, Any]:
        """What lines of results.jsonl say of it: num_steps, and of others than jumps the label and `evaluations`."""
        own = {"sampler": self.label, "evaluations": self.evaluations}
        return {"num_steps": self.num_steps} | (own if self.label != "jump" else {})

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: `_target_`, the class, and its numbers; what `create_sampler` takes."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.repr}
        plain = {key: value.to_dict() if isinstance(value, Sampler) else value for key, value in values.items()}
        return {"_target_": f"{type(self).__module__}.{type(self).__qualname__}", **plain}


def times_from(state: State, num_steps: int) -> list[float]:
    """K + 1 uniform times from the state's down to 0, in float32.

    Args:
        state: Where sampling stands.
        num_steps: K.
    """
    return (state.time * time_grid(num_steps)).tolist()


def require_support(sampler: Sampler, head: Head) -> None:
    """Hold a sampler against a head, before anything runs.

    Args:
        sampler: To be used.
        head: That it is to sample.

    Raises:
        ValueError: Where the head cannot give what the sampler needs, or not in so many steps.
    """
    kind = type(head).__name__
    given = {
        "velocity": head.has_velocity,
        "flow_map": head.has_flow_map,
        "noise_levels": head.has_noise_levels,
        "straight_path": head.max_steps is None,
        "gaussian_source": head.source.is_gaussian,
    }
    lacks = {
        "velocity": f"{kind} learns no instantaneous velocity, which sampler={sampler.name} asks for",
        "flow_map": f"{kind} learns no flow map, which sampler={sampler.name} asks for",
        "noise_levels": f"{kind} has no noise levels, which sampler={sampler.name} walks down",
        "gaussian_source": f"{type(head.source).__name__} gives no normal noise, as sampler={sampler.name} draws",
        "straight_path": f"{kind} cannot start between noise and action, as sampler={sampler.name} does",
    }
    if missing := sorted(need for need in sampler.needs if not given[need]):
        raise ValueError(f"{lacks[missing[0]]}; use jump, which every head takes")
    if head.max_steps is not None and sampler.num_steps > head.max_steps:
        raise ValueError(
            f"{kind} samples in at most {head.max_steps} step(s), got num_steps={sampler.num_steps}; lower num_steps"
        )


def supports(head: Head, sampler: Sampler) -> bool:
    """Whether `require_support` lets it pass.

    Args:
        head: The head.
        sampler: The sampler.
    """
    try:
        require_support(sampler, head)
    except ValueError:
        return False
    return True


def is_fixed(sampler: Sampler) -> bool:
    """Whether observation and starting noise decide the chunk, as in a recorded graph.

    Args:
        sampler: The sampler.
    """
    return not sampler.draws and "straight_path" not in sampler.needs


def require_fixed(sampler: Sampler) -> None:
    """Hold a sampler against a graph whose only inputs are an observation and the starting noise.

    Args:
        sampler: To be used.

    Raises:
        ValueError: For a sampler that draws noise on the way, and for one that begins at the last chunk.
    """
    if is_fixed(sampler):
        return
    reason = "draws fresh noise on the way" if sampler.draws else "begins at the chunk before"
    raise ValueError(
        f"sampler={sampler.name} {reason}, and a recorded graph sees one observation and one noise; use jump "
        "or heun, or predict with the policy itself"
    )


def _text(value: object) -> str:
    if isinstance(value, Sampler):
        return value.label
    return f"{value:g}" if isinstance(value, float) else str(value)
