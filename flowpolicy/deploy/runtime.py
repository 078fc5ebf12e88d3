"""Run an exported policy with numpy and onnxruntime alone: no torch, so that it fits on a small computer.

    policy = OnnxPolicy("bundle")
    chunk = policy.predict(obs)  # obs: key -> (1, To, ...), robot units

flowpolicy's wheel, installed with `pip install --no-deps`, beside numpy and onnxruntime is enough. Clouds are made by
`flowpolicy.pointcloud.make_cloud` as preprocess.json says, which takes numba besides.
"""

import copy
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from flowpolicy.checks import require_number
from flowpolicy.embodiment import Embodiment, load_embodiment
from flowpolicy.fingerprint import ENTRY, require_unedited
from flowpolicy.inputs import Inputs

SCHEMA_VERSION = 1
GRAPH_FILE = "policy.onnx"
WEIGHTS_FILE = f"{GRAPH_FILE}.data"  # beside a graph that would be too large for one file
FILES = ("policy.json", GRAPH_FILE, "embodiment.json", "preprocess.json")  # that every bundle has
NOISE, OUTPUT = "noise", "action"


def input_names(keys: Sequence[str]) -> list[str]:
    """Names of the graph's inputs: one per observation key, in their order, and the noise.

    Args:
        keys: Observation keys, in the policy's order.
    """
    return [*(f"obs.{key}" for key in keys), NOISE]


@final
class OnnxPolicy:
    """Observations to action chunks, one at a time, as the policy that was exported.

    It draws noise of its own where `predict` is given none, from seed 0 on; `reset` starts another seed. It can be
    pickled and copied: a pickle holds the folder, not the weights, and opens it again; a deep copy shares the session,
    which keeps nothing between two calls.

    Args:
        folder: The bundle.
        threads: Of one prediction; more than one pays only for large nets.
        edited: Take files that are not as they were exported, for somebody who changed them on purpose. Bundles from
            before there were fingerprints are taken without, if their weights are in the graph's own file.

    Attributes:
        facts: policy.json.
        embodiment: What the robot must be like.
        num_steps: Steps of the head inside the graph.

    Raises:
        FileNotFoundError: For a folder that is no bundle or lacks a file.
        ValueError: For one that is damaged, edited or of another schema, for files that contradict each other, and for
            weights that are not finite.
    """

    def __init__(self, folder: Path | str, *, threads: int = 1, edited: bool = False) -> None:
        self.folder, self.threads, self.edited = Path(folder).absolute(), threads, edited
        if threads < 1:
            raise ValueError(f"OnnxPolicy: wanted at least 1 thread, got {threads}")
        self.facts = _read_facts(self.folder, edited=edited)
        self.embodiment: Embodiment = load_embodiment(self.folder / "embodiment.json")
        _require_fit(self.facts, self.embodiment, self.folder / "policy.json")
        self.num_steps: int = self.facts["num_steps"]
        self.obs_keys: tuple[str, ...] = tuple(self.facts["obs"])
        self.noise_shape: tuple[int, ...] = tuple(self.facts["noise"])
        self.obs_horizon: int = self.facts["obs"][self.obs_keys[0]]["shape"][1]
        self._inputs = Inputs(
            self.embodiment,
            self.obs_keys,
            obs_horizon=self.obs_horizon,
            horizon=self.noise_shape[1],
            array=np.ndarray,
            dtypes={"float32": np.dtype("float32"), "uint8": np.dtype("uint8")},
            batch=1,
        )
        self.reset(0)
        self._start()

    def predict(
        self,
        obs: Mapping[str, NDArray[Any]],
        *,
        rng: np.random.Generator | None = None,
        noise: NDArray[np.float32] | Literal["zero"] | None = None,
        finite: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.float32]:
        """Action chunk (1, Ta, A) in robot units.

        The starting noise (1, H, A), standard normal, is `noise`, or drawn from `rng`, by default the policy's own (see
        `reset`). noise="zero" is the way to be deterministic, one action for one observation: the most likely one of a
        narrow distribution, and a wrong one where there are several ways.

        Args:
            obs: key -> (1, To, ...), float32 in robot units, images uint8.
            rng: Draws the noise.
            noise: (1, H, A) float32, or "zero".
            finite: bool (1,), for a loop that must not raise: told whether observation and action are finite; the
                action is NaN where not. Without it that is a NonFiniteError, which is a ValueError.

        Raises:
            ValueError: For missing keys, wrong shapes or types.
        """
        self._inputs.check(obs)
        if noise is None:
            noise = (self._rng if rng is None else rng).standard_normal(self.noise_shape, dtype=np.float32)
        elif isinstance(noise, str) and noise == "zero":
            noise = np.zeros(self.noise_shape, np.float32)
        else:
            self._inputs.check_chunk("noise", noise, 1)
        action = self._run(obs, noise)
        # of squares: the fastest sum that numpy has
        sums = [np.vdot(value, value) for value in (*(obs[key] for key in self._inputs.floats), action)]
        self._inputs.judge(obs, action, sums, finite)
        return action

    def reset(self, seed: int) -> None:
        """Start the policy's own noise again, as np.random.default_rng(seed) draws it; a torch policy draws another.

        Args:
            seed: 0 or more.

        Raises:
            ValueError: For a negative seed.
        """
        require_number("seed", seed, least=0, most=2**63 - 1, whole=True)
        self._rng = np.random.default_rng(seed)

    def __getstate__(self) -> dict[str, Any]:
        """All but the session."""
        return {name: value for name, value in vars(self).items() if name != "_session"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the bundle again. Raises as `OnnxPolicy` does, and ValueError where another one is there by now."""
        if _read_facts(state["folder"], edited=state["edited"]) != state["facts"]:
            raise ValueError(f"{state['folder']} is another bundle than the one this policy ran; open it anew")
        vars(self).update(state)
        self._start()

    def __deepcopy__(self, memo: dict[int, Any]) -> "OnnxPolicy":
        new = object.__new__(OnnxPolicy)
        memo[id(self)] = new
        vars(new).update(copy.deepcopy(self.__getstate__(), memo), _session=self._session)
        return new

    def _start(self) -> None:
        with _readable(self.folder / GRAPH_FILE):
            self._session = _open(self.folder / GRAPH_FILE, self.threads)
            self._require_sound()

    def _run(self, obs: Mapping[str, NDArray[Any]], noise: NDArray[np.float32]) -> NDArray[np.float32]:
        feed = {f"obs.{key}": obs[key] for key in self.obs_keys}
        return self._session.run([OUTPUT], feed | {NOISE: noise})[0]

    def _require_sound(self) -> None:
        """Hold the graph's inputs and outputs against policy.json, and see that zeros give a finite action."""
        facts, file = self.facts, self.folder / GRAPH_FILE
        wanted = {f"obs.{key}": spec["shape"] for key, spec in facts["obs"].items()} | {NOISE: facts["noise"]}
        got = {value.name: value.shape for value in self._session.get_inputs()}
        if got != wanted:
            raise ValueError(f"{file}: wanted the inputs of policy.json {wanted}, got {got}; export again")
        zeros = {key: np.zeros(spec["shape"], spec["dtype"]) for key, spec in facts["obs"].items()}
        action = self._run(zeros, np.zeros(self.noise_shape, np.float32))
        if list(action.shape) != facts["action"]:
            raise ValueError(
                f"{file}: wanted actions {facts['action']} as in policy.json, got {action.shape}; export again"
            )
        if not np.isfinite(action).all():
            raise ValueError(f"{file}: zeros give an action that is not finite; its weights are not; export again")


def _read_facts(folder: Path, *, edited: bool) -> dict[str, Any]:
    """policy.json, after holding the files against the checksums in it."""
    file, graph = folder / "policy.json", folder / GRAPH_FILE
    if not file.is_file() or not graph.is_file():
        raise FileNotFoundError(
            f"no bundle at {folder}: wanted policy.json and {GRAPH_FILE}; `export_with_certificate` makes one"
        )
    try:
        facts = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); copy the bundle again") from error
    if not isinstance(facts, dict) or facts.get("schema_version") != SCHEMA_VERSION:
        got = facts.get("schema_version") if isinstance(facts, dict) else type(facts).__name__
        raise ValueError(f"{file}: wanted schema_version {SCHEMA_VERSION}, got {got}; export it with this flowpolicy")
    require_unedited(facts, file, FILES, edited=edited)
    if ENTRY not in facts and hashlib.sha256(graph.read_bytes()).hexdigest() != facts.get("sha256"):
        raise ValueError(f"{graph} is not the graph that policy.json was written for; copy the whole bundle again")
    if ENTRY not in facts and not edited and (folder / WEIGHTS_FILE).exists():
        raise ValueError(
            f"{folder / WEIGHTS_FILE}: wanted its checksum in policy.json, got none; export again, or "
            "pass `edited=True` if you know that it is whole"
        )
    return facts


def _require_fit(facts: Mapping[str, Any], embodiment: Embodiment, file: Path) -> None:
    """Raise ValueError unless policy.json has the shapes and types that follow from the embodiment."""
    try:
        obs, dim = facts["obs"], embodiment.action_dim
        counts = [obs[next(iter(obs))]["shape"][1], facts["noise"][1], facts["action"][1], facts["num_steps"]]
        specs = {key: embodiment.obs[key] for key in obs}
    except (LookupError, TypeError, StopIteration) as error:
        raise ValueError(
            f"{file}: wanted num_steps, and obs, noise and action with shapes, got no {error}; copy the bundle again"
        ) from error
    shapes = {key: {"shape": [1, counts[0], *spec.shape], "dtype": spec.dtype} for key, spec in specs.items()}
    wanted = {"obs": shapes, "noise": [1, counts[1], dim], "action": [1, counts[2], dim]}
    if wrong := [name for name in wanted if facts[name] != wanted[name]]:
        raise ValueError(
            f"{file}: {wrong[0]}: wanted {wanted[wrong[0]]}, which follows from embodiment.json, got "
            f"{facts[wrong[0]]}; copy the bundle again"
        )
    if not all(type(count) is int and count >= 1 for count in counts) or counts[2] > counts[1]:
        raise ValueError(
            f"{file}: wanted whole numbers >= 1 of observations, predicted steps, executed steps and "
            f"network evaluations, got {counts}; copy the bundle again"
        )


def import_onnxruntime() -> Any:
    """The module, without its telemetry: from 1.32 on it keeps a data base in the home folder and sends from it.

    Only the variable, and only before the import, keeps it from starting; who wants it sets ORT_DISABLE_TELEMETRY=0.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        what = "running a bundle needs onnxruntime: pip install onnxruntime"
        raise ImportError(what, name="onnxruntime") from error
    return onnxruntime


@contextmanager
def _readable(graph: Path) -> Iterator[None]:
    """What onnxruntime says of a graph or weights that it cannot read, as one ValueError."""
    errors = import_onnxruntime().capi.onnxruntime_pybind11_state
    try:
        yield
    except (
        errors.Fail,
        errors.InvalidArgument,
        errors.InvalidGraph,
        errors.InvalidProtobuf,
        errors.NoSuchFile,
        errors.NotImplemented,
        errors.RuntimeException,
    ) as error:
        text = " ".join(str(error).split())
        raise ValueError(
            f"{graph}: onnxruntime cannot run it; copy the whole bundle again, or export again: {text}"
        ) from error


def _open(graph: Path, threads: int) -> Any:
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
