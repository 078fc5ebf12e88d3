"""What inspect prints are the numbers of the store, whatever their type."""

from pathlib import Path

import numpy as np
import pytest

from flowpolicy.data import inspect
from flowpolicy.data.inspect import describe_store
from flowpolicy.data.store import Episode, EpisodeStore, EpisodeWriter
from flowpolicy.embodiment import Embodiment, KeySpec

KEYS = {"image": KeySpec((9, 7, 3), dtype="uint8"), "point_cloud": KeySpec((30, 3))}
EMBODIMENT = Embodiment("eye", KEYS, KeySpec((1,)), "velocity", 10.0, (-1.0,), (1.0,))


@pytest.fixture
def store(tmp_path: Path) -> EpisodeStore:
    rng = np.random.default_rng(0)
    obs = {
        "image": (255 * rng.random((40, 9, 7, 3)) ** 2).astype(np.uint8),
        "point_cloud": rng.normal(size=(40, 30, 3)).astype(np.float32),
    }
    obs["point_cloud"][3, 4, 1] = np.nan
    with EpisodeWriter(tmp_path / "a.zarr", EMBODIMENT, {}) as writer:
        writer.add(Episode(obs, np.full((40, 1), np.nan), np.zeros(40), True, 0))
    return EpisodeStore.open(tmp_path / "a.zarr")


def rows(text: str, key: str) -> list[list[float]]:
    """The numbers of one key's table."""
    lines = text.split(f"\n{key} ")[-1].split("\n\n")[0].splitlines()[1:]
    return [[float(word) for word in line.split()[1:]] for line in lines]


@pytest.mark.parametrize("most", [10_000_000, 500])
def test_the_statistics_are_numpys(store: EpisodeStore, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(inspect, "_MOST_VALUES", most)
    text = describe_store(store)
    for key, digits in (("image", 1.0), ("point_cloud", 2e-3 if most > 500 else 0.6)):
        for dim, found in enumerate(rows(text, key)):
            column = store.load(key).reshape(-1, 3)[:, dim].astype(np.float64)
            column = column[np.isfinite(column)]
            wanted = [*np.quantile(column, inspect._QUANTILES), column.mean(), column.std()]
            np.testing.assert_allclose(found, wanted, atol=digits)
            assert found[0] == pytest.approx(column.min(), rel=1e-3) and found[6] == pytest.approx(
                column.max(), rel=1e-3
            )
            if key == "image":
                np.testing.assert_allclose(found[-2:], wanted[-2:], rtol=1e-3)
    assert "[0] no finite value" in " ".join(text.split())
