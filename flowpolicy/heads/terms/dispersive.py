"""Which hidden features to disperse, and how strongly: the part of DM1 and MP1 that is not MeanFlow."""

import warnings
from collections.abc import Sequence
from typing import final, get_args

import torch
from torch import Tensor

from flowpolicy.flow.losses import DISPERSIVE_KINDS, DispersiveKind, DividedBy, dispersive_loss
from flowpolicy.nets.base import Features
from flowpolicy.spec import Described

_TAPS = ("early", "second", "mid", "late", "cond")


@final
class InertWarning:
    """Warns once, in training, of a regulariser of features that have no gradient."""

    def __init__(self) -> None:
        self._given = False

    def __call__(self, features: Tensor, name: str) -> None:
        """features: what is regularised, (B, ...).

        Args:
            features: What is regularised, (B, ...).
            name: What to call it.
        """
        if features.requires_grad or self._given or not torch.is_grad_enabled():
            return
        self._given = True
        warnings.warn(
            f"dispersive: {name} has no gradient (nothing before it is trained), so this term changes no weight; "
            "choose taps=mid, or an encoder that learns",
            stacklevel=2,
        )


@final
class DispersiveRegularizer(Described):
    """weight * mean over the named taps of `dispersive_loss`.

    A tap without a gradient, as `cond` of an encoder that learns nothing, is exactly inert; that is said once.

    Args:
        kind: See `dispersive_loss`.
        taps: Any of early, second, mid, late, cond, or the word all (early, mid and late).
        weight: 0.5, temperature: 0.5 as in Wang & He 2025 and MP1; DM1 tries weights 0.1, 0.5, 0.9.
        temperature: Of the InfoNCE forms.
        margin: See `dispersive_loss`.
        divide_by: As `margin`.
    """

    def __init__(
        self,
        *,
        kind: DispersiveKind = "infonce_l2",
        taps: str | Sequence[str] = "mid",
        weight: float = 0.5,
        temperature: float = 0.5,
        margin: float = 1.0,
        divide_by: DividedBy = "width",
    ) -> None:
        names = [taps] if isinstance(taps, str) else list(taps)
        names = ["early", "mid", "late"] if names == ["all"] else names
        if not names or any(name not in _TAPS for name in names):
            raise ValueError(f"dispersive taps must be 'all' or some of {', '.join(_TAPS)}, got {taps!r}")
        if kind not in DISPERSIVE_KINDS:
            raise ValueError(f"dispersive kind must be one of {', '.join(DISPERSIVE_KINDS)}, got {kind!r}")
        if divide_by not in get_args(DividedBy):
            raise ValueError(f"dispersive divide_by must be one of {', '.join(get_args(DividedBy))}, got {divide_by!r}")
        self.kind: DispersiveKind = kind
        self.divide_by: DividedBy = divide_by
        self.taps, self.weight, self.temperature, self.margin = names, weight, temperature, margin
        self._inert = InertWarning()

    def __call__(self, features: Features, cond: Tensor) -> Tensor:
        """Unweighted loss, a scalar.

        Args:
            features: Named taps (B, ...).
            cond: (B, D), the tap named cond.
        """
        named = {**features, "cond": cond}
        for tap in self.taps:
            self._inert(named[tap], tap)
        terms = [
            dispersive_loss(
                named[tap], kind=self.kind, temperature=self.temperature, margin=self.margin, divide_by=self.divide_by
            )
            for tap in self.taps
        ]
        return torch.stack(terms).mean()
