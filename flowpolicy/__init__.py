"""flowpolicy: one-step flow policies for robots."""

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
