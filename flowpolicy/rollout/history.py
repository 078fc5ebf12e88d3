"""From observations to actions: the last To observations, the chunk that is being executed. For numpy and torch alike.

Nothing here imports torch, so that a robot's computer can do without it.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, final

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Array = TypeVar("Array", "np.ndarray", "Tensor")
Stack = Callable[[list[Any], int], Any]
"""np.stack or torch.stack: arrays of one shape and a new axis -> one array."""
Merge = Callable[[Mapping[str, Any], Mapping[str, Any]], Mapping[str, Any]]
"""(new, old) observations of a batch -> the new one's rows where they move, the old one's elsewhere."""


def _all_of(new: Any, old: Any) -> Any:
    del old
    return new


@final
class ObservationHistory(Generic[Array]):
    """The last To observations; before there were so many, the first one stands for those that are missing.

    Args:
        obs_horizon: To, at least 1.

    Raises:
        ValueError: For another obs_horizon.
    """

    def __init__(self, obs_horizon: int) -> None:
        if obs_horizon < 1:
            raise ValueError(f"obs_horizon must be at least 1, got {obs_horizon}")
        self.obs_horizon = obs_horizon
        self._past: list[Mapping[str, Array]] = []  # oldest first; To of them, or none

    def __bool__(self) -> bool:
        """Whether there is an observation."""
        return bool(self._past)

    def clear(self) -> None:
        """Forget all."""
        self._past = []

    def begin(self, obs: Mapping[str, Array], merge: Merge = _all_of) -> None:
        """The first observation of an episode: it fills the history.

        Args:
            obs: Key -> (...), or (N, ...) of a batch.
            merge: Of a batch in which not every row begins.
        """
        self._advance([obs] * self.obs_horizon, merge)

    def append(self, obs: Mapping[str, Array], merge: Merge = _all_of) -> None:
        """The next observation, which the oldest one makes room for; the first one where there was none.

        Args:
            obs: Key -> (...), or (N, ...) of a batch.
            merge: As in `begin`, where some rows of a batch stand still.
        """
        past = self._past or [obs] * self.obs_horizon
        self._advance([*past[1:], obs], merge)

    def stacked(self, stack: Stack, *, keys: Iterable[str] | None = None, axis: int = 0) -> dict[str, Array]:
        """The observations as one, oldest first; copies.

        Args:
            stack: np.stack or torch.stack.
            keys: Of the observations, None for all.
            axis: Where time goes: 0 gives key -> (To, ...), 1 of a batch key -> (N, To, ...).
        """
        return {key: stack([obs[key] for obs in self._past], axis) for key in keys or self._past[0]}

    def _advance(self, observations: Sequence[Mapping[str, Array]], merge: Merge) -> None:
        past = self._past or observations
        self._past = [merge(new, old) for new, old in zip(observations, past, strict=True)]


@final
class ChunkRunner(Generic[Array]):
    """One robot between two decisions: it remembers what was observed and hands out the chunk, action by action.

        runner = ChunkRunner(policy.obs_horizon)
        while running:
            runner.observe(robot.observe())
            if runner.spent:
                runner.execute(policy.predict(runner.seen(np.stack, keys=policy.obs_keys))[0])
            robot.send(runner.next_action())

    Args:
        obs_horizon: To.
    """

    def __init__(self, obs_horizon: int) -> None:
        self._history: ObservationHistory[Array] = ObservationHistory(obs_horizon)
        self._actions: deque[Any] = deque()  # of (A,)

    @property
    def spent(self) -> bool:
        """Whether no action is left, so that `next_action` needs a new chunk first."""
        return not self._actions

    def observe(self, obs: Mapping[str, Array]) -> None:
        """Take in what is seen now, key -> (...); once for every action.

        Args:
            obs: Key -> (B, To, ...), robot units.
        """
        self._history.append(obs)

    def seen(self, stack: Stack, *, keys: Iterable[str] | None = None) -> dict[str, Array]:
        """What a policy decides on, key -> (1, To, ...).

        Args:
            stack: np.stack or torch.stack.
            keys: Of the observations, None for all.
        """
        one: dict[str, Any] = self._history.stacked(stack, keys=keys)
        return {key: value[None] for key, value in one.items()}

    def execute(self, chunk: Array) -> None:
        """Follow this chunk from now on, whatever was left of the last one.

        Args:
            chunk: The actions that are still to be executed, (Ta, A): of one that comes late, leave out the first ones.
        """
        self._actions = deque(chunk)

    def next_action(self) -> Array:
        """The next action of the chunk, (A,).

        Raises:
            IndexError: Where the chunk is spent.
        """
        return self._actions.popleft()

    def reset(self) -> None:
        """A new episode: forget observations and chunk."""
        self._history.clear()
        self._actions.clear()
