"""Simulator processes end with the process that started them, also in the middle of a step."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.data.test_collect import read, running, wait_for
from tests.rollout.counting import CountingEnv

CODE = """
import sys
import torch
from tests.rollout.test_killed_parent import Sleeping
kind = sys.argv[1]
if kind == "vector":
    from flowpolicy.rollout.vector_env import make_vector_env
    envs, action = make_vector_env(Sleeping, 2), torch.zeros(2, 1)
else:
    from flowpolicy.rollout.chunk_env import make_chunk_env
    envs, action = make_chunk_env(Sleeping, 2, action_horizon=1, workers=2), torch.zeros(2, 1, 1)
envs.reset([1, 2])
print("ready", flush=True)
envs.step(action)
"""


class Sleeping(CountingEnv):
    """A step of an hour."""

    def step(self, action):
        time.sleep(3600)
        return super().step(action)


@pytest.mark.parametrize("kind", ["vector", "chunk"])
def test_they_do(kind):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", CODE, kind]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == b"ready\n"
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        workers = [pid for pid in children if b"spawn_main" in read(Path(f"/proc/{pid}/cmdline"))]
        assert len(workers) == 2
        time.sleep(0.2)  # into the step
        parent.kill()
    wait_for(lambda: not any(running(pid) for pid in workers), seconds=20.0)
