"""Policies on disk: config.json + model.safetensors + embodiment.json; never pickle, rebuilt from these alone."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, final, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors, save as save_tensors

from flowpolicy.ambient import standard_torch
from flowpolicy.embodiment import Embodiment, load_embodiment, save_embodiment
from flowpolicy.files import atomic_directory, write_atomic
from flowpolicy.fingerprint import ENTRY, fingerprint, require_unedited
from flowpolicy.normalizer import LinearNormalizer, NormalizerMode
from flowpolicy.pointers import choose
from flowpolicy.policy import FlowPolicy, build_policy
from flowpolicy.spec import PolicySpec

SCHEMA_VERSION = 1
_FILES = ("config.json", "embodiment.json", "model.safetensors")
_LATER = ("chunk_low", "chunk_high")  # buffers that the first checkpoints lack
_COMMANDS = ("command_low", "command_high")  # buffers that came after those; the embodiment's bounds do for them
_SCALES = (1e-8, 1e8)  # of a normaliser: half ranges from 10 nm in metres to 100 million encoder ticks
# What a config of wrong types or sizes makes of its parts' constructors.
_MISFITS = (TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError, MemoryError)


@standard_torch()
def create_policy(
    config: PolicySpec | dict[str, Any],
    embodiment: Embodiment,
    *,
    trusted_modules: Sequence[str] = (),
    seed: int | None = None,
) -> FlowPolicy:
    """An untrained policy from a spec, or from one written down.

    Args:
        config: A `PolicySpec`, whose classes are trusted, or what `PolicySpec.to_dict` gives, whose names are checked:
            the `policy` node of the composed configs.
        embodiment: The robot's contract, which the shapes come from.
        trusted_modules: Packages outside flowpolicy whose classes the config may name.
        seed: Of the run, which fixes the first weights; None draws them from torch's global generator, which is put
            back.

    Raises:
        ValueError: As `PolicySpec.from_dict`, and for arguments that the parts do not take.
    """
    spec = config if isinstance(config, PolicySpec) else PolicySpec.from_dict(config, trusted_modules=trusted_modules)
    try:
        with torch.random.fork_rng(devices=[]):  # the global generator is afterwards as before
            policy = build_policy(embodiment=embodiment, seed=seed, **spec.constructors())
    except _MISFITS as error:
        text = " ".join(str(error).split()) or type(error).__name__
        if "unexpected keyword argument" in text:
            text += "; leave out the number, or the group (as `times`, `weighting`), that this part has not"
        raise ValueError(f"the policy config does not fit its parts: {text}") from error
    # what it left out is written down with its default
    policy.spec = replace(spec, numbers={**policy.spec.numbers, **spec.numbers})
    return policy


def _without_weights(config: Any) -> Any:
    """No `weights: FILE` in an encoder: training started from that file, the checkpoint holds what became of it."""
    if not isinstance(config, dict):
        return config
    return {key: None if key == "weights" else _without_weights(value) for key, value in config.items()}


def save_policy(
    policy: FlowPolicy, folder: Path | str, *, facts: Mapping[str, Any] | None = None, overwrite: bool = False
) -> Path:
    """Write a policy to a folder of its own, whole or not at all, which `load_policy` and every verb takes.

    Args:
        policy: Whoever built it; its `spec` must be data, see `PolicySpec.to_dict`.
        folder: To be made: config.json, embodiment.json, model.safetensors (normalisers included).
        facts: JSON-ready extras for config.json, as task, dataset, step.
        overwrite: Replace the folder where it exists and holds a policy alone.

    Returns:
        The folder.

    Raises:
        FileExistsError: Where the folder exists and is not to be replaced.
        ValueError: For a spec that cannot be written down, and for weights that `load_policy` would refuse.
    """
    folder = Path(folder)
    if folder.exists() and not overwrite:
        raise FileExistsError(f"save_policy: {folder} exists already; pass `overwrite=True`, or choose another folder")
    if folder.exists() and (others := sorted({file.name for file in folder.iterdir()} - {*_FILES})):
        raise FileExistsError(f"save_policy: {folder} holds {others[0]} too, which would go; choose another folder")
    with atomic_directory(folder, replace=overwrite) as new:
        write_policy(policy, new, facts=facts or {})
    return folder


def write_policy(policy: FlowPolicy, folder: Path, *, facts: Mapping[str, Any]) -> None:
    """The files of `save_policy`; the folder's atomicity is the caller's business (`atomic_directory`).

    config.json is written last and holds the fingerprint of the three.

    Args:
        policy: To save.
        folder: Made where it is missing.
        facts: JSON-ready; what config.json says beside the policy.
    """
    require_finite(policy.state_dict(), "save_policy")
    _require_ranges(policy, "save_policy")
    spec = policy.spec.to_dict()
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "embodiment.json", folder / "model.safetensors"]
    record = json.loads(json.dumps({**facts, "schema_version": SCHEMA_VERSION, "policy": spec}))  # as it is read
    save_embodiment(policy.embodiment, files[0])
    write_tensors(policy.state_dict(), files[1])
    record[ENTRY] = fingerprint(record, folder / "config.json", files)
    write_atomic(folder / "config.json", json.dumps(record, indent=2) + "\n")


def load_policy(
    path: Path | str,
    *,
    device: torch.device | str = "cpu",
    trusted_modules: Sequence[str] = (),
    edited: bool = False,
) -> FlowPolicy:
    """A policy from disk, in evaluation mode and without gradients: `Checkpoint.open(path).policy(...)`.

    Args:
        path: As for `Checkpoint.open`.
        device: As for `Checkpoint.policy`.
        trusted_modules: The same.
        edited: The same.

    Raises:
        FileNotFoundError: Where there is no checkpoint.
        ValueError: For one that `Checkpoint.open` or `Checkpoint.policy` refuses.
    """
    return Checkpoint.open(path).policy(device=device, trusted_modules=trusted_modules, edited=edited)


@final
@dataclass(frozen=True)
class Checkpoint:
    """One saved policy; opened once, and passed on to whoever needs something of it.

    Args:
        folder: What names it: RUN/checkpoints/<step>, which holds policy/, or a folder of `save_policy`.
        record: What config.json says: policy, task, dataset, step, ….
    """

    folder: Path
    record: Mapping[str, Any]

    @staticmethod
    def open(path: "Path | str | Checkpoint") -> "Checkpoint":
        """Read what a checkpoint says of itself; no weights yet.

        Args:
            path: A run folder (its best, else its last checkpoint), a checkpoint folder, its policy/ folder, or a
                folder of `save_policy`. One that is open already is returned as it is.

        Raises:
            FileNotFoundError: Where there is no checkpoint.
            ValueError: For a config.json that is damaged or of an unknown schema version.
        """
        if isinstance(path, Checkpoint):
            return path
        folder = resolve_checkpoint(path)
        return Checkpoint(folder, _read_record(_files(folder) / "config.json"))

    @property
    def files(self) -> Path:
        """The folder of config.json, embodiment.json and model.safetensors."""
        return _files(self.folder)

    @cached_property
    def embodiment(self) -> Embodiment:
        """The contract of the robot that it was trained for. Raises ValueError where it is damaged."""
        return load_embodiment(self.files / "embodiment.json")

    @property
    def task(self) -> dict[str, Any]:
        """The task that it was trained on, as a task config; {} where it does not say."""
        return self.record["task"] if isinstance(self.record.get("task"), dict) else {}

    @property
    def num_steps(self) -> int:
        """Network evaluations per chunk that it was evaluated with in training; 1 where it does not say."""
        steps = self.record.get("num_steps")
        return steps if isinstance(steps, int) and steps >= 1 else 1

    @standard_torch()
    def policy(
        self, *, device: torch.device | str = "cpu", trusted_modules: Sequence[str] = (), edited: bool = False
    ) -> FlowPolicy:
        """The policy, in evaluation mode and without gradients.

        Args:
            device: Where its weights go.
            trusted_modules: Packages outside flowpolicy whose classes it may name.
            edited: Take files that are not as they were saved, for somebody who changed them on purpose. Checkpoints
                from before there were fingerprints are taken without; all other checks hold for both.

        Raises:
            ValueError: For weights that do not fit, files that were edited, weights that are not finite, normalisers
                that no data gives, and a range of the demonstrated actions that is missing or impossible.
        """
        record, file, weights = self.record, self.files / "config.json", self.files / "model.safetensors"
        require_unedited(record, file, _FILES, edited=edited)
        embodiment = self.embodiment
        try:
            spec = PolicySpec.from_dict(record["policy"], trusted_modules=trusted_modules)
            policy = create_policy(replace(spec, encoder=_without_weights(spec.encoder)), embodiment)
            policy.spec = replace(policy.spec, encoder=spec.encoder)
            later = _LATER if _action_mode(record) == "minmax" else ()
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        load_weights(policy, weights, later=later)
        _require_ranges(policy, str(weights))
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
                raise ValueError(
                    f"{where}: {name}.scale[{i}]: wanted {_SCALES[0]:g} to {_SCALES[1]:g}, got {scale:g}; "
                    "take another checkpoint"
                )
    for i, (low, high) in enumerate(zip(policy.chunk_low.tolist(), policy.chunk_high.tolist(), strict=True)):
        if low > high:
            raise ValueError(
                f"{where}: chunk_low[{i}]: wanted at most chunk_high[{i}] = {high:g}, got {low:g}; take "
                "another checkpoint"
            )
    rows = (policy.action_low, policy.command_low, policy.command_high, policy.action_high)
    for i, bounds in enumerate(torch.stack([row.cpu() for row in rows]).T.tolist()):
        if bounds != sorted(bounds):
            raise ValueError(
                f"{where}: command_low[{i}] and command_high[{i}]: wanted bounds within the embodiment's, "
                f"{bounds[0]:g} to {bounds[3]:g}, got {bounds[1]:g} and {bounds[2]:g}; take another "
                "checkpoint"
            )


def require_finite(tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Raise ValueError naming the first tensor that holds NaN or infinity.

    Args:
        tensors: Name -> tensor.
        where: The file, for the error.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or math.isfinite(tensor.sum()):
            continue  # a sum is read faster than every entry, and is not finite where an entry is not
        if bad := int((~torch.isfinite(tensor)).sum()):
            raise ValueError(
                f"{where}: {name}: wanted finite numbers, got {bad} of {tensor.numel()} that are NaN or "
                "infinite; take another checkpoint"
            )


def _read_record(file: Path) -> dict[str, Any]:
    """A config.json. Raises ValueError for a damaged one and for an unknown schema version."""
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
    """The folder of a checkpoint: `path`, or of a run its best, else its last; its parent where it is policy/.
    One of `save_policy` is its own.

    RUN/checkpoints/best and last are taken as such, whatever they are. Warns where one that is damaged is passed over.

    Args:
        path: A run, a checkpoint, its policy/, or a folder of `save_policy`.
    """
    path = Path(path)
    if path.name == "policy" and not (path / "policy").is_dir():
        path = path.parent
    places = ("policy",) if (path / "checkpoints").is_dir() else ("policy", ".")
    folder = path.resolve() if any((path / name / "config.json").is_file() for name in places) else None
    if path.name in ("best", "last") and not (path / "checkpoints").is_dir():  # no run that is called so
        folder = choose(path.parent, "best" if path.name == "best" else "last")
    elif folder is None:
        folder = choose(path / "checkpoints", "best")
    if folder is not None and (_files(folder) / "config.json").is_file():
        return folder
    raise FileNotFoundError(
        f"no checkpoint at {path}: wanted config.json in it or in policy/, or the same in checkpoints/best or "
        "checkpoints/last; pass a run folder of training, one of its checkpoints, or a folder of save_policy"
    )


def _files(folder: Path) -> Path:
    """Where a checkpoint's three files lie: in policy/, or in itself where `save_policy` made it."""
    return folder if (folder / "config.json").is_file() and not (folder / "policy").is_dir() else folder / "policy"


def load_weights(module: torch.nn.Module, file: Path, *, later: Collection[str] = _LATER) -> None:
    """Load a safetensors file into `module`, every name and shape matching.

    Args:
        module: Gets the weights.
        file: The safetensors file.
        later: Names that an old file may lack; the module's own values stay.

    Raises:
        ValueError: Naming what differs, and for numbers that are not finite.
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
    """The named tensors of a safetensors file, on the CPU. Raises ValueError naming the file where it holds none.

    Args:
        file: The safetensors file.
    """
    try:
        return load_tensors(file.read_bytes())
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged, or no safetensors file: {' '.join(str(error).split())}") from error


def write_tensors(tensors: dict[str, torch.Tensor], file: Path) -> None:
    """Write named tensors as safetensors, beside and renamed.

    Args:
        tensors: Name -> tensor.
        file: The safetensors file.
    """
    write_atomic(file, save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))
