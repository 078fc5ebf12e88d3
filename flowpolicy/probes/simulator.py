"""Whether a simulator makes a step: `python -m flowpolicy.probes.simulator MODULE ID`, of the module with make_env."""

import importlib
import sys


def main(module: str, id: str) -> None:
    """Raise whatever goes wrong.

    Args:
        module: Where `make_env` is.
        id: Of one of its tasks.
    """
    env = importlib.import_module(module).make_env(id, obs="state", max_episode_steps=5)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
