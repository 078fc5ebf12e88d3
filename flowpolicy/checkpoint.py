"""Policies on disk: config.json + model.safetensors + embodiment.json; never pickle, rebuilt from these alone."""

import importlib
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from flowpolicy.ambient import standard_torch
from flowpolicy.embodiment import Embodiment, load_embodiment, save_embodiment
from flowpolicy.files import write_atomic
from flowpolicy.fingerprint import ENTRY, fingerprint, require_unedited
from flowpolicy.normalizer import LinearNormalizer, NormalizerMode
from flowpolicy.pointers import choose
from flowpolicy.policy import FlowPolicy

SCHEMA_VERSION = 1
_FILES = ("config.json", "embodiment.json", "model.safetensors")
_ROOT = "flowpolicy.policy.build_policy"
_PARTS = ("flowpolicy.encoders", "flowpolicy.nets", "flowpolicy.heads")
_LATER = ("chunk_low", "chunk_high")  # buffers that the first checkpoints lack
_COMMANDS = ("command_low", "command_high")  # buffers that came after those; the embodiment's bounds do for them
_SCALES = (1e-8, 1e8)  # of a normaliser: half ranges from 10 nm in metres to 100 million encoder ticks
# What a config of wrong types or sizes makes of its parts' constructors.
_MISFITS = (TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError, MemoryError,
            HydraException, OmegaConfBaseException)  # fmt: skip


@standard_torch()
def create_policy(config: dict[str, Any], embodiment: Embodiment, *, trusted_modules: Sequence[str] = ()) -> FlowPolicy:
    """Build an untrained policy from its resolved config (the `policy` node, `_target_`s included).

    trusted_modules: packages outside flowpolicy whose classes the config may name. Raises ValueError for a `_target_`
    that is neither `build_policy` nor a class of ours below encoders, nets and heads, nor of those packages: a config
    file must not be able to run arbitrary code. Raises ValueError too for arguments that the parts do not take.
    The weights are drawn from torch's global generator, which is put back: seed it for other ones.
    """
    for target in targets(config):
        _require_trusted(target, (*_PARTS, *trusted_modules))
    if not isinstance(config, dict) or config.get("_target_") != _ROOT:
        raise ValueError(f"the policy config must be an object with _target_: {_ROOT}, got {str(config)[:60]}")
    try:
        with torch.random.fork_rng(devices=[]):  # the global generator is afterwards as before
            # a partial, because Hydra would turn the embodiment (a dataclass) into a dict on the way through
            policy = instantiate(OmegaConf.create(config), _partial_=True, _convert_="all")(embodiment=embodiment)
    except _MISFITS as error:
        text = " ".join(str(error).split()) or type(error).__name__
        if "unexpected keyword argument" in text:
            text += "; leave out the number, or the group (as policy/times, policy/weighting), that this part has not"
        raise ValueError(f"the policy config does not fit its parts: {text}") from error
    assert isinstance(policy, FlowPolicy)
    return policy


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
    found = _find(target) if package else None  # imports modules of the package, nothing else
    if package and isinstance(found, type) and f"{found.__module__}.".startswith(f"{package}."):
        return
    word = target.partition(".")[0]
    fix = "take another checkpoint" if word == "flowpolicy" else f"if you trust that package pass trusted=[{word}]"
    raise ValueError(
        f"the policy config names {target}: wanted {_ROOT} or a class below {', '.join(packages)}; {fix} "
        "(trusted_modules= in Python)"
    )


def _find(target: str) -> object:
    """What a module defines under this name. Raises ValueError where there is no such module or name."""
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"the policy config names {target}, which is not there: {error}") from error


def save_policy(policy: FlowPolicy, folder: Path, *, config: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write config.json, embodiment.json and model.safetensors (normalisers included) into `folder`.

    config: what `create_policy` takes.   facts: JSON-ready extras (task, dataset, step, which weights).
    config.json is written last and holds the fingerprint of the three.
    The folder's atomicity is the caller's business (`atomic_directory`).
    Raises ValueError for weights that `load_policy` would refuse.
    """
    require_finite(policy.state_dict(), "save_policy")
    _require_ranges(policy, "save_policy")
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "embodiment.json", folder / "model.safetensors"]
    record = json.loads(json.dumps({"schema_version": SCHEMA_VERSION, "policy": config, **facts}))  # as it is read
    save_embodiment(policy.embodiment, files[0])
    write_tensors(policy.state_dict(), files[1])
    record[ENTRY] = fingerprint(record, folder / "config.json", files)
    write_atomic(folder / "config.json", json.dumps(record, indent=2) + "\n")


@standard_torch()
def load_policy(
    path: Path | str,
    *,
    device: torch.device | str = "cpu",
    trusted_modules: Sequence[str] = (),
    edited: bool = False,
) -> FlowPolicy:
    """Policy in evaluation mode from a run folder, a checkpoint folder or its policy/ folder.

    edited: take files that are not as they were saved, for somebody who changed them on purpose. Checkpoints from
    before there were fingerprints are taken without; all other checks hold for both.
    Raises FileNotFoundError when there is no checkpoint, ValueError for a schema or weights that do not fit, files that
    were edited, weights that are not finite, normalisers that no data gives, and a range of the demonstrated actions
    that is missing or impossible.
    """
    folder = resolve_checkpoint(path) / "policy"
    record, file = read_config(path), folder / "config.json"
    require_unedited(record, file, _FILES, edited=edited)
    embodiment = load_embodiment(folder / "embodiment.json")
    try:
        config = {**record["policy"], "encoder": _without_weights(record["policy"]["encoder"])}
        policy = create_policy(config, embodiment, trusted_modules=trusted_modules)
        later = _LATER if _action_mode(record) == "minmax" else ()
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    load_weights(policy, folder / "model.safetensors", later=later)
    _require_ranges(policy, str(folder / "model.safetensors"))
    return policy.to(device).eval().requires_grad_(False)


def _action_mode(record: Mapping[str, Any]) -> str | None:
    """How the actions were normalised; None where an old checkpoint does not say. Raises ValueError for no such way."""
    if (modes := record.get("normalization")) is None:
        return None
    known = get_args(NormalizerMode)
    if not isinstance(modes, dict) or not all(modes.get(name) in known for name in ("obs", "action")):
        raise ValueError(f"normalization: wanted obs and action, each one of {', '.join(known)}, got {modes}")
    return modes["action"]


def _require_ranges(policy: FlowPolicy, where: str) -> None:
    """Raise ValueError unless the normalisers and the range of the demonstrated actions are such as data gives."""
    for name, module in policy.named_modules():
        for i, scale in enumerate(module.scale.tolist() if isinstance(module, LinearNormalizer) else []):
            if not _SCALES[0] <= scale <= _SCALES[1]:
                raise ValueError(f"{where}: {name}.scale[{i}]: wanted {_SCALES[0]:g} to {_SCALES[1]:g}, got {scale:g}; "
                                 "take another checkpoint")  # fmt: skip
    for i, (low, high) in enumerate(zip(policy.chunk_low.tolist(), policy.chunk_high.tolist(), strict=True)):
        if low > high:
            raise ValueError(f"{where}: chunk_low[{i}]: wanted at most chunk_high[{i}] = {high:g}, got {low:g}; take "
                             "another checkpoint")  # fmt: skip
    rows = (policy.action_low, policy.command_low, policy.command_high, policy.action_high)
    for i, bounds in enumerate(torch.stack([row.cpu() for row in rows]).T.tolist()):
        if bounds != sorted(bounds):
            raise ValueError(f"{where}: command_low[{i}] and command_high[{i}]: wanted bounds within the embodiment's, "
                             f"{bounds[0]:g} to {bounds[3]:g}, got {bounds[1]:g} and {bounds[2]:g}; take another "
                             "checkpoint")  # fmt: skip


def require_finite(tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Raise ValueError naming the first tensor that holds NaN or infinity."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or math.isfinite(tensor.sum()):
            continue  # a sum is read faster than every entry, and is not finite where an entry is not
        if bad := int((~torch.isfinite(tensor)).sum()):
            raise ValueError(f"{where}: {name}: wanted finite numbers, got {bad} of {tensor.numel()} that are NaN or "
                             "infinite; take another checkpoint")  # fmt: skip


def read_config(path: Path | str) -> dict[str, Any]:
    """config.json of a checkpoint: policy, task, dataset, step. Raises ValueError for an unknown schema version."""
    file = resolve_checkpoint(path) / "policy" / "config.json"
    try:
        record = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({error}); take another checkpoint of the run") from error
    if not isinstance(record, dict) or "policy" not in record:
        raise ValueError(f"{file} is no checkpoint's: wanted an object with the entry policy; take another checkpoint")
    if record.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"{file}: schema_version {record.get('schema_version')}, this flowpolicy reads {SCHEMA_VERSION}; "
            "load it with the flowpolicy version named in run.json"
        )
    if not isinstance(record["policy"], dict) or not isinstance(record["policy"].get("encoder"), dict):
        raise ValueError(
            f"{file}: policy: wanted an object with encoder, net and head, got {str(record['policy'])[:60]}"
        )
    return record


def resolve_checkpoint(path: Path | str) -> Path:
    """The folder that holds policy/: `path`, or of a run its best, else its last; its parent where it is policy/.

    RUN/checkpoints/best and last are taken as such, whatever they are. Warns where one that is damaged is passed over.
    """
    path = Path(path)
    if path.name == "policy" and not (path / "policy").is_dir():
        path = path.parent
    folder = path.resolve() if (path / "policy" / "config.json").is_file() else None
    if path.name in ("best", "last") and not (path / "checkpoints").is_dir():  # no run that is called so
        folder = choose(path.parent, "best" if path.name == "best" else "last")
    elif folder is None:
        folder = choose(path / "checkpoints", "best")
    if folder is not None and (folder / "policy" / "config.json").is_file():
        return folder
    raise FileNotFoundError(
        f"no checkpoint at {path}: wanted policy/config.json in it or in checkpoints/best or checkpoints/last; "
        "pass a run folder of `flowpolicy train` or one of its checkpoints"
    )


def load_weights(module: torch.nn.Module, file: Path, *, later: Collection[str] = _LATER) -> None:
    """Load a safetensors file into `module`, every name and shape matching.

    later: names that an old file may lack; the module's own values stay.
    Raises ValueError naming what differs, and for numbers that are not finite.
    """
    own = module.state_dict()
    tensors = read_tensors(file)
    require_finite(tensors, str(file))
    try:
        module.load_state_dict({name: own[name] for name in (*later, *_COMMANDS) if name in own} | tensors)
    except RuntimeError as error:
        raise ValueError(
            f"{file} does not fit the policy of its config.json: {' '.join(str(error).split())}"
        ) from error


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """The named tensors of a safetensors file, on the CPU. Raises ValueError naming the file where it holds none."""
    try:
        return load_tensors(file.read_bytes())
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged, or no safetensors file: {' '.join(str(error).split())}") from error


def write_tensors(tensors: dict[str, torch.Tensor], file: Path) -> None:
    """Write named tensors as safetensors, beside and renamed."""
    write_atomic(file, save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))
