"""Hydra at the door: compose a config, expand sweeps, instantiate; nothing below cli/ sees a DictConfig."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate as hydra_instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from flowpolicy.cli.overrides import compose_checked
from flowpolicy.cli.own_hydra import expand as expand, own_hydra
from flowpolicy.cli.words import path_words, quoted as quoted
from flowpolicy.files import make_folder, write_atomic

if TYPE_CHECKING:  # more than a second, which processes that only start others need not wait for
    import torch


def load(name: str, argv: list[str]) -> DictConfig:
    """configs/<name>.yaml with the overrides `argv`. Raises ValueError for what does not fit the yaml files."""
    argv = path_words(argv)
    if bad := [argument for argument in argv if "=" not in argument and not argument.startswith("~")]:
        raise ValueError(f"wanted key=value, got {' '.join(bad)}; see --help for examples")
    if bad := [word for word in argv if re.match(r"[+~]*hydra[./=]", word)]:
        raise ValueError(f"{bad[0]}: Hydra does not run this command, so that changes nothing; the folder is out=DIR")
    if bad := [word for word in argv if word[0] in "+~" and not re.match(r"[+~]+(policy|task)[./]", word)]:
        raise ValueError(f"{bad[0]}: wanted KEY=VALUE for a key that exists; + and ~ work below policy and task only")
    with own_hydra():
        return compose_checked(name, argv)


def instantiate(config: DictConfig, **arguments: Any) -> Any:
    """Build what the config's `_target_` names; containers become plain lists and dicts."""
    return hydra_instantiate(config, _convert_="all", **arguments)


def plain(config: DictConfig) -> dict[str, Any]:
    """Resolved plain containers. Raises ValueError for a value that is still `???`."""
    try:
        container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ValueError(f"{error.full_key}=... is required") from error
    return json.loads(json.dumps(container))


def save(config: DictConfig, argv: list[str], out: Path) -> None:
    """Write the composed config and the overrides into out/.hydra, as Hydra does."""
    folder = out / ".hydra"
    make_folder(folder)
    write_atomic(folder / "config.yaml", OmegaConf.to_yaml(config))
    write_atomic(folder / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(argv)))


def pick_device(name: str) -> "torch.device":
    """`auto` is the GPU when torch sees one, else the CPU. Raises ValueError for a device that is not there."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.partition(":")[0] not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name}")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={name}: torch {torch.__version__} sees no CUDA device; use device=cpu or device=auto")
    return device
