"""Loss terms shared by heads: masked squared error, adaptive weight, the four dispersive losses."""

import math
from dataclasses import dataclass
from typing import Literal, final, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from flowpolicy.flow.exact import without_tf32

DispersiveKind = Literal["infonce_l2", "infonce_cosine", "hinge", "covariance"]
DividedBy = Literal["width", "largest"]
DISPERSIVE_KINDS: tuple[DispersiveKind, ...] = ("infonce_l2", "infonce_cosine", "hinge", "covariance")


def masked_mean_square(delta: Tensor, mask: Tensor) -> Tensor:
    """Mean of delta^2 over the valid steps and all action entries of each sample.

    Args:
        delta: (B, H, A).
        mask: (B, H), 1.0 where the step counts.

    Returns:
        (B,); 0 for a sample without valid steps.
    """
    per_step = delta.square().mean(dim=-1) * mask  # (B, H)
    return per_step.sum(dim=-1) / mask.sum(dim=-1).clamp_min(1.0)


def adaptive_weight(error: Tensor, *, power: float, eps: float) -> Tensor:
    """error / stop-gradient((error + eps)^power): power 0 is plain error, 0.5 close to an L2 norm, 1 pins it near 1.

    Args:
        error: (B,) non-negative.
        power: 0 to 1.
        eps: Keeps the weight of a tiny error finite.

    Returns:
        (B,).

    Source: Geng et al. 2025, equation 22, with the per-sample mean as error (MP1: power 0.5, eps 1e-3).
    """
    if power == 0.0:
        return error
    return error / (error.detach() + eps).pow(power)


@final
@dataclass(frozen=True)
class LossWeighting:
    """How the squared errors of a batch become its loss: the mean of `adaptive_weight`; the same for every head.

    Args:
        power: See `adaptive_weight`.
        eps: See `adaptive_weight`.

    Raises:
        ValueError: For a negative power or eps.
    """

    power: float = 0.5
    eps: float = 1e-3

    def __post_init__(self) -> None:
        if not (self.power >= 0.0 and self.eps >= 0.0):
            raise ValueError(f"wanted loss_power >= 0 and loss_eps >= 0, got {self.power} and {self.eps}")

    def __call__(self, error: Tensor) -> Tensor:
        """error: (B,) non-negative.   Returns a scalar.

        Args:
            error: (B,), non-negative.
        """
        return adaptive_weight(error, power=self.power, eps=self.eps).mean()


def direction_loss(u: Tensor, velocity: Tensor, mask: Tensor) -> Tensor:
    """-log((cos(u, velocity) + 1) / 2 + 1e-6) over the valid entries of each chunk; blind to the length of u.

    Args:
        u: (B, H, A).
        velocity: As `u`.
        mask: (B, H).

    Returns:
        (B,): 0 where they point the same way, 13.8 where opposite ways.

    Source: OMP (arXiv 2512.19347), the direction alignment loss.
    """
    u, velocity = ((value * mask[..., None]).flatten(1) for value in (u, velocity))
    return -torch.log((F.cosine_similarity(u, velocity, dim=1) + 1.0) / 2.0 + 1e-6)


def dispersive_loss(
    features: Tensor,
    *,
    kind: DispersiveKind = "infonce_l2",
    temperature: float = 0.5,
    margin: float = 1.0,
    divide_by: DividedBy = "width",
) -> Tensor:
    """Push the features of different samples of a batch apart; no positive pairs needed.

      infonce_l2      log mean_ij exp(-|z_i - z_j|^2 / (F temperature))      between log(1/B) and 0
      infonce_cosine  log mean_ij exp(cos(z_i, z_j) / temperature)
      hinge           mean over i != j of max(0, margin - |z_i - z_j|^2 / F)^2
      covariance      mean squared off-diagonal covariance + mean max(0, 1 - variance)

    The mean runs over all B^2 pairs, the pair (i, i) included, which only bounds the InfoNCE forms from below. Sources:
    Wang & He 2025, "Diffuse and Disperse", table 1; the squared distance is divided by F as in their code. covariance
    is DM1's form: a mean in place of a sum, of features that are not normalised, and a floor of variance.

    Args:
        features: (B, ...), flattened to (B, F).
        kind: A row of the table above.
        temperature: Of the InfoNCE forms.
        margin: Of the hinge.
        divide_by: "width", as above, or "largest", MP1's code: each squared distance by the largest of the batch in
            place of F, with its gradient. Then only their proportions count, and one outlier satisfies infonce_l2.

    Returns:
        a scalar; 0 for B = 1, where there is nothing to disperse.

    Raises:
        ValueError: For an unknown kind or divisor.
    """
    if divide_by not in get_args(DividedBy):
        raise ValueError(f"divide_by must be one of {', '.join(get_args(DividedBy))}, got {divide_by!r}")
    if kind not in DISPERSIVE_KINDS:
        raise ValueError(f"dispersive kind must be one of {', '.join(DISPERSIVE_KINDS)}, got {kind!r}")
    z = features.reshape(features.shape[0], -1).float()  # (B, F)
    if len(z) == 1:
        return z.sum() * 0.0
    with torch.autocast(z.device.type, enabled=False), without_tf32():  # small distances cancel
        if kind == "infonce_cosine":
            unit = F.normalize(z, dim=-1)
            return _log_mean_exp(unit @ unit.T / temperature)
        if kind == "covariance":
            return _covariance_loss(z)
        squared = _squared_distances(z)  # (B, B)
        squared = squared / (z.shape[1] if divide_by == "width" else squared.max().clamp_min(1e-12))
        if kind == "infonce_l2":
            return _log_mean_exp(-squared / temperature)
        penalty = F.relu(margin - squared).square()
        return (penalty.sum() - penalty.diagonal().sum()) / (len(z) * (len(z) - 1))


def _squared_distances(z: Tensor) -> Tensor:
    """(B, B) by one matrix product, several times faster than `pdist`; centred, so that less cancels.

    The diagonal is set to 0: what a processor's product leaves of it grows with the features.
    """
    z = z - z.mean(dim=0)
    squared = z.square().sum(dim=1)
    apart = 1.0 - torch.eye(len(z), device=z.device, dtype=torch.float32)
    return (squared[:, None] + squared - 2.0 * z @ z.T).clamp_min(0.0) * apart


def _log_mean_exp(similarity: Tensor) -> Tensor:
    return torch.logsumexp(similarity.flatten(), dim=0) - math.log(similarity.numel())


def _covariance_loss(z: Tensor) -> Tensor:
    batch, width = z.shape
    centred = z - z.mean(dim=0)
    covariance = centred.T @ centred / (batch - 1)  # (F, F)
    variance = covariance.diagonal()
    off_diagonal = (covariance.square().sum() - variance.square().sum()) / max(width * (width - 1), 1)
    return off_diagonal + F.relu(1.0 - variance).mean()
