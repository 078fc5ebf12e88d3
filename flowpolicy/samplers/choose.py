"""A sampler from what a caller says: an object, a name, a number of steps, or a description read from a file."""

from collections.abc import Mapping, Sequence
from typing import Any

from flowpolicy.samplers.ancestral import Ancestral
from flowpolicy.samplers.base import Sampler
from flowpolicy.samplers.heun import Heun
from flowpolicy.samplers.hybrid import Hybrid
from flowpolicy.samplers.jump import Jump
from flowpolicy.samplers.warm_start import WarmStart
from flowpolicy.spec import create

_NAMED: dict[str, type[Sampler]] = {
    "jump": Jump,
    "heun": Heun,
    "hybrid": Hybrid,
    "ancestral": Ancestral,
    "warm_start": WarmStart,
}


def as_sampler(sampler: Sampler | str | None = None, num_steps: int | None = None) -> Sampler:
    """The sampler that is meant.

    Args:
        sampler: Itself; the name of one of ours, with its defaults; None is jumps.
        num_steps: K of a named sampler, None is its default; None beside an object, which has its own.

    Raises:
        ValueError: For an unknown name, for a number of steps beside an object that has another one, and for numbers
            that the sampler refuses.
    """
    if isinstance(sampler, Sampler):
        if num_steps not in (None, sampler.num_steps):
            raise ValueError(
                f"num_steps={num_steps} contradicts {sampler!r}; say it once, in the sampler: "
                f"{type(sampler).__name__}(num_steps={num_steps})"
            )
        return sampler
    name = "jump" if sampler is None else sampler
    if name not in _NAMED:
        raise ValueError(
            f"sampler must be one of {', '.join(_NAMED)}, or an object of flowpolicy.samplers such as "
            f"`Heun(num_steps=8)`, got {sampler!r}"
        )
    return _NAMED[name]() if num_steps is None else _NAMED[name](num_steps=num_steps)


def create_sampler(node: Mapping[str, Any], *, trusted_modules: Sequence[str] = ()) -> Sampler:
    """The sampler of a description, as `Sampler.to_dict` wrote it.

    Args:
        node: `_target_` and numbers.
        trusted_modules: Packages outside flowpolicy whose samplers it may name.

    Raises:
        ValueError: For a class that is no sampler or not trusted, and for numbers that it does not take.
    """
    made = create(node, "flowpolicy.samplers", trusted_modules=trusted_modules)
    if not isinstance(made, Sampler):
        raise ValueError(f"wanted the description of a sampler, got {str(node)[:80]}")
    return made
