"""What a policy is given and gives: one check with one message, in torch, prepared, exported and in the rollout of RL.

It knows arrays by their shape, type and comparison alone, so that a robot without torch runs the same lines.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, final

from flowpolicy.embodiment import Embodiment, KeySpec

_LARGEST = 3.4028234663852886e38  # of float32


@final
class NonFiniteError(ValueError):
    """NaN or infinity. what: "observation" or "action".

    Args:
        what: "observation" or "action".
        message: The sentence.
    """

    def __init__(self, what: str, message: str) -> None:
        super().__init__(message)
        self.what = what


@final
class Inputs:
    """The check for one policy.

    Args:
        embodiment: The robot's contract: observation keys, shapes, units, action bounds.
        keys: The observations that it reads.
        obs_horizon: To, observations that the policy sees.
        horizon: H, steps of a chunk.
        array: Class of the arrays, `torch.Tensor` or `numpy.ndarray`.
        dtypes: "float32" and "uint8" in their terms.
        batch: The one number of rows that it takes; None is any.

    Attributes:
        floats: The keys that could hold NaN: all but the images.
    """

    def __init__(
        self,
        embodiment: Embodiment,
        keys: Sequence[str],
        *,
        obs_horizon: int,
        horizon: int,
        array: type,
        dtypes: Mapping[str, Any],
        batch: int | None = None,
    ) -> None:
        specs = {key: embodiment.obs[key] for key in keys}
        self.floats = tuple(key for key, spec in specs.items() if spec.dtype == "float32")
        self._wanted = {key: ((obs_horizon, *spec.shape), dtypes[spec.dtype]) for key, spec in specs.items()}
        self._chunk, self._float = (horizon, embodiment.action_dim), dtypes["float32"]
        self._array, self._batch = array, batch

    def check(self, obs: Mapping[str, Any]) -> int:
        """The number of rows of observations key -> (B, To, ...), after holding them against the embodiment.

        Args:
            obs: Key -> (B, To, ...), robot units.

        Raises:
            ValueError: For a missing key, another shape or type, no rows, and keys that differ in their rows.
        """
        batch = self._batch
        for key, (shape, dtype) in self._wanted.items():
            if key not in obs:
                raise ValueError(f"policy: observation '{key}' is missing; got {sorted(obs)}, need {[*self._wanted]}")
            value = obs[key]
            is_array = isinstance(value, self._array)
            rows = batch if batch is not None else value.shape[0] if is_array and value.shape else 0
            if not is_array or value.dtype != dtype or value.shape != (rows, *shape) or rows < 1:
                wanted = _described(dtype, ("B" if batch is None else batch, *shape))
                pixels = "" if key in self.floats else ", 0 to 255"
                raise ValueError(f"policy: observation '{key}' must be {wanted}{pixels}, got {self._name(value)}")
            batch = rows
        assert batch is not None
        return batch

    def check_chunk(self, name: str, value: Any, batch: int) -> None:
        """Raise ValueError unless `value`, the noise or the start, is a whole chunk (B, H, A) of float32.

        Args:
            name: Of the argument, for the error.
            value: Should be (B, H, A) float32.
            batch: B.
        """
        wanted = (batch, *self._chunk)
        if not isinstance(value, self._array) or value.dtype != self._float or value.shape != wanted:
            raise ValueError(f"policy: {name} must be {_described(self._float, wanted)}, got {self._name(value)}")

    def check_windows(self, obs: Mapping[str, Any], action: Any, mask: Any) -> None:
        """Raise ValueError unless these are windows to train on; a cloud may have fewer points than the robot's.

        Args:
            obs: Key -> (B, To, ...).
            action: (B, H, A).
            mask: (B, H).
        """
        rows = action.shape[0] if isinstance(action, self._array) and action.shape else 1
        for name, value, shape in (("action", action, self._chunk), ("mask", mask, self._chunk[:1])):
            if not isinstance(value, self._array) or value.shape != (rows, *shape):
                wanted = ", ".join(map(str, ("B", *shape)))
                raise ValueError(f"policy: {name} of the batch must be ({wanted}), got {self._name(value)}")
        for key, (shape, _) in self._wanted.items():
            if key not in obs:
                raise ValueError(f"policy: observation '{key}' is missing; got {sorted(obs)}, need {[*self._wanted]}")
            value, wanted = obs[key], (rows, *shape)
            if isinstance(value, self._array) and len(shape) == 3:  # (B, To, N, 3): any N
                wanted = (*wanted[:2], *value.shape[2:3], *wanted[3:])
            if not isinstance(value, self._array) or value.shape != wanted:
                said = ", ".join(map(str, (rows, *shape)))
                raise ValueError(f"policy: observation '{key}' of the batch must be ({said}), got {self._name(value)}")

    def judge(self, obs: Mapping[str, Any], action: Any, sums: Collection[Any], finite: Any = None) -> None:
        """Raise NonFiniteError naming key and row where an observation or the action (B, Ta, A) is not finite.

        Args:
            obs: Key -> (B, To, ...), robot units.
            action: (B, ..., A), robot units.
            sums: Of the observations in `floats`, and of the action, at the least: where they are finite, all is.
            finite: a bool array (B,) that is told which rows are, in the place of the error; the others' actions become
                NaN.
        """
        if finite is not None:
            self._check_flag(finite, len(action))
            finite[:] = True
        if all(math.isfinite(value) for value in sums):
            return
        for what, value in (*((key, obs[key]) for key in self.floats), ("", action)):
            for row, entries in enumerate(value):
                if (abs(entries) <= _LARGEST).all():
                    continue
                if finite is None:
                    raise _error(what, row, len(action))
                finite[row], action[row] = False, math.nan

    def _check_flag(self, finite: Any, batch: int) -> None:
        if not isinstance(finite, self._array) or "bool" not in str(finite.dtype) or finite.shape != (batch,):
            raise ValueError(f"policy: finite must be bool ({batch},), got {self._name(finite)}")

    def _name(self, value: Any) -> str:
        is_array = isinstance(value, self._array)
        return _described(value.dtype, tuple(value.shape)) if is_array else f"{type(value).__name__} {value!r:.40}"


def _described(dtype: Any, shape: tuple[Any, ...]) -> str:
    return f"{str(dtype).removeprefix('torch.')} ({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"


def _error(key: str, row: int, batch: int) -> NonFiniteError:
    where = f"in row {row} of {batch}"
    fix = "stop the robot, or pass finite= to be told in the place of this error"
    if key:
        return NonFiniteError("observation", f"policy: observation '{key}' is NaN or infinite {where}; {fix}")
    words = f"policy: the action is NaN or infinite {where}, the observation is not; look at noise, start and weights"
    return NonFiniteError("action", f"{words}; {fix}")


def is_image(spec: KeySpec) -> bool:
    """Whether an observation is a picture (H, W, 3) uint8, which the encoder scales and no normaliser touches.

    Args:
        spec: Of the observation.
    """
    return len(spec.shape) == 3 and spec.dtype == "uint8"
