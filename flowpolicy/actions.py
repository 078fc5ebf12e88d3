"""How recorded actions become what the net predicts, and back: absolute, relative to the chunk's start, step-wise."""

from typing import Literal, final

import torch
from torch import Tensor, nn

from flowpolicy.embodiment import Embodiment
from flowpolicy.types import Observation

Representation = Literal["absolute", "relative", "delta"]
REPRESENTATIONS: tuple[Representation, ...] = ("absolute", "relative", "delta")


@final
class ActionRepresentation(nn.Module):
    """Robot-unit chunks <-> represented chunks, (B, H, A) both.

    absolute: as recorded.
    relative: minus the measured state at the chunk's current observation (the last of To), the same for all H steps.
    delta: minus the previous step's action; the first step minus the measured state.
    Only dimensions for which the embodiment names a measured state (`reference_index` >= 0) are changed: a gripper
    command or a velocity stays as it is. Raises ValueError for an unknown representation, and for `relative` and
    `delta` where the embodiment names no state at all.

    Args:
        kind: "absolute", "relative" or "delta".
        embodiment: The robot's contract: observation keys, shapes, units, action bounds.
    """

    index: Tensor
    mask: Tensor

    def __init__(self, kind: Representation, embodiment: Embodiment) -> None:
        super().__init__()
        if kind not in REPRESENTATIONS:
            raise ValueError(f"action_representation must be one of {', '.join(REPRESENTATIONS)}, got {kind!r}")
        has_reference = any(index >= 0 for index in embodiment.reference_index)
        if kind != "absolute" and not has_reference:
            raise ValueError(
                f"action_representation={kind} needs a measured state to subtract, but the embodiment "
                f"'{embodiment.robot}' (action kind {embodiment.action_kind}) names none; use absolute"
            )
        self.kind, self.key = kind, embodiment.reference_key
        entries = embodiment.reference_index if has_reference else [-1] * embodiment.action_dim
        index = torch.tensor(entries, device="cpu", dtype=torch.int64)
        self.register_buffer("index", index.clamp_min(0), persistent=False)
        self.register_buffer("mask", (index >= 0).float(), persistent=False)

    def encode(self, action: Tensor, obs: Observation) -> Tensor:
        """Robot units -> represented.

        Args:
            action: (B, H, A).
            obs: Raw, key -> (B, To, ...).
        """
        if self.kind == "absolute":
            return action
        reference = self._reference(obs)
        if self.kind == "relative":
            return action - reference
        previous = torch.cat([reference, action[:, :-1] * self.mask], dim=1)
        return action - previous

    def decode(self, action: Tensor, obs: Observation) -> Tensor:
        """Inverse of `encode`.

        Args:
            action: (B, H, A), represented.
            obs: Key -> (B, To, ...), robot units.
        """
        if self.kind == "absolute":
            return action
        reference = self._reference(obs)
        if self.kind == "relative":
            return action + reference
        return torch.where(self.mask > 0, reference + action.cumsum(dim=1), action)

    def _reference(self, obs: Observation) -> Tensor:
        """(B, 1, A) measured state of each action dimension, 0 where there is none."""
        current = obs[self.key][:, -1:]  # (B, 1, D)
        return current.index_select(-1, self.index) * self.mask
