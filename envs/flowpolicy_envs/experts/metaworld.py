"""Meta-World's scripted policies as experts, with their actions clipped to [-1, 1] before they are executed."""

import warnings
from collections.abc import Callable
from typing import Literal, final, get_args

import numpy as np
from numpy.typing import NDArray

from flowpolicy.data.store import Episode
from flowpolicy_envs.metaworld import MetaWorldEnv, Obs, make_env
from flowpolicy_envs.view import View

Scripts = Literal["corrected", "metaworld"]
Script = Callable[[NDArray[np.float64]], NDArray[np.floating]]
"""Meta-World's observation (39,) -> action (4,), not clipped."""


def make_expert(
    id: str,
    *,
    obs: Obs = "state",
    max_episode_steps: int = 200,
    hold_steps: int = 8,
    scripts: Scripts = "corrected",
    view: View | None = None,
) -> "ScriptedExpert":
    """The scripted policy of one task. It sees the state, whatever `obs` and `view` say is recorded.

    Args:
        id: The task, by its name in the simulator.
        obs: What is observed: "state", "point_cloud" or "rgb".
        max_episode_steps: Give up after so many steps without success.
        hold_steps: Go on for so many steps after success, so that the end of the demonstration teaches to stay there;
            max_episode_steps or more: up to the step limit, as published data have it.
        scripts: "metaworld" for the scripts as Meta-World ships them, which is what published results learn from;
            "corrected" repairs those that miss on some seeds (door-open-v3: 0.94 of 100 seeds before, 1.00 after).
        view: What is seen: cameras, image size, cloud.

    Raises:
        ImportError: Without Meta-World.
        ValueError: For an unknown task.
    """
    if hold_steps < 0:
        raise ValueError(f"expert.hold_steps: must not be negative, got {hold_steps}")
    if scripts not in get_args(Scripts):
        raise ValueError(f"expert.scripts: must be one of {', '.join(get_args(Scripts))}, got {scripts!r}")
    correct = _CORRECTIONS.get(id) if scripts == "corrected" else None
    env = make_env(id, obs=obs, max_episode_steps=max_episode_steps, view=view)
    assert isinstance(env, MetaWorldEnv)
    return ScriptedExpert(id, env, hold_steps=hold_steps, correct=correct)


def _come_from_above_the_door(script: Script) -> Script:
    """door-open-v3: over the handle first, then down.

    Meta-World's script comes down as soon as it is within 12 cm of a point beside the handle; a door that stands close
    to the hand (x < 0.2 m) is already in reach then, and the hand ends up on the wrong side of the handle.
    """

    def corrected(raw_obs: NDArray[np.float64]) -> NDArray[np.floating]:
        hand, handle = raw_obs[:3], raw_obs[4:7]
        if hand[2] < handle[2] + 0.04 or hand[0] > handle[0] - 0.03:  # m; down already, or past the handle
            return script(raw_obs)
        return np.append(25.0 * (handle + (0.01, 0.02, 0.2) - hand), 1.0)  # the script's own gain and way-point

    return corrected


_CORRECTIONS = {"door-open-v3": _come_from_above_the_door}


@final
class ScriptedExpert:
    """Runs the script past success, where the environment itself would end the episode.

    Args:
        id: The task, by its name in the simulator.
        env: The simulator.
        hold_steps: Steps that it goes on after success.
        correct: Changes the script where it fails; None leaves it as it is.
    """

    def __init__(
        self, id: str, env: MetaWorldEnv, *, hold_steps: int, correct: Callable[[Script], Script] | None
    ) -> None:
        from metaworld.policies import ENV_POLICY_MAP

        self._env = env
        self._policy_class = ENV_POLICY_MAP[id]
        self._hold_steps = hold_steps
        self._correct = correct
        self.embodiment = env.embodiment

    def episode(self, seed: int) -> Episode:
        """One attempt: until `hold_steps` after the first success, or the step limit.

        Args:
            seed: Of the episode.
        """
        limit = self._env.max_episode_steps
        script: Script = self._policy_class().get_action  # new each time: some scripts remember their stage
        if self._correct is not None:
            script = self._correct(script)
        seen, action, reward, success_at = [], [], [], None
        obs, _ = self._env.reset(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Constant(s) may be too high", every step: hence the clipping
            while len(action) < (
                limit if success_at is None or self._hold_steps >= limit else success_at + self._hold_steps
            ):
                clipped = np.clip(script(self._env.raw_obs.copy()), -1.0, 1.0).astype(np.float32)
                seen.append(obs)
                action.append(clipped)
                obs, step_reward, _, _, info = self._env.step(clipped)
                if "outcome" in info:
                    raise ValueError(
                        f"seed {seed}, step {len(action)}: {info['outcome']}; "
                        "widen `crop_low` and `crop_high` of the view"
                    )
                reward.append(step_reward)
                if info["success"] and success_at is None:
                    success_at = len(action)
        stacked = {key: np.stack([o[key] for o in seen]) for key in seen[0]}
        return Episode(stacked, np.stack(action), np.asarray(reward, np.float32), success_at is not None, seed)

    def close(self) -> None:
        """Free the simulator."""
        self._env.close()
