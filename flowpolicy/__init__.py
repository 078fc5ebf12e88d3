"""flowpolicy: one-step flow policies for robots.

Arrays in, a policy out, which predicts in one network evaluation:

>>> import numpy as np, torch
>>> from flowpolicy import MemoryStore, build_policy, load_policy, save_policy, train
>>> from flowpolicy.encoders import StateEncoder
>>> from flowpolicy.heads import MeanFlowHead
>>> from flowpolicy.nets import ResidualMLP
>>> states = [np.random.rand(50, 2) for _ in range(20)]  # per episode (T, D): what the robot saw
>>> actions = [1 - state for state in states]  # (T, A): what it was told, in its own units
>>> demos = MemoryStore({"state": states}, actions, control_hz=10)
>>> policy = build_policy(embodiment=demos.embodiment, encoder=StateEncoder, net=ResidualMLP, head=MeanFlowHead)
>>> trained = train(policy, demos, steps=30, progress=False)
>>> folder = save_policy(policy, "my_policy", overwrite=True)
>>> load_policy(folder).predict({"state": torch.zeros(1, 1, 2)}).shape  # (B, To, D) -> (B, Ta, A)
torch.Size([1, 8, 2])

Only a head and its loss, in a training loop of your own:

>>> import torch
>>> from flowpolicy import heads, nets, samplers
>>> head = heads.MeanFlowHead(nets.ResidualMLP(action_dim=2, horizon=16, cond_dim=3))
>>> optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
>>> for _ in range(3):
...     loss = head(action=torch.rand(64, 16, 2) * 2 - 1, cond=torch.rand(64, 3)).loss  # (B, H, A) in [-1, 1], (B, D)
...     optimizer.zero_grad()
...     loss.backward()
...     optimizer.step()
>>> samplers.Jump(num_steps=1)(head, noise=torch.randn(5, 16, 2), cond=torch.rand(5, 3)).shape
torch.Size([5, 16, 2])
"""

from typing import TYPE_CHECKING

from flowpolicy.exports import exported

if TYPE_CHECKING:
    from flowpolicy.checkpoint import Checkpoint as Checkpoint, load_policy as load_policy, save_policy as save_policy
    from flowpolicy.data.memory_store import MemoryStore as MemoryStore
    from flowpolicy.embodiment import CloudSpec as CloudSpec, Embodiment as Embodiment, KeySpec as KeySpec
    from flowpolicy.inputs import NonFiniteError as NonFiniteError
    from flowpolicy.policy import FlowPolicy as FlowPolicy, build_policy as build_policy
    from flowpolicy.spec import Described as Described, PolicySpec as PolicySpec
    from flowpolicy.trainers.imitate import Trained as Trained, train as train
    from flowpolicy.trainers.imitation import TrainerSettings as TrainerSettings
    from flowpolicy.types import Batch as Batch, LossOutput as LossOutput, Observation as Observation

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = exported(
    __name__,
    {
        "checkpoint": ["Checkpoint", "load_policy", "save_policy"],
        "data.memory_store": ["MemoryStore"],
        "embodiment": ["CloudSpec", "Embodiment", "KeySpec"],
        "inputs": ["NonFiniteError"],
        "policy": ["FlowPolicy", "build_policy"],
        "spec": ["Described", "PolicySpec"],
        "trainers.imitate": ["Trained", "train"],
        "trainers.imitation": ["TrainerSettings"],
        "types": ["Batch", "LossOutput", "Observation"],
    },
)
