"""A contact sheet of a store: one offline HTML page with every episode's outcome, actions, frames and point clouds."""

import base64
import json
import math
import struct
import zlib
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flowpolicy.data.store import EpisodeStore
from flowpolicy.files import write_atomic
from flowpolicy.report.page import Section, facts, legend, none, page, pairs
from flowpolicy.report.svg import Line, line_chart

MOMENTS = 6  # per episode, evenly spread, the first and the last step among them
MAX_EPISODES = 20
CLOUD_POINTS = 512  # of a cloud; more do not fit into a drawing of 300 pixels
FRAME_PIXELS = 160  # longest side of a frame; larger ones are thinned out
FLOOR_M = 0.1  # edge of the squares of the floor under a cloud
_GRID = "display:grid;grid-template-columns:repeat(auto-fill,minmax({}px,1fr));gap:8px;margin:6px 0 4px"


def write_contact_sheet(store: EpisodeStore, out: Path, *, episodes: int = MAX_EPISODES) -> Path:
    """Write the page about the first `episodes` episodes to `out`; returns its absolute path.

    Point clouds (N, 3 or 6) turn above a grid of 10 cm, coloured by height where they hold no colour; images are (H, W,
    3) uint8; each entry of the actions is drawn from its lowest to its highest value in the store.

    Args:
        store: The episodes, as `EpisodeStore` opens them.
        out: The HTML file.
        episodes: How many, from the first on.

    Raises:
        ValueError: For a damaged store or episodes < 1.
    """
    if episodes < 1:
        raise ValueError(f"view: wanted at least 1 episode, got {episodes}")
    shown = min(episodes, store.num_episodes)
    clouds = [key for key in store.obs_keys if len(store.shapes[key]) == 3 and store.shapes[key][2] in (3, 6)]
    images = [key for key in store.obs_keys if store.shapes[key][3:] == (3,) and store.dtypes[key] == np.uint8]
    action = store.load("action")
    remark = "" if clouds or images else none("No point clouds and no images: states only.")
    bodies = [_episode(store, index, action, clouds=clouds, images=images) for index in range(shown)]
    names = [
        f"{name} {low:.3g} … {high:.3g}" for name, low, high in zip(_action_names(store), *_range(action), strict=True)
    ]
    lengths = np.diff(store.episode_ends, prepend=0)
    cards = [
        ("episodes", str(store.num_episodes), f"{shown} shown"),
        ("steps", str(store.num_steps), f"{lengths.min()} to {lengths.max()} per episode"),
        ("success", _share(store.episode_success), "as recorded"),
    ]
    sections = [
        Section(
            "What it holds",
            pairs(_contents(store)) + _cloud_lines(store, clouds) + pairs({k: str(v) for k, v in store.attrs.items()}),
        ),
        Section(
            "Episodes",
            _outcomes(store) + remark + legend(names) + "".join(bodies),
            _limits(store, shown, clouds, images),
        ),
    ]
    html = page(
        store.path.name,
        subtitle=str(store.path),
        head=facts(cards),
        sections=sections,
        footer="flowpolicy: a look at demonstrations",
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, html.replace("</body>", f"<script>{_TURN}</script></body>") if clouds else html)
    return out.absolute()


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """PNG file of (H, W, 3) uint8, without any library but zlib. Raises ValueError for another shape or type.

    Args:
        image: (H, W, 3) uint8.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"encode_png: wanted (H, W, 3) uint8, got {image.shape} {image.dtype}")
    height, width, _ = image.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # every row begins with its filter: 0, none
    rows[:, 1:] = image.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, red green blue
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


def _episode(store: EpisodeStore, index: int, action: NDArray, *, clouds: Sequence[str], images: Sequence[str]) -> str:
    stop = int(store.episode_ends[index])
    start = int(store.episode_ends[index - 1]) if index else 0
    steps = sorted({int(step) for step in np.linspace(start, stop - 1, MOMENTS)})
    body = f"<h3>{escape(_headline(store, index, stop - start))}{_outcome(store, index)}</h3>"
    low, high = _range(action)
    share = (action[start:stop] - low) / np.where(high > low, high - low, 1.0)
    lines = [
        Line(name, range(stop - start), share[:, dim].tolist(), dim) for dim, name in enumerate(_action_names(store))
    ]
    body += line_chart(lines, width=1000, height=130, y_range=(-0.04, 1.04))
    for key in images:
        frames = store.rows(key, steps)
        stride = math.ceil(max(frames.shape[1:3]) / FRAME_PIXELS)
        cells = [_frame(frame[::stride, ::stride], step - start) for frame, step in zip(frames, steps, strict=True)]
        body += f"<figcaption>{escape(key)}</figcaption><div style='{_GRID.format(150)}'>{''.join(cells)}</div>"
    for key in clouds:
        cloud = store.rows(key, steps)
        stride = math.ceil(cloud.shape[1] / CLOUD_POINTS)
        body += f"<figcaption>{escape(key)}</figcaption><div style='{_GRID.format(260)}'>"
        body += _cloud_cells(cloud[:, ::stride], [step - start for step in steps]) + "</div>"
    return body


def _headline(store: EpisodeStore, index: int, length: int) -> str:
    words = [f"episode {index}", f"{length} steps"]
    if store.embodiment is not None:
        words.append(f"{length / store.embodiment.control_hz:.1f} s")
    if store.episode_seeds is not None:
        words.append(f"seed {store.episode_seeds[index]}")
    return " · ".join(words)


def _outcome(store: EpisodeStore, index: int) -> str:
    if store.episode_success is None:
        return ""
    word, colour = ("success", "good") if store.episode_success[index] else ("failure", "bad")
    return f" · <span style='color:var(--{colour})'>{word}</span>"


def _outcomes(store: EpisodeStore) -> str:
    """A square per episode of the whole store, not only of those that are shown."""
    if store.episode_success is None:
        return ""
    kinds = [("", "success") if success else (" class=bad", "failure") for success in store.episode_success]
    squares = [f"<i{mark} title='episode {index}: {word}'></i>" for index, (mark, word) in enumerate(kinds)]
    return f"<div class='strip'>{''.join(squares)}</div>"


def _range(action: NDArray) -> tuple[NDArray, NDArray]:
    """Lowest and highest value of each entry, (A,) each."""
    return np.nanmin(action, axis=0), np.nanmax(action, axis=0)


def _action_names(store: EpisodeStore) -> list[str]:
    names = store.embodiment.action.names if store.embodiment else ()
    return list(names) or [f"action {dim}" for dim in range(store.shapes["action"][1])]


def _frame(frame: NDArray[np.uint8], step: int) -> str:
    data = base64.b64encode(encode_png(np.ascontiguousarray(frame))).decode()
    return (
        f"<figure><img alt='step {step}' src='data:image/png;base64,{data}'><figcaption>step {step}</figcaption>"
        "</figure>"
    )


def _cloud_cells(clouds: NDArray, steps: Sequence[int]) -> str:
    """One canvas per moment. clouds: (M, N, 3 or 6); all share one scale, so that motion shows."""
    xyz = np.nan_to_num(clouds[..., :3].astype(np.float64))
    low, high = xyz.min(axis=(0, 1)), xyz.max(axis=(0, 1))
    size = max(float((high - low).max()), 1e-9)
    # 16 bits over the longest side: 0.02 mm in a box of a metre
    packed = np.round((xyz - low) / size * 65535).astype("<u2")
    # its sides, and where the first line of the floor's grid lies and how far the next: all in units of the longest
    box = [*(high - low) / size, *(np.ceil(low[:2] / FLOOR_M) * FLOOR_M - low[:2]) / size, FLOOR_M / size]
    text = json.dumps([round(float(number), 4) for number in box])
    cells = []
    for index, step in enumerate(steps):
        data = base64.b64encode(packed[index].tobytes()).decode()
        colour = ""
        if clouds.shape[2] == 6:
            rgb = np.round(255 * np.clip(np.nan_to_num(clouds[index, :, 3:]), 0, 1)).astype(np.uint8)
            colour = f" data-rgb='{base64.b64encode(rgb.tobytes()).decode()}'"
        cells.append(
            f"<figure><canvas width='600' height='480' style='width:100%' data-box='{text}' "
            f"data-xyz='{data}'{colour}></canvas><figcaption>step {step}</figcaption></figure>"
        )
    return "".join(cells)


def _cloud_lines(store: EpisodeStore, clouds: Sequence[str]) -> str:
    """How each cloud was made, where the store says so."""
    specs = {key: store.embodiment.obs[key].cloud for key in clouds} if store.embodiment else {}
    lines = [f"{key}: {spec.describe()}" for key, spec in specs.items() if spec is not None]
    return "".join(f"<p class='sub'>{escape(line)}</p>" for line in lines)


def _contents(store: EpisodeStore) -> dict[str, str]:
    return {key: f"{store.shapes[key][1:]} {store.dtypes[key]}" for key in store.keys}


def _share(success: NDArray | None) -> str:
    return "unknown" if success is None else f"{int(success.sum())} of {len(success)}"


def _limits(store: EpisodeStore, shown: int, clouds: Sequence[str], images: Sequence[str]) -> str:
    said = [f"The first {shown} of {store.num_episodes} episodes, {MOMENTS} moments of each"]
    if any(max(store.shapes[key][1:3]) > FRAME_PIXELS for key in images):
        said.append(f"frames thinned out to at most {FRAME_PIXELS} pixels")
    if any(store.shapes[key][1] > CLOUD_POINTS for key in clouds):
        said.append(f"clouds to at most {CLOUD_POINTS} points")
    lines = ". Lines: the actions, each from its lowest to its highest value in the store."
    turn = f" Clouds: the floor's squares are {100 * FLOOR_M:g} cm, x is red, y is green; drag to turn."
    return "; ".join(said) + lines + (turn if clouds else "")


# Orthographic, z up, seen from 25 degrees above; only canvases in view are drawn. Drag turns all of them together.
# The scale is the largest at which the box of all moments stays inside the drawing however it is turned.
_TURN = """
(function () {
  const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
  const still = matchMedia('(prefers-reduced-motion: reduce)').matches;
  const tilt = 25 * Math.PI / 180, up = Math.cos(tilt), down = Math.sin(tilt), inView = new Set();
  let turn = -0.8, held = null;
  const watch = new IntersectionObserver(list => list.forEach(
    e => e.isIntersecting ? inView.add(e.target) : inView.delete(e.target)));
  function draw(canvas) {
    const g = canvas.getContext('2d'), [bx, by, bz, gx, gy, step] = canvas.box, p = canvas.points, rgb = canvas.rgb;
    const c = Math.cos(turn), s = Math.sin(turn), wide = Math.hypot(bx, by);
    const scale = 0.94 * Math.min(canvas.width / wide, canvas.height / (bz * up + wide * down));
    const place = (x, y, z) => {
      const right = c * (x - bx / 2) - s * (y - by / 2), away = s * (x - bx / 2) + c * (y - by / 2);
      return [canvas.width / 2 + scale * right, canvas.height / 2 - scale * ((z - bz / 2) * up + away * down), away];
    };
    const line = (a, b, colour, width) => {
      g.strokeStyle = colour; g.lineWidth = width; g.beginPath();
      g.moveTo(...place(...a).slice(0, 2)); g.lineTo(...place(...b).slice(0, 2)); g.stroke();
    };
    g.clearRect(0, 0, canvas.width, canvas.height);
    const soft = getComputedStyle(document.documentElement).getPropertyValue('--soft');
    g.globalAlpha = 0.35;
    for (let x = gx; x <= bx; x += step) line([x, 0, 0], [x, by, 0], soft, 2);
    for (let y = gy; y <= by; y += step) line([0, y, 0], [bx, y, 0], soft, 2);
    for (const [x, y] of [[0, 0], [bx, 0], [0, by], [bx, by]]) line([x, y, 0], [x, y, bz], soft, 1);
    g.globalAlpha = 1;
    line([0, 0, 0], [Math.min(step, bx), 0, 0], '#d4553f', 5);
    line([0, 0, 0], [0, Math.min(step, by), 0], '#2f9e6e', 5);
    const order = Array.from({length: p.length / 3}, (_, i) => [
      ...place(p[3 * i] / 65535, p[3 * i + 1] / 65535, p[3 * i + 2] / 65535), p[3 * i + 2] / 65535 / (bz || 1), i]
    ).sort((a, b) => b[2] - a[2]);
    for (const [x, y, away, level, i] of order) {
      const size = 7 - 3 * (away / wide + 0.5);
      g.fillStyle = rgb ? `rgb(${rgb[3 * i]},${rgb[3 * i + 1]},${rgb[3 * i + 2]})`
                        : `hsl(${230 - 200 * level},70%,${46 + 14 * (away / wide)}%)`;
      g.fillRect(x - size / 2, y - size / 2, size, size);
    }
  }
  for (const canvas of document.querySelectorAll('canvas[data-xyz]')) {
    canvas.points = new Uint16Array(bytes(canvas.dataset.xyz).buffer);
    canvas.rgb = canvas.dataset.rgb && bytes(canvas.dataset.rgb);
    canvas.box = JSON.parse(canvas.dataset.box);
    canvas.style.touchAction = 'pan-y';
    canvas.addEventListener('pointerdown', e => { held = e.clientX; canvas.setPointerCapture(e.pointerId); });
    canvas.addEventListener('pointermove', e => { if (held !== null) { turn += (e.clientX - held) / 80;
      held = e.clientX; inView.forEach(draw); } });
    canvas.addEventListener('pointerup', () => { held = null; });
    watch.observe(canvas);
    draw(canvas);
  }
  if (!still) setInterval(() => { if (held === null) { turn += 0.02; inView.forEach(draw); } }, 60);
})();
"""
