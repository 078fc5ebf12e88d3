"""What a resumed run must share with the run that it goes on with, so that the two together are one run."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from flowpolicy.checkpoint import Checkpoint
from flowpolicy.data.base import Store
from flowpolicy.embodiment import Embodiment
from flowpolicy.json_files import read_object
from flowpolicy.provenance import flat, require_same
from flowpolicy.spec import with_names_of_today

_FREE = {
    f"trainer.{name}" for name in ("steps", "log_every", "eval_every", "checkpoint_every", "keep_best", "max_hours")
}
_COMPARED = ("seed", "dataset", "policy", "trainer", "normalization", "threads", "embodiment")
_WHOLE = ("policy.", "embodiment.")  # here an entry more or less is a difference too
_IGNORED = {"dataset.path"}  # a store may move; its hash says whether it is the same


def require_same_run(checkpoint: Path, wanted: Mapping[str, Any], embodiment: Embodiment | None) -> None:
    """Raise ValueError naming the first entry in which `wanted` differs from what `checkpoint` was trained with.

    Args:
        checkpoint: Folder with policy/config.json; the run's run.json lies two folders above.
        wanted: Seed, dataset, policy, trainer, normalization and threads of the run to be, `embodiment` its contract;
            `steps`, `log_every`, `eval_every`, `checkpoint_every`, `keep_best` and `max_hours` of the trainer may
            differ. What an older checkpoint did not record is not compared.
        embodiment: Of the run to be.
    """
    opened = Checkpoint.open(checkpoint)
    recorded = {**opened.record, "embodiment": opened.embodiment.to_dict()}
    run = checkpoint.parent.parent / "run.json"
    recorded["policy"] = with_names_of_today(recorded["policy"])
    if "seed" not in recorded and run.is_file():
        recorded |= read_object(run, {"seeds": dict})["seeds"]
    wanted = {**wanted, "embodiment": embodiment.to_dict() if embodiment is not None else {}}
    before, now = (
        {
            key: value
            for key, value in flat({name: side[name] for name in _COMPARED if name in side})
            if key not in _FREE | _IGNORED
        }
        for side in (recorded, wanted)
    )
    if before.get("trainer.precision") == "auto":  # as older checkpoints have it: not known
        del before["trainer.precision"]
    require_same(before, now, where="resume: the run", whole=_WHOLE, fix=_fix)


def _fix(key: str, old: str) -> str:
    store = key.startswith(("dataset.hash", "dataset.record", "embodiment"))
    kept = "use the store that it began with" if store else f"set `{key}={old}`"
    return f"{kept} to go on with it, or choose another `out=` for a new run"


def store_record(store: Store) -> str:
    """A digest of what a store says beside its data, which `content_hash` leaves out: attributes, seeds, successes.

    Args:
        store: The episodes, as `EpisodeStore` opens them.
    """
    columns = (store.episode_seeds, store.episode_success)
    record = [store.attrs, *(None if column is None else column.tolist() for column in columns)]
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def threads(device: str) -> int | None:
    """CPU threads of torch where they decide how sums are rounded, and with it the weights; None on a GPU.

    Args:
        device: Where torch computes, e.g. "cpu" or "cuda".
    """
    return torch.get_num_threads() if device.startswith("cpu") else None
