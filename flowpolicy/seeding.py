"""Named random streams from one seed, so that no two uses of randomness ever share numbers."""

import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch


def derive(seed: int, name: str) -> int:
    """A 63-bit seed for the stream `name` of the run seed `seed`; the same on every machine."""
    sequence = np.random.SeedSequence([seed, zlib.crc32(name.encode())])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def stream(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Generator of the stream `name` ("model", "data_order", "policy_noise", ...) of the run seed `seed`."""
    return torch.Generator(device=device).manual_seed(derive(seed, name))


def seed_ranges(*seeds: Iterable[int]) -> list[list[int]]:
    """All given seeds as [first, last] of each stretch without a gap, in order: short enough for a config file."""
    found: list[list[int]] = []
    for seed in sorted({int(seed) for some in seeds for seed in some}):
        if found and seed == found[-1][1] + 1:
            found[-1][1] = seed
        else:
            found.append([seed, seed])
    return found


def seeds_of(ranges: Iterable[Sequence[int]]) -> Iterator[int]:
    """The seeds that `seed_ranges` made short."""
    for first, last in ranges:
        yield from range(first, last + 1)
