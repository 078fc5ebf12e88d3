"""Alpha-flow: its target in closed form and in its two limits, its teacher, its schedule, its guidance."""

import pytest
import torch
from torch import Tensor

from flowpolicy.flow.alpha_flow import alpha_flow_target
from flowpolicy.flow.meanflow import time_derivative
from flowpolicy.flow.path import expand, interpolate
from flowpolicy.flow.times import FlowTimes
from flowpolicy.heads.alpha_flow import AlphaFlowHead
from flowpolicy.nets.mlp import ResidualMLP
from flowpolicy.seeding import stream
from flowpolicy.trainers.schedule import warmup_cosine
from tests.heads.known import Linear, PointMass

BATCH = 64
COND = torch.randn(BATCH, 3, generator=stream(0, "c"))
ACTION, MASK = torch.randn(BATCH, 4, 2, generator=stream(0, "a")), torch.ones(BATCH, 4)


def _head(**words) -> AlphaFlowHead:
    torch.manual_seed(0)
    return AlphaFlowHead(ResidualMLP(action_dim=2, horizon=4, cond_dim=3, width=32), **words)


def _rows(action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    t, r = (time.to(action.dtype) for time in FlowTimes().pairs(len(action), stream(1, "t"), p_equal=0.0))
    noise = torch.randn(action.shape, generator=stream(2, "n")).to(action.dtype)
    x_t, velocity = interpolate(action, noise, t)
    return x_t, velocity, t, r


@pytest.mark.parametrize("kappa", [1e-3, 0.3, 1.0])
def test_target_of_an_exact_teacher_on_a_point_mass_is_exact(kappa: float) -> None:
    x_t, velocity, t, r = _rows(torch.full((BATCH, 4, 2), 0.3, dtype=torch.float64))
    target = alpha_flow_target(PointMass(), x_t, t, r, COND, velocity, torch.full_like(t, kappa))
    torch.testing.assert_close(target, (x_t - 0.3) / expand(t, x_t), rtol=0, atol=1e-12)


def test_target_is_the_teachers_arrival_over_the_whole_interval() -> None:
    """(x_t - x_r) / (t - r), x_r where the teacher jumps to from the point between: the paper's way to write it."""
    net = _head().net.double()
    x_t, velocity, t, r = _rows(ACTION.double())
    kappa = torch.rand(BATCH, generator=stream(3, "k")).double()
    m = t - kappa * (t - r)
    x_m = x_t - expand(t - m, x_t) * velocity
    x_r = x_m - expand(m - r, x_t) * net(x_m, m, r, COND.double())
    target = alpha_flow_target(net, x_t, t, r, COND.double(), velocity, kappa)
    torch.testing.assert_close(target, ((x_t - x_r) / expand(t - r, x_t)).detach(), rtol=1e-9, atol=1e-9)


def test_kappa_one_is_flow_matching_and_kappa_to_zero_is_meanflow() -> None:
    net = _head().net.double()
    cond = COND.double()
    x_t, velocity, t, r = _rows(ACTION.double())
    assert torch.equal(alpha_flow_target(net, x_t, t, r, cond, velocity, torch.ones_like(t)), velocity)
    # (target - u) / kappa -> v - (t - r) du/dt - u: MeanFlow's residual
    small = torch.full_like(t, 1e-3)
    u = net(x_t, t, r, cond).detach()
    residual = (alpha_flow_target(net, x_t, t, r, cond, velocity, small) - u) / 1e-3
    wanted = velocity - expand(t - r, x_t) * time_derivative(net, x_t, t, r, cond, velocity) - u
    assert float((residual - wanted).norm() / wanted.norm()) < 1e-2


def test_losses_vanish_on_a_point_mass() -> None:
    head = AlphaFlowHead(PointMass(), parameterization="u", loss_power=0.0)
    action = torch.full((BATCH, 4, 2), 0.3, dtype=torch.float64)
    loss = head.loss(action, torch.zeros(BATCH, 1).double(), MASK, stream(0, "n")).loss
    assert float(loss.detach()) < 1e-20


def test_teacher_has_no_gradient_and_moves_by_its_decay() -> None:
    head = _head(teacher_decay=0.75, guidance_weight=0.1)
    head.loss(ACTION, COND, MASK, stream(0, "n")).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in head.teacher.parameters())
    weight, before = next(head.teacher.parameters()), next(head.teacher.parameters()).clone()
    with torch.no_grad():
        next(head.net.parameters()).add_(1.0)
    assert torch.equal(weight, before)
    head.after_step(0.1)
    torch.testing.assert_close(weight, before + 0.25)


def test_kappa_falls_quadratically_to_its_end_and_stays_there() -> None:
    head, means = _head(kappa_end=0.05, consistency_share=1.0), []
    for progress in (0.0, 0.5, 0.8, 1.0):
        head.after_step(progress)
        metrics = head.loss(ACTION, COND, MASK, stream(0, "n")).metrics
        means.append(float(metrics["kappa"]))
    draws = means[0]  # of one and the same uniform numbers
    assert draws == pytest.approx(0.5, abs=0.1)
    assert means == pytest.approx([draws, 0.25 * draws, 0.05 * draws, 0.05 * draws])


def _one_step_spread(kappa_end: float, steps: int = 1500) -> float:
    """Trained on actions ~ N(0, 0.5^2): one step takes noise x to (1 - k(1, 0)) x."""
    torch.manual_seed(0)
    head = AlphaFlowHead(Linear(), parameterization="u", kappa_end=kappa_end, teacher_decay=0.95, loss_power=0.0)
    optimizer, data, noise = torch.optim.Adam(head.parameters(), lr=5e-3), stream(0, "d"), stream(0, "n")
    cond, mask = torch.zeros(512, 1), torch.ones(512, 1)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * warmup_cosine(step, steps=steps, warmup=50)
        optimizer.zero_grad()
        head.loss(0.5 * torch.randn(512, 1, 1, generator=data), cond, mask, noise).loss.backward()
        optimizer.step()
        head.after_step((step + 1) / steps)
    one = torch.ones(1)
    return abs(1.0 - float(head.velocity(one[:, None, None], one, 0 * one, cond[:1]).detach()))


@pytest.mark.slow
def test_gaussian_actions_come_out_as_wide_as_they_are_once_kappa_is_small() -> None:
    assert _one_step_spread(0.05) == pytest.approx(0.49, abs=0.02)


def test_gaussian_actions_come_out_half_as_wide_while_kappa_is_large() -> None:
    assert _one_step_spread(1.0) < 0.30


def test_guidance_pushes_along_what_tells_the_condition_from_none_and_nowhere_without_it() -> None:
    """Its gradient is what the weight adds; with all conditions equal to the null one the push is zero."""
    gradients = {}
    for name, cond in (("same", torch.ones(BATCH, 3)), ("other", COND)):
        for weight in (0.5, 1.0):
            head = _head(guidance_weight=weight)
            assert head.null is not None
            head.null.data.fill_(1.0)
            output = head.loss(ACTION, cond, MASK, stream(0, "n"))
            output.loss.backward()
            gradients[name, weight] = [p.grad.clone() for p in head.net.parameters() if p.grad is not None]
            assert (float(output.metrics["loss_guidance"]) > 0) == (name == "other")
    same, other = (
        max(float((a - b).abs().max()) for a, b in zip(gradients[name, 0.5], gradients[name, 1.0], strict=True))
        for name in ("same", "other")
    )
    assert same < 1e-8 < 1e-4 < other


def test_without_guidance_there_is_no_null_condition() -> None:
    assert "null" not in dict(_head().named_parameters())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"consistency_share": 0.0}, "consistency_share must lie"),
        ({"kappa_end": 0.0}, "kappa_end must lie"),
        ({"guidance_weight": -1.0}, "guidance_weight >= 0"),
        ({"guidance_weight": 0.1, "cond_dropout": 0.0}, "nothing trains the null"),
    ],
)
def test_bad_options_are_refused(words: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _head(**words)
