"""README's table of the reach task: python -m tests.rl.reach_table prints it, 15 minutes of one core."""

from contextlib import closing
from functools import partial
from typing import Any, NamedTuple

import torch

from flowpolicy.samplers.base import StochasticSampler
from flowpolicy.samplers.flow_sde import FlowSDE
from flowpolicy.samplers.langevin import Langevin
from flowpolicy.samplers.renoise import Renoise
from tests.rl.toy import WIDE, reach_env, success, train, train_in_groups

PULL = {"bc_kind": "velocity", "bc_weight": 0.1, "bc_final": 0.1}


class Run(NamedTuple):
    """settings: of `train`."""

    sampler: StochasticSampler | partial[StochasticSampler]
    settings: dict[str, Any]


RUNS = {
    "flow_noise": Run(WIDE, {}),
    "renoise": Run(Renoise(), {"head": "meanflow_u", "bc_steps": 320}),
    "renoise, the net predicts the action": Run(Renoise(), {}),
    "langevin, pull": Run(Langevin(), {"head": "meanflow_u", "bc_steps": 150, **PULL}),
    "langevin, pull, the net predicts the action": Run(Langevin(), PULL),
    "langevin": Run(Langevin(), {"head": "meanflow_u", "bc_steps": 150}),
    "flow_sde": Run(FlowSDE(num_steps=4), {"head": "flow_matching", "bc_steps": 80, "iterations": 40}),
    "flow_sde, the net predicts the action": Run(FlowSDE(num_steps=4), {"head": "flow_matching_x", "bc_steps": 360}),
}


def main() -> None:
    """One line a run as soon as it is there: before, and after of training seeds 0, 1 and 2."""
    torch.set_num_threads(1)
    for name, (sampler, settings) in RUNS.items():
        found = [train(sampler, seed=seed, **settings)[:2] for seed in range(3)]
        print(f"| {name} | {found[0][0]:.3f} | {' / '.join(f'{after:.3f}' for _, after in found)} |", flush=True)
    with closing(reach_env()) as env:
        model, _ = train_in_groups(env, iterations=60)
    print(f"| flow_noise, group advantages, seed 0 | | {success(model.policy):.3f} |")


if __name__ == "__main__":
    main()
