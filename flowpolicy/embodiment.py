"""The contract between data, policy and robot: keys, shapes, units, frames, control rate, action kind.

It is written into every dataset and every checkpoint; two that disagree do not meet (`require_match`). What it says is
checked when it is made, and made again when it is read: one that exists can be acted on.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, final

SCHEMA_VERSION = 1
DTYPES = ("float32", "uint8")  # what stores, policies and bundles carry; uint8 is for images
_RESERVED = ("action", "reward")  # a store has arrays of these names beside the observations
_LARGEST = 3.4e38  # of float32, in which policies compute


@final
@dataclass(frozen=True, kw_only=True)
class CloudSpec:
    """How a point cloud is made of what a depth camera sees; `pointcloud.make_cloud` does it.

    Args:
        points: How many; 512 in DP3 and MP1.
        crop_low: Corners of the box that is kept, metres in `frame`.
        crop_high: As `crop_low`.
        frame: "world", "base" or "camera:<name>".
        color: Whether red, green and blue in 0..1 follow the coordinates.
        voxel_m: Edge of the grid that thins the points before farthest-point sampling; 0 is no grid.

    Raises:
        ValueError: For a box without volume or end, fewer than one point or a negative grid.
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
            corner = _numbers(f"CloudSpec: {name}", getattr(self, name))
            _require(len(corner) == 3, f"CloudSpec: {name}", "3 numbers per corner", corner)
            object.__setattr__(self, name, corner)
        _require(
            all(low < high for low, high in zip(self.crop_low, self.crop_high, strict=True)),
            "CloudSpec",
            "crop_low < crop_high on each axis",
            (self.crop_low, self.crop_high),
        )
        object.__setattr__(self, "points", _whole("CloudSpec: points", self.points, least=1))
        (voxel_m,) = _numbers("CloudSpec: voxel_m", [self.voxel_m])
        _require(voxel_m >= 0, "CloudSpec: voxel_m", "a number >= 0", self.voxel_m)
        object.__setattr__(self, "voxel_m", voxel_m)
        _require(isinstance(self.color, bool), "CloudSpec: color", "true or false", self.color)
        _text("CloudSpec: frame", self.frame)

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

    Args:
        shape: Per time step.
        unit: E.g. "m" or "m, rad"; free text.
        frame: In which it is measured; free text.
        names: One per entry of the last axis.
        dtype: "float32", or "uint8" for an image (height, width, channels).
        cloud: How the point cloud was made, where the key is one.

    Raises:
        ValueError: Naming field, value and rule, also when the cloud says another shape or frame.
    """

    shape: tuple[int, ...]
    unit: str = ""
    frame: str = ""
    names: tuple[str, ...] = ()
    dtype: str = "float32"
    cloud: CloudSpec | None = None

    def __post_init__(self) -> None:
        """Two statements about one cloud must not contradict each other."""
        sizes = _list("KeySpec: shape", self.shape, "whole numbers")
        object.__setattr__(self, "shape", tuple(_whole("KeySpec: shape", size, least=1) for size in sizes))
        for name in ("unit", "frame", "dtype"):
            _text(f"KeySpec: {name}", getattr(self, name))
        names = tuple(_text("KeySpec: names", name) for name in _list("KeySpec: names", self.names, "texts"))
        object.__setattr__(self, "names", names)
        entries = self.shape[-1] if self.shape else 1
        _require(len(names) in (0, entries), "KeySpec: names", f"one per entry of shape {self.shape} or none", names)
        _require(self.dtype in DTYPES, "KeySpec: dtype", " or ".join(DTYPES), self.dtype)
        _require(
            self.dtype != "uint8" or len(self.shape) == 3,
            "KeySpec: dtype",
            "uint8 for images (H, W, C) only",
            f"{self.dtype} with shape {self.shape}",
        )
        if self.cloud is None:
            return
        _require(isinstance(self.cloud, CloudSpec), "KeySpec: cloud", "a CloudSpec", self.cloud)
        _require(self.dtype == "float32", "KeySpec: dtype", "float32 for a cloud", self.dtype)
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

    Args:
        robot: Model name, for people.
        obs: key -> KeySpec; a key is letters, digits, -, _ and .
        action: KeySpec of one action step, (A,).
        action_kind: What the numbers mean: "joint_position", "eef_delta", "velocity", ...
        control_hz: Action steps per second.
        action_low: Bounds per action dimension, in action units; finite, low <= high. Equal bounds are an entry that
            the robot takes at this value only.
        action_high: As `action_low`.
        reference_key: The observation entry that each action dimension is an absolute target for, or -1 where there is
            none (a gripper command, a velocity); this is what `relative` and `delta` subtract. Empty key: no dimension
            has one.
        reference_index: As `reference_key`.
        gripper: What the gripper numbers mean, in words.
        schema_version: Of the record.

    Raises:
        ValueError: Naming field, value and rule.
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

    def __post_init__(self) -> None:
        """Field by field; numbers become Python's own, so that every record is JSON."""
        for name in ("robot", "action_kind", "reference_key", "gripper"):
            _text(f"embodiment: {name}", getattr(self, name))
        _require(isinstance(self.obs, Mapping) and len(self.obs) > 0, "embodiment: obs", "key -> KeySpec", self.obs)
        object.__setattr__(self, "obs", dict(self.obs))
        for key, spec in self.obs.items():
            _require_key(key)
            _require(
                isinstance(spec, KeySpec) and spec.shape != (),
                f"embodiment: obs.{key}",
                "a KeySpec with a shape of at least one number",
                spec,
            )
        action_is_vector = isinstance(self.action, KeySpec) and len(self.action.shape) == 1
        _require(
            action_is_vector and self.action.dtype == "float32",
            "embodiment: action",
            "a KeySpec of shape (A,) and dtype float32",
            self.action,
        )
        (control_hz,) = _numbers("embodiment: control_hz", [self.control_hz])
        _require(control_hz > 0, "embodiment: control_hz", "a number above 0", self.control_hz)
        object.__setattr__(self, "control_hz", control_hz)
        for name in ("action_low", "action_high"):
            bounds = _numbers(f"embodiment: {name}", getattr(self, name))
            _require(
                len(bounds) == self.action_dim,
                f"embodiment: {name}",
                f"{self.action_dim} numbers, one per entry of action.shape",
                bounds,
            )
            object.__setattr__(self, name, bounds)
        for i, (low, high) in enumerate(zip(self.action_low, self.action_high, strict=True)):
            _require(low <= high, f"embodiment: action_low[{i}]", f"at most action_high[{i}] = {high:g}", low)
        object.__setattr__(self, "reference_index", self._checked_reference())
        version = _whole("embodiment: schema_version", self.schema_version, least=1)
        _require(version == SCHEMA_VERSION, "embodiment: schema_version", str(SCHEMA_VERSION), version)

    def _checked_reference(self) -> tuple[int, ...]:
        field_name, given = "embodiment: reference_index", self.reference_index
        index = tuple(_whole(field_name, i, least=-1) for i in _list(field_name, given, "whole numbers"))
        _require(
            len(index) in (0, self.action_dim),
            field_name,
            f"{self.action_dim} numbers, one per entry of action.shape, or none",
            index,
        )
        if not self.reference_key:
            _require(
                max(index, default=-1) < 0,
                "embodiment: reference_key",
                f"a key of obs for reference_index to count in, {index}",
                self.reference_key,
            )
            return index
        spec = self.obs.get(self.reference_key)
        _require(
            spec is not None and len(spec.shape) == 1,
            "embodiment: reference_key",
            f"one of the vectors in obs {list(self.obs)}",
            self.reference_key,
        )
        assert spec is not None
        _require(
            max(index, default=-1) < spec.shape[0],
            field_name,
            f"numbers below {spec.shape[0]}, the length of {self.reference_key}, or -1",
            index,
        )
        return index

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
        """Inverse of `to_dict`. Raises ValueError for a newer schema, and naming keys that are missing or unknown.

        Args:
            data: What `to_dict` returned.
        """
        _require(isinstance(data, Mapping), "embodiment", "an object", data)
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
        _require(isinstance(data["obs"], Mapping), "embodiment: obs", "an object, key -> shape, unit, ...", data["obs"])
        obs = {key: _key_spec(f"obs.{key}", spec) for key, spec in data["obs"].items()}
        return Embodiment(**{**data, "obs": obs, "action": _key_spec("action", data["action"])})


def _key_spec(name: str, data: Any) -> KeySpec:
    """Of its record; the error says which key it is about."""
    known = [f.name for f in fields(KeySpec)]
    if not isinstance(data, Mapping) or "shape" not in data or set(data) - set(known):
        got = sorted(data) if isinstance(data, Mapping) else data
        raise ValueError(f"embodiment: {name}: wanted shape and any of {known[1:]}, got {got}")
    try:
        return KeySpec(**{**data, "cloud": _cloud_spec(data.get("cloud"))})
    except ValueError as error:
        raise ValueError(f"embodiment: {name}: {error}") from error


def _cloud_spec(data: Any) -> CloudSpec | None:
    if data is None:
        return None
    known = {f.name for f in fields(CloudSpec)}
    corners = {"crop_low", "crop_high"}
    if not isinstance(data, Mapping) or not corners <= set(data) <= known:
        got = sorted(data) if isinstance(data, Mapping) else data
        raise ValueError(f"cloud: wanted {sorted(corners)} and any of {sorted(known - corners)}, got {got}")
    return CloudSpec(**data)


def short(value: Any) -> str:
    """At most so much of a value as an error has room for.

    Args:
        value: Anything.
    """
    text = str(value) if value != "" else "nothing"
    return text if len(text) <= 60 else text[:57] + "..."


def _require(holds: bool, name: str, rule: str, value: object) -> None:
    """Raise ValueError unless the rule holds: which field, what it must be, what it is."""
    if not holds:
        raise ValueError(f"{name}: wanted {rule}, got {short(repr(value))}")


def _require_key(key: object) -> None:
    """Keys are names of folders in a store: no slash, and no dot at the beginning."""
    plain = isinstance(key, str) and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", key) is not None
    _require(plain, "embodiment: obs", "keys of letters, digits, -, _ and .", key)
    _require(key not in _RESERVED, "embodiment: obs", f"keys other than {' and '.join(_RESERVED)}", key)


def _text(name: str, value: object) -> str:
    _require(isinstance(value, str), name, "text", value)
    return str(value)


def _list(name: str, value: object, of: str) -> Sequence[Any]:
    _require(isinstance(value, Sequence) and not isinstance(value, str | bytes), name, f"a list of {of}", value)
    assert isinstance(value, Sequence)
    return value


def _whole(name: str, value: object, *, least: int) -> int:
    good = isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least
    _require(good, name, f"a whole number >= {least}", value)
    assert isinstance(value, Integral)
    return int(value)


def _numbers(name: str, values: object) -> tuple[float, ...]:
    """Finite ones, also in float32."""
    given = _list(name, values, "numbers")
    for value in given:
        good = isinstance(value, Real) and not isinstance(value, bool)
        small = good and value <= _LARGEST and not value < -_LARGEST  # compared as they are: float() of 10**400 raises
        _require(small, name, "finite numbers", value)
    return tuple(float(value) for value in given)


def save_embodiment(embodiment: Embodiment, path: Path) -> None:
    """Write the record as indented JSON.

    Args:
        embodiment: The robot's contract: observation keys, shapes, units, action bounds.
        path: The JSON file.
    """
    path.write_text(json.dumps(embodiment.to_dict(), indent=2) + "\n")


def load_embodiment(path: Path) -> Embodiment:
    """Read what `save_embodiment` wrote. Raises ValueError naming the file when it is damaged or of another schema.

    Args:
        path: The JSON file.
    """
    try:
        return Embodiment.from_dict(json.loads(path.read_text()))
    except ValueError as error:
        raise ValueError(f"{path}: {error}; restore the file or take another checkpoint") from error
