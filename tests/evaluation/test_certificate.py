"""Certificates: deviations are found and refused, the pairs are counted, nothing is written that failed."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

for needed in ("gymnasium", "onnxscript", "onnx", "onnxruntime"):
    pytest.importorskip(needed)

from flowpolicy.deploy.runtime import OnnxPolicy  # noqa: E402
from flowpolicy.encoders.state import StateEncoder  # noqa: E402
from flowpolicy.evaluation.certificate import (  # noqa: E402
    BundlePolicy,
    ParityError,
    closed_loop,
    export_with_certificate,
    format_certificate,
    measure_parity,
)
from flowpolicy.evaluation.observations import Observed, observe_simulator  # noqa: E402
from flowpolicy.heads.meanflow import MeanFlowHead  # noqa: E402
from flowpolicy.nets.mlp import ResidualMLP  # noqa: E402
from flowpolicy.policy import FlowPolicy, build_policy  # noqa: E402
from flowpolicy.rollout.episodes import run_episodes  # noqa: E402
from flowpolicy.rollout.vector_env import VectorEnv, make_vector_env  # noqa: E402
from flowpolicy_envs.toy import EMBODIMENT, make_env  # noqa: E402


def toy_policy(seed: int = 0) -> FlowPolicy:
    torch.manual_seed(seed)
    return build_policy(
        embodiment=EMBODIMENT, encoder=StateEncoder, net=partial(ResidualMLP, width=16, depth=1), head=MeanFlowHead
    ).eval()


@pytest.fixture(scope="module")
def env() -> VectorEnv:
    return make_vector_env(partial(make_env, max_episode_steps=12), 1)


@pytest.fixture(scope="module")
def observed(env: VectorEnv) -> Observed:
    return observe_simulator(toy_policy(), env, count=30, start_seed=0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, env: VectorEnv, observed: Observed) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("made") / "bundle"
    return out, export_with_certificate(
        toy_policy(), out, observed, facts={"checkpoint": "here"}, env=env, seeds=range(5, 11), warmup=1, repeats=5
    )


def test_a_certificate_holds_parity_success_and_latency(made: tuple[Path, dict[str, Any]]) -> None:
    out, certificate = made
    assert json.loads((out / "certificate.json").read_text()) == certificate
    parity, loop, latency = (certificate[name] for name in ("parity", "closed_loop", "latency_ms"))
    assert parity["passed"] and 0 < parity["max_abs_error"] < 1e-5 and parity["n"] == 30
    assert 0 < parity["mean_abs_error"] < parity["max_abs_error"] and "30 observations" in parity["source"]
    assert (loop["n"], loop["start_seed"], loop["only_torch"], loop["only_onnx"]) == (6, 5, 0, 0)
    assert loop["torch"] == loop["onnx"] and loop["mcnemar_p"] == 1.0
    assert set(latency) == {"torch", "prepared", "onnx"}
    assert all(0 < row["p50"] <= row["p95"] <= row["p99"] for row in latency.values())
    text = format_certificate(certificate)
    assert "parity passed" in text and "on 6 seeds" in text and "onnx" in text


def test_the_bundle_walks_the_same_way_as_the_policy(made: tuple[Path, dict[str, Any]], env: VectorEnv) -> None:
    mine = run_episodes(toy_policy(), env, range(4))
    its = run_episodes(BundlePolicy(OnnxPolicy(made[0])), env, range(4))
    for a, b in zip(mine, its, strict=True):
        assert (a.seed, a.episode_len, a.failure) == (b.seed, b.episode_len, b.failure)


def test_another_policys_graph_is_found_out(made: tuple[Path, dict[str, Any]], observed: Observed) -> None:
    parity = measure_parity(toy_policy(seed=1), OnnxPolicy(made[0]), observed)
    assert not parity["passed"] and parity["max_abs_error"] > 0.01 and parity["worst_dimension"] in (0, 1)


def test_a_number_that_is_none_fails(made: tuple[Path, dict[str, Any]], observed: Observed) -> None:
    broken = Observed({key: value * float("nan") for key, value in observed.obs.items()}, {}, "nowhere")
    parity = measure_parity(toy_policy(), OnnxPolicy(made[0]), broken)
    assert not parity["passed"] and parity["max_abs_error"] == np.inf


def test_pairs_that_differ_are_counted(
    made: tuple[Path, dict[str, Any]], env: VectorEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flowpolicy.evaluation import certificate as module

    real, ways = module.run_episodes, iter([[True] * 6 + [False] * 2, [False] * 5 + [True] * 2 + [False]])

    def pretend(arm, env, seeds, **words):
        return [one._replace(success_once=flag) for one, flag in zip(real(arm, env, seeds, **words), next(ways))]

    monkeypatch.setattr(module, "run_episodes", pretend)
    loop = closed_loop(toy_policy(), OnnxPolicy(made[0]), env, range(8))
    assert (loop["only_torch"], loop["only_onnx"]) == (5, 1)
    assert loop["mcnemar_p"] == pytest.approx(2 * (1 + 6) / 2**6)
    assert loop["torch"]["success_once"] == 0.75 and loop["onnx"]["ci_low"] < 0.25 < loop["onnx"]["ci_high"]


def test_what_fails_leaves_nothing_and_keeps_what_was_there(tmp_path: Path, observed: Observed) -> None:
    out = tmp_path / "bundle"
    with pytest.raises(ParityError, match="wanted at most 1e-12; no bundle was written") as caught:
        export_with_certificate(toy_policy(), out, observed, facts={}, tolerance=1e-12)
    assert not caught.value.certificate["parity"]["passed"] and list(tmp_path.iterdir()) == []
    out.mkdir()
    (out / "policy.onnx").write_text("old")
    with pytest.raises(FileExistsError):
        export_with_certificate(toy_policy(), out, observed, facts={})
    with pytest.raises(ParityError):
        export_with_certificate(toy_policy(), out, observed, facts={}, tolerance=1e-12, overwrite=True)
    assert [file.read_text() for file in out.iterdir()] == ["old"]
