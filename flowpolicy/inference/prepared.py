"""The predictor that `prepare` makes of a policy: one device, one batch size, one sampler."""

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, final

import torch
from torch import Tensor, nn

from flowpolicy.ambient import standard_torch, without_autocast
from flowpolicy.inference.rewrite import simplify
from flowpolicy.inference.trace import record
from flowpolicy.inputs import Inputs
from flowpolicy.policy import FlowPolicy, all_sums
from flowpolicy.samplers.base import Sampler, require_fixed, require_support
from flowpolicy.samplers.choose import as_sampler
from flowpolicy.seeding import generator_of, normal
from flowpolicy.types import Observation

_TRIALS = 12  # of each of two equal graphs, to keep the faster one


@standard_torch()
def prepare(
    policy: FlowPolicy,
    device: torch.device | str = "cpu",
    batch: int = 1,
    num_steps: int | None = None,
    *,
    sampler: Sampler | str | None = None,
    threads: int | None = None,
) -> "PreparedPolicy":
    """A predictor for one device, batch size and sampler that gives what `FlowPolicy.predict` gives, sooner.

    It keeps the weights of this moment.

    Args:
        policy: Stays as it is.
        device: Where the prepared one computes.
        batch: Observations of one call.
        num_steps: As in `FlowPolicy.predict`.
        sampler: As in `FlowPolicy.predict`; one whose chunk follows from the starting noise, see `require_fixed`.
        threads: CPU threads of torch while it predicts; None leaves them as they are.

    Raises:
        ValueError: Where `predict` would, for samplers that draw noise on the way or begin at the last chunk, and for a
            policy whose Python decides on numbers of the observation.
    """
    sampler = as_sampler(sampler, num_steps)
    require_support(sampler, policy.head)
    require_fixed(sampler)
    return PreparedPolicy(policy, device=torch.device(device), batch=batch, sampler=sampler, threads=threads)


@final
class PreparedPolicy:
    """Observations to action chunks as `FlowPolicy.predict`, up to float32 rounding, from the weights of that moment.

    The policy ran once and left a flat list of operations: normalisation, encoder, every step of the head and decoding,
    with the flow times and all that follows from them as constants. On a GPU that list is one CUDA graph on buffers of
    its own. It may stand in for the policy in `run_episodes`. It draws noise of its own where `predict` is given none,
    from seed 0 on, whatever the policy has drawn.

    Args:
        policy: What it is made of.
        device: Where it computes.
        batch: Observations of one call.
        sampler: One that `prepare` takes.
        threads: CPU threads of torch during a call, set back afterwards; None leaves them.
    """

    def __init__(
        self, policy: FlowPolicy, *, device: torch.device, batch: int, sampler: Sampler, threads: int | None
    ) -> None:
        if batch < 1 or (threads is not None and threads < 1):
            raise ValueError(f"prepare: wanted batch and threads of at least 1, got {batch=}, {threads=}")
        self.embodiment, self.obs_keys, self.obs_horizon = policy.embodiment, policy.obs_keys, policy.obs_horizon
        self.device, self.batch, self.sampler, self.threads = device, batch, sampler, threads
        self.noise_shape = (batch, policy.horizon, policy.embodiment.action_dim)
        self.reset(0)
        self._inputs = Inputs(
            policy.embodiment,
            policy.obs_keys,
            obs_horizon=policy.obs_horizon,
            horizon=policy.horizon,
            array=Tensor,
            dtypes={"float32": torch.float32, "uint8": torch.uint8},
            batch=batch,
        )
        with self._own_threads():
            # a copy: training may go on, and a replay of half old, half new weights would be neither
            self._run = _compile(copy.deepcopy(policy).to(device).eval(), self._example(policy), sampler)

    def predict(
        self,
        obs: Observation,
        *,
        sampler: Sampler | str | None = None,
        num_steps: int | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | Literal["zero"] | None = None,
        finite: Tensor | None = None,
    ) -> Tensor:
        """See `FlowPolicy.predict`; here obs may lie on the CPU also where the device is another.

        Args:
            obs: Key -> (B, To, ...), robot units.
            sampler: None, or the one that it was prepared for.
            num_steps: Network evaluations per chunk.
            generator: Where random numbers come from.
            noise: (B, H, A), or "zero".
            finite: (B,) bool, told which rows are finite; None raises.

        Raises:
            ValueError: For what it was not prepared for: another batch size, sampler, shape or type.
        """
        if (sampler is not None or num_steps is not None) and self.sampler != (
            wanted := as_sampler(self.sampler.name if sampler is None else sampler, num_steps)
        ):
            raise ValueError(f"prepared for {self.sampler.words}, got {wanted.words}; prepare another one for it")
        self._inputs.check(obs)
        if noise is None:
            noise = normal(self.noise_shape, self._own_noise if generator is None else generator)
        elif isinstance(noise, str) and noise == "zero":
            noise = torch.zeros(self.noise_shape, device=self.device, dtype=torch.float32)
        else:
            self._inputs.check_chunk("noise", noise, self.batch)
        with self._own_threads(), torch.inference_mode(), without_autocast(self.device):
            chunk, *sums = self._run(*(obs[key] for key in self.obs_keys), noise)
        chunk = chunk.clone()  # an ordinary tensor, which may be written to
        self._inputs.judge(obs, chunk, sums, finite)
        return chunk

    def reset(self, seed: int) -> None:
        """See `FlowPolicy.reset`: the same seed gives the same noise.

        Args:
            seed: 0 or more.
        """
        self._own_noise = generator_of(seed)

    def _example(self, policy: FlowPolicy) -> list[Tensor]:
        """Zeros of every observation, in order, and of the noise."""
        specs = {key: policy.embodiment.obs[key] for key in self.obs_keys}
        obs = [
            torch.zeros(self.batch, self.obs_horizon, *spec.shape, dtype=getattr(torch, spec.dtype), device=self.device)
            for spec in specs.values()
        ]
        return [*obs, torch.zeros(self.noise_shape, device=self.device, dtype=torch.float32)]

    def _own_threads(self) -> "AbstractContextManager[None] | _Threads":
        wanted = self.threads
        return nullcontext() if wanted is None or wanted == torch.get_num_threads() else _Threads(wanted)


@final
class _Threads:
    """torch's CPU threads while a block runs."""

    def __init__(self, count: int) -> None:
        self._count, self._before = count, torch.get_num_threads()

    def __enter__(self) -> None:
        torch.set_num_threads(self._count)

    def __exit__(self, *error: object) -> None:
        torch.set_num_threads(self._before)


@final
class _CudaGraph:
    """A function captured once on tensors of its own; a call copies its inputs into them and replays the kernels."""

    def __init__(self, function: Callable[..., list[Tensor]], inputs: Sequence[Tensor]) -> None:
        self._inputs = [value.clone() for value in inputs]
        aside = torch.cuda.Stream(inputs[0].device)
        aside.wait_stream(torch.cuda.current_stream(inputs[0].device))
        with torch.cuda.stream(aside):  # libraries allocate their workspaces in the first calls, not in the capture
            for _ in range(3):
                function(*self._inputs)
        torch.cuda.current_stream(inputs[0].device).wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output = function(*self._inputs)

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        for own, new in zip(self._inputs, inputs, strict=True):
            own.copy_(new, non_blocking=True)
        self._graph.replay()
        return self._output


def _compile(policy: FlowPolicy, inputs: Sequence[Tensor], sampler: Sampler) -> Callable[..., list[Tensor]]:
    """The recorded policy as one function of its observations, in order, and the noise: the chunk and `all_sums`."""

    def predict(*tensors: Tensor) -> Tensor:
        obs = dict(zip(policy.obs_keys, tensors, strict=False))
        return policy.decode(policy.sample(policy.encode(obs), tensors[-1], sampler), obs)

    def summed(function: Callable[..., Tensor]) -> Callable[..., list[Tensor]]:
        def call(*tensors: Tensor) -> list[Tensor]:
            chunk = function(*tensors)
            return [chunk, *all_sums(*(value for value in tensors if value.is_floating_point()), chunk)]

        return call

    if inputs[0].device.type != "cpu":
        function = summed(_recorded(predict, inputs, pixels_first=False))
        with torch.inference_mode():
            return _CudaGraph(function, inputs) if inputs[0].device.type == "cuda" else function
    candidates = [_recorded(predict, inputs, pixels_first=False)]
    if any(isinstance(module, nn.Conv1d) for module in policy.modules()):
        candidates.append(_recorded(predict, inputs, pixels_first=True))
    return summed(_faster(candidates, inputs))


def _recorded(predict: Callable[..., Tensor], inputs: Sequence[Tensor], *, pixels_first: bool) -> Callable[..., Tensor]:
    try:
        recording = record(predict, inputs)
    except ValueError as error:
        raise ValueError(f"prepare: this policy cannot be recorded: {error}; use predict") from error
    simplify(recording, pixels_first=pixels_first)
    return recording.module().forward


@torch.inference_mode()
def _faster(functions: Sequence[Callable[..., Tensor]], inputs: Sequence[Tensor]) -> Callable[..., Tensor]:
    """The one whose fastest call here is fastest; they take turns."""
    spent = [[] for _ in functions]
    for _ in range(_TRIALS if len(functions) > 1 else 0):
        for function, times in zip(functions, spent, strict=True):
            start = time.perf_counter()
            function(*inputs)
            times.append(time.perf_counter() - start)
    return min(zip(functions, spent, strict=True), key=lambda pair: min(pair[1], default=0.0))[0]
