"""Policies on disk: config.json + model.safetensors + embodiment.json; never pickle, rebuilt from these alone."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from flowpolicy.embodiment import Embodiment, load_embodiment, save_embodiment
from flowpolicy.files import write_atomic
from flowpolicy.policy import FlowPolicy

SCHEMA_VERSION = 1


def create_policy(config: dict[str, Any], embodiment: Embodiment, *, trusted_modules: Sequence[str] = ()) -> FlowPolicy:
    """Build an untrained policy from its resolved config (the `policy` node, `_target_`s included).

    trusted_modules: packages outside flowpolicy whose classes the config may name. Raises ValueError for any other
    `_target_`: a config file must not be able to run arbitrary code.
    """
    for target in _targets(config):
        if target.split(".")[0] not in ("flowpolicy", *trusted_modules):
            raise ValueError(
                f"the policy config names {target}, which is outside flowpolicy; if you trust that package pass "
                f"trusted_modules=[{target.split('.')[0]}]"
            )
    # a partial, because Hydra would turn the embodiment (a dataclass) into a dict on the way through
    return instantiate(OmegaConf.create(config), _partial_=True, _convert_="all")(embodiment=embodiment)


def _without_weights(config: Any) -> Any:
    """No `weights: FILE` in an encoder: training started from that file, the checkpoint holds what became of it."""
    if not isinstance(config, dict):
        return config
    return {key: None if key == "weights" else _without_weights(value) for key, value in config.items()}


def _targets(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        if "_target_" in config:
            yield config["_target_"]
        for value in config.values():
            yield from _targets(value)
    elif isinstance(config, list):
        for value in config:
            yield from _targets(value)


def save_policy(policy: FlowPolicy, folder: Path, *, config: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write config.json, embodiment.json and model.safetensors (normalisers included) into `folder`.

    config: what `create_policy` takes.   facts: JSON-ready extras (task, dataset, step, which weights).
    The folder's atomicity is the caller's business (`atomic_directory`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = {"schema_version": SCHEMA_VERSION, "policy": config, **facts}
    write_tensors(policy.state_dict(), folder / "model.safetensors")
    save_embodiment(policy.embodiment, folder / "embodiment.json")
    write_atomic(folder / "config.json", json.dumps(record, indent=2) + "\n")


def load_policy(
    path: Path | str, *, device: torch.device | str = "cpu", trusted_modules: Sequence[str] = ()
) -> FlowPolicy:
    """Policy in evaluation mode from a run folder, a checkpoint folder or its policy/ folder.

    Raises FileNotFoundError when there is no checkpoint, ValueError for a schema or weights that do not fit.
    """
    folder = resolve_checkpoint(path) / "policy"
    record = read_config(path)
    embodiment = load_embodiment(folder / "embodiment.json")
    config = {**record["policy"], "encoder": _without_weights(record["policy"]["encoder"])}
    policy = create_policy(config, embodiment, trusted_modules=trusted_modules)
    load_weights(policy, folder / "model.safetensors")
    return policy.to(device).eval().requires_grad_(False)


def read_config(path: Path | str) -> dict[str, Any]:
    """config.json of a checkpoint: policy, task, dataset, step. Raises ValueError for an unknown schema version."""
    file = resolve_checkpoint(path) / "policy" / "config.json"
    try:
        record = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); take another checkpoint of the run") from error
    if record.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"{file}: schema_version {record.get('schema_version')}, this flowpolicy reads {SCHEMA_VERSION}; "
            "load it with the flowpolicy version named in run.json"
        )
    return record


def resolve_checkpoint(path: Path | str) -> Path:
    """The folder that holds policy/: `path`, its parent, or checkpoints/best, else checkpoints/last, below it."""
    path = Path(path)
    candidates = [path, path / "checkpoints" / "best", path / "checkpoints" / "last", path.parent]
    for folder in candidates:
        if (folder / "policy" / "config.json").is_file():
            return folder.resolve()
    raise FileNotFoundError(
        f"no checkpoint at {path}: wanted policy/config.json in it or in checkpoints/best or checkpoints/last; "
        "pass a run folder of `flowpolicy train` or one of its checkpoints"
    )


def load_weights(module: torch.nn.Module, file: Path) -> None:
    """Load a safetensors file into `module`, every name and shape matching. Raises ValueError naming what differs."""
    try:
        module.load_state_dict(load_tensors(file.read_bytes()))
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{file} does not fit the policy of its config.json: {' '.join(str(error).split())}"
        ) from error


def write_tensors(tensors: dict[str, torch.Tensor], file: Path) -> None:
    """Write named tensors as safetensors, beside and renamed."""
    write_atomic(file, save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))
