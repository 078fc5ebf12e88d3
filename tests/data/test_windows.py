"""Window index: every window stays in its episode; the numbers by hand; the edges."""

import numpy as np
import pytest

from flowpolicy.data.windows import window_index


@pytest.mark.parametrize(("horizon", "obs_horizon"), [(1, 1), (4, 1), (4, 4), (16, 2)])
def test_windows_match_the_definition_step_by_step(horizon, obs_horizon):
    ends = np.array([1, 4, 30, 31])
    windows = window_index(ends, horizon=horizon, obs_horizon=obs_horizon)
    start = 0
    for end in ends:
        for c in range(start, end):
            unclipped = np.arange(c - obs_horizon + 1, c - obs_horizon + 1 + horizon)
            np.testing.assert_array_equal(windows.action[c], np.clip(unclipped, start, end - 1))
            np.testing.assert_array_equal(windows.mask[c], (unclipped < end).astype(np.float32))
            np.testing.assert_array_equal(windows.obs[c], np.clip(unclipped[:obs_horizon], start, end - 1))
            assert windows.obs[c, -1] == c == windows.action[c, obs_horizon - 1]
        start = end
    assert len(windows.obs) == len(windows.action) == len(windows.mask) == 31


def test_two_short_episodes_by_hand():
    windows = window_index(np.array([2, 5]), horizon=3, obs_horizon=2)
    assert windows.obs.tolist() == [[0, 0], [0, 1], [2, 2], [2, 3], [3, 4]]
    assert windows.action.tolist() == [[0, 0, 1], [0, 1, 1], [2, 2, 3], [2, 3, 4], [3, 4, 4]]
    assert windows.mask.tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 1, 0]]
    assert windows.obs.dtype == windows.action.dtype == np.int64 and windows.mask.dtype == np.float32


@pytest.mark.parametrize(("horizon", "obs_horizon"), [(1, 2), (4, 0), (0, 0)])
def test_impossible_horizons_are_refused(horizon, obs_horizon):
    with pytest.raises(ValueError, match="obs_horizon <= horizon"):
        window_index(np.array([5]), horizon=horizon, obs_horizon=obs_horizon)


@pytest.mark.parametrize("ends", [[], [0], [3, 3], [5, 4], [-1, 4]])
def test_ends_that_do_not_increase_are_refused(ends):
    with pytest.raises(ValueError, match="increasing"):
        window_index(np.array(ends, dtype=np.int64), horizon=4, obs_horizon=1)
