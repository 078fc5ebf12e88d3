"""Bench: deadlines counted over preprocessing and prediction together, and the sentence that follows from them."""

import json
import os

import numpy as np
import pytest
import torch

from flowpolicy.inference import latency
from flowpolicy.inference.bench import bench, describe_processor, format_bench, pin_to, recommend
from flowpolicy.inference.latency import example_observation
from tests.catalogue import catalogue_policy


def on_a_clock(monkeypatch: pytest.MonkeyPatch, *, net_ms: float, **words) -> dict:
    """A bench on which nothing but the net takes time: `net_ms` a pass."""
    clock = [0.0]
    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock[0])
    policy = catalogue_policy()

    def advance(*_) -> None:
        clock[0] += net_ms / 1e3

    hook = policy.head.net.register_forward_hook(advance)
    report = bench(policy, example_observation(policy), warmup=0, repeats=4, **words)
    hook.remove()
    return report


def test_a_deadline_is_missed_by_preprocessing_and_prediction_together(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {"crop": [1.0, 2.0, 3.0, 4.0], "sample": [5.0, 5.0, 5.0, 6.0]}
    report = on_a_clock(monkeypatch, net_ms=10.0, hz=60.0, preprocess_ms=before)  # 16.7 ms: 16, 17, 18, 20
    assert report["deadline_miss"] == {"predict": 0.75, "prepared": 0.0}  # the prepared net has no hook, takes no time
    assert report["deadline_ms"] == pytest.approx(1000 / 60)
    assert list(report["stages_ms"]) == ["crop", "sample", "encode", "head", "decode"]
    assert report["stages_ms"]["sample"]["max"] == 6.0 and report["predict_ms"]["p50"] == pytest.approx(10.0)
    assert json.loads(json.dumps(report)) == report


def test_without_hz_it_is_the_embodiments(monkeypatch: pytest.MonkeyPatch) -> None:
    report = on_a_clock(monkeypatch, net_ms=20.0, num_steps=3)  # 20 Hz
    assert (report["hz"], report["deadline_miss"]["predict"]) == (20.0, 1.0)
    assert list(report["stages_ms"]) == ["encode", "head", "decode"]


@pytest.mark.parametrize("hz", [0.0, -1.0, float("inf"), float("nan")])
def test_impossible_rates_are_refused(hz: float) -> None:
    policy = catalogue_policy()
    with pytest.raises(ValueError, match="hz must be positive"):
        bench(policy, example_observation(policy), hz=hz)


@pytest.mark.parametrize(
    ("total_ms", "missed", "said"),
    [
        (
            10.0,
            0.0,
            "Predict between two steps: a prediction takes 10 ms at p99 and one step at 20 Hz 50 ms, which "
            "leaves 80% of it.",
        ),
        (60.0, 1.0, "from 2 steps before the 8 of a chunk are spent"),
        (60.0, 0.25, "so 25.0% of the predictions would be late"),
        (60.0, 1.0, "so every prediction would be late"),
        (349.0, 1.0, "from 7 steps before"),
        (351.0, 1.0, "too slow for 20 Hz"),
        (400.0, 1.0, "at most 20 Hz."),
        (800.0, 1.0, "at most 10 Hz."),
    ],
)
def test_the_sentence_follows_from_the_numbers(total_ms: float, missed: float, said: str) -> None:
    assert said in recommend(np.full(100, total_ms), missed, hz=20.0, chunk=8)


def test_the_table_holds_every_stage_and_sentence() -> None:
    policy = catalogue_policy(encoder="point_cloud")
    reports = [
        bench(policy, example_observation(policy), num_steps=k, warmup=0, repeats=3, preprocess_ms={"crop": [0.5]})
        for k in (1, 2)
    ]
    text = format_bench(reports)
    for word in ("crop", "encode", "head", "decode", "predict", "prepared", "bare net", "2 steps", "late at 20 Hz"):
        assert word in text
    assert all(report["recommendation"] in text for report in reports)


def test_pinning_keeps_to_allowed_processors() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        pin_to([min(allowed)])
        assert os.sched_getaffinity(0) == {min(allowed)} and describe_processor()["cpus"] == [min(allowed)]
    finally:
        os.sched_setaffinity(0, allowed)
    for cpus in ([], [4096]):
        with pytest.raises(ValueError, match="cpus: wanted some of"):
            pin_to(cpus)
    assert os.sched_getaffinity(0) == allowed


def test_example_observations_are_of_the_right_type() -> None:
    policy = catalogue_policy(encoder="vit")
    obs = example_observation(policy)
    assert obs["image_front"].dtype == torch.uint8
    assert policy.predict(obs, generator=torch.Generator().manual_seed(0)).shape == (1, 4, 3)
