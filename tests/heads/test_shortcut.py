"""Shortcut models: half jumps, their grid of times, and what the shortest jumps ask."""

import pytest
import torch
from torch import Tensor

from flowpolicy.flow.path import expand
from flowpolicy.heads.shortcut import ShortcutHead
from flowpolicy.nets.base import Features, VelocityNet
from flowpolicy.nets.mlp import ResidualMLP
from flowpolicy.seeding import stream
from tests.heads.known import Gaussian, PointMass

BATCH = 400
ACTION = 0.5 * torch.randn(BATCH, 4, 2, generator=stream(0, "a")).double()
COND, MASK = torch.zeros(BATCH, 1).double(), torch.ones(BATCH, 4)


class _Spy(VelocityNet):
    """Notes what it is asked, answers like `net`."""

    cond_dim = 1

    def __init__(self, net: VelocityNet) -> None:
        super().__init__()
        self.inner, self.asked = net, []

    def forward_with_features(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> tuple[Tensor, Features]:
        """See the class."""
        self.asked.append((x_t, t, r, torch.is_grad_enabled()))
        return self.inner.forward_with_features(x_t, t, r, cond)


def test_point_mass_has_zero_loss() -> None:
    head = ShortcutHead(PointMass(), parameterization="u")
    loss = head.loss(torch.full_like(ACTION, 0.3), COND, MASK, stream(0, "n")).loss
    assert float(loss.detach()) < 1e-20


@pytest.mark.parametrize("halvings", [1, 3, 7])
def test_jumps_lie_on_their_grid_and_their_halves_follow_one_another(halvings: int) -> None:
    spy = _Spy(Gaussian())
    ShortcutHead(spy, parameterization="u", halvings=halvings).loss(ACTION, COND, MASK, stream(0, "n"))
    (_, t, r, g1), (_, mid, end, g2), (_, all_t, all_r, g3) = spy.asked
    assert (g1, g2, g3) == (False, False, True) and len(t) == BATCH // 4
    length = (all_t - all_r)[: len(t)]
    assert set(length.tolist()) == {0.5**m for m in range(halvings)}
    assert torch.equal((t / length).round(), t / length) and bool((t >= length).all() and (t <= 1).all())
    assert torch.equal(mid, t - length / 2)
    shortest = length == 0.5 ** (halvings - 1)
    assert torch.equal(t - r, torch.where(shortest, 0.0, length / 2)) and torch.equal(mid - end, t - r)
    assert torch.equal(all_t[len(t) :], all_r[len(t) :])


def test_an_exact_average_velocity_is_consistent_except_for_the_straight_shortest_jumps() -> None:
    """Two exact halves make the exact whole; a jump of 1 / 64 in two straight pieces is off by what it bends."""
    head = ShortcutHead(Gaussian(), parameterization="u", halvings=7)
    metrics = head.loss(ACTION, COND, MASK, stream(0, "n")).metrics
    assert float(metrics["loss_consistency"]) < 1e-3 < 0.1 < float(metrics["loss_velocity"])
    coarse = ShortcutHead(Gaussian(), parameterization="u", halvings=1)
    assert float(coarse.loss(ACTION, COND, MASK, stream(0, "n")).metrics["loss_consistency"]) > 1e-2


def test_whole_jump_is_regressed_on_the_mean_of_its_halves_and_nothing_flows_through_them() -> None:
    torch.manual_seed(0)
    spy = _Spy(ResidualMLP(action_dim=2, horizon=4, cond_dim=1, width=32).double())
    head = ShortcutHead(spy, parameterization="u")
    metrics = head.loss(ACTION, COND, MASK, stream(0, "n")).metrics
    (x, t, r, _), _, (all_x, all_t, all_r, _) = spy.asked
    n, length = len(t), (all_t - all_r)[: len(t)]
    with torch.no_grad():
        first = head.velocity(x, t, r, COND[:n])
        mid = t - length / 2
        second = head.velocity(x - expand(length / 2, x) * first, mid, mid - (t - r), COND[:n])
        whole = head.velocity(all_x[:n], all_t[:n], all_r[:n], COND[:n])
    wanted = (whole - (first + second) / 2).square().mean()
    torch.testing.assert_close(metrics["loss_consistency"], wanted)


@pytest.mark.parametrize("words", [{"consistency_share": 0.0}, {"consistency_share": 1.0}, {"halvings": 0}])
def test_bad_options_are_refused(words: dict) -> None:
    with pytest.raises(ValueError, match="consistency_share in"):
        ShortcutHead(PointMass(), **words)
