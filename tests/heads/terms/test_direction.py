"""The direction loss of OMP: zero where velocities agree, bounded where they oppose, blind to length."""

import pytest
import torch

from flowpolicy.flow.losses import direction_loss
from flowpolicy.heads.meanflow import MeanFlowHead
from flowpolicy.heads.terms.direction import DirectionAlignment
from flowpolicy.seeding import stream
from tests.heads.known import PointMass

V, MASK = torch.randn(32, 4, 2, generator=stream(0, "v")).double(), torch.ones(32, 4)


def test_agreement_is_zero_and_has_no_gradient() -> None:
    u = (2.0 * V).requires_grad_()
    loss = direction_loss(u, V, MASK)
    assert float(loss.detach().abs().max()) < 2e-6
    (gradient,) = torch.autograd.grad(loss.sum(), u)
    assert float(gradient.abs().max()) < 1e-9


def test_a_point_masss_exact_velocity_is_aligned() -> None:
    head = MeanFlowHead(PointMass(), parameterization="u", direction=DirectionAlignment(weight=1.0))
    action, cond = torch.full((64, 4, 2), 0.3, dtype=torch.float64), torch.zeros(64, 1).double()
    metrics = head.loss(action, cond, torch.ones(64, 4), stream(0, "n")).metrics
    assert float(metrics["loss_direction"].abs()) < 2e-6


def test_opposition_costs_13_8_and_its_gradient_is_finite() -> None:
    u = (-V).requires_grad_()
    loss = direction_loss(u, V, MASK)
    torch.testing.assert_close(loss.detach(), torch.full((32,), 13.8155).double(), rtol=1e-3, atol=0)
    assert bool(torch.autograd.grad(loss.sum(), u)[0].isfinite().all())


def test_a_single_number_has_a_sign_and_no_direction() -> None:
    u = torch.tensor([[[0.5]], [[2.0]]], requires_grad=True)
    loss = direction_loss(u, torch.ones(2, 1, 1), torch.ones(2, 1))
    assert float(torch.autograd.grad(loss.sum(), u)[0].abs().max()) < 1e-6


def test_masked_steps_do_not_count() -> None:
    mask, u = MASK.clone(), V + 0.5
    mask[:, 2:] = 0.0
    torch.testing.assert_close(direction_loss(u, V, mask), direction_loss(u[:, :2], V[:, :2], mask[:, :2]))


def test_weight_fades_only_where_it_is_told_to() -> None:
    for decay, wanted in ((False, [2.0, 2.0, 2.0]), (True, [2.0, 1.0, 0.0])):
        head = MeanFlowHead(PointMass(), direction=DirectionAlignment(weight=2.0, decay=decay))
        assert head.direction is not None
        term, seen = direction_loss(V + 1.0, V, MASK).mean(), []
        for progress in (0.0, 0.5, 1.0):
            head.after_step(progress)
            seen.append(float(head.direction(V + 1.0, V, MASK) / term))
        assert seen == pytest.approx(wanted)


def test_negative_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        DirectionAlignment(weight=-0.1)
