"""Drift head: its gradient is the field, it keeps two ways apart where the published scale loses them."""

from collections.abc import Callable
from functools import partial
from typing import get_args

import pytest
import torch
from torch import Tensor

from flowpolicy.flow.drift import Scale, drift
from flowpolicy.heads.base import Parameterization
from flowpolicy.heads.drift import DriftHead
from flowpolicy.nets.base import Features, VelocityNet
from flowpolicy.nets.mlp import ResidualMLP
from flowpolicy.seeding import stream
from flowpolicy.trainers.schedule import warmup_cosine
from tests.heads.known import TwoLayers

BATCH, HORIZON, DIM = 6, 4, 2
COND = torch.zeros(BATCH, 1)


class _Free(VelocityNet):
    """Every generated chunk is a parameter of its own."""

    cond_dim = 1

    def __init__(self, count: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.chunks = torch.nn.Parameter(torch.randn(count, HORIZON, DIM))

    def forward_with_features(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> tuple[Tensor, Features]:
        """The parameters, with nothing of the inputs."""
        assert bool((t == 1).all() and (r == 0).all())
        return self.chunks, {}


def test_gradient_is_minus_two_fields_over_scale_and_size() -> None:
    head = DriftHead(_Free(BATCH * 4))
    action = torch.randn(BATCH, HORIZON, DIM, generator=stream(0, "a")).requires_grad_()
    output = head.loss(action, COND, torch.ones(BATCH, HORIZON), stream(1, "n"))
    output.loss.backward()
    assert isinstance(head.net, _Free) and head.net.chunks.grad is not None
    samples = head.net.chunks.detach().reshape(BATCH, 4, -1)
    moved = drift(samples, action.detach().flatten(1)[:, None], temperatures=head.temperatures)
    wanted = -2.0 * moved.field / (moved.scale[:, None, None] * samples.numel())
    torch.testing.assert_close(head.net.chunks.grad.reshape(samples.shape), wanted, rtol=1e-5, atol=1e-7)
    assert action.grad is None or not action.grad.any()
    torch.testing.assert_close(output.loss.detach(), moved.field.square().mean())


def test_padded_steps_get_no_gradient() -> None:
    head, mask = DriftHead(_Free(BATCH * 4), mse_until=0.5), torch.ones(BATCH, HORIZON)
    mask[:, 2:] = 0.0
    head.loss(torch.randn(BATCH, HORIZON, DIM), COND, mask, stream(1, "n")).loss.backward()
    assert isinstance(head.net, _Free) and head.net.chunks.grad is not None
    assert not head.net.chunks.grad[:, 2:].any() and bool(head.net.chunks.grad[:, :2].any())


def test_squared_error_gives_way_to_the_drift() -> None:
    action, mask = torch.randn(BATCH, HORIZON, DIM, generator=stream(0, "a")), torch.ones(BATCH, HORIZON)
    head = DriftHead(_Free(BATCH * 4), mse_until=0.7)
    losses = []
    for progress in (0.0, 0.7, 1.0):
        head.after_step(progress)
        losses.append(float(head.loss(action, COND, mask, stream(1, "n")).loss.detach()))
    chunks = head.net.chunks.detach().reshape(BATCH, 4, HORIZON, DIM)  # type: ignore[union-attr]
    error = float((chunks - action[:, None]).square().mean())
    plain = float(DriftHead(_Free(BATCH * 4)).loss(action, COND, mask, stream(1, "n")).loss.detach())
    assert losses == pytest.approx([error, (error + plain) / 2, plain], rel=5e-3)


def _train(
    scale: Scale,
    *,
    modes: float,
    num_samples: int,
    seed: int,
    steps: int = 500,
    make: Callable[[], VelocityNet] = TwoLayers,
    parameterization: Parameterization = "x",
) -> Tensor:
    """4,000 generated first coordinates after training on actions (+-modes, 0) + N(0, 0.05^2)."""
    torch.manual_seed(seed)
    head = DriftHead(make(), num_samples=num_samples, scale=scale, parameterization=parameterization)
    optimizer, data, noise = torch.optim.Adam(head.parameters(), lr=1e-3), stream(seed, "d"), stream(seed, "n")
    cond, mask = torch.zeros(64, 1), torch.ones(64, 1)
    for step in range(steps):
        sign = torch.randint(2, (64, 1, 1), generator=data) * 2.0 - 1.0
        centre = torch.cat([modes * sign, torch.zeros_like(sign)], dim=-1)
        action = centre + 0.05 * torch.randn(64, 1, 2, generator=data)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * warmup_cosine(step, steps=steps, warmup=0)
        optimizer.zero_grad()
        head.loss(action, cond, mask, noise).loss.backward()
        optimizer.step()
    start, one = torch.randn(4000, 1, 2, generator=stream(seed, "s")), torch.ones(4000)
    with torch.no_grad():
        return (start - head.velocity(start, one, 0 * one, torch.zeros(4000, 1)))[:, 0]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_two_ways_stay_apart(seed: int) -> None:
    """The truth is 1.0."""
    assert 0.8 < float(_train("positive", modes=1.0, num_samples=8, seed=seed)[:, 0].std()) < 1.2


def test_published_scale_collapses_to_the_mean_of_two_ways() -> None:
    assert float(_train("all", modes=1.0, num_samples=8, seed=0)[:, 0].std()) < 0.05


def test_samples_that_start_as_wide_as_the_noise_keep_both_ways_where_the_net_hardly_sees_the_noise() -> None:
    """With "x" this net and seed take one way only."""
    net = partial(ResidualMLP, action_dim=2, horizon=1, cond_dim=1, width=64, depth=1)
    spread = {
        kind: float(_train("positive", modes=1.0, num_samples=8, seed=0, make=net, parameterization=kind)[:, 0].std())
        for kind in get_args(Parameterization)
    }
    assert spread["x"] < 0.1 and 0.8 < spread["u"] < 1.2, spread


def test_one_way_keeps_its_spread() -> None:
    spread = _train("positive", modes=0.0, num_samples=4, seed=0).std(dim=0)
    assert spread.tolist() == pytest.approx([0.05, 0.05], abs=0.005)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"num_samples": 0}, "num_samples >= 1"),
        ({"temperatures": [0.1, 0.0]}, "positive temperatures"),
        ({"temperatures": []}, "positive temperatures"),
        ({"scale": "mean"}, "positive, all"),
        ({"mse_until": 1.5}, "mse_until"),
    ],
)
def test_bad_options_are_refused(words: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DriftHead(_Free(1), **words)


def test_the_field_is_float32_under_bfloat16_autocast() -> None:
    """The samples nearly agree, so that the field is a small difference of large products."""
    net = _Free(BATCH * 4)
    head = DriftHead(net, num_samples=4)
    centre = torch.randn(BATCH, 1, HORIZON, DIM, generator=stream(0, "centre"))
    chunks = centre + 0.01 * torch.randn(BATCH, 4, HORIZON, DIM, generator=stream(0, "spread"))
    with torch.no_grad():
        net.chunks.copy_(chunks.flatten(0, 1))
    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = head.loss(centre[:, 0] + 0.02, COND, torch.ones(BATCH, HORIZON), stream(0, "n")).loss
        gradients += torch.autograd.grad(loss, [net.chunks])
    assert float(torch.nn.functional.cosine_similarity(*(one.flatten() for one in gradients), dim=0)) > 0.9999
