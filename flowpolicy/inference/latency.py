"""How long one observation takes from robot units to robot units, and which part of that is the net itself."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np
import torch

from flowpolicy.inference.prepared import PreparedPolicy
from flowpolicy.inputs import is_image
from flowpolicy.policy import FlowPolicy
from flowpolicy.samplers.base import Sampler, require_support
from flowpolicy.samplers.choose import as_sampler
from flowpolicy.seeding import normal
from flowpolicy.types import Observation


@final
@dataclass(frozen=True)
class LatencyReport:
    """Milliseconds, one observation at a time (batch 1).

    Args:
        device: Where torch computes, e.g. "cpu" or "cuda".
        threads: CPU threads of torch.
        num_steps: Of the sampler.
        predict: P50, p95, p99, max of the whole call: normalise, encode, head, un-normalise.
        floor: The same of as many bare forward passes of the net as the sampler makes: no implementation around it can
            beat that.
        overhead: Share of the median predict that is not the floor, in [0, 1].
        stages: "encode" (normalise + encode), "head" (all its steps), "decode" (un-normalise): the percentiles of each.
        samples_ms: Every measured predict, in order.
        prepared: The same of `prepare`'s predictor, None where it was not measured.
        prepared_samples_ms: As `prepared`.
    """

    device: str
    threads: int
    num_steps: int
    predict: dict[str, float]
    floor: dict[str, float]
    overhead: float
    stages: dict[str, dict[str, float]]
    samples_ms: list[float]
    prepared: dict[str, float] | None = None
    prepared_samples_ms: list[float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready containers."""
        return asdict(self)


_LEAST_TURNS = 20  # calls of warm-up and of measurement, however slow the policy
_IN_A_ROW = 4


def measure_latency(
    policy: FlowPolicy,
    obs: Observation,
    *,
    sampler: Sampler | str | None = None,
    num_steps: int | None = None,
    warmup: int = 50,
    repeats: int = 500,
    budget_s: float = 20.0,
    prepared: PreparedPolicy | None = None,
) -> LatencyReport:
    """Time `policy.predict` on one observation, its stages, and the bare net.

    The measurements take turns, four calls each, so that a slow moment of the machine hits all of them alike.

    Args:
        policy: In evaluation mode.
        obs: key -> (1, To, ...), robot units, on the policy's device.
        sampler: As in `FlowPolicy.predict`.
        num_steps: As in `FlowPolicy.predict`.
        warmup: Calls thrown away first.
        repeats: Calls that are timed.
        budget_s: Warm-up and measurement each end after half of it, once they have had 20 calls: ten steps of a net of
            250 M parameters would take a quarter of an hour otherwise.
        prepared: What the policy was prepared as for one observation and the sampler, to be measured beside it.

    Raises:
        ValueError: When obs is not a single observation or a count is below 1.
    """
    sampler = as_sampler(sampler, num_steps)
    require_support(sampler, policy.head)
    _check(obs, warmup=warmup, repeats=repeats)
    device = next(iter(obs.values())).device
    generator = torch.Generator(device=device).manual_seed(0)
    noise = normal((1, policy.horizon, policy.embodiment.action_dim), generator)
    one, zero = noise.new_ones(1), noise.new_zeros(1)
    with torch.inference_mode():
        cond = policy.encode(obs)
        chunk = policy.sample(cond, noise, sampler, generator=generator)
        calls: dict[str, Callable[[], object]] = {
            "predict": lambda: policy.predict(obs, sampler=sampler, generator=generator),
            "floor": lambda: [policy.head.net(noise, one, zero, cond) for _ in range(sampler.evaluations)],
            "encode": lambda: policy.encode(obs),
            "head": lambda: sampler(policy.head, noise, cond, generator),
            "decode": lambda: policy.decode(chunk, obs),
        }
        if prepared is not None:
            calls["prepared"] = lambda: prepared.predict(obs, sampler=sampler, generator=generator)
        spent = time_in_turns(calls, device, warmup=warmup, repeats=repeats, budget_s=budget_s)
    summary = {name: percentiles(values) for name, values in spent.items()}
    return LatencyReport(
        device=_device_name(device),
        threads=torch.get_num_threads(),
        num_steps=sampler.num_steps,
        predict=summary["predict"],
        floor=summary["floor"],
        overhead=max(0.0, 1.0 - summary["floor"]["p50"] / summary["predict"]["p50"]),
        stages={name: summary[name] for name in ("encode", "head", "decode")},
        samples_ms=spent["predict"],
        prepared=summary.get("prepared"),
        prepared_samples_ms=spent.get("prepared"),
    )


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and max of `values`, in their own unit. Raises ValueError when there are none.

    Args:
        values: At least one.
    """
    if len(values) == 0:
        raise ValueError("percentiles: wanted at least one value, got none")
    p50, p95, p99 = np.percentile(np.asarray(values, dtype=np.float64), [50, 95, 99])
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99), "max": float(max(values))}


def _check(obs: Observation, *, warmup: int, repeats: int) -> None:
    if not obs:
        raise ValueError("measure_latency: wanted at least one observation key, got none")
    for key, value in obs.items():
        if value.shape[0] != 1:
            raise ValueError(
                f"measure_latency: obs[{key!r}] must be (1, To, ...), got {tuple(value.shape)}; "
                "a robot sees one observation at a time"
            )
    if repeats < 1 or warmup < 0:
        raise ValueError(f"measure_latency: wanted repeats >= 1 and warmup >= 0, got {repeats=}, {warmup=}")


def time_in_turns(
    calls: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    warmup: int,
    repeats: int,
    budget_s: float = 20.0,
) -> dict[str, list[float]]:
    """Milliseconds of every call, name -> list of at most `repeats`; on a GPU each ends with a synchronisation.

    A turn is four calls in a row after one that is not counted: the weights that it finds in the processor's caches are
    then its own and not those of the call before it.

    Args:
        calls: Name -> what to time.
        device: Where torch computes, e.g. "cpu" or "cuda".
        warmup: As in `measure_latency`.
        repeats: Calls that are timed.
        budget_s: As `warmup`.
    """
    _take_turns(calls, device, repeats=warmup, budget_s=budget_s / 2)
    return _take_turns(calls, device, repeats=repeats, budget_s=budget_s / 2)


def _take_turns(
    calls: Mapping[str, Callable[[], object]], device: torch.device, *, repeats: int, budget_s: float
) -> dict[str, list[float]]:
    spent: dict[str, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    for first in range(0, repeats, _IN_A_ROW):
        if first >= _LEAST_TURNS and time.perf_counter() - began > budget_s:
            break
        for name, call in calls.items():
            call()
            for _ in range(min(_IN_A_ROW, repeats - first)):
                _synchronize(device)
                start = time.perf_counter()
                call()
                _synchronize(device)
                spent[name].append((time.perf_counter() - start) * 1e3)
    return spent


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def example_observation(policy: FlowPolicy, device: torch.device | str = "cpu") -> Observation:
    """An all-zero observation of the policy's keys, key -> (1, To, ...): good enough to time dense networks with.

    Args:
        policy: The policy.
        device: Where torch computes, e.g. "cpu" or "cuda".
    """
    specs = {key: policy.embodiment.obs[key] for key in policy.obs_keys}
    return {
        key: torch.zeros(
            1, policy.obs_horizon, *spec.shape, dtype=torch.uint8 if is_image(spec) else torch.float32, device=device
        )
        for key, spec in specs.items()
    }
