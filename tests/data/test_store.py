"""Episode store: what goes in comes out, in a layout others read; nothing half-written; damage is named."""

import errno
import json
import shutil

import numcodecs
import numpy as np
import pytest
import zarr

from flowpolicy.data.build import StoreBuilder
from flowpolicy.data.chunks import chunk_problems
from flowpolicy.data.store import Episode, EpisodeStore, EpisodeWriter
from flowpolicy.embodiment import Embodiment, KeySpec

EMBODIMENT = Embodiment(
    robot="test",
    obs={"agent_pos": KeySpec((3,)), "image": KeySpec((4, 4, 3), dtype="uint8")},
    action=KeySpec((2,)),
    action_kind="velocity",
    control_hz=10.0,
    action_low=(-1.0, -1.0),
    action_high=(1.0, 1.0),
)


def episode(seed: int, steps: int = 5) -> Episode:
    rng = np.random.default_rng(seed)
    return Episode(
        obs={
            "agent_pos": rng.normal(size=(steps, 3)).astype(np.float32),
            "image": rng.integers(0, 256, (steps, 4, 4, 3), dtype=np.uint8),
        },
        action=rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
        reward=np.zeros(steps, np.float32),
        success=seed % 2 == 0,
        seed=seed,
    )


def write(path, seeds=range(3), steps=5):
    with EpisodeWriter(path, EMBODIMENT, {"task": "toy"}) as writer:
        for seed in seeds:
            writer.add(episode(seed, steps + seed))
    return path


@pytest.mark.parametrize("steps", [1, 5, 4096, 5000])
def test_what_goes_in_comes_out(tmp_path, steps):
    store = EpisodeStore.open(write(tmp_path / "a.zarr", steps=steps))
    for key in ("agent_pos", "image"):
        wanted = np.concatenate([episode(seed, steps + seed).obs[key] for seed in range(3)])
        got = store.load(key)
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)
    actions = np.concatenate([episode(seed, steps + seed).action for seed in range(3)])
    np.testing.assert_array_equal(store.load("action"), actions)
    assert store.episode_ends.tolist() == [steps, 2 * steps + 1, 3 * steps + 3] and store.episode_ends.dtype == np.int64
    assert store.episode_seeds.tolist() == [0, 1, 2] and store.episode_success.tolist() == [True, False, True]
    assert store.keys == ("action", "agent_pos", "image", "reward") and store.obs_keys == ("agent_pos", "image")
    assert (store.num_episodes, store.num_steps) == (3, 3 * steps + 3)
    assert store.embodiment == EMBODIMENT and store.attrs == {"task": "toy"}


def test_a_plain_zarr_v2_reader_needs_only_json_and_blosc(tmp_path):
    path = write(tmp_path / "a.zarr")
    for name in ("", "data", "meta"):
        assert json.loads((path / name / ".zgroup").read_text()) == {"zarr_format": 2}
    meta = json.loads((path / "data/action/.zarray").read_text())
    assert meta["zarr_format"] == 2 and meta["order"] == "C" and meta["dtype"] == "<f4" and meta["filters"] is None
    codec = numcodecs.get_codec(meta["compressor"])
    chunk = np.frombuffer(codec.decode((path / "data/action/0.0").read_bytes()), "<f4").reshape(meta["chunks"])
    np.testing.assert_array_equal(chunk[:5], episode(0).action)
    assert not list(path.rglob("zarr.json"))
    # diffusion_policy's ReplayBuffer: every data array is as long as the last episode end
    root = zarr.open_group(path, mode="r")
    assert {value.shape[0] for _, value in root["data"].arrays()} == {int(root["meta/episode_ends"][:][-1])}


def test_chunks_lie_along_time_only(tmp_path):
    store = EpisodeStore.open(write(tmp_path / "a.zarr", seeds=range(2), steps=5000))
    chunks = json.loads((store.path / "data/image/.zarray").read_text())["chunks"]
    assert chunks == [4096, 4, 4, 3] and (store.path / "data/image/2.0.0.0").is_file()


def test_content_hash_knows_values_not_compression(tmp_path):
    first, again = (EpisodeStore.open(write(tmp_path / name)) for name in ("a.zarr", "b.zarr"))
    other = EpisodeStore.open(write(tmp_path / "c.zarr", seeds=[0, 1, 3]))
    assert first.content_hash() == again.content_hash() != other.content_hash()
    array = zarr.open_array(again.path / "data/action", mode="r+")
    values = array[:]
    shutil.rmtree(again.path / "data/action")
    zarr.open_group(again.path / "data", mode="r+").create_array(
        "action", data=values, chunks=(7, 2), compressors=numcodecs.Zlib()
    )
    assert EpisodeStore.open(again.path).content_hash() == first.content_hash()
    array = zarr.open_array(first.path / "data/action", mode="r+")
    array[0, 0] += 1e-3
    assert EpisodeStore.open(first.path).content_hash() != EpisodeStore.open(again.path).content_hash()


def test_a_builder_leaves_nothing_behind_after_an_exception(tmp_path):
    with pytest.raises(KeyboardInterrupt), StoreBuilder(tmp_path / "a.zarr", EMBODIMENT, {}) as builder:
        builder.add(episode(0))
        raise KeyboardInterrupt
    for kind in (EpisodeWriter, StoreBuilder):
        with pytest.raises(ValueError, match="no episode was added"), kind(tmp_path / "a.zarr", EMBODIMENT, {}):
            pass
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_clear_line_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(self, key, value):
        raise OSError(errno.ENOSPC, "No space left on device")

    one_line = pytest.raises(OSError, match="disk full while writing .*a.zarr: free some space; 1 accepted episodes")
    with one_line as caught, EpisodeWriter(tmp_path / "a.zarr", EMBODIMENT, {}) as writer:
        monkeypatch.setattr(zarr.Array, "__setitem__", full)
        writer.add(episode(0))
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == [".a.zarr.journal"]


def test_an_existing_store_is_kept_unless_told_otherwise(tmp_path):
    path = write(tmp_path / "a.zarr")
    with pytest.raises(FileExistsError, match="`overwrite=True`"):
        EpisodeWriter(path, EMBODIMENT, {})
    with pytest.raises(RuntimeError), EpisodeWriter(path, EMBODIMENT, {}, overwrite=True) as writer:
        raise RuntimeError
    assert EpisodeStore.open(path).num_episodes == 3
    with EpisodeWriter(path, EMBODIMENT, {}, overwrite=True) as writer:
        writer.add(episode(9))
    assert EpisodeStore.open(path).episode_seeds.tolist() == [9]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zarr"]
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="not a zarr store"):
        EpisodeWriter(tmp_path / "mine", EMBODIMENT, {}, overwrite=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e._replace(action=e.action[:, :1]), r"action: wanted shape \(5, 2\), got \(5, 1\)"),
        (lambda e: e._replace(reward=e.reward[:-1]), r"reward: wanted shape \(5,\)"),
        (lambda e: e._replace(obs={"agent_pos": e.obs["agent_pos"]}), "wanted observation keys"),
        (
            lambda e: e._replace(obs={**e.obs, "image": e.obs["image"].astype(float)}),
            "image: wanted uint8, got float64",
        ),
        (lambda e: e._replace(action=e.action[:0]), "seed 0 has no steps"),
    ],
)
def test_an_episode_that_does_not_fit_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message), EpisodeWriter(tmp_path / "a.zarr", EMBODIMENT, {}) as writer:
        writer.add(change(episode(0)))
    assert not list(tmp_path.iterdir())


def test_reserved_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="reserved"):
        EpisodeWriter(tmp_path / "a.zarr", EMBODIMENT, {"embodiment": 1})


@pytest.mark.parametrize("value", [np.float32(1), {1, 2}, float("nan"), object()])
def test_facts_that_are_no_json_are_refused_before_anything_is_written(tmp_path, value):
    with pytest.raises(ValueError, match="EpisodeWriter: attrs must be JSON, got"):
        EpisodeWriter(tmp_path / "a.zarr", EMBODIMENT, {"fact": value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"action_low": [float("nan")] * 2}, "action_low: wanted finite numbers, got nan"),
        ({"obs": {"agent_pos": {"shape": 3}}}, "obs.agent_pos: KeySpec: shape: wanted a list of whole numbers, got 3"),
        ({"obs": 7}, "obs: wanted an object"),
    ],
)
def test_an_impossible_record_in_a_store_is_one_line_that_names_the_store(tmp_path, change, line):
    write(tmp_path / "a.zarr", seeds=range(1))
    file = tmp_path / "a.zarr" / ".zattrs"
    attrs = json.loads(file.read_text())
    file.write_text(json.dumps({**attrs, "embodiment": attrs["embodiment"] | change}))
    with pytest.raises(ValueError, match=f"a.zarr: embodiment: {line}"):
        EpisodeStore.open(tmp_path / "a.zarr")


def test_opening_what_is_no_store(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        EpisodeStore.open(tmp_path / "missing.zarr")
    with pytest.raises(ValueError, match="not a zarr store"):
        EpisodeStore.open(tmp_path)
    zarr.open_group(tmp_path / "bare.zarr", mode="w", zarr_format=2)
    with pytest.raises(ValueError, match="meta/episode_ends is missing"):
        EpisodeStore.open(tmp_path / "bare.zarr")
    zarr.open_group(tmp_path / "v3.zarr", mode="w", zarr_format=3)
    with pytest.raises(ValueError, match="zarr v3"):
        EpisodeStore.open(tmp_path / "v3.zarr")


def test_a_newer_format_is_refused(tmp_path):
    path = write(tmp_path / "a.zarr")
    zarr.open_group(path, mode="r+").attrs["format_version"] = 2
    with pytest.raises(ValueError, match="version <= 1"):
        EpisodeStore.open(path)


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ([], "empty"),
        ([5, 5, 18], "episode 1 has no steps"),
        ([5, 11], "ends at 11; truncated"),
    ],
)
def test_a_wrong_episode_table_is_refused(tmp_path, ends, message):
    path = write(tmp_path / "a.zarr")
    zarr.open_group(path / "meta", mode="r+").create_array(
        "episode_ends", data=np.array(ends, np.int64), overwrite=True
    )
    with pytest.raises(ValueError, match=message):
        EpisodeStore.open(path)


def test_an_unknown_key_lists_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="no key 'state'; available are .*agent_pos"):
        EpisodeStore.open(write(tmp_path / "a.zarr")).load("state")


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def corrupt(file):
    raw = bytearray(file.read_bytes())
    raw[20:] = bytes(255 - value for value in raw[20:])
    file.write_bytes(raw)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), r"chunk 1.0 is missing"),
        (cut, r"chunk 1.0 is truncated"),
        (lambda file: file.write_bytes(b""), r"chunk 1.0 is truncated"),
        (corrupt, r"chunk 1.0 is damaged"),
    ],
)
def test_a_damaged_chunk_is_named_and_never_read_as_zeros(tmp_path, damage, message):
    store = EpisodeStore.open(write(tmp_path / "a.zarr", seeds=range(2), steps=5000))
    assert not chunk_problems(store.path / "data/action", decode=True)
    damage(store.path / "data/action/1.0")
    with pytest.raises(ValueError, match=f"data/action: {message}"):
        store.load("action")
    assert len(chunk_problems(store.path / "data/action", decode=True)) == 1
    store.load("agent_pos")


@pytest.mark.parametrize("compressor", [None, numcodecs.Zlib(), numcodecs.Zstd(), numcodecs.LZ4(), numcodecs.GZip()])
def test_a_truncated_chunk_of_any_compressor_is_named(tmp_path, compressor):
    store = EpisodeStore.open(write(tmp_path / "a.zarr"))
    values = store.load("action")
    zarr.open_group(store.path / "data", mode="r+").create_array(
        "action", data=values, chunks=(10, 2), compressors=compressor, overwrite=True
    )
    np.testing.assert_array_equal(EpisodeStore.open(store.path).load("action"), values)
    cut(store.path / "data/action/1.0")
    with pytest.raises(ValueError, match=r"data/action: chunk 1\.0 is"):
        EpisodeStore.open(store.path).load("action")


def test_a_chunk_of_zeros_is_written(tmp_path):
    path = write(tmp_path / "a.zarr")
    assert (path / "data/reward/0").is_file()
    np.testing.assert_array_equal(EpisodeStore.open(path).load("reward"), np.zeros(18))


def test_a_foreign_zarr_opens_without_embodiment(tmp_path):
    root = zarr.open_group(tmp_path / "dp3.zarr", mode="w", zarr_format=2)
    data, meta = root.create_group("data"), root.create_group("meta")
    for name, shape in (("state", (20, 24)), ("point_cloud", (20, 16, 6)), ("action", (20, 4))):
        data.create_array(name, data=np.ones(shape, np.float32), chunks=(7, *shape[1:]))
    meta.create_array("episode_ends", data=np.array([8, 20]))
    store = EpisodeStore.open(tmp_path / "dp3.zarr")
    assert store.embodiment is None and store.episode_seeds is None and store.attrs == {}
    assert store.obs_keys == ("point_cloud", "state") and store.load("point_cloud").shape == (20, 16, 6)
