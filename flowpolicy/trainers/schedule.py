"""Learning-rate schedules as plain functions of the step."""

import math


def warmup_cosine(step: int, *, steps: int, warmup: int, floor: float = 0.0) -> float:
    """Factor on the base learning rate: linear from 1/warmup to 1, then a half cosine down to `floor` at `steps`.

    Args:
        step: 0-based index of the optimiser step about to be taken.
        steps: Of the whole training.
        warmup: Steps of the linear rise.
        floor: Factor at the end.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))
