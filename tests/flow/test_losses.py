"""Dispersive losses against their definitions; the adaptive weight; masking."""

import math

import pytest
import torch

from flowpolicy.flow.losses import DISPERSIVE_KINDS, adaptive_weight, dispersive_loss, masked_mean_square
from flowpolicy.seeding import stream


def _features(batch: int = 12, width: int = 6) -> torch.Tensor:
    return torch.randn(batch, width, generator=stream(0, "features"))


def test_infonce_l2_is_the_log_mean_over_all_pairs() -> None:
    z, tau = _features(), 0.5
    distance = (z[:, None] - z[None]).square().sum(-1)  # (B, B)
    wanted = torch.exp(-distance / (z.shape[1] * tau)).mean().log()
    torch.testing.assert_close(dispersive_loss(z, kind="infonce_l2", temperature=tau), wanted)


def test_infonce_cosine_is_the_log_mean_over_all_pairs() -> None:
    z, tau = _features(), 0.5
    unit = z / z.norm(dim=1, keepdim=True)
    wanted = torch.exp(unit @ unit.T / tau).mean().log()
    torch.testing.assert_close(dispersive_loss(z, kind="infonce_cosine", temperature=tau), wanted)


def test_hinge_by_hand() -> None:
    z = torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]])  # squared distances / F: 0.5, 2, 4.5
    assert float(dispersive_loss(z, kind="hinge", margin=1.0)) == pytest.approx(0.25 / 3)


def test_covariance_by_hand() -> None:
    z = torch.tensor([[1.0, 2.0], [-1.0, -2.0]])  # covariance [[2, 4], [4, 8]], both variances above 1
    assert float(dispersive_loss(z, kind="covariance")) == pytest.approx(16.0)


def test_infonce_l2_lies_between_log_one_over_batch_and_zero() -> None:
    assert float(dispersive_loss(torch.ones(8, 4))) == pytest.approx(0.0, abs=1e-6)
    assert float(dispersive_loss(1e3 * _features(8))) == pytest.approx(math.log(1 / 8), abs=1e-5)


@pytest.mark.parametrize("kind", DISPERSIVE_KINDS)
def test_every_kind_pushes_features_and_survives_one_sample_and_equal_rows(kind: str) -> None:
    z = (0.1 * _features()).requires_grad_()
    loss = dispersive_loss(z, kind=kind)  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(loss, z)
    assert float(gradient.norm()) > 1e-4
    after = dispersive_loss(z.detach() - 0.05 * gradient / gradient.norm(), kind=kind)  # type: ignore[arg-type]
    assert float(after) < loss.item()
    one = torch.randn(1, 3, requires_grad=True)
    assert dispersive_loss(one, kind=kind).item() == 0.0  # type: ignore[arg-type]
    same = torch.ones(4, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(dispersive_loss(same, kind=kind), same)  # type: ignore[arg-type]
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("kind", DISPERSIVE_KINDS)
def test_every_kind_is_float32_under_bfloat16_autocast(kind: str) -> None:
    """Distances of close features would vanish in its 8 bits."""
    z = (1.0 + 1e-3 * _features()).requires_grad_()
    wanted = torch.autograd.grad(dispersive_loss(z, kind=kind), z)[0]  # type: ignore[arg-type]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = dispersive_loss(z, kind=kind)  # type: ignore[arg-type]
    assert loss.dtype == torch.float32 and torch.equal(torch.autograd.grad(loss, z)[0], wanted)


def test_close_pairs_are_pushed_harder_than_far_ones() -> None:
    z = torch.tensor([[0.0, 0.0], [0.3, 0.0], [50.0, 0.0], [53.0, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(dispersive_loss(z), z)
    assert float(gradient[0].norm()) > 2 * float(gradient[2].norm())


def test_adaptive_weight_pins_power_one_and_leaves_power_zero() -> None:
    error = torch.tensor([0.01, 1.0, 100.0])
    torch.testing.assert_close(adaptive_weight(error, power=0.0, eps=1e-3), error)
    assert float((adaptive_weight(error, power=1.0, eps=1e-6) - 1).abs().max()) < 1e-3
    torch.testing.assert_close(adaptive_weight(error, power=0.5, eps=0.0), error.sqrt())


def test_masked_steps_do_not_count() -> None:
    delta = torch.tensor([[[2.0], [100.0]], [[1.0], [3.0]]])
    mask = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    torch.testing.assert_close(masked_mean_square(delta, mask), torch.tensor([4.0, 5.0]))
    torch.testing.assert_close(masked_mean_square(delta, torch.zeros(2, 2)), torch.zeros(2))
