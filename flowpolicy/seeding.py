"""Named random streams from one seed, so that no two uses of randomness ever share numbers."""

import zlib

import numpy as np
import torch


def derive(seed: int, name: str) -> int:
    """A 63-bit seed for the stream `name` of the run seed `seed`; the same on every machine."""
    sequence = np.random.SeedSequence([seed, zlib.crc32(name.encode())])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def stream(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Generator of the stream `name` ("model", "data_order", "policy_noise", ...) of the run seed `seed`."""
    return torch.Generator(device=device).manual_seed(derive(seed, name))
