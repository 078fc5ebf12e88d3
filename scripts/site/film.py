"""The film of README.md: a trained policy on the first unseen seeds of a Meta-World task, as a GIF.

    python scripts/site/film.py runs/assembly assembly-v3 .github/rollout.gif

Made with a policy of `flowpolicy data collect task=metaworld task.id=assembly-v3 episodes=10 out=assembly.zarr` and
`flowpolicy train dataset.path=assembly.zarr out=runs/assembly`. Says which seeds succeeded: all are shown.
"""

import sys
from collections.abc import Iterator

import mujoco
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from flowpolicy.checkpoint import load_policy
from flowpolicy.policy import FlowPolicy
from flowpolicy_envs.metaworld import MetaWorldEnv, make_env

SEEDS = (100_000, 100_001, 100_002)
SIZE, DRAWN = (360, 270), (960, 720)  # pixels; drawn larger and made smaller, which smooths edges
EVERY = 4  # control steps of 1/80 s between frames
FRAME_MS = 100  # twice as long as they take
PAUSE = 6  # frames
COLORS = 96  # one palette and no dithering: what stands still costs nothing


class Camera:
    """Draws the simulator from the side of the table.

    Args:
        env: Whose state is drawn.
    """

    def __init__(self, env: MetaWorldEnv) -> None:
        model = env.base.model
        model.vis.global_.offwidth, model.vis.global_.offheight = DRAWN
        self._data, self._renderer = env.base.data, mujoco.Renderer(model, DRAWN[1], DRAWN[0])
        self._view = mujoco.MjvCamera()  # pyright: ignore[reportAttributeAccessIssue]
        self._view.lookat[:] = (0.02, 0.68, 0.12)
        self._view.distance, self._view.azimuth, self._view.elevation = 1.25, 140.0, -24.0

    def frame(self) -> Image.Image:
        """The picture of now."""
        self._renderer.update_scene(self._data, self._view)
        return Image.fromarray(self._renderer.render()).resize(SIZE, Image.Resampling.LANCZOS)


def rollout(policy: FlowPolicy, env: MetaWorldEnv, seed: int) -> Iterator[tuple[int, bool]]:
    """Control steps so far and whether the task is solved, after each of them."""
    obs, _ = env.reset(seed=seed)
    policy.reset(seed)
    history = [obs] * policy.obs_horizon
    steps = 0
    while True:
        seen = {key: torch.from_numpy(_stacked(history[-policy.obs_horizon :], key)) for key in policy.obs_keys}
        for action in policy.predict(seen)[0].numpy():
            obs, _, ended, cut, info = env.step(action)
            history.append(obs)
            steps += 1
            yield steps, info["success"]
            if ended or cut:
                return


def _stacked(history: list[dict[str, NDArray]], key: str) -> NDArray:
    return np.stack([obs[key] for obs in history])[None]


def main(checkpoint: str, task: str, out: str) -> None:
    """Write the GIF."""
    policy, env = load_policy(checkpoint), make_env(task, render=True)
    assert isinstance(env, MetaWorldEnv)
    camera, frames = Camera(env), []
    for seed in SEEDS:
        solved, steps = False, 0
        for steps, solved in rollout(policy, env, seed):
            if steps % EVERY == 0 or solved:
                frames.append(camera.frame())
        frames += [frames[-1]] * PAUSE
        print(f"seed {seed}: {'success' if solved else 'failure'} after {steps} control steps")
    every = np.concatenate([np.asarray(frame) for frame in frames[::10]])
    palette = Image.fromarray(every).quantize(COLORS)
    drawn = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    drawn[0].save(out, save_all=True, append_images=drawn[1:], duration=FRAME_MS, loop=0, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
