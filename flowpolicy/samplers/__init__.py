"""Samplers: how a head's network is followed from noise to an action chunk. A new one is one file here and one yaml."""

from typing import TYPE_CHECKING

from flowpolicy.exports import exported

if TYPE_CHECKING:
    from flowpolicy.samplers.ancestral import Ancestral as Ancestral
    from flowpolicy.samplers.base import Sampler as Sampler, State as State
    from flowpolicy.samplers.choose import as_sampler as as_sampler, create_sampler as create_sampler
    from flowpolicy.samplers.heun import Heun as Heun
    from flowpolicy.samplers.hybrid import Hybrid as Hybrid
    from flowpolicy.samplers.jump import Jump as Jump
    from flowpolicy.samplers.warm_start import WarmStart as WarmStart, shift_chunk as shift_chunk

__getattr__, __dir__, __all__ = exported(
    __name__,
    {
        "ancestral": ["Ancestral"],
        "base": ["Sampler", "State"],
        "choose": ["as_sampler", "create_sampler"],
        "heun": ["Heun"],
        "hybrid": ["Hybrid"],
        "jump": ["Jump"],
        "warm_start": ["WarmStart", "shift_chunk"],
    },
)
