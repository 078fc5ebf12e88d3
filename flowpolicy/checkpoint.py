"""Policies on disk: config.json + model.safetensors + embodiment.json; never pickle, rebuilt from these alone."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from flowpolicy.embodiment import Embodiment, load_embodiment, save_embodiment
from flowpolicy.files import write_atomic
from flowpolicy.policy import FlowPolicy

SCHEMA_VERSION = 1
_ROOT = "flowpolicy.policy.build_policy"
_PARTS = ("flowpolicy.encoders", "flowpolicy.nets", "flowpolicy.heads")
_LATER = ("chunk_low", "chunk_high")  # buffers that the first checkpoints lack; the policy's own values do for them


def create_policy(config: dict[str, Any], embodiment: Embodiment, *, trusted_modules: Sequence[str] = ()) -> FlowPolicy:
    """Build an untrained policy from its resolved config (the `policy` node, `_target_`s included).

    trusted_modules: packages outside flowpolicy whose classes the config may name. Raises ValueError for a `_target_`
    that is neither `build_policy` nor a class of ours below encoders, nets and heads, nor of those packages: a config
    file must not be able to run arbitrary code. Raises ValueError too for arguments that the parts do not take.
    """
    for target in targets(config):
        _require_trusted(target, (*_PARTS, *trusted_modules))
    try:
        # a partial, because Hydra would turn the embodiment (a dataclass) into a dict on the way through
        return instantiate(OmegaConf.create(config), _partial_=True, _convert_="all")(embodiment=embodiment)
    except TypeError as error:
        raise ValueError(f"the policy config does not fit its parts: {error}") from error


def _without_weights(config: Any) -> Any:
    """No `weights: FILE` in an encoder: training started from that file, the checkpoint holds what became of it."""
    if not isinstance(config, dict):
        return config
    return {key: None if key == "weights" else _without_weights(value) for key, value in config.items()}


def targets(config: Any) -> Iterator[str]:
    """Every `_target_` of a resolved config. Raises ValueError for an interpolation: it could grow another one."""
    if isinstance(config, str) and "${" in config:
        raise ValueError(f"the policy config must be resolved, got {config!r}; write the value itself")
    if isinstance(config, dict):
        if "_target_" in config:
            yield str(config["_target_"])
        for value in config.values():
            yield from targets(value)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from targets(value)


def _require_trusted(target: str, packages: Sequence[str]) -> None:
    """Raise ValueError unless `target` is `build_policy` or a class that one of `packages` defines."""
    if target == _ROOT:
        return
    package = next((name for name in packages if target.startswith(f"{name}.")), None)
    found = get_object(target) if package else None  # imports modules of the package, nothing else
    if package and isinstance(found, type) and f"{found.__module__}.".startswith(f"{package}."):
        return
    word = target.partition(".")[0]
    fix = "take another checkpoint" if word == "flowpolicy" else f"if you trust that package pass trusted=[{word}]"
    raise ValueError(
        f"the policy config names {target}: wanted {_ROOT} or a class below {', '.join(packages)}; {fix} "
        "(trusted_modules= in Python)"
    )


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
    if not isinstance(record, dict) or "policy" not in record:
        raise ValueError(f"{file} is no checkpoint's: wanted an object with the entry policy; take another checkpoint")
    if record.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"{file}: schema_version {record.get('schema_version')}, this flowpolicy reads {SCHEMA_VERSION}; "
            "load it with the flowpolicy version named in run.json"
        )
    return record


def resolve_checkpoint(path: Path | str) -> Path:
    """The folder that holds policy/: `path`, checkpoints/best, else last, below it; its parent where it is policy/."""
    path = Path(path)
    candidates = [path, path / "checkpoints" / "best", path / "checkpoints" / "last"]
    candidates += [path.parent] if path.name == "policy" else []
    for folder in candidates:
        if (folder / "policy" / "config.json").is_file():
            return folder.resolve()
    raise FileNotFoundError(
        f"no checkpoint at {path}: wanted policy/config.json in it or in checkpoints/best or checkpoints/last; "
        "pass a run folder of `flowpolicy train` or one of its checkpoints"
    )


def load_weights(module: torch.nn.Module, file: Path) -> None:
    """Load a safetensors file into `module`, every name and shape matching. Raises ValueError naming what differs."""
    own = module.state_dict()
    try:
        tensors = load_tensors(file.read_bytes())
        module.load_state_dict({name: own[name] for name in _LATER if name in own} | tensors)
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{file} does not fit the policy of its config.json: {' '.join(str(error).split())}"
        ) from error


def write_tensors(tensors: dict[str, torch.Tensor], file: Path) -> None:
    """Write named tensors as safetensors, beside and renamed."""
    write_atomic(file, save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))
