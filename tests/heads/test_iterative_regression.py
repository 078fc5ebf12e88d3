"""Two-step regression: which answer each step gives, the published loss, and what the precision weighs."""

import pytest
import torch
from torch import Tensor

from flowpolicy.flow.precision import excess_precision
from flowpolicy.flow.times import time_grid
from flowpolicy.heads.iterative_regression import IterativeRegressionHead
from flowpolicy.nets.mlp import ResidualMLP
from flowpolicy.samplers.jump import sample_ode
from flowpolicy.seeding import stream

BATCH = 64
ACTION = torch.randn(BATCH, 4, 2, generator=stream(0, "a"))
COND, MASK = torch.randn(BATCH, 3, generator=stream(0, "c")), torch.ones(BATCH, 4)


def _head(**words) -> IterativeRegressionHead:
    torch.manual_seed(0)
    return IterativeRegressionHead(ResidualMLP(action_dim=2, horizon=4, cond_dim=3, width=32), **words)


def _answers(head: IterativeRegressionHead, seen: Tensor, t: float) -> Tensor:
    time = torch.full((BATCH,), t)
    return head.net(seen, time, 0 * time, COND)


@torch.no_grad()
def test_one_step_is_the_first_answer_and_two_are_the_answer_to_it() -> None:
    head, zero = _head(), torch.zeros(BATCH, 4, 2)
    first = _answers(head, zero, 1.0)
    second = _answers(head, first, 0.1)
    for noise in (zero, ACTION):
        torch.testing.assert_close(sample_ode(head.velocity, noise, COND, time_grid(1)), first)
        torch.testing.assert_close(sample_ode(head.velocity, noise, COND, time_grid(2)), second)
    assert float((first - second).abs().max()) > 0.01


def test_loss_is_the_published_sum() -> None:
    head = _head(noise_level=0.2)
    noise = torch.randn(ACTION.shape, generator=stream(1, "n"))
    y, z = _answers(head, torch.zeros_like(ACTION), 1.0), _answers(head, ACTION + 0.2 * noise, 0.2)
    wanted = (y - ACTION).square().mean() + (0.8 / 0.2) ** 2 * (z - ACTION).square().mean()
    torch.testing.assert_close(head.loss(ACTION, COND, MASK, stream(1, "n")).loss, wanted)
    assert _head().second_weight == pytest.approx(81.0)


def test_precision_weighs_each_entry_of_the_error() -> None:
    head, noise = _head(precision=True), torch.randn(ACTION.shape, generator=stream(1, "n"))
    weight = 1.0 + excess_precision(ACTION, COND, MASK)
    assert float(weight.max()) > 1.2
    y, z = _answers(head, torch.zeros_like(ACTION), 1.0), _answers(head, ACTION + 0.1 * noise, 0.1)
    wanted = (weight * (y - ACTION).square()).mean() + 81.0 * (weight * (z - ACTION).square()).mean()
    torch.testing.assert_close(head.loss(ACTION, COND, MASK, stream(1, "n")).loss, wanted)


def test_excess_precision_is_where_similar_observations_agree() -> None:
    """The condition fixes the first action entry and says nothing of the second."""
    angle = torch.linspace(0, 2 * torch.pi, 201)[:200]
    cond = torch.stack([angle.cos(), angle.sin()], dim=-1)
    action = torch.stack([angle.cos(), torch.randn(200, generator=stream(0, "a"))], dim=-1)[:, None]
    excess = excess_precision(action, cond, torch.ones(200, 1)).mean(dim=(0, 1))
    assert float(excess[0]) > 5 * float(excess[1])
    assert float(excess_precision(action[:, :, 1:], cond, torch.ones(200, 1)).max()) < 1e-5  # one entry: no proportion


def test_excess_precision_by_hand() -> None:
    """Three rows, two of them alike; every row has two neighbours with weights softmax of +-1 / sqrt(2)."""
    cond = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    action = torch.tensor([[[0.0, 0.0]], [[0.1, 1.0]], [[1.0, -1.0]]])
    near, far = torch.tensor([1.0, -1.0]).div(2**0.5).softmax(0).tolist()
    weights = torch.tensor([[0, near, far], [near, 0, far], [far, near, 0]])

    def precision(weight: Tensor) -> Tensor:
        mean = weight @ action[:, 0]
        value = (weight @ action[:, 0].square() - mean.square() + 1e-6).rsqrt()
        return value / value.mean(dim=1, keepdim=True)

    wanted = (precision(weights) / precision(torch.full((1, 3), 1 / 3)) - 1.0).clamp_min(0.0)
    torch.testing.assert_close(excess_precision(action, cond, torch.ones(3, 1))[:, 0], wanted, rtol=1e-4, atol=1e-5)


def test_excess_precision_ignores_masked_steps_and_survives_equal_rows() -> None:
    mask, other = MASK.clone(), ACTION.clone()
    mask[::2, 2:] = 0.0
    other[::2, 2:] = 9.0
    assert torch.equal(excess_precision(ACTION, COND, mask), excess_precision(other, COND, mask))
    with pytest.raises(ValueError, match="at least 3 rows to compare, got 2"):
        excess_precision(ACTION[:2], COND[:2], MASK[:2])
    same = excess_precision(ACTION, torch.ones(BATCH, 3), MASK)
    assert bool(same.isfinite().all()) and float(same.max()) < 0.2
    assert bool(excess_precision(0 * ACTION, COND, 0 * MASK).isfinite().all())


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_bad_options_are_refused(level: float) -> None:
    with pytest.raises(ValueError, match="noise_level"):
        _head(noise_level=level)
