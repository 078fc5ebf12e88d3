"""Training loops."""

from typing import TYPE_CHECKING

from flowpolicy.exports import exported

if TYPE_CHECKING:
    from flowpolicy.trainers.fitting import fit_normalizers as fit_normalizers
    from flowpolicy.trainers.imitate import SimulatorCheck as SimulatorCheck, Trained as Trained, train as train
    from flowpolicy.trainers.imitation import (
        ImitationTrainer as ImitationTrainer,
        TrainerSettings as TrainerSettings,
    )
    from flowpolicy.trainers.validation import Validation as Validation

__getattr__, __dir__, __all__ = exported(
    __name__,
    {
        "fitting": ["fit_normalizers"],
        "imitate": ["SimulatorCheck", "Trained", "train"],
        "imitation": ["ImitationTrainer", "TrainerSettings"],
        "validation": ["Validation"],
    },
)
