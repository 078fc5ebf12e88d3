"""ManiSkill's motion planner as the expert: joint-space paths to way-points, recorded as joint targets."""

import contextlib
import io
from collections.abc import Callable
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from flowpolicy.data.store import Episode
from flowpolicy.extras import how_to_install
from flowpolicy_envs.maniskill import ManiSkillEnv, Obs, Observation, make_env
from flowpolicy_envs.view import View

# task -> name of ManiSkill's solution function for it, in mani_skill.examples.motionplanning.panda.solutions
SOLUTIONS = {
    "PickCube-v1": "solvePickCube",
    "PushCube-v1": "solvePushCube",
    "PullCube-v1": "solvePullCube",
    "StackCube-v1": "solveStackCube",
    "LiftPegUpright-v1": "solveLiftPegUpright",
    "PegInsertionSide-v1": "solvePegInsertionSide",
    "PlaceSphere-v1": "solvePlaceSphere",
    "PlugCharger-v1": "solvePlugCharger",
    "PullCubeTool-v1": "solvePullCubeTool",
    "StackPyramid-v1": "solveStackPyramid",
}


def make_expert(id: str, *, obs: Obs = "state", view: View | None = None) -> "PlannerExpert":
    """The planner for one task. Raises ValueError naming the tasks that have one, ImportError without ManiSkill.

    Args:
        id: The task, by its name in the simulator.
        obs: What is observed: "state", "point_cloud" or "rgb".
        view: What is seen: cameras, image size, cloud.
    """
    if id not in SOLUTIONS:
        raise ValueError(f"`id`: no motion planner for {id!r}; there is one for {', '.join(SOLUTIONS)}")
    return PlannerExpert(id, obs=obs, view=view)


@final
class PlannerExpert:
    """Runs the planner in the simulator and keeps what it did; success is the task's own, after the last step.

    Args:
        id: The task, by its name in the simulator.
        obs: What is observed: "state", "point_cloud" or "rgb".
        view: What is seen: cameras, image size, cloud.
    """

    def __init__(self, id: str, *, obs: Obs, view: View | None) -> None:
        env = make_env(id, obs=obs, view=view)
        assert isinstance(env, ManiSkillEnv)
        self._env = env
        self.embodiment = env.embodiment
        self._solve = _solution(id)

    def episode(self, seed: int) -> Episode:
        """One attempt. A path that cannot be planned is an unsuccessful (possibly empty) episode, not an error.

        Args:
            seed: Of the episode.
        """
        recorder = _Recorder(self._env)
        # the planner narrates on stdout; a path it cannot time is a RuntimeError, an empty one UnboundLocalError
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(RuntimeError, UnboundLocalError):
            self._solve(recorder, seed=seed, debug=False, vis=False)
        return recorder.episode(seed)

    def close(self) -> None:
        """Free the simulator."""
        self._env.close()


@final
class _Recorder:
    """The part of `gymnasium.Env` that the planner uses, writing down observation, executed action and reward."""

    def __init__(self, env: ManiSkillEnv) -> None:
        self.unwrapped = env.base
        self._space = env.action_space
        self._env = env
        self._obs: list[Observation] = []
        self._action: list[NDArray[np.float32]] = []
        self._reward: list[float] = []
        self._success = False

    def reset(self, *, seed: int | None = None) -> Any:
        obs, info = self._env.reset(seed=seed)
        self._obs = [obs]
        return obs, info

    def step(self, action: NDArray[np.floating]) -> Any:
        action = np.clip(np.asarray(action, np.float32), self._space.low, self._space.high)
        obs, reward, terminated, truncated, info = self.unwrapped.step(action)
        self._obs.append(self._env.observe(obs))
        self._action.append(action)
        self._reward.append(float(reward))
        self._success = bool(info["success"])
        return obs, reward, terminated, truncated, info

    def episode(self, seed: int) -> Episode:
        steps = len(self._action)
        obs = {key: np.stack([o[key] for o in self._obs[: max(steps, 1)]])[:steps] for key in self._obs[0]}
        action = np.stack(self._action) if steps else np.zeros((0, *self._space.shape), np.float32)
        return Episode(obs, action, np.asarray(self._reward, np.float32), self._success, seed)


def _solution(id: str) -> Callable[..., Any]:
    try:
        from mani_skill.examples.motionplanning.panda import solutions
    except ImportError as error:
        raise ImportError(
            f"the motion planner of {id} cannot be loaded ({error}); {how_to_install('maniskill')}"
        ) from error
    return getattr(solutions, SOLUTIONS[id])
