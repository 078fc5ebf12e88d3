"""ManiSkill 3 as one batch, from states: hundreds of environments on one GPU (PhysX on CUDA)."""

from collections.abc import Sequence
from typing import Any, Literal, final

import gymnasium
import torch
from torch import Tensor

from flowpolicy.rollout.batched_env import BatchStep
from flowpolicy.types import Observation
from flowpolicy_envs.maniskill import JOINTS, embodiment, state_specs
from flowpolicy_envs.maniskill_assets import import_mani_skill, makable

Backend = Literal["physx_cuda", "physx_cpu"]


@final
class ManiSkillBatch:
    """See `BatchedSimulator`: the observations and actions of `make_env(id, obs="state")`, N at a time.

    Through `ManiSkillVectorEnv` with its own resets off: it would restart an environment in the middle of a chunk, and
    the rest of the chunk would run in the next episode. The scene is not rebuilt between episodes, as that cannot be
    done for some environments alone; contacts may so depend on the episode before, in the last digits.

    Args:
        id: The task, by its name in the simulator.
        num_envs: Environments that are stepped together.
        max_episode_steps: Control steps after which an episode is cut off.
        backend: "physx_cpu" simulates one environment only.

    Raises:
        ImportError: Without ManiSkill.
        ValueError: For an unknown id, no steps, or CUDA without a GPU.
    """

    def __init__(
        self, id: str, num_envs: int, *, max_episode_steps: int = 200, backend: Backend = "physx_cuda"
    ) -> None:
        if max_episode_steps < 1:
            raise ValueError(f"`max_episode_steps` must be at least 1, got {max_episode_steps}")
        known = import_mani_skill()
        if id not in known:
            raise ValueError(f"`id`: ManiSkill knows no {id!r}; it knows {', '.join(known)}")
        if backend == "physx_cuda" and not torch.cuda.is_available():
            raise ValueError(
                "a batch is simulated on a GPU, and torch sees none; use separate simulators: "
                "`batched=False`, with `workers=`"
            )
        from mani_skill.vector.wrappers.gymnasium import ManiSkillVectorEnv

        with makable(id, draws=False):
            made = gymnasium.make(
                id,
                num_envs=num_envs,
                sim_backend=backend,
                render_backend="none",
                obs_mode="state_dict",
                control_mode="pd_joint_pos",
                max_episode_steps=max_episode_steps,
            )
        self._envs = ManiSkillVectorEnv(made, auto_reset=False, ignore_terminations=True)
        base, self.num_envs = self._envs.base_env, num_envs
        raw, _ = self._envs.reset(seed=list(range(num_envs)))
        self.embodiment = embodiment(base, state_specs(base, raw))
        bounds = (self.embodiment.action_low, self.embodiment.action_high)
        self._low, self._high = (torch.tensor(bound, device=base.device) for bound in bounds)

    def reset(self, seeds: Sequence[int], done: Tensor) -> Observation:
        """See `BatchedSimulator`.

        ManiSkill draws the starts of all environments that are reset together from one generator, seeded with the seed
        of the first: equal seeds do not give equal starts, as GRPO's groups would need.

        Args:
            seeds: Of the new episodes, one per environment.
            done: (N,) bool, which ones to reset.
        """
        index = done.nonzero().squeeze(1).to(self._envs.device)
        if bool(done.all()):
            raw, _ = self._envs.reset(seed=list(seeds))
            return _observation(raw)
        # its own seeding would begin with the seed of environment 0, which goes on: every restart would be the same
        with torch.random.fork_rng():
            torch.manual_seed(seeds[int(index[0])])
            raw, _ = self._envs.reset(options={"env_idx": index})
        return _observation(raw)

    def step(self, action: Tensor) -> BatchStep:
        """See `BatchedSimulator`; the action is clipped to the action space.

        Args:
            action: (N, A), robot units.
        """
        raw, reward, _, truncated, info = self._envs.step(action.to(self._low).clamp(self._low, self._high))
        success = info["success"].bool().clone()
        late = torch.as_tensor(truncated).bool().clone()
        return BatchStep(_observation(raw), torch.as_tensor(reward).float().clone(), success, success, late)

    def close(self) -> None:
        """Free the scenes."""
        self._envs.close()


def make_batched(id: str, num_envs: int, *, max_episode_steps: int = 200) -> ManiSkillBatch:
    """For `task.batched` of the configuration.

    Args:
        id: The task, by its name in the simulator.
        num_envs: Environments that are stepped together.
        max_episode_steps: Control steps after which an episode is cut off.
    """
    return ManiSkillBatch(id, num_envs, max_episode_steps=max_episode_steps)


def _observation(raw: Any) -> Observation:
    """Nested (N, ...) tensors -> agent_pos, agent_vel, env_state, copied: the simulator goes on in its own memory."""
    flat = _flatten(raw)
    position, velocity = (flat.pop(joint) for joint in JOINTS)
    return {
        "agent_pos": position.clone(),
        "agent_vel": velocity.clone(),
        "env_state": torch.cat(list(flat.values()), 1),
    }


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Tensor]:
    flat: dict[str, Tensor] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = torch.as_tensor(value).float().reshape(len(value), -1)
    return flat
