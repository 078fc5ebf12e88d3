"""The dual pass: exact on a point mass, MeanFlow in a special case, two evaluations and one Jacobian product."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import flowpolicy.heads.imf_dual as module
from flowpolicy.flow.meanflow import time_derivative
from flowpolicy.heads.imf_dual import DualMeanFlowHead
from flowpolicy.heads.meanflow import MeanFlowHead
from flowpolicy.nets.mlp import ResidualMLP
from flowpolicy.seeding import stream
from tests.heads.known import PointMass

BATCH = 16
ACTION = torch.randn(BATCH, 4, 2, generator=stream(0, "action"))
COND, MASK = torch.randn(BATCH, 3, generator=stream(0, "cond")), torch.ones(BATCH, 4)


def _head(make: Callable = DualMeanFlowHead, **words) -> DualMeanFlowHead:
    torch.manual_seed(0)
    return make(ResidualMLP(action_dim=2, horizon=4, cond_dim=3, width=32), **words)


def _loss_and_gradient(head: DualMeanFlowHead) -> list[Tensor]:
    loss = head.loss(ACTION, COND, MASK, stream(1, "noise")).loss
    return [loss, *torch.autograd.grad(loss, list(head.parameters()))]


def test_both_terms_vanish_on_a_point_mass() -> None:
    head = DualMeanFlowHead(PointMass(), parameterization="u", loss_power=0.0)
    action = torch.full((256, 4, 2), 0.3, dtype=torch.float64)
    cond = torch.zeros(256, 1, dtype=torch.float64)
    metrics = head.loss(action, cond, torch.ones(256, 4), stream(0, "n")).metrics
    assert float(metrics["loss_meanflow"]) < 1e-28 and float(metrics["loss_velocity"]) < 1e-28


def test_along_the_path_velocity_and_without_the_first_term_it_is_meanflow(monkeypatch: pytest.MonkeyPatch) -> None:
    path_velocity = torch.randn(ACTION.shape, generator=stream(1, "noise")) - ACTION

    def along_the_path(velocity, x_t, t, r, cond, tangent, **words) -> Tensor:
        return time_derivative(velocity, x_t, t, r, cond, path_velocity, **words)

    with pytest.warns(UserWarning, match="p_equal=0"):
        meanflow = _head(MeanFlowHead, p_equal=0.0)
    wanted = _loss_and_gradient(meanflow)
    with pytest.raises(AssertionError):  # it follows its own velocity otherwise
        torch.testing.assert_close(_loss_and_gradient(_head(velocity_weight=0.0)), wanted)
    monkeypatch.setattr(module, "time_derivative", along_the_path)
    for ours, theirs in zip(_loss_and_gradient(_head(velocity_weight=0.0)), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_first_term_is_flow_matching_on_every_row() -> None:
    """What velocity_weight adds to the loss is the weighted error of u(x_t, t, t) on the same times."""
    head = _head(loss_power=0.0)
    one = head.loss(ACTION, COND, MASK, stream(1, "noise"))
    head.velocity_weight = 3.0
    three = head.loss(ACTION, COND, MASK, stream(1, "noise"))
    torch.testing.assert_close(three.loss - one.loss, 2.0 * one.metrics["loss_velocity"])


def test_a_step_is_one_double_batch_with_gradient_and_one_jacobian_product() -> None:
    head, rows = _head(), []
    head.net.register_forward_hook(lambda _, inputs, __: rows.append((len(inputs[0]), torch.is_grad_enabled())))
    head.loss(ACTION, COND, MASK, stream(1, "noise"))
    assert rows == [(2 * BATCH, True), (BATCH, False)]


def test_the_difference_quotient_gives_nearly_the_same_loss_and_gradient() -> None:
    exact, near = (_loss_and_gradient(_head(derivative=kind)) for kind in ("jvp", "difference"))
    assert not torch.equal(exact[0], near[0])
    for one, other in zip(exact, near, strict=True):
        torch.testing.assert_close(other, one, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"derivative": "fd"}, "'jvp' or 'difference'"),
        ({"p_start": 2.0}, "p_start"),
        ({"parameterization": "v"}, "'u'"),
    ],
)
def test_bad_options_are_refused(words: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _head(**words)
