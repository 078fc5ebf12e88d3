"""What every network that heads use must offer."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

Features = dict[str, Tensor]
"""Named hidden activations, "early" | "second" | "mid" | "late" -> (B, ...): what dispersive losses act on."""


class VelocityNet(nn.Module, ABC):
    """f(x_t, t, r, cond). Constructed by `build_policy` with action_dim, horizon and cond_dim (D), which it keeps.

    Attributes:
        cond_dim: D, entries of the condition.
        shape: (H, A) of the chunks that it was made for; None where it takes any.
    """

    cond_dim: int
    shape: tuple[int, int] | None = None

    @abstractmethod
    def forward_with_features(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> tuple[Tensor, Features]:
        """Output (B, H, A) and the taps: early and second are the first two blocks, in a U-Net levels; mid, late.

        Args:
            x_t: (B, H, A).
            t: (B,).
            r: As `t`.
            cond: (B, D).
        """

    def forward(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
        """Output only, (B, H, A).

        Args:
            x_t: (B, H, A), the state at flow time t.
            t: (B,), flow time, 1 noise, 0 action.
            r: (B,), flow time to go to, r <= t.
            cond: (B, D), the condition.
        """
        return self.forward_with_features(x_t, t, r, cond)[0]
