"""Demonstrations: the episode store on disk, the in-RAM dataset of windows, and the checks on both."""

from typing import TYPE_CHECKING

from flowpolicy.exports import exported

if TYPE_CHECKING:
    from flowpolicy.data.augment import Augmentation as Augmentation
    from flowpolicy.data.base import Store as Store
    from flowpolicy.data.collect import CollectReport as CollectReport, collect_episodes as collect_episodes
    from flowpolicy.data.dataset import SequenceDataset as SequenceDataset
    from flowpolicy.data.episode import Episode as Episode
    from flowpolicy.data.inspect import describe_store as describe_store
    from flowpolicy.data.memory_store import MemoryStore as MemoryStore
    from flowpolicy.data.residence import Residence as Residence
    from flowpolicy.data.store import (
        EpisodeStore as EpisodeStore,
        EpisodeWriter as EpisodeWriter,
        add_record as add_record,
        finish_store as finish_store,
        trim_store as trim_store,
        unfinished_episodes as unfinished_episodes,
    )
    from flowpolicy.data.validate import Finding as Finding, validate_store as validate_store

__getattr__, __dir__, __all__ = exported(
    __name__,
    {
        "augment": ["Augmentation"],
        "base": ["Store"],
        "collect": ["CollectReport", "collect_episodes"],
        "dataset": ["SequenceDataset"],
        "episode": ["Episode"],
        "inspect": ["describe_store"],
        "memory_store": ["MemoryStore"],
        "residence": ["Residence"],
        "store": [
            "EpisodeStore",
            "EpisodeWriter",
            "add_record",
            "finish_store",
            "trim_store",
            "unfinished_episodes",
        ],
        "validate": ["Finding", "validate_store"],
    },
)
