"""N copies of one gymnasium environment, stepped together in this process or one process each; no hidden resets."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from flowpolicy.contracts import require_env, require_first, require_second
from flowpolicy.embodiment import Embodiment
from flowpolicy.extras import how_to_install
from flowpolicy.processes import begin_simulator, others_start_children
from flowpolicy.types import Observation

if TYPE_CHECKING:
    import gymnasium


class StepResult(NamedTuple):
    """One step of N environments.

    Args:
        obs: key -> (N, ...), what the next action should see: where an episode ended and `autoreset` is on, the first
            observation of the next one.
        final_obs: key -> (N, ...), the true successor of the action; the same as obs where no reset happened.
        reward: (N,) float32.
        terminated: (N,) bool.
        truncated: As `terminated`.
        success: As `terminated`.
        solved_at_reset: (N,) bool; whether the episode that this step belongs to was a success before its first action.
        outcome: a word per environment on how the episode is going, from its info["outcome"]; "" where it gives none.
    """

    obs: Observation
    final_obs: Observation
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    success: Tensor
    solved_at_reset: Tensor
    outcome: tuple[str, ...] = ()


def make_vector_env(
    make_env: Callable[[], "gymnasium.Env"],
    num_envs: int,
    *,
    autoreset: bool = False,
    asynchronous: bool | None = None,
) -> "VectorEnv":
    """`num_envs` environments as one. Close it after use.

    Args:
        make_env: Constructor without arguments; the environment has Dict observations and the attribute `embodiment`.
        num_envs: Environments that are stepped together.
        autoreset: See `VectorEnv`.
        asynchronous: One spawned process per environment; None means when there is more than one.

    Raises:
        ValueError: When num_envs < 1.
        ImportError: Without gymnasium, and whatever `make_env` raises.
    """
    if num_envs < 1:
        raise ValueError(f"envs: wanted at least 1 environment, got {num_envs}")
    try:
        from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
    except ImportError as error:
        raise ImportError(f"gymnasium is not installed; {how_to_install('train')}") from error
    fns: list[Callable[[], Any]] = [partial(_LastingEnv, make_env, index) for index in range(num_envs)]
    if num_envs > 1 if asynchronous is None else asynchronous:
        with others_start_children():
            envs = AsyncVectorEnv(fns, context="spawn", copy=False, autoreset_mode=AutoresetMode.DISABLED)
    else:
        envs = SyncVectorEnv(fns, copy=False, autoreset_mode=AutoresetMode.DISABLED)
    return VectorEnv(envs, autoreset=autoreset, name=describe(make_env))


@final
class VectorEnv:
    """What `make_vector_env` makes.

    autoreset=False: a done environment waits for `reset`; stepping it ignores its action and repeats its last result
      with reward 0.
    autoreset=True: a done environment starts its next episode within the same `step`, with the next seed of a stream
      of its own that the seed of `reset` fixes.

    Args:
        envs: gymnasium's vector environment.
        autoreset: See above.
        name: For messages.
    """

    def __init__(self, envs: Any, *, autoreset: bool, name: str) -> None:
        self._envs, self._autoreset, self._name = envs, autoreset, name
        self.num_envs: int = envs.num_envs
        self._root_seed = [0] * self.num_envs
        self._episode = [0] * self.num_envs
        self.embodiment: Embodiment = self._guard(lambda: envs.call("embodiment"))[0]

    def reset(self, seeds: Sequence[int], mask: np.ndarray | None = None) -> Observation:
        """Start the episodes that `seeds` (N,) fix; returns key -> (N, ...).

        Args:
            seeds: (N,).
            mask: (N,) bool; only those environments are reset, the others keep their last observation (and their entry
                of `seeds` is ignored). The first reset must be of all.
        """
        mask = np.ones(self.num_envs, bool) if mask is None else np.asarray(mask, bool)
        if len(seeds) != self.num_envs or mask.shape != (self.num_envs,):
            raise ValueError(f"reset: wanted {self.num_envs} seeds and mask entries, got {len(seeds)} and {mask.shape}")
        for i in np.flatnonzero(mask):
            self._root_seed[i], self._episode[i] = int(seeds[i]), 0
        return self._reset([int(seed) for seed in seeds], mask)

    def step(self, action: Tensor) -> StepResult:
        """One control step. action: (N, A), robot units.

        Args:
            action: (N, A), robot units.

        Raises:
            ValueError: For a wrong shape.
            RuntimeError: Naming the environment when its process died.
        """
        if tuple(action.shape) != (self.num_envs, self.embodiment.action_dim):
            raise ValueError(
                f"step: action must be (N, A) = ({self.num_envs}, {self.embodiment.action_dim}), got "
                f"{tuple(action.shape)}; one step at a time, not a chunk"
            )
        actions = action.detach().cpu().numpy().astype(np.float32)
        raw, reward, _, _, info = self._guard(lambda: self._envs.step(actions))
        final_obs = tensors(raw)
        done = info["terminated"] | info["truncated"]
        obs = final_obs
        if self._autoreset and done.any():
            obs = self._reset([self._next_seed(i) if done[i] else 0 for i in range(self.num_envs)], done)
        return StepResult(
            obs,
            final_obs,
            torch.from_numpy(reward.astype(np.float32)),
            torch.from_numpy(info["terminated"].copy()),
            torch.from_numpy(info["truncated"].copy()),
            torch.from_numpy(info["success"].copy()),
            torch.from_numpy(info["solved_at_reset"].copy()),
            tuple(info["outcome"]),
        )

    def render(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8 picture of one environment. Raises RuntimeError with the fix when there is no renderer.

        Args:
            index: Of the environment.
        """
        picture = self._guard(lambda: self._envs.call("render_if", index))[index]
        if isinstance(picture, str):
            raise RuntimeError(picture)
        return picture

    def close(self) -> None:
        """End the processes; may be called twice. One that has ended before is no error here."""
        if not self._envs.closed:
            with suppress(RuntimeError):
                self._guard(self._envs.close)

    def _reset(self, seeds: list[int], mask: np.ndarray) -> Observation:
        return tensors(self._guard(lambda: self._envs.reset(seed=seeds, options={"reset_mask": mask}))[0])

    def _next_seed(self, index: int) -> int:
        self._episode[index] += 1
        return episode_seed(self._root_seed[index], self._episode[index])

    def _guard(self, call: Callable[[], Any]) -> Any:
        return guarded(self._envs, self._name, call)


def episode_seed(root: int, episode: int) -> int:
    """Seed of the episode number `episode` of an environment that was reset with `root`: below 2^31, which every
    simulator accepts, and from 1,000,000 on, far from the seeds of collection, evaluation and reports.

    Args:
        root: What the environment was reset with.
        episode: Its number since then, from 0 on.
    """
    state = int(np.random.SeedSequence([root, episode]).generate_state(1)[0])
    return 1_000_000 + state % (2**31 - 1_000_000)


def guarded(envs: Any, name: str, call: Callable[[], Any]) -> Any:
    """Run `call`; a process that died (a simulator's crash reaches us as a closed pipe) becomes a clear error.

    Ctrl-C and SIGTERM in the middle of it end the processes, as nobody would take what they have to say.

    Args:
        envs: Whose processes.
        name: For the message.
        call: What to run.
    """
    processes = getattr(envs, "processes", [])  # none where all are in this one
    try:
        return call()
    except (KeyboardInterrupt, SystemExit):
        for process in processes:
            process.terminate()
            process.join()
        envs.closed = envs.closed or bool(processes)
        raise
    except (EOFError, ConnectionError) as error:
        for process in processes:
            process.join(timeout=0.5)  # the dead one needs a moment to have an exit code
        dead = [f"{i} (exit code {p.exitcode})" for i, p in enumerate(processes) if not p.is_alive()]
        for process in processes:
            process.terminate()
        envs.closed = True
        raise RuntimeError(
            f"the simulator process {', '.join(dead)} of {name} died (a crash inside the simulator, or out of memory); "
            "try `envs=1` (fine-tuning: `workers=1`), which runs it in this process and shows its own message"
        ) from error


@final
class _LastingEnv:
    """One environment inside its process: it outlives the end of an episode, and tells it through `info` alone.

    gymnasium's vector environments refuse or reset a done environment; this one repeats its last result instead.
    """

    def __init__(self, make_env: Callable[[], "gymnasium.Env"], index: int) -> None:
        begin_simulator()
        self._env, self._make = make_env(), make_env
        self.embodiment = require_env(self._env, make_env)
        self._index, self._seen = index, 0
        self.observation_space, self.action_space = self._env.observation_space, self._env.action_space
        self.metadata, self.render_mode, self.spec = self._env.metadata, self._env.render_mode, self._env.spec
        self._last: Any = None
        self._done, self._solved = True, False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        result = self._env.reset(seed=seed)
        if self._seen == 0:
            require_first(result, self.embodiment, self._make)
        obs, info = result
        self._seen = max(self._seen, 1)
        self._done, self._solved = False, bool(info.get("success", False))
        return obs, {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self._done:
            return self._last
        result = self._env.step(action)
        if self._seen == 1:
            require_second(result, self.embodiment, self._make)
        obs, reward, terminated, truncated, info = result
        self._seen = 2
        self._done = bool(terminated or truncated)
        told = {
            "terminated": bool(terminated),
            "truncated": bool(truncated),
            "success": bool(info["success"]),
            "solved_at_reset": self._solved,
            "outcome": str(info.get("outcome", "")),
        }
        self._last = (obs, 0.0, False, False, told)
        return obs, float(reward), False, False, told

    def render_if(self, index: int) -> np.ndarray | str | None:
        """The picture, or why there is none; None when another environment is meant."""
        if index != self._index:
            return None
        try:
            return np.asarray(self._env.render())
        except RuntimeError as error:
            return str(error)

    def get_wrapper_attr(self, name: str) -> Any:
        return self.render_if if name == "render_if" else self._env.get_wrapper_attr(name)

    def close(self) -> None:
        self._env.close()


def tensors(obs: dict[str, np.ndarray]) -> Observation:
    """Copies: gymnasium writes the next step into the same memory. Pictures stay uint8, all else becomes float32.

    Args:
        obs: Key -> (N, ...).
    """
    return {
        key: torch.from_numpy(np.array(value, np.uint8 if value.dtype == np.uint8 else np.float32))
        for key, value in obs.items()
    }


def describe(make_env: Callable[[], Any]) -> str:
    """A name for error messages: the task id where the constructor is a partial of one.

    Args:
        make_env: The constructor.
    """
    if isinstance(make_env, partial):
        return str(make_env.keywords.get("id", (*make_env.args, describe(make_env.func))[0]))
    return f"{make_env.__module__}.{make_env.__qualname__}"
