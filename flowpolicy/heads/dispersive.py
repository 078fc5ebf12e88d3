"""Which hidden features to disperse, and how strongly: the part of DM1 and MP1 that is not MeanFlow."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from flowpolicy.flow.losses import DISPERSIVE_KINDS, DispersiveKind, dispersive_loss
from flowpolicy.nets.base import Features

_TAPS = ("early", "mid", "late", "cond")


@final
class DispersiveRegularizer:
    """weight * mean over the named taps of `dispersive_loss`.

    kind: see `dispersive_loss`.   taps: any of early, mid, late, cond, or the word all (early, mid and late).
    weight: 0.5, temperature: 0.5 as in Wang & He 2025 and MP1; DM1 tries weights 0.1, 0.5, 0.9.
    """

    def __init__(
        self,
        *,
        kind: DispersiveKind = "infonce_l2",
        taps: str | Sequence[str] = "mid",
        weight: float = 0.5,
        temperature: float = 0.5,
        margin: float = 1.0,
    ) -> None:
        names = [taps] if isinstance(taps, str) else list(taps)
        names = ["early", "mid", "late"] if names == ["all"] else names
        if not names or any(name not in _TAPS for name in names):
            raise ValueError(f"dispersive taps must be 'all' or some of {', '.join(_TAPS)}, got {taps!r}")
        if kind not in DISPERSIVE_KINDS:
            raise ValueError(f"dispersive kind must be one of {', '.join(DISPERSIVE_KINDS)}, got {kind!r}")
        self.kind: DispersiveKind = kind
        self.taps, self.weight, self.temperature, self.margin = names, weight, temperature, margin

    def __call__(self, features: Features, cond: Tensor) -> Tensor:
        """Unweighted loss, a scalar.   features: named taps (B, ...).   cond: (B, D), the tap named cond."""
        named = {**features, "cond": cond}
        terms = [
            dispersive_loss(named[tap], kind=self.kind, temperature=self.temperature, margin=self.margin)
            for tap in self.taps
        ]
        return torch.stack(terms).mean()
