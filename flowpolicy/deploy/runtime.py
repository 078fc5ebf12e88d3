"""Run an exported policy with numpy and onnxruntime alone: no torch, so that it fits on a small computer.

    policy = OnnxPolicy("bundle")
    chunk = policy.predict(obs, rng=np.random.default_rng(0))  # obs: key -> (1, To, ...), robot units

flowpolicy's wheel, installed with `pip install --no-deps`, beside numpy and onnxruntime is enough. Clouds are made by
`flowpolicy.pointcloud.make_cloud` as preprocess.json says, which takes numba besides.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from flowpolicy.embodiment import Embodiment, load_embodiment

SCHEMA_VERSION = 1
GRAPH_FILE = "policy.onnx"
NOISE, OUTPUT = "noise", "action"


def input_names(keys: Sequence[str]) -> list[str]:
    """Names of the graph's inputs: one per observation key, in their order, and the noise."""
    return [*(f"obs.{key}" for key in keys), NOISE]


@final
class OnnxPolicy:
    """Observations to action chunks, one at a time, as the policy that was exported.

    facts: policy.json.   embodiment: what the robot must be like.   num_steps: steps of the head inside the graph.
    threads: of one prediction; more than one pays only for large nets.
    Raises FileNotFoundError for a folder that is no bundle, ValueError for one that is damaged or of another schema.
    """

    def __init__(self, folder: Path | str, *, threads: int = 1) -> None:
        self.folder = Path(folder)
        if threads < 1:
            raise ValueError(f"OnnxPolicy: wanted at least 1 thread, got {threads}")
        self.facts = _read_facts(self.folder)
        self.embodiment: Embodiment = load_embodiment(self.folder / "embodiment.json")
        self.num_steps: int = self.facts["num_steps"]
        self.obs_keys: tuple[str, ...] = tuple(self.facts["obs"])
        self.noise_shape: tuple[int, ...] = tuple(self.facts["noise"])
        self.obs_horizon: int = self.facts["obs"][self.obs_keys[0]]["shape"][1]
        self._expected = {
            key: (tuple(spec["shape"]), np.dtype(spec["dtype"])) for key, spec in self.facts["obs"].items()
        }
        self._session = _open(self.folder / GRAPH_FILE, threads)

    def predict(
        self,
        obs: Mapping[str, NDArray[Any]],
        *,
        rng: np.random.Generator | None = None,
        noise: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Action chunk (1, Ta, A) in robot units.

        obs: key -> (1, To, ...), float32 in robot units, images uint8.
        The starting noise (1, H, A), standard normal, is `noise`, or drawn from `rng`; one of the two must be given.
        Raises ValueError for missing keys, wrong shapes or types.
        """
        feed = {f"obs.{key}": self._checked(obs, key) for key in self.obs_keys}
        if noise is None:
            if rng is None:
                raise ValueError("predict: pass rng=np.random.default_rng(...) or noise=(1, H, A)")
            noise = rng.standard_normal(self.noise_shape, dtype=np.float32)
        elif noise.shape != self.noise_shape or noise.dtype != np.float32:
            raise ValueError(
                f"predict: noise must be float32 {self.noise_shape}, got {noise.dtype} {tuple(noise.shape)}"
            )
        feed[NOISE] = noise
        return self._session.run([OUTPUT], feed)[0]

    def _checked(self, obs: Mapping[str, NDArray[Any]], key: str) -> NDArray[Any]:
        if key not in obs:
            raise ValueError(f"predict: observation '{key}' is missing; got {sorted(obs)}, need {list(self.obs_keys)}")
        shape, dtype = self._expected[key]
        if obs[key].shape != shape or obs[key].dtype != dtype:
            raise ValueError(
                f"predict: observation '{key}' must be {dtype} {shape}, got {obs[key].dtype} {tuple(obs[key].shape)}"
            )
        return obs[key]


def _read_facts(folder: Path) -> dict[str, Any]:
    """policy.json, after holding the graph against the checksum in it."""
    file, graph = folder / "policy.json", folder / GRAPH_FILE
    if not file.is_file() or not graph.is_file():
        raise FileNotFoundError(
            f"no bundle at {folder}: wanted policy.json and {GRAPH_FILE}; `flowpolicy export` makes one"
        )
    try:
        facts = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); copy the bundle again") from error
    if not isinstance(facts, dict) or facts.get("schema_version") != SCHEMA_VERSION:
        got = facts.get("schema_version") if isinstance(facts, dict) else type(facts).__name__
        raise ValueError(f"{file}: wanted schema_version {SCHEMA_VERSION}, got {got}; export it with this flowpolicy")
    if hashlib.sha256(graph.read_bytes()).hexdigest() != facts["sha256"]:
        raise ValueError(f"{graph} is not the graph that policy.json was written for; copy the whole bundle again")
    return facts


def _open(graph: Path, threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("running a bundle needs onnxruntime: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
