"""The drifting field: what it is in closed form, its symmetries, where it starts to lose the expert."""

import pytest
import torch
from torch import Tensor

from flowpolicy.flow.drift import SCALES, Drift, Scale, drift
from flowpolicy.seeding import stream

TEMPERATURES = (0.02, 0.05, 0.2)
BATCH, SAMPLES, SIZE = 6, 4, 8


def _points(samples: int = SAMPLES, positives: int = 1) -> tuple[Tensor, Tensor]:
    generator = stream(0, "drift")
    x = torch.randn(BATCH, samples, SIZE, generator=generator).double()
    return x, torch.randn(BATCH, positives, SIZE, generator=generator).double()


def _drift(x: Tensor, y: Tensor, **words) -> Drift:
    return drift(x, y, temperatures=TEMPERATURES, **words)


@pytest.mark.parametrize("scale", SCALES)
def test_one_sample_and_one_expert_is_a_step_of_fixed_length_to_the_expert(scale: Scale) -> None:
    x, y = _points(samples=1)
    found = _drift(x, y, scale=scale)
    assert float(found.field.square().mean()) == pytest.approx(9.0, abs=1e-9)
    cosine = torch.nn.functional.cosine_similarity(found.field.flatten(1), (y - x).flatten(1))
    assert float(cosine.min()) > 1.0 - 1e-9


@pytest.mark.parametrize("scale", SCALES)
def test_symmetries(scale: Scale) -> None:
    x, y = _points()
    field = _drift(x, y, scale=scale).field
    torch.testing.assert_close(_drift(x + 3.7, y + 3.7, scale=scale).field, field, rtol=0, atol=1e-12)
    torch.testing.assert_close(_drift(7 * x, 7 * y, scale=scale).field, field, rtol=0, atol=1e-4)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(_drift(x[:, order], y, scale=scale).field, field[:, order], rtol=0, atol=1e-12)


def test_one_expert_pulls_from_the_kernel_centroid_of_the_other_samples() -> None:
    """F_i = m+ m- (y - sum of A x over the siblings / m-): not from the sample itself."""
    x, y = _points()
    found = drift(x, y, temperatures=(0.2,))
    distance = torch.cdist(x, torch.cat([x, y], dim=1))
    normalised = distance / distance[..., SAMPLES:].mean() + 100 * torch.eye(SAMPLES, SAMPLES + 1)
    affinity = ((-normalised / 0.2).softmax(-1) * (-normalised / 0.2).softmax(-2)).clamp_min(1e-6).sqrt()
    repelling, pull = affinity[..., :SAMPLES], affinity[..., SAMPLES:]
    push = repelling.sum(-1, keepdim=True)
    force = pull * push * (y - repelling @ x / push)
    torch.testing.assert_close(found.field, force / force.square().mean().sqrt(), rtol=1e-6, atol=1e-8)


def test_samples_that_coincide_prefer_the_nearer_expert_only_where_distances_to_it_set_the_scale() -> None:
    """Eight samples at 0.2, the expert at +1 or at -1. Published: both lie at 9 mean distances, every affinity at its
    floor, so the pull is proportional to the distance: mean regression, and two ways never part."""
    x = torch.tensor([0.2, 0.0]).double() + 1e-3 * torch.randn(2, 8, 2, generator=stream(0, "x")).double()
    y = torch.tensor([[[1.0, 0.0]], [[-1.0, 0.0]]]).double()
    pull = {}
    for scale in SCALES:
        near, far = drift(x, y, temperatures=(0.2,), scale=scale).field.norm(dim=-1).mean(dim=-1).tolist()
        pull[scale] = near / far
    assert pull["all"] == pytest.approx(0.8 / 1.2, rel=0.01) and pull["positive"] > 1.5, pull


def test_entries_that_do_not_count_neither_move_nor_weigh() -> None:
    x, y = _points()
    valid = torch.ones(BATCH, SIZE).double()
    valid[:, SIZE // 2 :] = 0.0
    masked = _drift(x * valid[:, None], y * valid[:, None], valid=valid)
    short = _drift(x[..., : SIZE // 2], y[..., : SIZE // 2])
    torch.testing.assert_close(masked.field[..., : SIZE // 2], short.field)
    assert not masked.field[..., SIZE // 2 :].any()
    torch.testing.assert_close(masked.scale, short.scale)


def test_no_gradient_flows_through_the_field() -> None:
    x, y = (value.requires_grad_() for value in _points())
    assert not any(value.requires_grad for value in _drift(x, y))


def test_coinciding_points_stay_finite() -> None:
    zero = torch.zeros(2, SAMPLES, SIZE)
    assert bool(drift(zero, zero[:, :1], temperatures=TEMPERATURES).field.isfinite().all())


def test_unknown_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="positive, all"):
        _drift(*_points(), scale="mean")  # type: ignore[arg-type]
