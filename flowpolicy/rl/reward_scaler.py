"""Rewards divided by the spread of the discounted return, so that one critic learning rate fits every task."""

from typing import final

import torch
from torch import Tensor

from flowpolicy.rl.rounding import spreads


@final
class RewardScaler:
    """Running: reward / std of the discounted sum since each episode's start; clipped, the mean is left alone.

    Args:
        num_envs: Environments that are stepped together.
        clip: Largest size of a scaled reward.

    Source: Engstrom et al. 2020, "Implementation Matters in Deep Policy Gradients".
    """

    def __init__(self, num_envs: int, *, clip: float = 10.0) -> None:
        self.clip = clip
        self._return = torch.zeros(num_envs, dtype=torch.float64, device="cpu")
        self._count, self._mean, self._square = 0.0, 0.0, 0.0  # Welford's, over all returns seen

    def __call__(self, reward: Tensor, discount: Tensor, done: Tensor) -> Tensor:
        """All (T, N). discount: that of training, see `discounts`.

        Args:
            reward: (T, N).
            discount: (T, N).
            done: Where an episode ends with that reward.
        """
        for step, gamma, ended in zip(reward.double().cpu(), discount.double().cpu(), done.cpu(), strict=True):
            self._return += step
            count = self._count + len(step)
            shift = float(self._return.mean()) - self._mean
            spread = float((self._return - self._return.mean()).square().sum())
            self._square += spread + shift**2 * self._count * len(step) / count
            self._mean += shift * len(step) / count
            self._count = count
            self._return = torch.where(ended, 0.0, gamma * self._return)
        return (reward / self.std).clamp(-self.clip, self.clip)

    @property
    def std(self) -> float:
        """Standard deviation of the returns seen; 1 before there are any that differ by more than rounding."""
        variance = self._square / self._count if self._count else 0.0
        return variance**0.5 if spreads(variance, self._mean) else 1.0

    def restart(self) -> None:
        """All environments begin new episodes."""
        self._return.zero_()

    def state(self) -> Tensor:
        """(3,) float64: what a checkpoint keeps (the episodes begin anew when it is loaded)."""
        return torch.tensor([self._count, self._mean, self._square], dtype=torch.float64, device="cpu")

    def load(self, state: Tensor) -> None:
        """Inverse of `state`.

        Args:
            state: As `state` gives it.
        """
        self._count, self._mean, self._square = state.tolist()
