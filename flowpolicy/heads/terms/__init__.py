"""Terms that heads add to their loss: dispersion, direction, guidance."""

from typing import TYPE_CHECKING

from flowpolicy.exports import exported

if TYPE_CHECKING:
    from flowpolicy.heads.terms.direction import DirectionAlignment as DirectionAlignment
    from flowpolicy.heads.terms.dispersive import DispersiveRegularizer as DispersiveRegularizer
    from flowpolicy.heads.terms.dispersive_legacy import LegacyDispersive as LegacyDispersive
    from flowpolicy.heads.terms.guidance import Guidance as Guidance

__getattr__, __dir__, __all__ = exported(
    __name__,
    {
        "direction": ["DirectionAlignment"],
        "dispersive": ["DispersiveRegularizer"],
        "dispersive_legacy": ["LegacyDispersive"],
        "guidance": ["Guidance"],
    },
)
