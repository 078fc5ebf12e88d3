"""The contract between data, policy and robot: keys, shapes, units, frames, control rate, action kind.

It is written into every dataset and every checkpoint; two that disagree do not meet (`require_match`).
"""

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, final

SCHEMA_VERSION = 1
_LISTED = 4  # differences that one error message names


@final
@dataclass(frozen=True, kw_only=True)
class CloudSpec:
    """How a point cloud is made of what a depth camera sees; `pointcloud.make_cloud` does it.

    points: how many; 512 in DP3 and MP1.   crop_low, crop_high: corners of the box that is kept, metres in `frame`.
    frame: "world", "base" or "camera:<name>".   color: whether red, green and blue in 0..1 follow the coordinates.
    voxel_m: edge of the grid that thins the points before farthest-point sampling; 0 is no grid.
    Raises ValueError for a box without volume, fewer than one point or a negative grid.
    """

    points: int = 512
    crop_low: tuple[float, float, float]
    crop_high: tuple[float, float, float]
    frame: str = "world"
    color: bool = False
    voxel_m: float = 0.0

    def __post_init__(self) -> None:
        """Corners from JSON or yaml are lists; two specs must compare equal all the same."""
        for name in ("crop_low", "crop_high"):
            object.__setattr__(self, name, tuple(float(bound) for bound in getattr(self, name)))
        if len(self.crop_low) != 3 or len(self.crop_high) != 3:
            raise ValueError(f"CloudSpec: wanted 3 numbers per corner, got {self.crop_low} and {self.crop_high}")
        if not all(low < high for low, high in zip(self.crop_low, self.crop_high, strict=True)):
            raise ValueError(
                f"CloudSpec: wanted crop_low < crop_high on each axis, got {self.crop_low}, {self.crop_high}"
            )
        if self.points < 1 or not 0 <= self.voxel_m < math.inf:
            raise ValueError(f"CloudSpec: wanted points >= 1 and voxel_m >= 0, got {self.points} and {self.voxel_m}")

    @property
    def shape(self) -> tuple[int, int]:
        """(points, 3), with colour (points, 6)."""
        return self.points, 6 if self.color else 3

    def describe(self) -> str:
        """One line for people: "512 points in world, x -0.5 ... 0.5, y 0.3 ... 0.95, z 0.002 ... 0.35 m"."""
        sides = zip("xyz", self.crop_low, self.crop_high, strict=True)
        box = ", ".join(f"{axis} {low:g} ... {high:g}" for axis, low, high in sides)
        grid = f", grid of {self.voxel_m:g} m" if self.voxel_m else ""
        return f"{self.points} points in {self.frame}, {box} m{', with colour' if self.color else ''}{grid}"


@final
@dataclass(frozen=True)
class KeySpec:
    """One observation key, or the action: shape per time step, unit, frame, and a name per entry (may be empty).

    cloud: how the point cloud was made, where the key is one. Raises ValueError when it says another shape or frame.
    """

    shape: tuple[int, ...]
    unit: str = ""
    frame: str = ""
    names: tuple[str, ...] = ()
    dtype: str = "float32"
    cloud: CloudSpec | None = None

    def __post_init__(self) -> None:
        """Two statements about one cloud must not contradict each other."""
        if self.cloud is None:
            return
        if self.shape != self.cloud.shape:
            raise ValueError(
                f"KeySpec: the cloud has shape {self.cloud.shape}, got shape {self.shape}; pass cloud.shape"
            )
        if self.frame not in ("", self.cloud.frame):
            raise ValueError(f"KeySpec: the cloud is in frame {self.cloud.frame}, got frame {self.frame}")


@final
@dataclass(frozen=True)
class Embodiment:
    """What a robot (or simulator) sees and accepts.

    robot: model name, for people.
    obs: key -> KeySpec.    action: KeySpec of one action step.
    action_kind: what the numbers mean: "joint_position", "eef_delta", "velocity", ...
    action_low, action_high: bounds per action dimension, in action units.
    reference_key, reference_index: the observation entry that each action dimension is an absolute target for, or -1
      where there is none (a gripper command, a velocity); this is what `relative` and `delta` subtract. Empty key: no
      dimension has one.
    gripper: what the gripper numbers mean, in words.    control_hz: action steps per second.
    """

    robot: str
    obs: dict[str, KeySpec]
    action: KeySpec
    action_kind: str
    control_hz: float
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    reference_key: str = ""
    reference_index: tuple[int, ...] = ()
    gripper: str = ""
    schema_version: int = field(default=SCHEMA_VERSION)

    @property
    def action_dim(self) -> int:
        """Number of action entries per step."""
        return self.action.shape[0]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready containers; a key that is no cloud says nothing about clouds."""
        data = json.loads(json.dumps(asdict(self)))
        for spec in (*data["obs"].values(), data["action"]):
            if spec["cloud"] is None:
                del spec["cloud"]
        return data

    @staticmethod
    def from_dict(data: dict[str, Any]) -> "Embodiment":
        """Inverse of `to_dict`. Raises ValueError for a newer schema, and naming keys that are missing or unknown."""
        if (version := data.get("schema_version", SCHEMA_VERSION)) != SCHEMA_VERSION:
            raise ValueError(
                f"embodiment: wanted schema_version {SCHEMA_VERSION}, got {version}; use the flowpolicy that wrote it"
            )
        known = {f.name for f in fields(Embodiment)}
        required = known - {"reference_key", "reference_index", "gripper", "schema_version"}
        if unknown := set(data) - known:
            raise ValueError(f"embodiment: unknown keys {sorted(unknown)}; known are {sorted(known)}")
        if missing := required - set(data):
            raise ValueError(f"embodiment: missing keys {sorted(missing)}; was the record written by hand?")
        values = dict(data)
        values["obs"] = {key: _key_spec(f"obs.{key}", spec) for key, spec in data["obs"].items()}
        values["action"] = _key_spec("action", data["action"])
        for name in ("action_low", "action_high", "reference_index"):
            if name in values:
                values[name] = tuple(values[name])
        return Embodiment(**values)


def _key_spec(name: str, data: dict[str, Any]) -> KeySpec:
    known = [f.name for f in fields(KeySpec)]
    if "shape" not in data or set(data) - set(known):
        raise ValueError(f"embodiment: {name}: wanted shape and any of {known[1:]}, got {sorted(data)}")
    cloud = CloudSpec(**data["cloud"]) if "cloud" in data else None
    return KeySpec(**{**data, "shape": tuple(data["shape"]), "names": tuple(data.get("names", ())), "cloud": cloud})


def differences(wanted: Embodiment, got: Embodiment) -> list[str]:
    """One line for every field on which the two disagree, e.g. "control_hz: wanted 20.0, got 10.0"."""
    a, b = wanted.to_dict(), got.to_dict()
    lines = []
    for name in a:
        if name == "obs":
            for key in sorted(set(a["obs"]) | set(b["obs"])):
                lines += _spec_differences(f"obs.{key}", a["obs"].get(key), b["obs"].get(key))
        elif name == "action":
            lines += _spec_differences(name, a[name], b[name])
        elif a[name] != b[name]:
            lines.append(f"{name}: wanted {_short(a[name])}, got {_short(b[name])}")
    return lines


def _spec_differences(name: str, wanted: dict[str, Any] | None, got: dict[str, Any] | None) -> list[str]:
    """Field by field, those of the cloud included; None where one of the two has no such key."""
    if wanted is None or got is None:
        return [f"{name}: wanted, but not there" if got is None else f"{name}: there, but not wanted"]
    lines = []
    for entry in sorted(set(wanted) | set(got), key=[*wanted, *got].index):
        if entry == "cloud":
            lines += _spec_differences(f"{name}.cloud", wanted.get(entry), got.get(entry))
        elif wanted[entry] != got[entry]:
            lines.append(f"{name}.{entry}: wanted {_short(wanted[entry])}, got {_short(got[entry])}")
    return lines


def _short(value: Any) -> str:
    text = str(value) if value != "" else "nothing"
    return text if len(text) <= 60 else text[:57] + "..."


def require_match(wanted: Embodiment, got: Embodiment, *, what: str, simulated: bool = False) -> None:
    """Raise ValueError with the first differences when `got` is not the embodiment `wanted`.

    what: who is being compared, e.g. "checkpoint and task".   simulated: whether `got` is a simulator's, which can be
    told to see as `wanted` does; the error then says how.
    """
    if lines := differences(wanted, got):
        more = f"; and {len(lines) - _LISTED} more" if len(lines) > _LISTED else ""
        words = " ".join(remedies(wanted, got)) if simulated else ""
        fix = f". To see as the {what.partition(' ')[0]} does, pass {words}" if words else ""
        raise ValueError(f"{what} disagree on the embodiment: " + "; ".join(lines[:_LISTED]) + more + fix)


def remedies(wanted: Embodiment, got: Embodiment) -> list[str]:
    """Words of the command line that make the simulator of `got` see what `wanted` does; none where sight agrees."""
    kind = _kind(wanted)
    if kind != _kind(got):
        return [f"task.obs={kind}"]
    values: dict[str, Any] = {}
    for key in wanted.obs.keys() & got.obs.keys():
        ours, theirs = wanted.obs[key], got.obs[key]
        if ours.cloud is not None and theirs.cloud is not None:
            settings = asdict(ours.cloud)
            del settings["frame"]  # the simulator's own
            values |= {name: value for name, value in settings.items() if value != getattr(theirs.cloud, name)}
        elif len(ours.shape) == 3 and ours.shape[:2] != theirs.shape[:2]:
            values["image_size"] = ours.shape[0]
    words = [f"task.view.{name}={json.dumps(value, separators=(',', ':'))}" for name, value in values.items()]
    return [f"'{word}'" if "[" in word else word for word in words]  # brackets mean something to a shell


def _kind(embodiment: Embodiment) -> str:
    """What `task.obs` must have been."""
    if any(spec.cloud is not None for spec in embodiment.obs.values()):
        return "point_cloud"
    return "rgb" if any(len(spec.shape) == 3 for spec in embodiment.obs.values()) else "state"


def save_embodiment(embodiment: Embodiment, path: Path) -> None:
    """Write the record as indented JSON."""
    path.write_text(json.dumps(embodiment.to_dict(), indent=2) + "\n")


def load_embodiment(path: Path) -> Embodiment:
    """Read what `save_embodiment` wrote. Raises ValueError naming the file when it is damaged or of another schema."""
    try:
        return Embodiment.from_dict(json.loads(path.read_text()))
    except (ValueError, TypeError, AttributeError) as error:  # JSON of another shape: a list, a number for a record
        raise ValueError(f"{path}: {error}; restore the file or take another checkpoint") from error
