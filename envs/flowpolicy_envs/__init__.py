"""Simulators behind one contract: a `gymnasium.Env` with a Dict observation, an `embodiment` and `info["success"]`.

A new simulator is one file here (`make_env`), one in `experts/` if it has demonstrations (`make_expert`), and one yaml
in `configs/task/`. `reset(seed=s)` fixes the episode completely: nothing may leak in from the episodes before it.
"""
