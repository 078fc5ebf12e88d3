"""What a resumed run must share with the run that it goes on with, so that the two together are one run."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from flowpolicy.checkpoint import Checkpoint
from flowpolicy.data.base import Store
from flowpolicy.embodiment import Embodiment
from flowpolicy.records import read_object
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
    """
    opened = Checkpoint.open(checkpoint)
    recorded = {**opened.record, "embodiment": opened.embodiment.to_dict()}
    run = checkpoint.parent.parent / "run.json"
    recorded["policy"] = with_names_of_today(recorded["policy"])
    if "seed" not in recorded and run.is_file():
        recorded |= read_object(run, {"seeds": dict})["seeds"]
    before = dict(flat({key: recorded[key] for key in _COMPARED if key in recorded}))
    if before.get("trainer.precision") == "auto":  # as older checkpoints have it: not known
        del before["trainer.precision"]
    wanted = {**wanted, "embodiment": embodiment.to_dict() if embodiment is not None else {}}
    now = dict(flat(json.loads(json.dumps({key: wanted[key] for key in _COMPARED if key in wanted}))))
    for key in sorted({*before, *now} - _FREE - _IGNORED):
        old, new = before.get(key), now.get(key)
        if old != new and (key in before and key in now or key.startswith(_WHOLE)):
            fix = f"set {key}={_short(old)}"
            if key.startswith(("dataset.hash", "dataset.record", "embodiment")):
                fix = "use the store that it began with"
            raise ValueError(
                f"resume: {key} was {_short(old)} in this run so far, got {_short(new)}; {fix} to go on with it, or "
                "choose another out= for a new run"
            )


def store_record(store: Store) -> str:
    """A digest of what a store says beside its data, which `content_hash` leaves out: attributes, seeds, successes."""
    columns = (store.episode_seeds, store.episode_success)
    record = [store.attrs, *(None if column is None else column.tolist() for column in columns)]
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def threads(device: str) -> int | None:
    """CPU threads of torch where they decide how sums are rounded, and with it the weights; None on a GPU."""
    return torch.get_num_threads() if device.startswith("cpu") else None


def flat(config: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf; a list is a leaf."""
    if isinstance(config, dict) and config:
        for key, value in config.items():
            yield from flat(value, f"{name}.{key}" if name else key)
    else:
        yield name, config


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
