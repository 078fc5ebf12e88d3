"""What a resumed run must share with the run that it goes on with, so that the two together are one run."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flowpolicy.checkpoint import read_config

_FREE = {f"trainer.{name}" for name in ("steps", "log_every", "eval_every", "checkpoint_every", "keep_best")}
_COMPARED = ("seed", "dataset", "policy", "trainer", "normalization")
_IGNORED = {"dataset.path"}  # a store may move; its hash says whether it is the same


def require_same_run(checkpoint: Path, wanted: Mapping[str, Any]) -> None:
    """Raise ValueError naming the first entry in which `wanted` differs from what `checkpoint` was trained with.

    checkpoint: folder with policy/config.json; the run's run.json lies two folders above.
    wanted: seed, dataset, policy, trainer and normalization of the run to be; `steps`, `log_every`, `eval_every`,
    `checkpoint_every` and `keep_best` of the trainer may differ. What an older checkpoint did not record is not
    compared.
    """
    recorded = read_config(checkpoint)
    run = checkpoint.parent.parent / "run.json"
    if "seed" not in recorded and run.is_file():
        recorded |= json.loads(run.read_text()).get("seeds", {})
    before = dict(flat({key: recorded[key] for key in _COMPARED if key in recorded}))
    if before.get("trainer.precision") == "auto":  # as older checkpoints have it: not known
        del before["trainer.precision"]
    now = dict(flat(json.loads(json.dumps({key: wanted[key] for key in _COMPARED}))))
    for key in sorted({*before, *now} - _FREE - _IGNORED):
        old, new = before.get(key), now.get(key)
        if old != new and (key in before and key in now or key.startswith("policy.")):
            fix = "use the store that it began with" if key == "dataset.hash" else f"set {key}={_short(old)}"
            raise ValueError(
                f"resume: {key} was {_short(old)} in this run so far, got {_short(new)}; {fix} to go on with it, or "
                "choose another out= for a new run"
            )


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
