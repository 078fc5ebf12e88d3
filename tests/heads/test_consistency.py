"""Consistency flow matching: exact on straight paths, the published loss in its own time, its three targets."""

import pytest
import torch
from torch import Tensor

from flowpolicy.flow.path import expand
from flowpolicy.flow.times import time_grid
from flowpolicy.heads.consistency import ConsistencyHead
from flowpolicy.nets.base import Features, VelocityNet
from flowpolicy.nets.mlp import ResidualMLP
from flowpolicy.samplers.jump import sample_ode
from flowpolicy.seeding import stream

ACTION, COND = torch.randn(64, 4, 2, generator=stream(0, "a")), torch.randn(64, 3, generator=stream(0, "c"))
MASK = torch.ones(64, 4)
PUBLISHED = {"p_start": 0.0, "time_law": "uniform", "loss_power": 0.0}


def _head(**words) -> ConsistencyHead:
    torch.manual_seed(0)
    return ConsistencyHead(ResidualMLP(action_dim=2, horizon=4, cond_dim=3, width=32), **words)


class _PointMass(VelocityNet):
    """The exact velocity where every action is 0.3."""

    cond_dim = 3

    def forward_with_features(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> tuple[Tensor, Features]:
        """(x_t - a) / t."""
        assert torch.equal(t, r)
        return (x_t - 0.3) / expand(t.clamp_min(1e-6), x_t), {}


@pytest.mark.parametrize("segments", [1, 2, 4])
def test_straight_paths_have_zero_loss_and_end_at_the_action(segments: int) -> None:
    head = ConsistencyHead(_PointMass(), segments=segments)
    output = head.loss(torch.full((512, 4, 2), 0.3), COND[:1], torch.ones(512, 4), stream(0, "n"))
    assert float(output.loss) < 1e-6
    noise = torch.randn(8, 4, 2, generator=stream(1, "n"))
    for num_steps in (1, 2, 5):
        chunk = sample_ode(head.velocity, noise, COND[:1], time_grid(num_steps))
        torch.testing.assert_close(chunk, torch.full_like(chunk, 0.3), rtol=0, atol=0.05)  # eps: t = 0.99 for t = 1


@pytest.mark.parametrize("segments", [1, 2, 3])
def test_loss_is_the_published_one_with_noise_at_time_zero(segments: int) -> None:
    """FlowPolicy's formulas written in its own time s = 1 - t, on the head's random numbers."""
    head, generator, delta = _head(segments=segments, **PUBLISHED), stream(1, "n"), 0.01
    noise = torch.randn(ACTION.shape, generator=generator)
    s = 1.0 - 0.99 * torch.rand(64, generator=generator)
    s[:3] = torch.tensor([0.995, 0.499, 1 / 3 - 0.005])  # at the data, and just before a segment's end
    r = (s + delta).clamp(max=1.0)
    end = ((s * segments).floor() + 1.0).clamp(max=segments) / segments

    def state(time: Tensor) -> Tensor:
        return expand(time, ACTION) * ACTION + (1 - expand(time, ACTION)) * noise

    def v(time: Tensor) -> Tensor:
        return -head.net(state(time), 1 - time, 1 - time, COND)

    f = state(s) + expand(end - s, ACTION) * v(s)
    g = torch.where(expand(r < 1.0, ACTION), state(r) + expand(end - r, ACTION) * v(r), ACTION)
    inside = (end - s > 1.01 * delta).float()
    wanted = (f - g).square().mean() + 1e-5 * (inside * (v(s) - v(r)).square().mean(dim=(1, 2))).mean()
    times = iter([noise, (1.0 - s) / 0.99])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", lambda *_, **__: next(times))
        patch.setattr(torch, "rand", lambda *_, **__: next(times))
        loss = head.loss(ACTION, COND, MASK, generator).loss
    torch.testing.assert_close(loss * delta**2, wanted, rtol=1e-4, atol=0)


def test_targets_have_one_value_and_different_gradients() -> None:
    losses, gradients = [], []
    for target in ("gradient", "stop_gradient", "ema"):
        head = _head(target=target)
        loss = head.loss(ACTION, COND, MASK, stream(1, "n")).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in head.net.parameters() if p.grad is not None]))
        assert head.teacher is None or all(p.grad is None for p in head.teacher.parameters())
    assert torch.equal(losses[0], losses[1]) and torch.equal(losses[1], losses[2])  # the teacher starts as the net
    assert torch.equal(gradients[1], gradients[2]) and not torch.equal(gradients[0], gradients[1])


def test_teacher_follows_the_net_by_its_decay_and_only_after_a_step() -> None:
    head = _head(target="ema", teacher_decay=0.75)
    assert head.teacher is not None
    weight = next(head.teacher.parameters())
    before = weight.clone()
    with torch.no_grad():
        next(head.net.parameters()).add_(1.0)
    assert torch.equal(weight, before)
    head.after_step(0.5)
    torch.testing.assert_close(weight, before + 0.25)


def test_one_step_asks_where_training_stopped() -> None:
    """The net has not seen t = 1; the step's velocity is that of t = 1 - eps."""
    head, t = _head(eps=0.1), torch.ones(64)
    assert torch.equal(head.velocity(ACTION, t, 0 * t, COND), head.net(ACTION, 0.9 * t, 0.9 * t, COND))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"segments": 0}, "segments >= 1"),
        ({"segments": 4, "delta": 0.3}, "delta in"),
        ({"eps": 1.0}, "eps in"),
        ({"target": "teacher"}, "gradient, stop_gradient, ema"),
        ({"parameterization": "v"}, "'u' .*'x'"),
    ],
)
def test_bad_options_are_refused(words: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _head(**words)
