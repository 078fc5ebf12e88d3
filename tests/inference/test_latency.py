"""Latency: stages are charged for their own work, percentiles are ordered, wrong input is refused."""

import json

import pytest
import torch

from flowpolicy.checkpoint import create_policy
from flowpolicy.cli import config
from flowpolicy.embodiment import Embodiment, KeySpec
from flowpolicy.inference import latency, prepare
from flowpolicy.inference.latency import example_observation, measure_latency, percentiles
from flowpolicy.policy import FlowPolicy


@pytest.fixture(scope="module")
def policy() -> FlowPolicy:
    embodiment = Embodiment(
        robot="arm",
        obs={"agent_pos": KeySpec((9,)), "env_state": KeySpec((20,))},
        action=KeySpec((7,)),
        action_kind="joint_position",
        control_hz=20.0,
        action_low=(-1.0,) * 7,
        action_high=(1.0,) * 7,
    )
    config = {
        "_target_": "flowpolicy.policy.build_policy",
        "encoder": {"_target_": "flowpolicy.encoders.state.StateEncoder", "_partial_": True},
        "net": {"_target_": "flowpolicy.nets.mlp.ResidualMLP", "_partial_": True, "width": 256},
        "head": {"_target_": "flowpolicy.heads.meanflow.MeanFlowHead", "_partial_": True},
    }
    return create_policy(config, embodiment).eval()


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_each_stage_is_charged_for_its_own_work(policy: FlowPolicy, monkeypatch: pytest.MonkeyPatch, num_steps: int):
    """On a clock that only the encoder (1 ms) and the net (2 ms a pass) move, every number is exact."""
    clock = [0.0]

    def costs(ms: float):
        def hook(module, arguments, output) -> None:
            clock[0] += ms / 1e3

        return hook

    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock[0])
    hooks = [policy.encoder.register_forward_hook(costs(1.0)), policy.head.net.register_forward_hook(costs(2.0))]
    report = measure_latency(policy, example_observation(policy), num_steps=num_steps, warmup=1, repeats=5)
    for hook in hooks:
        hook.remove()
    assert report.predict == pytest.approx(dict.fromkeys(("p50", "p95", "p99", "max"), 1.0 + 2.0 * num_steps))
    assert report.floor["p50"] == pytest.approx(2.0 * num_steps)
    assert {name: stage["p50"] for name, stage in report.stages.items()} == pytest.approx(
        {"encode": 1.0, "head": 2.0 * num_steps, "decode": 0.0}
    )
    assert report.overhead == pytest.approx(1 / (1 + 2 * num_steps))


def test_percentiles_are_ordered_and_samples_are_kept(policy: FlowPolicy):
    report = measure_latency(policy, example_observation(policy), warmup=1, repeats=30)
    for times in (report.predict, report.floor, *report.stages.values()):
        assert 0.0 < times["p50"] <= times["p95"] <= times["p99"] <= times["max"]
    assert len(report.samples_ms) == 30 and max(report.samples_ms) == report.predict["max"]
    assert json.loads(json.dumps(report.to_dict()))["stages"] == report.stages


def test_a_prepared_policy_is_measured_beside_it(policy: FlowPolicy):
    assert measure_latency(policy, example_observation(policy), warmup=0, repeats=2).prepared is None
    prepared = prepare(policy)
    report = measure_latency(policy, example_observation(policy), warmup=1, repeats=30, prepared=prepared)
    assert report.prepared is not None and report.prepared_samples_ms is not None
    assert len(report.prepared_samples_ms) == 30 and max(report.prepared_samples_ms) == report.prepared["max"]
    with pytest.raises(ValueError, match="prepared for num_steps=1, got num_steps=2"):
        measure_latency(policy, example_observation(policy), num_steps=2, repeats=1, prepared=prepared)


def test_a_slow_policy_is_measured_twenty_times_at_least_and_no_longer_than_the_budget(policy, monkeypatch):
    clock = [0.0]

    def a_tenth_of_a_second(module, arguments, output) -> None:
        clock[0] += 0.1

    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock[0])
    hook = policy.head.net.register_forward_hook(a_tenth_of_a_second)
    turn = 3 * 0.1  # the net runs in predict, in floor and in head
    assert len(measure_latency(policy, example_observation(policy), warmup=0, budget_s=1.0).samples_ms) == 20
    patient = measure_latency(policy, example_observation(policy), warmup=0, budget_s=2 * 40 * turn)
    hook.remove()
    assert len(patient.samples_ms) in (32, 36)  # of five calls four count


def test_measuring_leaves_the_global_random_state_alone(policy: FlowPolicy):
    before = torch.get_rng_state()
    measure_latency(policy, example_observation(policy), warmup=0, repeats=2)
    assert torch.equal(before, torch.get_rng_state())


def test_a_batch_is_refused(policy: FlowPolicy):
    obs = {key: value.expand(2, *value.shape[1:]) for key, value in example_observation(policy).items()}
    with pytest.raises(ValueError, match=r"must be \(1, To, ...\), got \(2, 1, 9\)"):
        measure_latency(policy, obs)


@pytest.mark.parametrize("bad", [{"repeats": 0}, {"warmup": -1}])
def test_impossible_counts_are_refused(policy: FlowPolicy, bad: dict[str, int]):
    with pytest.raises(ValueError, match="measure_latency"):
        measure_latency(policy, example_observation(policy), **bad)


def test_percentiles_of_one_to_a_hundred():
    assert percentiles(range(1, 102)) == {"p50": 51.0, "p95": 96.0, "p99": 100.0, "max": 101.0}


def test_percentiles_of_nothing_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        percentiles([])


def test_the_example_is_what_a_policy_that_sees_takes():
    obs = {"agent_pos": KeySpec((4,)), "point_cloud": KeySpec((16, 3)), "image": KeySpec((40, 40, 3), dtype="uint8")}
    embodiment = Embodiment("arm", obs, KeySpec((3,)), "eef_delta", 20.0, (-1.0,) * 3, (1.0,) * 3)
    facts = config.plain(config.load("train", ["policy/encoder=vit", "policy.net.width=16", "dataset.path=none"]))
    seeing = create_policy({**facts["policy"], "obs_keys": None}, embodiment).eval()
    assert measure_latency(seeing, example_observation(seeing), warmup=0, repeats=1).predict["p50"] > 0
