"""The reach table of docs/results/finetuning.md: python -m tests.rl.reach_table prints it, 15 minutes of one core.

python -m tests.rl.reach_table langevin "langevin, pull" prints these rows alone.
"""

import sys
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple

import torch

from flowpolicy.exploration.base import Exploration
from flowpolicy.exploration.flow_sde import FlowSDE
from flowpolicy.exploration.langevin import Langevin
from flowpolicy.exploration.renoise import Renoise
from tests.rl.toy import WIDE, reach_env, success, train, train_in_groups

PULL = {"bc_kind": "velocity", "bc_weight": 0.1, "bc_final": 0.1}


class Run(NamedTuple):
    """imitated: steps of imitation, as many as give a policy that half works.   settings: others of `train`."""

    exploration: Exploration | partial[Exploration]
    imitated: int
    settings: dict[str, Any]

    def train(self, seed: int) -> tuple[float, float]:
        """Success before and after."""
        return train(self.exploration, seed=seed, bc_steps=self.imitated, **self.settings)[:2]


RUNS = {
    "flow_noise": Run(WIDE, 300, {}),
    "renoise": Run(Renoise(), 320, {"head": "meanflow_u"}),
    "renoise, the net predicts the action": Run(Renoise(), 300, {}),
    "langevin, pull": Run(Langevin(), 150, {"head": "meanflow_u", **PULL}),
    "langevin, pull, the net predicts the action": Run(Langevin(), 300, PULL),
    "langevin": Run(Langevin(), 150, {"head": "meanflow_u"}),
    "flow_sde": Run(FlowSDE(num_steps=4), 80, {"head": "flow_matching", "iterations": 40}),
    "flow_sde, the net predicts the action": Run(FlowSDE(num_steps=4), 360, {"head": "flow_matching_x"}),
}
GROUPS = "flow_noise, group advantages"


def main(wanted: list[str]) -> None:
    """One line a run as soon as it is there: imitation steps, before, after of seeds 0, 1 and 2, iterations."""
    torch.set_num_threads(1)
    for name in wanted or [*RUNS, GROUPS]:
        if name == GROUPS:
            with closing(reach_env()) as env:
                model, _ = train_in_groups(env, iterations=60)
            print(f"| {name}, seed 0 | 300 | | {success(model.policy):.3f} | 60 |", flush=True)
            continue
        run = RUNS[name]
        found = [run.train(seed) for seed in range(3)]
        after = " / ".join(f"{after:.3f}" for _, after in found)
        print(
            f"| {name} | {run.imitated} | {found[0][0]:.3f} | {after} | {run.settings.get('iterations', 60)} |",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
