"""Named random streams from one seed, so that no two uses of randomness ever share numbers."""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from flowpolicy.checks import require_number


def derive(seed: int, name: str) -> int:
    """A 63-bit seed for the stream `name` of the run seed `seed`; the same on every machine.

    Args:
        seed: Of the run.
        name: Of the stream.
    """
    sequence = np.random.SeedSequence([seed, zlib.crc32(name.encode())])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def stream(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Generator of the stream `name` ("model", "data_order", "policy_noise", ...) of the run seed `seed`.

    Args:
        seed: Of the run.
        name: Of the stream.
        device: Where torch computes, e.g. "cpu" or "cuda".
    """
    return torch.Generator(device=device).manual_seed(derive(seed, name))


def generator_of(seed: int) -> torch.Generator:
    """torch.Generator().manual_seed(seed), on the CPU. Raises ValueError for a seed that is not 0 to 2^63 - 1.

    Args:
        seed: 0 to 2^63 - 1.
    """
    require_number("seed", seed, least=0, most=2**63 - 1, whole=True)
    return torch.Generator(device="cpu").manual_seed(seed)


@contextmanager
def seeded_weights(seed: int | None) -> Iterator[None]:
    """While it is open, layers on the CPU draw their first weights as a run of this seed does.

    Args:
        seed: Of the run; None leaves torch's global generator as it is, and lets them draw from it.
    """
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "model"))
        yield


def normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Standard normal float32 numbers on the generator's device, whatever torch's default dtype.

    Args:
        shape: Of the tensor.
        generator: Where random numbers come from.
    """
    return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32)


def uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """float32 numbers from [0, 1) on the generator's device, whatever torch's default dtype.

    Args:
        shape: Of the tensor.
        generator: Where random numbers come from.
    """
    return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float32)


def seed_ranges(*seeds: Iterable[int]) -> list[list[int]]:
    """All given seeds as [first, last] of each stretch without a gap, in order: short enough for a config file.

    Args:
        seeds: Any, in any order.
    """
    found: list[list[int]] = []
    for seed in sorted({int(seed) for some in seeds for seed in some}):
        if found and seed == found[-1][1] + 1:
            found[-1][1] = seed
        else:
            found.append([seed, seed])
    return found


def seeds_of(ranges: Iterable[Sequence[int]]) -> Iterator[int]:
    """The seeds that `seed_ranges` made short.

    Args:
        ranges: [first, last] each.
    """
    for first, last in ranges:
        yield from range(first, last + 1)
