"""One step of MeanFlow against a hundred of flow matching on eight Gaussians, same net and budget."""

import importlib.util
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.ci
def test_one_step_of_meanflow_comes_within_twice_the_distance_of_a_hundred_of_flow_matching() -> None:
    path = Path(__file__).parents[1] / "scripts/bench_eight_gaussians.py"
    spec = importlib.util.spec_from_file_location("bench_eight_gaussians", path)
    assert spec is not None and spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    result = bench.measure(seed=0)
    assert result.meanflow < 2.0 * result.flow_matching, result
    assert result.floor < 0.5 * result.flow_matching, "the distance cannot tell samples apart at this size"
