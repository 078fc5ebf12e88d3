"""The path, the time pairs and the grid."""

import pytest
import torch

from flowpolicy.flow.path import interpolate, velocity_from_action
from flowpolicy.flow.times import FlowTimes, least_batch, logit_normal, num_equal_times, time_grid
from flowpolicy.seeding import derive, stream


def test_path_starts_at_the_action_and_ends_at_noise() -> None:
    action, noise = torch.randn(2, 3, 4, 2, generator=stream(0, "x")).double()
    for t, wanted in ((0.0, action), (1.0, noise)):
        x_t, velocity = interpolate(action, noise, torch.full((3,), t, dtype=torch.float64))
        torch.testing.assert_close(x_t, wanted, rtol=0, atol=1e-15)
        torch.testing.assert_close(velocity, noise - action)


def test_velocity_of_the_true_action_is_the_path_velocity() -> None:
    action, noise = torch.randn(2, 5, 4, 2, generator=stream(0, "x")).double()
    t = torch.linspace(0.1, 1.0, 5).double()
    x_t, velocity = interpolate(action, noise, t)
    torch.testing.assert_close(velocity_from_action(x_t, action, t, t_min=0.05), velocity)


def test_one_time_per_sample_is_required() -> None:
    with pytest.raises(ValueError, match="one flow time per sample"):
        interpolate(torch.zeros(2, 4, 1), torch.zeros(2, 4, 1), torch.zeros(2, 4))


def test_time_pairs_are_ordered_and_exactly_the_asked_share_is_equal() -> None:
    t, r = FlowTimes(p_start=0.0).pairs(1000, stream(0, "times"), p_equal=0.3)
    assert num_equal_times(1000, 0.3) == 300
    assert torch.equal(t[:300], r[:300]) and bool((r[300:] < t[300:]).all())
    assert float(r.min()) > 0.0 and float(t.max()) < 1.0


def test_logit_normal_has_the_median_of_its_mean() -> None:
    sample = logit_normal((20000,), mean=-0.4, std=1.0, generator=stream(1, "times"))
    assert float(sample.median()) == pytest.approx(1 / (1 + 2.718281828**0.4), abs=0.01)


@pytest.mark.parametrize("p_equal", [-0.1, 1.1])
def test_share_outside_the_unit_interval_is_refused(p_equal: float) -> None:
    with pytest.raises(ValueError, match="p_equal"):
        num_equal_times(8, p_equal)


def test_grid_falls_from_one_to_zero() -> None:
    torch.testing.assert_close(time_grid(4), torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]))
    with pytest.raises(ValueError, match="num_steps"):
        time_grid(0)


def test_streams_differ_by_name_and_by_seed_and_never_change() -> None:
    seeds = {derive(seed, name) for seed in (0, 1, 100000) for name in ("model", "data_order", "policy_noise")}
    assert len(seeds) == 9
    assert derive(0, "model") == 4315024886209773960


def test_the_least_batch_has_rows_of_both_kinds_and_so_has_every_larger_one() -> None:
    assert [least_batch(p) for p in (0.0, 0.25, 0.5, 0.75, 1.0)] == [1, 3, 2, 3, 1]
    for p_equal in (1e-3, 0.02, 0.1, 0.37, 0.6, 0.9):
        least = least_batch(p_equal)
        assert all(0 < num_equal_times(batch, p_equal) < batch for batch in range(least, least + 2000))
        assert not 0 < num_equal_times(least - 1, p_equal) < least - 1
