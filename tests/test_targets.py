"""One step of MeanFlow against a hundred of flow matching on eight Gaussians, same net and budget."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    path = Path(__file__).parents[1] / "scripts/bench_targets.py"
    spec = importlib.util.spec_from_file_location("bench_targets", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_one_step_of_meanflow_comes_within_twice_the_distance_of_a_hundred_of_flow_matching(bench: ModuleType) -> None:
    target = bench.EightGaussians()
    one = bench.measure_head("meanflow", target, seed=0, steps=4000).distances[0]
    many = bench.measure_head("flow_matching_published", target, seed=0, steps=4000).many
    assert one < 2.0 * many, (one, many)
    assert bench.floor(target, 0) < 0.5 * many, "the distance cannot tell samples apart at this size"


@pytest.mark.parametrize("dim", [2, 20])
def test_the_distance_is_that_of_a_shift(bench: ModuleType, dim: int) -> None:
    sample = torch.randn(2000, dim, generator=torch.Generator().manual_seed(0))
    shift = torch.zeros(dim)
    shift[0] = 3.0
    # the mean square of a direction's first component is 1 / dim
    assert bench.sliced_wasserstein2(sample, sample + shift) == pytest.approx(3.0 / dim**0.5, rel=0.15)
