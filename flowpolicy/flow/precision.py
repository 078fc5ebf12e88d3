"""How much more precisely a condition fixes an action entry than the data as a whole do."""

import torch
from torch import Tensor

from flowpolicy.flow.exact import without_tf32


@torch.no_grad()
def excess_precision(action: Tensor, cond: Tensor, mask: Tensor) -> Tensor:
    """relu(s_cond / s_all - 1), (B, H, A): 0 where similar observations agree no better than the batch does.

    Args:
        action: (B, H, A).
        cond: (B, D).
        mask: (B, H), 1.0 where the step counts. s is 1 / standard deviation, divided by its mean over the chunk's
            entries, so that only their proportions count: s_all over the batch, s_cond over the rows of the batch
            weighted by how similar their conditions are, a row itself excluded. Similarity is the cosine, standardised
            over each row's others, through a softmax.

    Raises:
        ValueError: For fewer than 3 rows, of which no proportions can be told.

    Source: Implicit Drifting Policy (arXiv 2606.01098), its conditional expert geometry, with a diagonal metric.
    """
    batch = action.shape[0]
    if batch < 3:
        raise ValueError(f"excess_precision: wanted at least 3 rows to compare, got {batch}; use a larger batch")
    # products of which differences are taken: in bfloat16 or TF32 what is left would be rounding
    with torch.autocast(action.device.type, enabled=False), without_tf32():
        unit = torch.nn.functional.normalize(cond.float(), dim=-1)
        own = torch.eye(batch, dtype=torch.bool, device=cond.device)
        similar = (unit @ unit.T)[~own].reshape(batch, batch - 1)
        similar = (similar - similar.mean(dim=1, keepdim=True)) / similar.std(dim=1, keepdim=True).clamp_min(1e-6)
        weight = torch.zeros(batch, batch, device=cond.device, dtype=torch.float32)
        weight[~own] = similar.softmax(dim=1).flatten()
        everything = torch.full((1, batch), 1.0 / batch, device=cond.device, dtype=torch.float32)
        conditional, marginal = (_precision(rows, action.float(), mask) for rows in (weight, everything))
        return (conditional / marginal - 1.0).clamp_min(0.0).to(action.dtype)


def _precision(weight: Tensor, action: Tensor, mask: Tensor) -> Tensor:
    """Normalised 1 / standard deviation under each row of weights, (N, H, A).   weight: (N, B)."""
    valid = mask.float()[..., None].expand_as(action)
    mass = torch.einsum("nb,bha->nha", weight, valid).clamp_min(1e-6)
    mean, square = (torch.einsum("nb,bha->nha", weight, value * valid) / mass for value in (action, action.square()))
    # what cancels in the difference is 1e-7 of normalised actions' squares: below the 1e-6 that the paper adds
    precision = ((square - mean.square()).clamp_min(0.0) + 1e-6).rsqrt()
    return precision / precision.mean(dim=(1, 2), keepdim=True)
