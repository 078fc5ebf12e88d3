"""The dispersive regulariser as DM1's code computes it: nearly inert, kept so that the difference can be measured."""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from flowpolicy.flow.exact import without_tf32
from flowpolicy.flow.losses import DISPERSIVE_KINDS, DispersiveKind
from flowpolicy.heads.terms.dispersive import InertWarning
from flowpolicy.nets.base import Features
from flowpolicy.spec import Described

_CLAMP = 10.0


@final
class LegacyDispersive(Described):
    """weight * the released loss of the condition. Use `DispersiveRegularizer`; this one does next to nothing.

    What the released code does, and why it is inert:

      infonce_l2      s = -|z_i - z_j| / temperature, masked diagonal -1e9, clamped to [-10, 10];

    -mean_i logsumexp_j(-s). The masked diagonal becomes +10 and adds exp(10) = 22026 to every sum, and a pair further
    apart than 10 temperatures has no gradient: with the released encoder, whose features lie 61 to 122 apart, no pair
    has one, and the loss is -(10 + log B) for ever.

      infonce_cosine  s = cos / temperature, same clamp and sign: gradients about 1e-6.
      hinge           mean over i != j of max(0, margin - |z_i - z_j|): 0 beyond the margin.
      covariance      mean squared off-diagonal covariance + mean max(0, 1 - variance).

    With states, whose encoder has no weights, it is exactly inert, and says so once. Before December 2025 the released
    loss ran without gradients altogether. There it also takes the embeddings of two random times from an extra forward
    pass; those do not depend on the data and are left out.

    Args:
        kind: A row of the table above.
        weight: Of the term in the loss.
        temperature: Of the InfoNCE forms.
        margin: Of the hinge.

    Source: the public code of Zou et al. 2025 (DM1), commit 85ea948.
    """

    def __init__(
        self,
        *,
        kind: DispersiveKind = "infonce_l2",
        weight: float = 0.5,
        temperature: float = 0.5,
        margin: float = 1.0,
    ) -> None:
        if kind not in DISPERSIVE_KINDS:
            raise ValueError(f"dispersive kind must be one of {', '.join(DISPERSIVE_KINDS)}, got {kind!r}")
        self.kind: DispersiveKind = kind
        self.weight, self.temperature, self.margin = weight, temperature, margin
        self._inert = InertWarning()

    def __call__(self, features: Features, cond: Tensor) -> Tensor:
        """Unweighted loss, a scalar; 0 for one sample.

        Args:
            features: (B, ...), flattened.
            cond: (B, D), all that it looks at.
        """
        del features
        self._inert(cond, "cond")
        z = cond.float()
        batch = z.shape[0]
        if batch == 1:
            return z.sum() * 0.0
        with torch.autocast(z.device.type, enabled=False), without_tf32():
            return self._released(z)

    def _released(self, z: Tensor) -> Tensor:
        """See the class.   z: (B, D)."""
        batch = len(z)
        if self.kind == "covariance":
            covariance = torch.cov(z.T).reshape(z.shape[1], z.shape[1])
            variance = covariance.diagonal()
            off_diagonal = covariance.square().sum() - variance.square().sum()
            return off_diagonal / max(z.shape[1] * (z.shape[1] - 1), 1) + F.relu(1.0 - variance).mean()
        same = torch.eye(batch, dtype=torch.bool, device=z.device)
        if self.kind == "infonce_cosine":
            unit = F.normalize(z, dim=-1)
            similarity = unit @ unit.T / self.temperature
        else:
            distance = (z[:, None] - z[None]).square().sum(dim=-1).clamp_min(1e-12).sqrt()  # (B, B)
            if self.kind == "hinge":
                return F.relu(self.margin - distance)[~same].mean()
            similarity = -distance / self.temperature
        similarity = similarity.masked_fill(same, -1e9).clamp(-_CLAMP, _CLAMP)
        return -torch.logsumexp(-similarity, dim=1).mean()
