"""Normaliser: inverse undoes forward, the modes' exact numbers, near-constant dimensions, bad input."""

import warnings

import numpy as np
import pytest
import torch

from flowpolicy.normalizer import LinearNormalizer, Statistics, least_range


def data(dim: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1000, dim, generator=generator) * torch.logspace(-2, 2, dim) + torch.arange(dim)


@pytest.mark.parametrize("mode", ["minmax", "quantile", "meanstd"])
@pytest.mark.parametrize("shape", [(5,), (7, 5), (2, 3, 4, 5), (0, 5)])
def test_inverse_undoes_forward(mode, shape):
    normalizer = LinearNormalizer.fit(data(), mode)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    before = x.clone()
    torch.testing.assert_close(normalizer.inverse(normalizer(x)), x, rtol=1e-5, atol=1e-4)
    assert torch.equal(x, before) and normalizer(x).shape == x.shape


def test_minmax_reaches_minus_one_and_one():
    normalized = LinearNormalizer.fit(data())(data())
    torch.testing.assert_close(normalized.amin(0), -torch.ones(5))
    torch.testing.assert_close(normalized.amax(0), torch.ones(5))


def test_quantile_ignores_outliers():
    values = np.linspace(0, 100, 101)[:, None].repeat(2, axis=1)
    normalizer = LinearNormalizer.fit(values, "quantile")
    torch.testing.assert_close(normalizer(torch.tensor([1.0, 99.0])), torch.tensor([-1.0, 1.0]))


def test_meanstd_gives_mean_zero_and_std_one():
    normalized = LinearNormalizer.fit(data(), "meanstd")(data())
    torch.testing.assert_close(normalized.mean(0), torch.zeros(5), rtol=0, atol=1e-5)
    torch.testing.assert_close(normalized.std(0, correction=0), torch.ones(5))


@pytest.mark.parametrize("mode", ["minmax", "quantile", "meanstd"])
def test_near_constant_dimensions_are_centred_unscaled_and_warned_about(mode):
    values = data()
    values[:, 1] = 3.0
    values[:, 3] = 7.0 + 1e-5 * values[:, 0]
    with pytest.warns(UserWarning, match=r"agent_pos: dimensions \[1, 3\] are near-constant"):
        normalizer = LinearNormalizer.fit(values, mode, key="agent_pos")
    assert normalizer.scale[[1, 3]].tolist() == [1.0, 1.0]
    assert normalizer(values)[:, [1, 3]].abs().max() < 1e-4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LinearNormalizer.fit(values[:, [0, 2]], mode, key="agent_pos")


def test_min_range_is_a_keyword():
    values = torch.linspace(0, 1e-5, 50)[:, None].double()
    normalizer = LinearNormalizer.fit(values, min_range=1e-7)
    torch.testing.assert_close(normalizer(values.float()).amax(), torch.tensor(1.0))


def test_identity_changes_nothing():
    x = torch.randn(4, 3)
    assert torch.equal(LinearNormalizer.identity(3)(x), x) and torch.equal(LinearNormalizer.identity(3).inverse(x), x)


def test_state_dict_round_trip_has_exactly_scale_and_offset():
    fitted, fresh = LinearNormalizer.fit(data()), LinearNormalizer.identity(5)
    assert list(fitted.state_dict()) == ["scale", "offset"] and not list(fitted.parameters())
    fresh.load_state_dict(fitted.state_dict())
    assert torch.equal(fresh(data()), fitted(data()))


def test_gradient_passes_through():
    x = torch.randn(2, 5, requires_grad=True)
    normalizer = LinearNormalizer.fit(data())
    normalizer(x).sum().backward()
    torch.testing.assert_close(x.grad, normalizer.scale.expand(2, 5))


@pytest.mark.parametrize(
    ("values", "mode", "message"),
    [
        (torch.zeros(0, 3), "minmax", "wanted"),
        (torch.zeros(3), "minmax", "wanted"),
        (torch.tensor([[float("nan")]]), "minmax", "NaN"),
        (torch.ones(3, 1), "maxmin", "unknown mode 'maxmin'"),
    ],
)
def test_bad_data_is_refused(values, mode, message):
    with pytest.raises(ValueError, match=message):
        LinearNormalizer.fit(values, mode)


def test_a_wrong_last_axis_is_refused_and_not_broadcast():
    normalizer = LinearNormalizer.fit(data())
    for wrong in (torch.zeros(4, 1), torch.zeros(5, 4)):
        with pytest.raises(ValueError, match=r"wanted \(\.\.\., 5\)"):
            normalizer(wrong)
        with pytest.raises(ValueError, match=r"wanted \(\.\.\., 5\)"):
            normalizer.inverse(wrong)
    with pytest.raises(ValueError, match="scale and offset"):
        LinearNormalizer(torch.ones(2), torch.ones(3))


@pytest.mark.parametrize("mode", ["minmax", "quantile", "meanstd"])
def test_rows_in_parts_give_what_all_rows_give(mode, monkeypatch):
    monkeypatch.setattr("flowpolicy.normalizer._PART_VALUES", 100)
    rows, statistics = data(), Statistics(mode, key="x")
    for part in rows.split([1, 300, 650, 49]):
        statistics.add(part)
    got, values = statistics.normalizer(), rows.double().numpy()
    low, high = np.quantile(values, (0.01, 0.99), axis=0) if mode == "quantile" else (values.min(0), values.max(0))
    center, half = ((low + high) / 2, (high - low) / 2) if mode != "meanstd" else (values.mean(0), values.std(0))
    exact = {"rtol": 1e-6, "atol": 1e-6} if mode == "meanstd" else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(got.scale, torch.from_numpy(1 / half).float(), **exact)
    torch.testing.assert_close(got.offset, torch.from_numpy(-center / half).float(), **exact)
    assert np.array_equal(statistics.low, values.min(0)) and np.array_equal(statistics.high, values.max(0))


def test_too_many_rows_for_a_quantile_are_thinned_out_evenly(monkeypatch):
    monkeypatch.setattr("flowpolicy.normalizer._MOST_VALUES", 1000)
    statistics = Statistics("quantile", key="x")
    for part in torch.linspace(0, 1, 9999).reshape(-1, 1).split(77):
        statistics.add(part)
    assert sum(part.size for part in statistics._parts) <= 1000
    torch.testing.assert_close(
        statistics.normalizer()(torch.tensor([0.01, 0.99]).reshape(2, 1)).flatten(),
        torch.tensor([-1.0, 1.0]),
        rtol=0,
        atol=3e-3,
    )


@pytest.mark.parametrize(
    ("unit", "floor"),
    [("m", 2e-3), ("rad, fingers m", 2e-3), ("mm", 2.0), ("deg", 0.1), ("", 1e-3), ("N", 1e-3), ("0..255", 1e-3)],
)
def test_the_least_range_is_that_of_the_unit(unit, floor):
    assert least_range(unit) == floor


@pytest.mark.parametrize("mode", ["minmax", "quantile", "meanstd"])
def test_a_dimension_that_hardly_moves_is_not_blown_up_and_the_others_keep_every_bit(mode):
    data = torch.rand(1000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data *= torch.tensor([1.0, 6e-4 if mode == "meanstd" else 1.5e-4, 5e-3 if mode != "meanstd" else 2e-2])
    statistics = Statistics(mode, key="env_state")
    statistics.add(data)
    plain = statistics.normalizer()
    with pytest.warns(UserWarning, match=r"env_state: dimensions \[1 \(handle\.y\)\] hardly move .* over 0\.002"):
        bounded = statistics.normalizer(floor=least_range("m"), names=("handle.x", "handle.y", "handle.z"))
    assert plain.scale[1] > 5_000 and bounded.scale[1] == pytest.approx(1_000)  # 1 cm outside is 10, it was 130
    for entry in ("scale", "offset"):
        torch.testing.assert_close(getattr(bounded, entry)[[0, 2]], getattr(plain, entry)[[0, 2]], rtol=0, atol=0)
    assert bounded(data.float())[:, 1].abs().max() < 0.4
