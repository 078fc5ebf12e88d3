"""Guidance: the field it trains towards, the null condition, and what it leaves alone."""

from functools import partial

import pytest
import torch
from torch import Tensor

from flowpolicy.flow.path import expand, interpolate
from flowpolicy.heads.meanflow import MeanFlowHead
from flowpolicy.heads.terms.guidance import Guidance
from flowpolicy.nets.base import Features, VelocityNet
from flowpolicy.nets.mlp import ResidualMLP
from flowpolicy.seeding import stream

BATCH, COND = 32, 3


def _batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = stream(0, "data")
    action, noise = torch.randn(2, BATCH, 4, 2, generator=generator)
    t = torch.rand(BATCH, generator=generator)
    x_t, velocity = interpolate(action, noise, t)
    return x_t, t, torch.ones(BATCH, COND), velocity


def _by_condition(x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
    """5 on the null condition (zeros), 7 on any other."""
    assert torch.equal(t, r)
    return torch.full_like(x_t, 5.0) + 2.0 * (cond.abs().sum(dim=-1) > 0)[:, None, None]


def test_target_is_the_weighted_sum_inside_the_interval_and_the_path_velocity_outside() -> None:
    x_t, t, cond, velocity = _batch()
    guidance = Guidance(cond_dim=COND, omega=2.5, kappa=0.25, cond_dropout=0.01, t_start=0.2, t_end=0.8)
    trained, target = guidance(_by_condition, x_t, t, cond, velocity, stream(1, "g"))
    kept = (trained == cond).all(dim=-1)
    guided = (t >= 0.2) & (t <= 0.8) & kept
    assert 0 < int(guided.sum()) < BATCH
    torch.testing.assert_close(target[guided], 2.5 * velocity[guided] + 0.25 * 7.0 - 1.75 * 5.0)
    assert torch.equal(target[~guided], velocity[~guided])


def test_dropped_rows_train_the_null_condition_on_the_plain_velocity() -> None:
    x_t, t, cond, velocity = _batch()
    guidance = Guidance(cond_dim=COND, cond_dropout=0.5)
    trained, target = guidance(_by_condition, x_t, t, cond, velocity, stream(1, "g"))
    dropped = (trained == 0).all(dim=-1)
    assert BATCH // 4 < int(dropped.sum()) < 3 * BATCH // 4
    assert torch.equal(target[dropped], velocity[dropped]) and torch.equal(trained[~dropped], cond[~dropped])
    trained.sum().backward()
    assert guidance.null is not None and guidance.null.grad is not None
    assert guidance.null.grad.tolist() == [float(dropped.sum())] * COND
    assert not target.requires_grad


def test_kappa_form_has_the_fixed_point_of_plain_guidance_at_the_effective_scale() -> None:
    """v~ = omega v + kappa v~ + (1 - omega - kappa) v_null  <=>  v~ = s v + (1 - s) v_null, s = omega / (1 - kappa)."""
    x_t, t, cond, velocity = _batch()
    field = 3.0 * velocity + (1.0 - 3.0) * 5.0
    guidance = Guidance(cond_dim=COND, omega=1.5, kappa=0.5, cond_dropout=1e-6)

    def u(x: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
        return torch.full_like(x, 5.0) if not cond.any() else field

    torch.testing.assert_close(guidance(u, x_t, t, cond, velocity, stream(1, "g"))[1], field)


def test_released_form_leaves_a_learnt_field_alone_and_has_no_null_condition() -> None:
    x_t, t, cond, velocity = _batch()
    guidance = Guidance(cond_dim=COND, omega=2.0, kappa=-1.0, cond_dropout=0.0)
    trained, target = guidance(lambda x, t, r, c: velocity, x_t, t, cond, velocity, stream(1, "g"))
    assert not list(guidance.parameters()) and trained is cond
    torch.testing.assert_close(target, velocity)


class _PointMass(VelocityNet):
    """The exact average velocity where every action is 0.3, whatever the condition."""

    cond_dim = 1

    def __init__(self) -> None:
        super().__init__()
        self.point = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward_with_features(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> tuple[Tensor, Features]:
        """(x_t - a) / t."""
        return (x_t - self.point) / expand(t, x_t), {}


@pytest.mark.parametrize("omega", [1.5, 4.0])
def test_guided_point_mass_has_zero_loss(omega: float) -> None:
    """With one action in the data, condition and null agree, so every scale has the same answer."""
    guidance = partial(Guidance, omega=omega, cond_dropout=0.2)
    head = MeanFlowHead(_PointMass(), parameterization="u", loss_power=0.0, p_equal=0.5, guidance=guidance)
    action = torch.full((64, 4, 2), 0.3, dtype=torch.float64)
    cond = torch.zeros(64, 1, dtype=torch.float64)
    assert float(head.loss(action, cond, torch.ones(64, 4), stream(0, "n")).loss.detach()) < 1e-9  # float32 times


def test_scale_one_and_no_dropout_is_training_without_guidance_bit_for_bit() -> None:
    action, cond = torch.randn(16, 4, 2, generator=stream(0, "a")), torch.randn(16, COND, generator=stream(0, "c"))
    losses = []
    for guidance in (None, partial(Guidance, omega=1.0, cond_dropout=0.0)):
        torch.manual_seed(0)
        head = MeanFlowHead(ResidualMLP(action_dim=2, horizon=4, cond_dim=COND, width=32), guidance=guidance)
        losses.append(head.loss(action, cond, torch.ones(16, 4), stream(1, "n")).loss)
    assert torch.equal(*losses)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"omega": 0.0}, "omega > 0"),
        ({"kappa": 1.0}, "kappa < 1"),
        ({"cond_dropout": 1.0}, r"\[0, 1\)"),
        ({"t_start": 0.9, "t_end": 0.5}, "t_start < t_end"),
        ({"omega": 2.0, "cond_dropout": 0.0}, "never trains it"),
    ],
)
def test_impossible_numbers_are_refused(words: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Guidance(cond_dim=1, **words)
