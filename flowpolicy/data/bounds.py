"""Actions outside the box that the embodiment declares: a policy cannot repeat them, it ends up on the box's wall."""

import numpy as np

from flowpolicy.data.base import Store
from flowpolicy.embodiment import Embodiment

MAX_OUTSIDE = 0.01  # share of the steps: a stray spike does no harm, clipped it still points the right way
_LISTED = 5  # dimensions that one message names


def require_inside(store: Store, *, max_outside: float = MAX_OUTSIDE) -> None:
    """Raise ValueError where more than this share of the store's steps has an action outside the declared box, naming
    the dimensions, their shares, and the box that was measured.

    Args:
        store: The episodes.
        max_outside: Largest share of steps, 0 to 1.
    """
    if not 0 <= max_outside <= 1:
        raise ValueError(f"`max_outside`: wanted a share from 0 to 1, got {max_outside}")
    if store.embodiment is None or store.shapes["action"][1:] != store.embodiment.action.shape:
        return
    action = store.load("action")
    beyond = outside_bounds(action, store.embodiment)
    if beyond.any(axis=1).mean() > max_outside:
        raise ValueError(
            f"{store.path}: {describe_outside(action, beyond, store.embodiment)}; `max_outside={max_outside:g}` "
            "is exceeded (1 trains all the same, and what it learns stays inside the declared box)"
        )


def bounds_of(embodiment: Embodiment) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Declared low and high, and how far beyond counts as rounding (float32 rounds a bound such as 2.8973); (A,).

    Args:
        embodiment: The robot's contract: observation keys, shapes, units, action bounds.
    """
    low, high = np.array(embodiment.action_low), np.array(embodiment.action_high)
    return low, high, 1e-6 * np.maximum(1.0, high - low)


def outside_bounds(action: np.ndarray, embodiment: Embodiment) -> np.ndarray:
    """(S, A) bool of actions (S, A), robot units.

    Args:
        action: (S, A), robot units.
        embodiment: The robot's contract: observation keys, shapes, units, action bounds.
    """
    low, high, tolerance = bounds_of(embodiment)
    return (action < low - tolerance) | (action > high + tolerance)


def describe_outside(action: np.ndarray, beyond: np.ndarray, embodiment: Embodiment) -> str:
    """Share of the steps, per dimension too, the declared and the measured box, and what to do.

    Args:
        action: (S, A), robot units.
        beyond: (S, A) bool, see `outside_bounds`.
        embodiment: The robot's contract: observation keys, shapes, units, action bounds.
    """
    share, dims = beyond.mean(axis=0), np.flatnonzero(beyond.any(axis=0))
    names = embodiment.action.names
    worst = sorted(dims, key=lambda dim: -share[dim])[:_LISTED]
    said = ", ".join(f"{dim}{f' ({names[dim]})' if names else ''}: {share[dim]:.1%}" for dim in worst)
    more = f", ... ({len(dims)} in all)" if len(dims) > _LISTED else ""
    low, high = (_numbers(np.asarray(bound)) for bound in (embodiment.action_low, embodiment.action_high))
    seen = _numbers(np.nanmin(action, axis=0)), _numbers(np.nanmax(action, axis=0))
    return (
        f"{beyond.any(axis=1).mean():.1%} of the steps have actions outside the declared bounds (dimension: share "
        f"{said}{more}): declared action_low={low} action_high={high}, measured action_low={seen[0]} "
        f"action_high={seen[1]}. Where the robot takes the measured ones, write them into 'embodiment' of the store's "
        ".zattrs; else convert the actions to what it executes"
    )


def _numbers(values: np.ndarray) -> str:
    """As JSON; four digits, which is for the eye."""
    return "[" + ",".join(f"{value:.4g}" for value in values) + "]"
