"""A policy as one ONNX graph: normalisers, encoder, every step of the head and decoding; the noise is an input."""

import copy
import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from flowpolicy.ambient import standard_torch
from flowpolicy.checkpoint import require_finite
from flowpolicy.deploy.runtime import GRAPH_FILE, OUTPUT, SCHEMA_VERSION, import_onnxruntime, input_names
from flowpolicy.embodiment import save_embodiment
from flowpolicy.extras import how_to_install
from flowpolicy.fingerprint import ENTRY, fingerprint
from flowpolicy.inference.latency import example_observation
from flowpolicy.inputs import is_image
from flowpolicy.json_files import write_json
from flowpolicy.policy import FlowPolicy
from flowpolicy.provenance import versions
from flowpolicy.samplers.base import Sampler, require_fixed, require_support
from flowpolicy.samplers.choose import as_sampler

OPSET = 20  # the first with GELU; onnxruntime has it since 1.17
_LARGEST_FILE = 1_900_000_000  # bytes of weights inside the graph's file: protobuf ends at 2 GiB


def require_export() -> None:
    """Raise ImportError naming the extra when nothing could be exported or run: before the simulator starts."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401

        import_onnxruntime()
    except ImportError as error:
        raise ImportError(f"export needs {error.name}; {how_to_install('export')}") from error


def refuse_existing(folder: Path, *, overwrite: bool) -> None:
    """Raise FileExistsError when `folder` exists and may not be replaced, or when it is no bundle.

    Args:
        folder: Where a bundle is to be written.
        overwrite: Whether a bundle there may be replaced.
    """
    if folder.exists() and not overwrite:
        raise FileExistsError(f"{folder} already exists; choose another path or pass `overwrite=True`")
    if folder.exists() and not (folder / GRAPH_FILE).is_file():
        raise FileExistsError(f"{folder} exists and holds no {GRAPH_FILE}, so `overwrite=True` will not replace it")


@standard_torch()
def write_bundle(
    policy: FlowPolicy,
    folder: Path,
    *,
    sampler: Sampler | str | None = None,
    num_steps: int | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write what `runtime.OnnxPolicy` reads into `folder`, for one observation at a time.

    policy.onnx: inputs obs.<key> (1, To, ...) in robot units, images uint8, and noise (1, H, A); output action (1, Ta,
    A) in robot units. The flow times of the sampler's steps are constants of the graph. policy.json: shapes and types
    of the inputs, the sampler, the fingerprint of all files, versions, and `facts` (checkpoint, task, ...).
    embodiment.json: keys, units, frames, control rate. preprocess.json: how clouds and pictures must be made.

    Args:
        policy: What is written; stays as it is.
        folder: To be made where it is not there.
        sampler: As in `FlowPolicy.predict`; one whose chunk follows from the starting noise, see `require_fixed`.
        num_steps: As in `FlowPolicy.predict`.
        facts: JSON-ready, for policy.json.

    Raises:
        ImportError: Without the extra `export`.
        ValueError: For samplers that the head or a graph does not support, and for weights that are not finite.
    """
    sampler = as_sampler(sampler, num_steps)
    require_support(sampler, policy.head)
    require_fixed(sampler)
    require_export()
    require_finite(policy.state_dict(), "export")
    folder.mkdir(parents=True, exist_ok=True)
    graph = folder / GRAPH_FILE
    _write_graph(policy, graph, sampler)
    specs = policy.embodiment.obs
    inputs = {
        key: {"shape": [1, policy.obs_horizon, *specs[key].shape], "dtype": _dtype(policy, key)}
        for key in policy.obs_keys
    }
    record = {
        "schema_version": SCHEMA_VERSION,
        "format": "onnx",
        "opset": OPSET,
        "num_steps": sampler.num_steps,
        "sampler": sampler.to_dict(),
        "obs": inputs,
        "noise": [1, policy.horizon, policy.embodiment.action_dim],
        "action": [1, policy.action_horizon, policy.embodiment.action_dim],
        "sha256": hashlib.sha256(graph.read_bytes()).hexdigest(),
        "versions": versions(),
    }
    save_embodiment(policy.embodiment, folder / "embodiment.json")
    write_json(folder / "preprocess.json", _preprocessing(policy))
    write_json(folder / "policy.json", record | dict(facts or {}))
    seal(folder)


def seal(folder: Path) -> None:
    """Note in policy.json what every file of the bundle is like, weights beside the graph and certificate included.

    Args:
        folder: The bundle.
    """
    file = folder / "policy.json"
    record = {name: value for name, value in json.loads(file.read_text()).items() if name != ENTRY}
    others = [path for path in sorted(folder.iterdir()) if path != file]
    write_json(file, record | {ENTRY: fingerprint(record, file, others)})


def _preprocessing(policy: FlowPolicy) -> dict[str, Any]:
    """What must have happened to an observation before it reaches the graph, key by key."""
    facts: dict[str, Any] = {
        "history": {
            "observations": policy.obs_horizon,
            "order": "oldest first",
            "at the start": "the first one repeated",
        }
    }
    for key, spec in policy.embodiment.to_dict()["obs"].items():
        if key not in policy.obs_keys:
            continue
        if is_image(policy.embodiment.obs[key]):
            facts[key] = {
                "kind": "image",
                "height_width": spec["shape"][:2],
                "channels": "red, green, blue",
                "values": "0 to 255, scaled inside the graph",
            }
        elif "cloud" in spec:
            facts[key] = {
                "kind": "point cloud",
                "unit": spec["unit"],
                **spec["cloud"],
                "made by": "flowpolicy.pointcloud.make_cloud",
                "sampling": "farthest point from the first one kept",
                "too few": "repeated in turn",
            }
        else:
            facts[key] = {"kind": "numbers", "unit": spec["unit"], "names": spec["names"]}
    return facts


@final
class _Graph(nn.Module):
    """What is exported: observations, in the order of the policy's keys, and noise to the executed chunk."""

    def __init__(self, policy: FlowPolicy, sampler: Sampler) -> None:
        super().__init__()
        self.policy, self.sampler = policy, sampler

    def forward(self, values: list[Tensor], noise: Tensor) -> Tensor:
        policy = self.policy
        obs = dict(zip(policy.obs_keys, values, strict=True))
        return policy.decode(policy.sample(policy.encode(obs), noise, self.sampler), obs)


def _write_graph(policy: FlowPolicy, file: Path, sampler: Sampler) -> None:
    obs = list(example_observation(policy).values())
    noise = torch.zeros(1, policy.horizon, policy.embodiment.action_dim, device="cpu", dtype=torch.float32)
    module = _Graph(copy.deepcopy(policy).cpu().eval(), sampler)
    with _quiet(), torch.no_grad():  # with gradients PointNet takes another way, which is made for training
        program = torch.onnx.export(
            module,
            (obs, noise),
            input_names=input_names(policy.obs_keys),
            output_names=[OUTPUT],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    size = sum(value.numel() * value.element_size() for value in policy.state_dict().values())
    program.save(str(file), external_data=size > _LARGEST_FILE)


def _dtype(policy: FlowPolicy, key: str) -> str:
    return "uint8" if is_image(policy.embodiment.obs[key]) else "float32"


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's own deprecations and its list of libraries that are not installed concern nobody here."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
