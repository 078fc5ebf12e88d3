"""The contact sheet: what lies on the page is what lies in the store, and nothing is fetched."""

import base64
import json
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from flowpolicy.cli.main import main
from flowpolicy.data.inspect import describe_store
from flowpolicy.data.store import Episode, EpisodeStore, EpisodeWriter
from flowpolicy.embodiment import CloudSpec, Embodiment, KeySpec
from flowpolicy.report.contact_sheet import encode_png, write_contact_sheet

STEPS, POINTS = 12, 40


def _store(path: Path, *, columns: int = 3, image: int = 32, episodes: int = 3) -> EpisodeStore:
    """Seeing episodes of random clouds and images; image=0 leaves both out."""
    rng = np.random.default_rng(0)
    keys = {"agent_pos": KeySpec((2,))}
    if image:
        keys |= {"point_cloud": KeySpec((POINTS, columns)), "image_front": KeySpec((image, image, 3), dtype="uint8")}
    embodiment = Embodiment("point", keys, KeySpec((2,), names=("dx", "dy")), "velocity", 10.0, (-1, -1), (1, 1))
    with EpisodeWriter(path, embodiment, {"task": "<b>toy</b>"}) as writer:
        for seed in range(episodes):
            obs = {
                key: rng.integers(0, 256, (STEPS, *spec.shape), dtype=np.uint8)
                if spec.dtype == "uint8"
                else rng.uniform(0, 1, (STEPS, *spec.shape)).astype(np.float32)
                for key, spec in keys.items()
            }
            writer.add(Episode(obs, rng.uniform(-1, 1, (STEPS, 2)), np.zeros(STEPS), seed != 1, 7 + seed))
    return EpisodeStore.open(path)


def _decode(png: bytes) -> np.ndarray:
    """The picture of a PNG without filters, checked chunk by chunk."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    position, chunks = 8, {}
    while position < len(png):
        size, kind = struct.unpack(">I4s", png[position : position + 8])
        data = png[position + 8 : position + 8 + size]
        assert struct.unpack(">I", png[position + 8 + size : position + 12 + size])[0] == zlib.crc32(kind + data)
        chunks[kind], position = data, position + 12 + size
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + 3 * width)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, 3)


def test_png_gives_the_picture_back() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 9, 3), dtype=np.uint8)
    assert np.array_equal(_decode(encode_png(image)), image)
    with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8"):
        encode_png(image.astype(np.float32))  # type: ignore[arg-type]


@pytest.mark.parametrize("columns", [3, 6])
def test_page_holds_the_clouds_and_frames_of_the_store(tmp_path: Path, columns: int) -> None:
    store = _store(tmp_path / "a.zarr", columns=columns)
    text = write_contact_sheet(store, tmp_path / "a.html").read_text()
    packed = re.findall(r"data-xyz='([^']+)'", text)
    assert len(packed) == 3 * 6 and text.count("data:image/png;base64,") == 3 * 6
    got = np.frombuffer(base64.b64decode(packed[5]), "<u2").reshape(POINTS, 3) / 65535  # episode 0, its last step
    moments = store.load("point_cloud")[np.linspace(0, STEPS - 1, 6).astype(int), :, :3]
    low, size = moments.min(axis=(0, 1)), np.ptp(moments, axis=(0, 1)).max()
    np.testing.assert_allclose(got * size + low, moments[-1], atol=1e-4)
    first = re.search(r"src='data:image/png;base64,([^']+)'", text)
    assert first and np.array_equal(_decode(base64.b64decode(first[1])), store.load("image_front")[0])
    assert text.count("data-rgb=") == (18 if columns == 6 else 0)
    box = json.loads(re.findall(r"data-box='([^']+)'", text)[0])
    np.testing.assert_allclose(np.array(box[:3]) * size, np.ptp(moments, axis=(0, 1)), atol=1e-4)
    lines = low[:2] + np.array(box[3:5]) * size  # of the floor: at whole multiples of 10 cm, the first inside the box
    np.testing.assert_allclose(lines * 10, np.ceil(low[:2] * 10), atol=1e-3)
    assert box[5] * size == pytest.approx(0.1, abs=1e-4)


def test_page_names_outcomes_and_loads_nothing(tmp_path: Path) -> None:
    text = write_contact_sheet(_store(tmp_path / "a.zarr"), tmp_path / "a.html").read_text()
    assert re.search(r"episode 1 · 12 steps · 1.2 s · seed 8 · <span style='color:var\(--bad\)'>failure<", text)
    assert text.count(">success</span></h3>") == 2 and "2 of 3" in text
    strip = re.findall(r"<i( class=bad)? title='episode (\d): (\w+)'", text)
    assert strip == [("", "0", "success"), (" class=bad", "1", "failure"), ("", "2", "success")]
    assert "<b>toy" not in text and "&lt;b&gt;toy" in text
    assert not re.search(r"(src|href)=(?!'data:)", text) and "http" not in text


def test_actions_are_drawn_from_their_lowest_to_their_highest_value_and_told_apart(tmp_path: Path) -> None:
    names = tuple(f"joint{i}" for i in range(8))
    embodiment = Embodiment(
        "arm", {"agent_pos": KeySpec((1,))}, KeySpec((8,), names=names), "joint_position", 10.0, (-9.0,) * 8, (9.0,) * 8
    )
    action = np.linspace(-1, 1, 20)[:, None] * np.arange(8) * 0.1 + 2  # joint 0 stands still
    with EpisodeWriter(tmp_path / "a.zarr", embodiment, {}) as writer:
        writer.add(Episode({"agent_pos": np.zeros((20, 1))}, action, np.zeros(20), True, 0))
    text = write_contact_sheet(EpisodeStore.open(tmp_path / "a.zarr"), tmp_path / "a.html").read_text()
    drawn = re.findall(r"<polyline class='([^']+)' points='([^']+)'><title>(\w+)", text)
    assert [name for _, _, name in drawn] == list(names)
    assert ["again" in kind for kind, _, _ in drawn] == [False] * 6 + [True] * 2  # six colours, then dashes
    heights = [[float(point.split(",")[1]) for point in points.split()] for _, points, _ in drawn]
    assert heights[1] == heights[7] and heights[1][0] > heights[1][-1] and len(set(heights[0])) == 1
    assert "joint7 1.3 … 2.7" in text and "joint0 2 … 2" in text


def test_the_page_says_how_the_clouds_were_made(tmp_path: Path) -> None:
    cloud = CloudSpec(points=5, crop_low=(-1, -1, 0), crop_high=(1, 1, 0.5), voxel_m=0.01)
    keys = {"point_cloud": KeySpec(cloud.shape, "m", cloud=cloud)}
    embodiment = Embodiment("arm", keys, KeySpec((1,)), "velocity", 10.0, (-1,), (1,))
    with EpisodeWriter(tmp_path / "a.zarr", embodiment, {}) as writer:
        writer.add(Episode({"point_cloud": np.zeros((3, 5, 3))}, np.zeros((3, 1)), np.zeros(3), True, 0))
    store = EpisodeStore.open(tmp_path / "a.zarr")
    said = "point_cloud: 5 points in world, x -1 ... 1, y -1 ... 1, z 0 ... 0.5 m, grid of 0.01 m"
    assert said in write_contact_sheet(store, tmp_path / "a.html").read_text() and said in describe_store(store)


def test_caps_are_kept_and_said(tmp_path: Path) -> None:
    store = _store(tmp_path / "a.zarr", image=350)
    text = write_contact_sheet(store, tmp_path / "a.html", episodes=2).read_text()
    assert "The first 2 of 3 episodes, 6 moments of each; frames thinned out to at most 160 pixels" in text
    first = re.search(r"src='data:image/png;base64,([^']+)'", text)
    assert first and _decode(base64.b64decode(first[1])).shape == (117, 117, 3)  # every third pixel


def test_states_alone_give_a_page_that_says_so(tmp_path: Path) -> None:
    text = write_contact_sheet(_store(tmp_path / "a.zarr", image=0), tmp_path / "a.html").read_text()
    assert "states only" in text and "<canvas" not in text and "<script" not in text and text.count("<polyline") == 6


def test_a_missing_chunk_is_an_error_and_not_a_black_frame(tmp_path: Path) -> None:
    store = _store(tmp_path / "a.zarr")
    (store.path / "data/image_front/0.0.0.0").unlink()
    with pytest.raises(ValueError, match=r"chunk 0\.0\.0\.0 is missing"):
        write_contact_sheet(store, tmp_path / "a.html")
    assert not (tmp_path / "a.html").exists()


def test_verb_writes_beside_the_store_or_where_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    _store(tmp_path / "a.zarr")
    assert main(["data", "view", str(tmp_path / "a.zarr")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "a.html") and (tmp_path / "a.html").is_file()
    assert main(["data", "view", str(tmp_path / "a.zarr"), "episodes=1", f"out={tmp_path / 'new/b.html'}"]) == 0
    assert (tmp_path / "new/b.html").read_text().count("<h3>episode") == 1
    assert main(["data", "view", str(tmp_path / "a.zarr"), "episodes=none"]) == 2
    assert main(["data", "view", str(tmp_path / "a.zarr"), "episodes=0"]) == 2
