"""The action-chunk picture's data: what the policy would do from some moments, beside what was done.

Two panels: moments of an evaluation episode beside the actions executed in it, and moments of a demonstration beside
the demonstrated actions. Several noise draws per moment show whether the policy is certain, or sees several ways.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowpolicy.data.store import EpisodeStore
from flowpolicy.json_files import write_json
from flowpolicy.matching import require_match
from flowpolicy.policy import FlowPolicy
from flowpolicy.rollout.episodes import run_episodes
from flowpolicy.rollout.history import ChunkRunner
from flowpolicy.rollout.vector_env import VectorEnv
from flowpolicy.samplers.base import Sampler
from flowpolicy.seeding import stream
from flowpolicy.types import Observation

MOMENTS = 6  # per panel: enough to see the whole episode, few enough that the lines stay apart
DRAWS = 8  # noise draws per moment


class EpisodeRecord(NamedTuple):
    """One episode as the policy lived it.

    Args:
        seed: Of the episode.
        seen: What it saw at each prediction, obs key -> (1, To, ...).
        chunks: What it answered, each (1, Ta, A).
        episode_len: Steps taken; the last chunk may be cut short by the end of the episode.
    """

    seed: int
    seen: list[Observation]
    chunks: list[Tensor]
    episode_len: int


class Demonstration(NamedTuple):
    """The first episode of a store. obs: key -> (T, ...).

    Args:
        title: Where it comes from.
        obs: Key -> (T, ...).
        action: (T, A).
    """

    title: str
    obs: Observation
    action: Tensor


@final
class RecordingPolicy:
    """A `Predictor` that is another one, and keeps what it saw and answered.

    Args:
        policy: The policy to run.
    """

    def __init__(self, policy: FlowPolicy) -> None:
        self.policy = policy
        self.embodiment, self.obs_horizon, self.device = policy.embodiment, policy.obs_horizon, policy.device
        self.action_horizon = policy.action_horizon
        self.obs_keys: Sequence[str] = policy.obs_keys
        self.seen: list[Observation] = []
        self.chunks: list[Tensor] = []

    def predict(
        self,
        obs: Observation,
        *,
        sampler: Sampler,
        generator: torch.Generator,
        start: Tensor | None = None,
        whole: bool = False,
    ) -> Tensor:
        """As `FlowPolicy.predict`, and remember both sides: of a whole chunk the part that is executed.

        Args:
            obs: Key -> (B, To, ...), robot units.
            sampler: How a chunk is drawn.
            generator: Where random numbers come from.
            start: Last whole chunk, for a warm start.
            whole: Return all H steps.
        """
        chunk = self.policy.predict(obs, sampler=sampler, generator=generator, start=start, whole=whole)
        first = self.obs_horizon - 1 if whole else 0
        self.seen.append(obs)
        self.chunks.append(chunk[:, first : first + self.action_horizon])
        return chunk


def record_episode(policy: FlowPolicy, env: VectorEnv, *, seed: int, sampler: Sampler) -> EpisodeRecord:
    """Play the episode of `seed` once more, exactly as it was evaluated, and record it.

    Args:
        policy: The policy to run.
        env: Simulators; the first is used.
        seed: Of the episode.
        sampler: How a chunk is drawn.
    """
    recorder = RecordingPolicy(policy)
    (result,) = run_episodes(recorder, env, [seed], sampler=sampler)
    return EpisodeRecord(seed, recorder.seen, recorder.chunks, result.episode_len)


def write_chunks(
    path: Path, policy: FlowPolicy, record: EpisodeRecord, *, sampler: Sampler, demonstration: Demonstration | None
) -> None:
    """Write `Sampler.facts`, "control_hz", "names" and "panels"; without a demonstration only the first panel.

    Args:
        path: The JSON file.
        policy: The policy to run.
        record: The episode.
        sampler: How a chunk is drawn.
        demonstration: The episode that the chunk picture shows too.
    """
    panels = [executed_panel(policy, record, sampler=sampler)]
    if demonstration is not None:
        panels.append(demonstration_panel(policy, demonstration, sampler=sampler, seed=record.seed))
    write_json(
        path,
        {
            **sampler.facts,
            "control_hz": policy.embodiment.control_hz,
            "names": action_names(policy),
            "panels": panels,
        },
    )


def executed_panel(policy: FlowPolicy, record: EpisodeRecord, *, sampler: Sampler) -> dict[str, Any]:
    """Predictions along an evaluation episode beside what was executed in it.

    Args:
        policy: The policy to run.
        record: The episode.
        sampler: How a chunk is drawn.
    """
    executed = torch.cat([chunk[0] for chunk in record.chunks])[: record.episode_len]  # (T, A)
    length = record.chunks[0].shape[1]
    chunks = [
        _draw(policy, record.seen[i], step=i * length, sampler=sampler, seed=record.seed)
        for i in _spread(len(record.seen))
    ]
    return {
        "title": f"evaluation episode, seed {record.seed}",
        "line": "executed",
        "actions": _rounded(executed.cpu().numpy()),
        "chunks": chunks,
    }


def load_demonstration(path: Path, policy: FlowPolicy) -> Demonstration:
    """Read it onto the policy's device.

    Raises as `EpisodeStore` does, and ValueError for another embodiment or, where there is none, shapes or types that
    are not the policy's, and for NaN or infinity.

    Args:
        path: Of the store.
        policy: The policy to run.
    """
    store = EpisodeStore.open(path)
    if store.embodiment is not None:
        require_match(policy.embodiment, store.embodiment, what="checkpoint and demonstrations")
    length = int(store.episode_ends[0])
    first = slice(0, length)
    specs = {key: policy.embodiment.obs[key] for key in policy.obs_keys}
    for key, spec in {**specs, "action": policy.embodiment.action}.items():
        store.require_key(key)
        shape, dtype = store.shapes[key][1:], store.dtypes[key]
        if shape != spec.shape or (dtype != "uint8" if spec.dtype == "uint8" else dtype.kind not in "fiu"):
            raise ValueError(f"{store.path}: {key} is {dtype} {shape} per step, the policy's {spec.dtype} {spec.shape}")
    seen = {key: torch.from_numpy(store.load(key, first)).to(policy.device) for key in policy.obs_keys}
    obs = {key: value if policy.embodiment.obs[key].dtype == "uint8" else value.float() for key, value in seen.items()}
    action = torch.from_numpy(store.load("action", first))
    if bad := [key for key, value in {**obs, "action": action}.items() if not value.isfinite().all()]:
        raise ValueError(
            f"{store.path}: NaN or infinity in {', '.join(bad)} of the first episode; pass another store "
            "as `demonstrations=`"
        )
    return Demonstration(f"demonstration 0 of {store.path.name}", obs, action)


def training_data(recorded: Mapping[str, Any]) -> Path | None:
    """The store that a checkpoint was trained on, if it still lies there unchanged.

    Args:
        recorded: The checkpoint's config.json.
    """
    dataset = recorded.get("dataset") or {}
    path = Path(dataset.get("path", ""))
    if not (path / ".zgroup").is_file():
        return None
    try:
        return path if EpisodeStore.open(path).content_hash() == dataset.get("hash") else None
    except (ValueError, OSError):  # damaged since: the evaluation does not depend on it
        return None


def demonstration_panel(
    policy: FlowPolicy, demonstration: Demonstration, *, sampler: Sampler, seed: int
) -> dict[str, Any]:
    """Predictions along a demonstration beside the demonstrated actions.

    Args:
        policy: The policy to run.
        demonstration: The episode that the chunk picture shows too.
        sampler: How a chunk is drawn.
        seed: Of the noise.
    """
    chunks, runner, moments = [], ChunkRunner[Tensor](policy.obs_horizon), _spread(len(demonstration.action))
    for step in range(len(demonstration.action)):
        runner.observe({key: value[step] for key, value in demonstration.obs.items()})
        if step in moments:
            chunks.append(_draw(policy, runner.seen(torch.stack), step=step, sampler=sampler, seed=seed))
    return {
        "title": demonstration.title,
        "line": "demonstrated",
        "actions": _rounded(demonstration.action.numpy()),
        "chunks": chunks,
    }


def action_names(policy: FlowPolicy) -> list[str]:
    """A name per action dimension, from the embodiment where it has them.

    Args:
        policy: The policy to run.
    """
    names = policy.embodiment.action.names
    return list(names) if names else [f"action {i}" for i in range(policy.embodiment.action_dim)]


def _draw(policy: FlowPolicy, obs: Observation, *, step: int, sampler: Sampler, seed: int) -> dict[str, Any]:
    repeated = {key: value.expand(DRAWS, *value.shape[1:]).contiguous() for key, value in obs.items()}
    generator = stream(seed + step, "chunk_picture")
    chunk = policy.predict(repeated, sampler=sampler, generator=generator)  # (DRAWS, Ta, A)
    return {"step": step, "actions": _rounded(chunk.cpu().numpy())}


def _spread(count: int) -> list[int]:
    """Up to MOMENTS different indices below `count`, the first one and then evenly on."""
    return sorted({int(i) for i in np.linspace(0, count, MOMENTS, endpoint=False)})


def _rounded(values: NDArray[np.float32]) -> list[Any]:
    """Four digits after the point: finer than any line of the picture, a third of the bytes."""
    return np.round(values.astype(np.float64), 4).tolist()
