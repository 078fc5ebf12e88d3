"""Whether a policy keeps up with its robot on this machine: time per stage, missed deadlines, and what to do."""

import math
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowpolicy.inference.latency import measure_latency, percentiles
from flowpolicy.inference.prepared import prepare
from flowpolicy.policy import FlowPolicy
from flowpolicy.samplers.base import Sampler, is_fixed
from flowpolicy.samplers.choose import as_sampler
from flowpolicy.types import Observation

_RARE = 0.001  # share of missed deadlines below which they count as none


def bench(
    policy: FlowPolicy,
    obs: Observation,
    *,
    sampler: Sampler | str | None = None,
    num_steps: int | None = None,
    hz: float | None = None,
    preprocess_ms: Mapping[str, Sequence[float]] | None = None,
    warmup: int = 50,
    repeats: int = 500,
) -> dict[str, Any]:
    """What bench.json says about one number of steps, JSON-ready.

    Percentiles of predict, of the predictor that `prepare` makes, of the stages and of the bare net (all
    take turns), the share of observations whose preprocessing and prediction together exceed 1 / hz, and a sentence.

    Args:
        policy: The policy.
        obs: key -> (1, To, ...), on the policy's device.
        sampler: How a chunk is drawn.
        num_steps: Network evaluations per chunk.
        hz: Control steps per second; None is the embodiment's.
        preprocess_ms: stage -> milliseconds per observation of what happens before the policy, one list entry each.
        warmup: Calls before the first that is timed.
        repeats: At most; slow policies get fewer, see `measure_latency`.

    Raises:
        ValueError: For hz that is not positive, and as `measure_latency`.
    """
    hz = policy.embodiment.control_hz if hz is None else hz
    if not 0 < hz < math.inf:
        raise ValueError(f"bench: hz must be positive, got {hz}")
    device = next(iter(obs.values())).device
    sampler = as_sampler(sampler, num_steps)
    prepared = prepare(policy, device, sampler=sampler) if is_fixed(sampler) else None
    report = measure_latency(policy, obs, sampler=sampler, warmup=warmup, repeats=repeats, prepared=prepared)
    before = {stage: list(times) for stage, times in (preprocess_ms or {}).items() if len(times)}
    total_before = np.sum([np.asarray(times) for times in before.values()], axis=0) if before else np.zeros(1)
    deadline_ms = 1e3 / hz
    ways = {"predict": report.samples_ms}
    ways |= {"prepared": report.prepared_samples_ms} if report.prepared_samples_ms else {}
    fastest = "prepared" if "prepared" in ways else "predict"
    totals = {name: np.add.outer(total_before, np.asarray(samples)).ravel() for name, samples in ways.items()}
    missed = {name: float((total > deadline_ms).mean()) for name, total in totals.items()}
    return {
        **sampler.facts,
        "device": report.device,
        "threads": report.threads,
        "n": len(report.samples_ms),
        "stages_ms": {**{stage: percentiles(times) for stage, times in before.items()}, **report.stages},
        "predict_ms": report.predict,
        "prepared_ms": report.prepared,
        "floor_ms": report.floor,
        "hz": hz,
        "deadline_ms": deadline_ms,
        "deadline_miss": missed,
        "recommendation": recommend(totals[fastest], missed[fastest], hz=hz, chunk=policy.action_horizon),
    }


def recommend(total_ms: np.ndarray, missed: float, *, hz: float, chunk: int) -> str:
    """One sentence on how to run a policy whose predictions take `total_ms` each, preprocessing included.

    Args:
        total_ms: Of each prediction.
        missed: Share of them that exceed one control step.
        hz: Rate of the control loop.
        chunk: Control steps that one prediction covers.
    """
    p99 = float(np.percentile(total_ms, 99))
    fact = f"a prediction takes {_ms(p99)} at p99 and one step at {hz:g} Hz {_ms(1e3 / hz)}"
    if missed <= _RARE:
        left = 1.0 - p99 * hz / 1e3
        return f"Predict between two steps: {fact}, which leaves {left:.0%} of it."
    ahead = math.ceil(p99 * hz / 1e3)
    late = f"{missed:.1%} of the predictions would be late" if missed < 0.9995 else "every prediction would be late"
    if ahead < chunk:
        return (
            f"Predict in the background, from {ahead} step{'s' * (ahead > 1)} before the {chunk} of a chunk are spent: "
            f"{fact}, so {late} between two steps."
        )
    slowest = chunk * 1e3 / p99
    return (
        f"This machine is too slow for {hz:g} Hz: {fact}, as long as the {chunk} steps of a chunk; use fewer "
        f"num_steps, a smaller net or at most {slowest:.2g} Hz."
    )


def describe_processor() -> dict[str, Any]:
    """Model, vector instructions that torch uses, and processors that this process may use, where the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cpus": cpus,
    }


def pin_to(cpus: Sequence[int]) -> None:
    """Keep this thread, and those that it starts from now on, on the processors with these numbers.

    Args:
        cpus: Numbers of processors.

    Raises:
        ValueError: For numbers that this process may not use, and where the system cannot pin.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError(f"cpus: {platform.system()} cannot pin a process; leave out `cpus=`")
    allowed = os.sched_getaffinity(0)
    if not cpus or not set(cpus) <= allowed:
        raise ValueError(f"cpus: wanted some of {sorted(allowed)}, got {list(cpus)}")
    os.sched_setaffinity(0, cpus)


def format_bench(reports: Sequence[Mapping[str, Any]]) -> str:
    """One table per number of steps and its recommendation, for a terminal.

    Args:
        reports: As `bench` returns them.
    """
    lines = []
    for report in reports:
        steps = report["num_steps"]
        drawn = f"{report['sampler']} in " if "sampler" in report else ""
        lines.append(
            f"{report['device']}, {report['threads']} thread{'s' * (report['threads'] != 1)}, {drawn}"
            f"{steps} step{'s' * (steps != 1)}, batch 1, ms"
        )
        lines.append(f"{'':<14}" + "".join(f"{name:>9}" for name in ("p50", "p95", "p99", "max")))
        rows = report["stages_ms"] | {"predict": report["predict_ms"]}
        rows |= {"prepared": report["prepared_ms"]} if report["prepared_ms"] else {}
        rows |= {"bare net": report["floor_ms"]}
        for name, row in rows.items():
            lines.append(f"{name:<14}" + "".join(f"{row[p]:9.3f}" for p in ("p50", "p95", "p99", "max")))
        miss = ", ".join(f"{name} {share:.2%}" for name, share in report["deadline_miss"].items())
        lines += [f"late at {report['hz']:g} Hz: {miss}", report["recommendation"]]
    return "\n".join(lines)


def _ms(value: float) -> str:
    return f"{value:.3g} ms"
