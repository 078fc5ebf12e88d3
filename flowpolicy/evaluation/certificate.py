"""What an exported bundle is worth: its deviation from torch, its success in the simulator, its speed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from flowpolicy.deploy.export import seal, write_bundle
from flowpolicy.deploy.runtime import OnnxPolicy
from flowpolicy.evaluation.observations import Observed
from flowpolicy.files import atomic_directory
from flowpolicy.inference.bench import describe_processor
from flowpolicy.inference.latency import percentiles, time_in_turns
from flowpolicy.inference.prepared import prepare
from flowpolicy.json_files import write_json
from flowpolicy.policy import FlowPolicy
from flowpolicy.results.seen_seeds import seen_warning
from flowpolicy.rollout.episodes import left_to_solve, run_episodes
from flowpolicy.rollout.vector_env import VectorEnv
from flowpolicy.samplers import Jump, Sampler, create_sampler
from flowpolicy.seeding import normal, stream
from flowpolicy.statistics.pairs import paired_outcomes
from flowpolicy.types import Observation

TOLERANCE = 1e-5  # robot units


class ParityError(Exception):
    """The bundle does not predict what the policy predicts. Carries the certificate that says so.

    Args:
        certificate: What was measured.
    """

    def __init__(self, certificate: dict[str, Any]) -> None:
        parity = certificate["parity"]
        super().__init__(
            f"the exported graph deviates by up to {parity['max_abs_error']:.2e}, wanted at most "
            f"{parity['tolerance']:.0e}; no bundle was written"
        )
        self.certificate = certificate


@final
class BundlePolicy:
    """An `OnnxPolicy` as a `Predictor`, with torch's noise: paired with the original.

    Args:
        bundle: An exported policy, opened.
    """

    device = torch.device("cpu")

    def __init__(self, bundle: OnnxPolicy) -> None:
        self.bundle = bundle
        self.embodiment, self.obs_horizon = bundle.embodiment, bundle.obs_horizon
        self.obs_keys: Sequence[str] = bundle.obs_keys

    def predict(self, obs: Observation, *, sampler: Sampler, generator: torch.Generator) -> Tensor:
        """See `FlowPolicy.predict`; the sampler is the bundle's.

        Args:
            obs: Key -> (B, To, ...), robot units.
            sampler: The bundle's own.
            generator: Where random numbers come from.
        """
        assert sampler.num_steps == self.bundle.num_steps
        noise = normal(self.bundle.noise_shape, generator).cpu()
        arrays = {key: obs[key].numpy() for key in self.obs_keys}
        return torch.from_numpy(self.bundle.predict(arrays, noise=noise.numpy()))


def sampler_of(bundle: OnnxPolicy) -> Sampler:
    """The sampler that is in the graph; bundles from before there were others hold jumps.

    Args:
        bundle: One with a sampler of ours; of another package's the caller knows it.
    """
    node = bundle.facts.get("sampler")
    return Jump(num_steps=bundle.num_steps) if node is None else create_sampler(node)


def export_with_certificate(
    policy: FlowPolicy,
    out: Path,
    observed: Observed,
    *,
    sampler: Sampler | None = None,
    facts: Mapping[str, Any],
    env: VectorEnv | None = None,
    seeds: Sequence[int] = (),
    seen: Mapping[str, int] | None = None,
    tolerance: float = TOLERANCE,
    threads: int = 1,
    warmup: int = 50,
    repeats: int = 500,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the bundle and its certificate.json to the folder `out`, whole or not at all; returns the certificate.

    Args:
        policy: On the CPU.
        out: The bundle's folder.
        observed: What parity is measured on.
        sampler: How the bundle draws a chunk.
        facts: For policy.json (checkpoint, task).
        env: Closed-loop episodes of both, None and () for none.
        seeds: As `env`.
        seen: See `seen_seeds`.
        tolerance: Largest deviation, robot units.
        threads: Of the bundle's session.
        warmup: Calls before the first that is timed.
        repeats: Calls that are timed.
        overwrite: Replace what is there.

    Raises:
        ParityError: When the largest deviation exceeds `tolerance` (robot units).
        FileExistsError: When `out` exists and is not to be overwritten.
    """
    with atomic_directory(out, replace=overwrite) as folder:
        write_bundle(policy, folder, sampler=sampler, facts=facts)
        bundle = OnnxPolicy(folder, threads=threads)
        certificate: dict[str, Any] = {
            "parity": measure_parity(policy, bundle, observed, sampler=sampler, tolerance=tolerance),
            "closed_loop": None,
            "latency_ms": None,
            "threads": {"onnxruntime": threads, "torch": torch.get_num_threads()},
            **describe_processor(),
        }
        if not certificate["parity"]["passed"]:
            raise ParityError(certificate)
        certificate["latency_ms"] = compare_latency(
            policy, bundle, observed.one(0), sampler=sampler, warmup=warmup, repeats=repeats
        )
        if env is not None and len(seeds):
            success = closed_loop(policy, bundle, env, seeds, sampler=sampler)
            certificate["closed_loop"] = success | {"seen_seeds": dict(seen or {})}
        write_json(folder / "certificate.json", certificate)
        seal(folder)
    return certificate


def measure_parity(
    policy: FlowPolicy,
    bundle: OnnxPolicy,
    observed: Observed,
    *,
    sampler: Sampler | None = None,
    tolerance: float = TOLERANCE,
) -> dict[str, Any]:
    """Deviation of the bundle from `policy.predict` over all observations, each with noise of its own.

    Errors are absolute, in robot units; the worst dimension is named by its index.

    Args:
        policy: The policy to run.
        bundle: An exported policy, opened.
        observed: The observations to predict from.
        sampler: How the policy draws a chunk.
        tolerance: Largest deviation, robot units.
    """
    sampler = sampler or sampler_of(bundle)
    count = len(next(iter(observed.obs.values())))
    finite = torch.ones(1, dtype=torch.bool, device="cpu")  # what is not becomes NaN, and the deviation infinite
    worst = np.zeros(policy.embodiment.action_dim)
    total = 0.0
    for i in range(count):
        obs = observed.one(i)
        noise = normal(bundle.noise_shape, stream(i, "parity"))
        wanted = policy.predict(obs, sampler=sampler, noise=noise, finite=finite).numpy()
        arrays = {key: value.numpy() for key, value in obs.items()}
        got = bundle.predict(arrays, noise=noise.numpy(), finite=finite.numpy())
        error = np.abs(got.astype(np.float64) - wanted)
        error[~np.isfinite(error)] = np.inf
        worst = np.maximum(worst, error.max(axis=(0, 1)))
        total += float(error.mean())
    return {
        "max_abs_error": float(worst.max()),
        "mean_abs_error": total / count,
        "worst_dimension": int(worst.argmax()),
        "tolerance": tolerance,
        "n": count,
        "source": observed.source,
        "passed": bool(worst.max() <= tolerance),
    }


def closed_loop(
    policy: FlowPolicy, bundle: OnnxPolicy, env: VectorEnv, seeds: Sequence[int], *, sampler: Sampler | None = None
) -> dict[str, Any]:
    """Success of both on the same seeds with the same noise, 95 % intervals, and the exact McNemar test.

    Args:
        policy: The policy to run.
        bundle: An exported policy, opened.
        env: Simulators to run both in.
        seeds: Of the episodes.
        sampler: How both draw a chunk.
    """
    sampler = sampler or sampler_of(bundle)
    arms = {"torch": policy, "onnx": BundlePolicy(bundle)}
    success = {
        name: [one.success_once for one in left_to_solve(run_episodes(arm, env, seeds, sampler=sampler))]
        for name, arm in arms.items()
    }
    return {"n": len(success["torch"]), "start_seed": int(seeds[0]), **paired_outcomes(success)}


def format_certificate(certificate: Mapping[str, Any]) -> str:
    """Its three parts, for a terminal.

    Args:
        certificate: As `export_with_certificate` returns it.
    """
    parity, loop, latency = (certificate[name] for name in ("parity", "closed_loop", "latency_ms"))
    verdict = "passed" if parity["passed"] else "FAILED"
    lines = [
        f"parity {verdict}: at most {parity['max_abs_error']:.2e} (tolerance {parity['tolerance']:.0e}) on "
        f"{parity['source']}"
    ]
    for name in ("torch", "onnx") if loop else ():
        arm = loop[name]
        lines.append(
            f"{name:<9} success {arm['success_once']:.3f} ({arm['ci_low']:.3f} to {arm['ci_high']:.3f}) on "
            f"{loop['n']} seeds"
        )
    if loop and loop.get("seen_seeds"):
        lines.append(seen_warning("closed loop", loop["seen_seeds"]))
    if loop:
        lines.append(
            f"outcomes that differ: {loop['only_torch'] + loop['only_onnx']} of {loop['n']}, "
            f"p = {loop['mcnemar_p']:.2g}"
        )
    return "\n".join([*lines, *([format_latency(latency)] if latency else [])])


def format_latency(latency: Mapping[str, Mapping[str, float]]) -> str:
    """What `compare_latency` found, one line each.

    Args:
        latency: As `compare_latency` returns it.
    """
    return "\n".join(
        f"{name:<9}" + "".join(f" {p} {row[p]:8.3f} ms" for p in ("p50", "p95", "p99")) for name, row in latency.items()
    )


def compare_latency(
    policy: FlowPolicy,
    bundle: OnnxPolicy,
    obs: Observation,
    *,
    sampler: Sampler | None = None,
    warmup: int = 50,
    repeats: int = 500,
) -> dict[str, dict[str, float]]:
    """Percentiles in ms of one prediction by `predict`, by the prepared policy and by the bundle, taking turns.

    Args:
        policy: On the CPU.
        bundle: An exported policy, opened.
        obs: key -> (1, To, ...).
        sampler: How all draw a chunk.
        warmup: Calls before the first that is timed.
        repeats: Calls that are timed.
    """
    sampler = sampler or sampler_of(bundle)
    generator, rng = stream(0, "latency"), np.random.default_rng(0)
    prepared, arrays = prepare(policy, sampler=sampler), {key: value.numpy() for key, value in obs.items()}
    calls = {
        "torch": lambda: policy.predict(obs, sampler=sampler, generator=generator),
        "prepared": lambda: prepared.predict(obs, generator=generator),
        "onnx": lambda: bundle.predict(arrays, rng=rng),
    }
    with torch.inference_mode():
        spent = time_in_turns(calls, torch.device("cpu"), warmup=warmup, repeats=repeats)
    return {name: percentiles(times) for name, times in spent.items()}
