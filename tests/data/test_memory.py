"""Memory: one array is read in parts, datasets that do not fit are mapped, and the limit is known before."""

import hashlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from flowpolicy.data import memory
from flowpolicy.data.dataset import SequenceDataset
from flowpolicy.data.memory import GIB, available_memory
from flowpolicy.data.residence import Residence
from flowpolicy.data.store import Episode, EpisodeStore, EpisodeWriter
from flowpolicy.embodiment import Embodiment, KeySpec

EMBODIMENT = Embodiment(
    robot="test",
    obs={"agent_pos": KeySpec((3,)), "image": KeySpec((96, 96, 3), dtype="uint8")},
    action=KeySpec((2,)),
    action_kind="velocity",
    control_hz=10.0,
    action_low=(-1.0, -1.0),
    action_high=(1.0, 1.0),
)
STEPS = 100  # of an episode: 2.8 MB of pictures


def write(path: Path, episodes: int) -> EpisodeStore:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (STEPS, 96, 96, 3), dtype=np.uint8)
    with EpisodeWriter(path, EMBODIMENT, {}) as writer:
        for seed in range(episodes):
            obs = {"agent_pos": rng.normal(size=(STEPS, 3)), "image": picture + np.uint8(seed)}
            writer.add(Episode(obs, rng.uniform(-1, 1, (STEPS, 2)), np.zeros(STEPS), True, seed))
    return EpisodeStore.open(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    """113 MB of pictures; 3 MB on the disk."""
    return write(tmp_path_factory.mktemp("images") / "a.zarr", 41)


PEAK = """
import resource, sys
import flowpolicy.data.inspect, flowpolicy.data.validate
import flowpolicy.evaluation.chunk_panels, flowpolicy.trainers.imitation
from flowpolicy.data.store import EpisodeStore
from tests.data.test_memory import DO
store = EpisodeStore.open(sys.argv[1])
store.load("action")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
DO[sys.argv[2]](store)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def _demonstration(store: EpisodeStore) -> None:
    from flowpolicy.evaluation.chunk_panels import load_demonstration

    class Policy:
        embodiment, obs_keys, device = EMBODIMENT, ("agent_pos", "image"), torch.device("cpu")

    load_demonstration(store.path, Policy())  # type: ignore[arg-type]


def _validate(store: EpisodeStore) -> None:
    from flowpolicy.data.validate import validate_store

    validate_store(store.path)


def _inspect(store: EpisodeStore) -> None:
    from flowpolicy.data.inspect import describe_store

    describe_store(store)


DO = {"hash": EpisodeStore.content_hash, "demonstration": _demonstration, "validate": _validate, "inspect": _inspect}


@pytest.mark.parametrize(("what", "most"), [("hash", 70), ("demonstration", 50), ("validate", 120), ("inspect", 75)])
def test_the_peak_is_a_few_blocks_and_not_the_array(store: EpisodeStore, what: str, most: int) -> None:
    """MB above an opened store with 113 MB of pictures. Whole arrays took 97, 100, 163 and 95."""
    peak = int(in_a_fresh_process(PEAK, store.path, what)) / 1024
    assert peak < most


def in_a_fresh_process(code: str, *words: object) -> str:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "1",
    }
    command = [sys.executable, "-c", code, *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_hash_is_that_of_whole_arrays(store: EpisodeStore) -> None:
    """Checkpoints hold it."""
    digest = hashlib.sha256()
    for name, array in [("episode_ends", store.episode_ends), *((key, store.load(key)) for key in store.keys)]:
        digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    assert store.content_hash() == digest.hexdigest()


def test_blocks_are_the_array_in_order(store: EpisodeStore) -> None:
    for steps in (slice(None), slice(150, 3999), slice(37, 38), slice(5, 5)):
        parts = list(store.blocks("image", steps))
        whole = store.load("image", steps)
        assert np.array_equal(np.concatenate([part for _, part in parts] or [whole]), whole)
        assert [first for first, _ in parts] == list(
            np.cumsum([steps.start or 0, *map(len, [p for _, p in parts])])[:-1]
        )
        assert whole.dtype == np.uint8 and all(part.nbytes < 20 << 20 for _, part in parts)


@pytest.mark.parametrize("episodes", [None, range(2, 5)])
def test_mapped_steps_give_the_same_batches_and_leave_nothing_behind(store: EpisodeStore, tmp_path: Path, episodes):
    options = {"horizon": 5, "obs_horizon": 2, "episodes": episodes}
    inside = SequenceDataset.from_store(store, residence=Residence(True), **options)
    before = set(store.path.parent.iterdir())
    mapped = SequenceDataset.from_store(store, residence=Residence(False), **options)
    elsewhere = SequenceDataset.from_store(store, residence=Residence(False, str(tmp_path)), **options)
    assert set(store.path.parent.iterdir()) == before and not list(tmp_path.iterdir())
    index = torch.randint(len(inside), (64,), generator=torch.Generator().manual_seed(0))
    for dataset in (mapped, elsewhere):
        assert len(dataset) == len(inside)
        wanted, got = inside.batch(index), dataset.batch(index)
        assert torch.equal(wanted.action, got.action) and torch.equal(wanted.mask, got.mask)
        assert (
            all(torch.equal(wanted.obs[key], got.obs[key]) for key in wanted.obs)
            and wanted.obs.keys() == got.obs.keys()
        )


def test_what_does_not_fit_is_refused_before_it_is_read_or_mapped(store: EpisodeStore, monkeypatch, tmp_path: Path):
    monkeypatch.setattr("flowpolicy.data.residence.available_memory", lambda: 100 << 20)
    read = []
    monkeypatch.setattr(EpisodeStore, "blocks", lambda *a: read.append(a) or iter(()))
    said = "4100 steps of agent_pos, image, action take 0.11 GiB in memory, of 0.10 GiB .*`in_memory='auto'`"
    with pytest.raises(ValueError, match=said):
        SequenceDataset.from_store(store, horizon=4, obs_horizon=1, residence=Residence(True))
    with pytest.raises(ValueError, match="`cache=FOLDER` on a larger disk"):
        Residence("auto", tmp_path / "missing").folder(store, ["image"], 4100)
    assert not read
    with pytest.warns(UserWarning, match="mapped from a file in .*, which is slower"):
        assert Residence().folder(store, ["image"], 4100) == store.path.parent
    assert Residence().folder(store, ["agent_pos"], 4100) is None
    with pytest.raises(ValueError, match="`in_memory` must be 'auto', True or False, got 'maybe'"):
        Residence("maybe")  # type: ignore[arg-type]


LIMITED = """
import resource, sys, threading, warnings
threading.stack_size(1 << 20)  # of 8 MB each, a few more readers on a loaded machine would pass the limit
import torch, zarr
from flowpolicy.data.dataset import SequenceDataset
from flowpolicy.data.memory import available_memory
from flowpolicy.data.residence import Residence
from flowpolicy.data.store import EpisodeStore
# one block at a time: a thread that finds no memory as it starts leaves the one that started it waiting for ever
zarr.config.set({"async.concurrency": 1, "threading.max_workers": 1})
store = EpisodeStore.open(sys.argv[1])
# what starts threads, each with a stack, and loads modules is done before the limit
dataset = SequenceDataset.from_store(store, horizon=4, obs_horizon=1, episodes=range(6), residence=Residence(False))
dataset.batch(torch.arange(64))
used = [int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmData:")][0]
resource.setrlimit(resource.RLIMIT_DATA, (used + (100 << 20),) * 2)
assert available_memory() <= 100 << 20
try:
    SequenceDataset.from_store(store, horizon=4, obs_horizon=1, residence=Residence(True))
except ValueError as error:
    print(error)
warnings.simplefilter("ignore")
dataset = SequenceDataset.from_store(store, horizon=4, obs_horizon=1)
parts = torch.arange(len(dataset)).split(64)
print(sum(int(dataset.batch(index).obs["image"][:, 0, 0, 0, 0].sum()) for index in parts))
"""


def test_a_dataset_larger_than_memory_is_read_all_the_same(store: EpisodeStore) -> None:
    """In a process that may take 100 MB more; the pictures are 113 MB. Without the map it dies of MemoryError."""
    refused, total = in_a_fresh_process(LIMITED, store.path).splitlines()
    assert "that are available; pass `in_memory='auto'`" in refused
    assert int(total) == int(store.load("image")[:, 0, 0, 0].sum(dtype=np.int64))


def test_the_least_of_machine_group_and_limits_counts(tmp_path: Path, monkeypatch) -> None:
    found = available_memory()
    assert found is not None and 0 < found < 10_000 * GIB
    group = tmp_path / "group"
    group.mkdir()
    (group / "memory.max").write_text("1000\n")
    (group / "memory.current").write_text("900\n")
    (group / "memory.stat").write_text("anon 700\ninactive_file 150\nfile 200\n")
    assert memory._left(group, "memory.max", "memory.current", "inactive_file") == 250
    (group / "memory.max").write_text("max\n")
    assert memory._left(group, "memory.max", "memory.current", "inactive_file") is None
    assert memory._left(tmp_path / "none", "memory.max", "memory.current", "inactive_file") is None
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1 << 40, 1 << 40))
    assert (1 << 39) < (memory._limit(resource.RLIMIT_AS, "VmSize:") or 0) < (1 << 40)
