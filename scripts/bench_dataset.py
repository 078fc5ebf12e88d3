"""How many (observation, action) windows per second the in-RAM dataset draws: python scripts/bench_dataset.py"""

import statistics
import time

import torch

from flowpolicy.data.dataset import SequenceDataset


def bench(
    *,
    batch_size: int = 256,
    horizon: int = 16,
    obs_horizon: int = 1,
    obs_dim: int = 42,
    action_dim: int = 8,
    episodes: int = 100,
    steps: int = 75,
    batches: int = 1000,
    repeats: int = 7,
) -> list[float]:
    """Windows per second of each repeat, on one thread, on random data of the quickstart's size."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    total = episodes * steps
    dataset = SequenceDataset(
        {"state": torch.randn(total, obs_dim, generator=generator)},
        torch.randn(total, action_dim, generator=generator),
        range(steps, total + 1, steps),
        horizon=horizon,
        obs_horizon=obs_horizon,
    )
    index = torch.randint(len(dataset), (batches, batch_size), generator=generator)
    rates = []
    for _ in range(repeats):
        start = time.perf_counter()
        for row in index:
            dataset.batch(row)
        rates.append(batches * batch_size / (time.perf_counter() - start))
    return rates


def main() -> None:
    """Print the median and the spread for one and two observation steps."""
    for obs_horizon in (1, 2):
        rates = bench(obs_horizon=obs_horizon)
        print(
            f"obs_horizon {obs_horizon}: {statistics.median(rates):,.0f} windows/s "
            f"(min {min(rates):,.0f}, max {max(rates):,.0f}, {len(rates)} repeats, batch 256, horizon 16, one thread)"
        )


if __name__ == "__main__":
    main()
