"""Policies in environments: one vector environment over gymnasium, seeded episodes, videos."""

from typing import TYPE_CHECKING

from flowpolicy.exports import exported

if TYPE_CHECKING:
    from flowpolicy.rollout.batched_env import BatchedChunkEnv as BatchedChunkEnv, BatchedSimulator as BatchedSimulator
    from flowpolicy.rollout.chunk_env import (
        ChunkEnv as ChunkEnv,
        ChunkResult as ChunkResult,
        GroupedChunkEnv as GroupedChunkEnv,
        Reward as Reward,
        make_chunk_env as make_chunk_env,
    )
    from flowpolicy.rollout.episodes import (
        EpisodeResult as EpisodeResult,
        Predictor as Predictor,
        run_episodes as run_episodes,
    )
    from flowpolicy.rollout.history import ChunkRunner as ChunkRunner, ObservationHistory as ObservationHistory
    from flowpolicy.rollout.vector_env import (
        StepResult as StepResult,
        VectorEnv as VectorEnv,
        make_vector_env as make_vector_env,
    )
    from flowpolicy.rollout.video import write_video as write_video

__getattr__, __dir__, __all__ = exported(
    __name__,
    {
        "batched_env": ["BatchedChunkEnv", "BatchedSimulator"],
        "chunk_env": ["ChunkEnv", "ChunkResult", "GroupedChunkEnv", "Reward", "make_chunk_env"],
        "episodes": ["EpisodeResult", "Predictor", "run_episodes"],
        "history": ["ChunkRunner", "ObservationHistory"],
        "vector_env": ["StepResult", "VectorEnv", "make_vector_env"],
        "video": ["write_video"],
    },
)
