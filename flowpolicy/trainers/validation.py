"""Validation: the averaged policy on demonstrations that it does not learn from."""

from typing import final

import torch

from flowpolicy.data.dataset import SequenceDataset
from flowpolicy.policy import FlowPolicy
from flowpolicy.seeding import derive, normal

_MAX_WINDOWS = 1024  # a fixed sample of them: about as long as ten training steps, whatever the size of the store


@final
class Validation:
    """Metrics val/loss (the head's own) and val/action_mse (one-step chunk against the recorded one, normalised).

    Args:
        dataset: Held-out episodes.
        seed: Fixes windows, noise and times, so that two calls differ by the weights alone.
    """

    def __init__(self, dataset: SequenceDataset, *, seed: int) -> None:
        if len(dataset) == 0:
            raise ValueError("validation: no held-out windows")
        self.dataset, self.seed = dataset, derive(seed, "validation")
        generator = torch.Generator(device="cpu").manual_seed(self.seed)
        order = torch.randperm(len(dataset), generator=generator, device="cpu")
        self._index = order[:_MAX_WINDOWS]
        self.size = len(self._index)

    @torch.no_grad()
    def __call__(self, policy: FlowPolicy) -> dict[str, float]:
        """Leaves the policy's mode and the global generator alone.

        Args:
            policy: The policy.
        """
        generator = torch.Generator(device=self.dataset.device).manual_seed(self.seed)
        batch = self.dataset.batch(self._index)
        loss = policy.loss(batch, generator).loss
        action = policy.action_normalizer(policy.representation.encode(batch.action, batch.obs))
        noise = normal(action.shape, generator)
        chunk = policy.sample(policy.encode(batch.obs), noise)
        return {"val/loss": float(loss), "val/action_mse": float((chunk - action).square().mean())}
