"""The pull towards the imitated policy: where its velocities are compared."""

import copy

import torch
from torch import Tensor

from flowpolicy.heads.base import Head
from flowpolicy.rl.bc import DIAGONAL_SHARE, bc_loss
from flowpolicy.types import LossOutput
from tests.helpers import small_policy

STD = 0.2


class Noted(Head):
    """A head that turns noise z into the action STD * z in one step, and notes where it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[Tensor, Tensor, Tensor]] = []

    def velocity(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
        self.asked.append((x_t, t, r))
        return (1.0 - STD) * x_t

    def loss(self, action: Tensor, cond: Tensor, mask: Tensor, generator: torch.Generator) -> LossOutput:
        raise AssertionError("nobody trains it")


def places() -> tuple[Tensor, Tensor, Tensor]:
    """x_t, t and r of 4,000 chunks."""
    policy, cond = small_policy(), torch.zeros(4000, 3)
    policy.head, reference = Noted(), copy.deepcopy(policy)
    reference.head = Noted()
    bc_loss(policy, reference, cond, cond, kind="velocity", num_steps=1, generator=torch.Generator().manual_seed(0))
    return policy.head.asked[-1]


def test_points_lie_on_the_path_from_an_action_to_noise_of_its_own() -> None:
    """With the noise that made the action the spread at t = 0.1 was 0.9 * 0.2 + 0.1 = 0.28, not 0.206."""
    x_t, t, _ = places()
    wanted = ((1.0 - t) ** 2 * STD**2 + t**2).sqrt()
    for low in torch.arange(0.0, 1.0, 0.2):
        here = (t >= low) & (t < low + 0.2)
        relative = x_t[here] / wanted[here, None, None]
        assert abs(float(relative.std()) - 1.0) < 0.02 and abs(float(relative.mean())) < 0.02


def test_the_diagonal_has_its_share() -> None:
    """Of two different random numbers none is ever equal to the other."""
    _, t, r = places()
    assert float((t == r).float().mean()) == DIAGONAL_SHARE == 0.5
    assert (r <= t).all() and (t <= 1).all() and (r >= 0).all()
    off = t != r
    assert float(t[off].mean()) > 0.6 and float(r[off].mean()) < 0.4
    assert abs(float(t[~off].mean()) - 0.5) < 0.03  # the whole diagonal, evenly
