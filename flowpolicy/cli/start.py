"""What train and finetune do the moment before the first step: write down what was asked, and open the trackers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from flowpolicy.cli import config
from flowpolicy.provenance import digest, wandb_run, write_run_record
from flowpolicy.tracking import CompositeTracker, JsonlTracker, Tracker, WandbTracker


def start_run(
    verb: str,
    cfg: DictConfig,
    argv: list[str],
    out: Path,
    *,
    facts: Mapping[str, Any],
    device: torch.device | str,
    dataset_hash: str | None = None,
) -> Tracker:
    """Save the config and the record of the run.

    Args:
        verb: "train" or "finetune".
        cfg: The composed config.
        argv: The words behind the verb.
        out: Folder of the run.
        facts: The config, resolved.
        device: Where it runs.
        dataset_hash: Of the demonstrations, where there are some.

    Returns:
        What takes the run's numbers.

    Raises:
        ImportError: Where W&B is asked for and missing.
    """
    trackers: list[Tracker] = []
    run_id = wandb_run(out) if cfg.resume else None
    if cfg.wandb.enabled:  # first: it may be missing
        trackers.append(wandb := WandbTracker(out, project=cfg.wandb.project, config=dict(facts), run_id=run_id))
        run_id = wandb.run_id
    config.save(cfg, argv, out)
    write_run_record(
        out,
        argv=[verb, *argv],
        config_hash=digest(facts),
        seeds={"seed": cfg.seed},
        device=str(device),
        dataset_hash=dataset_hash,
        wandb_run_id=run_id,
    )
    return CompositeTracker([JsonlTracker(out / "metrics.jsonl"), *trackers])
