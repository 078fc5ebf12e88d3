"""A store names the codecs that decode it: none of them may run code, wherever it is named and whoever opens it."""

import json
import struct
from pathlib import Path

import numcodecs.pickles
import numpy as np
import pytest
import zarr

from flowpolicy.cli.main import main
from flowpolicy.data.codecs import HARMLESS, require_harmless
from flowpolicy.data.collect import collect_episodes
from flowpolicy.data.store import EpisodeStore
from flowpolicy.data.validate import validate_store
from tests.data.test_collect import Dice
from tests.helpers import write_store

PICKLE, TEXT = {"id": "pickle", "protocol": 0}, {"id": "vlen-utf8"}


@pytest.fixture(autouse=True)
def numcodecs_before_0_16_6(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then it unpickled whatever a store named; since then there is this switch."""
    monkeypatch.setattr(numcodecs.pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)


def payload(proof: Path, rows: int) -> bytes:
    """Pickled by hand: makes the file `proof`, and gives `rows` empty strings as vlen-utf8 stores them."""
    texts = struct.pack("<I", rows) + b"\0\0\0\0" * rows
    opened = f"(cio\nopen\n(V{proof}\nVw\ntR0".encode()  # open(proof, "w"), thrown away
    return opened + b"B" + struct.pack("<I", len(texts)) + texts + b"."


def poison(array: Path, proof: Path, *, dtype: str = "|O") -> None:
    """Let reading the array make the file `proof`."""
    meta = json.loads((array / ".zarray").read_text())
    filters = [TEXT, PICKLE] if dtype == "|O" else None
    rows = meta["shape"][0]
    meta |= {"shape": [rows], "chunks": [rows], "dtype": dtype, "fill_value": None if dtype == "|O" else 0}
    meta |= {"filters": filters, "compressor": None if filters else PICKLE}
    (array / ".zarray").write_text(json.dumps(meta))
    (array / "0").write_bytes(payload(proof, rows))


def test_the_payload_works_where_nothing_looks_first(tmp_path):
    """Without this the tests below could pass for another reason."""
    store, proof = write_store(tmp_path / "a.zarr"), tmp_path / "proof"
    poison(store / "data/action", proof)
    zarr.open_array(store / "data/action", mode="r", zarr_format=2)[:]
    assert proof.is_file()


@pytest.mark.parametrize("dtype", ["|O", "|u1"])
@pytest.mark.parametrize("array", ["data/action", "data/agent_pos", "meta/episode_ends", "meta/episode_seed"])
def test_a_store_that_names_pickle_is_refused_before_anything_is_decoded(tmp_path, array, dtype):
    store, proof = write_store(tmp_path / "a.zarr"), tmp_path / "proof"
    poison(store / array, proof, dtype=dtype)
    with pytest.raises(ValueError, match=rf"{array}/.zarray: (dtype is '\|O'|codec 'pickle').*run code"):
        EpisodeStore.open(store)
    (finding,) = validate_store(store)
    assert finding.severity == "error" and "run code" in finding.message
    assert not proof.exists()


def test_every_verb_that_reads_a_store_refuses_it_in_one_line(tmp_path, capsys):
    store, proof = write_store(tmp_path / "a.zarr"), tmp_path / "proof"
    poison(store / "data/action", proof)
    for words in (
        ["data", "inspect", f"{store}"],
        ["data", "view", f"{store}"],
        ["train", f"dataset.path={store}", f"out={tmp_path / 'run'}"],
    ):
        assert main(words) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1 and "run code" in said[0]
    assert main(["data", "validate", f"{store}"]) == 1
    assert not proof.exists()


def test_a_foreign_store_is_looked_at_too(tmp_path):
    root = zarr.open_group(tmp_path / "dp3.zarr", mode="w", zarr_format=2)
    data, meta = root.create_group("data"), root.create_group("meta")
    for name in ("state", "action"):
        data.create_array(name, data=np.ones((20, 2), np.float32))
    meta.create_array("episode_ends", data=np.array([8, 20]))
    poison(tmp_path / "dp3.zarr/data/state", tmp_path / "proof")
    with pytest.raises(ValueError, match="run code"):
        EpisodeStore.open(tmp_path / "dp3.zarr")
    assert not (tmp_path / "proof").exists()


def test_consolidated_metadata_and_a_version_3_array_inside_are_looked_at(tmp_path):
    store = write_store(tmp_path / "a.zarr")
    meta = json.loads((store / "data/action/.zarray").read_text())
    entries = {"data/action/.zarray": {**meta, "compressor": PICKLE}}
    (store / ".zmetadata").write_text(json.dumps({"metadata": entries, "zarr_consolidated_format": 1}))
    with pytest.raises(ValueError, match=r"\.zmetadata: data/action/\.zarray: codec 'pickle'"):
        EpisodeStore.open(store)
    (store / ".zmetadata").unlink()
    (store / "data/action/zarr.json").write_text("{}")
    with pytest.raises(ValueError, match="metadata of zarr v3"):
        EpisodeStore.open(store)


@pytest.mark.parametrize(
    "change",
    [
        {"compressor": {"id": "json2"}},
        {"filters": [{"id": "categorize", "labels": ["a"], "dtype": "|O"}]},
        {"filters": [{"id": "msgpack2"}]},
        {"compressor": {"id": "vlen-array", "dtype": "<i4"}},
        {"compressor": "pickle"},
        {"compressor": {"id": ["zstd"]}},
        {"filters": [{"id": "astype", "encode_dtype": "|O", "decode_dtype": "<f4"}]},
        {"dtype": [["a", "|O"]]},
        {"dtype": "O"},
        {"dtype": None},
        {"shape": "x"},
        {"shape": [180.0, 3]},
        {"chunks": [0, 3]},
        {"chunks": [180]},
        {"filters": [[TEXT]]},
    ],
)
def test_whatever_else_is_no_number_under_a_known_codec(tmp_path, change):
    file = write_store(tmp_path / "a.zarr") / "data/action/.zarray"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=r"data/action/\.zarray: "):
        EpisodeStore.open(tmp_path / "a.zarr")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_damaged_metadata_is_named(tmp_path, content):
    file = write_store(tmp_path / "a.zarr") / "data/action/.zarray"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"data/action/\.zarray is damaged"):
        EpisodeStore.open(tmp_path / "a.zarr")


def test_what_is_allowed_exists_and_what_runs_code_is_not_allowed():
    assert set(numcodecs.registry.codec_registry) >= HARMLESS
    unsafe = {"pickle", "json2", "msgpack2", "categorize", "vlen-array", "vlen-bytes", "vlen-utf8"}
    assert not HARMLESS & unsafe
    assert set(numcodecs.registry.codec_registry) <= HARMLESS | unsafe  # a new one is judged, not let through


def test_our_own_stores_pass(tmp_path):
    collect_episodes(Dice, tmp_path / "a.zarr", episodes=1, seed=1, progress=False)
    require_harmless(tmp_path / "a.zarr")
