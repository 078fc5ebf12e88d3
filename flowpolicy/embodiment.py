"""The contract between data, policy and robot: keys, shapes, units, frames, control rate, action kind.

It is written into every dataset and every checkpoint; two that disagree do not meet (`require_match`).
"""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, final

SCHEMA_VERSION = 1
_LISTED = 4  # differences that one error message names


@final
@dataclass(frozen=True)
class KeySpec:
    """One observation key, or the action: shape per time step, unit, frame, and a name per entry (may be empty)."""

    shape: tuple[int, ...]
    unit: str = ""
    frame: str = ""
    names: tuple[str, ...] = ()
    dtype: str = "float32"


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
        """Plain JSON-ready containers."""
        return json.loads(json.dumps(asdict(self)))

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
    return KeySpec(**{**data, "shape": tuple(data["shape"]), "names": tuple(data.get("names", ()))})


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
    """Field by field; None where one of the two has no such key."""
    if wanted is None or got is None:
        return [f"{name}: wanted, but not there" if got is None else f"{name}: there, but not wanted"]
    return [
        f"{name}.{entry}: wanted {_short(wanted[entry])}, got {_short(got[entry])}"
        for entry in wanted
        if wanted[entry] != got[entry]
    ]


def _short(value: Any) -> str:
    text = str(value) if value != "" else "nothing"
    return text if len(text) <= 60 else text[:57] + "..."


def require_match(wanted: Embodiment, got: Embodiment, *, what: str) -> None:
    """Raise ValueError with the first differences when `got` is not the embodiment `wanted`.

    what: who is being compared, e.g. "checkpoint and task".
    """
    if lines := differences(wanted, got):
        more = f"; and {len(lines) - _LISTED} more" if len(lines) > _LISTED else ""
        raise ValueError(f"{what} disagree on the embodiment: " + "; ".join(lines[:_LISTED]) + more)


def save_embodiment(embodiment: Embodiment, path: Path) -> None:
    """Write the record as indented JSON."""
    path.write_text(json.dumps(embodiment.to_dict(), indent=2) + "\n")


def load_embodiment(path: Path) -> Embodiment:
    """Read what `save_embodiment` wrote. Raises ValueError naming the file when it is damaged or of another schema."""
    try:
        return Embodiment.from_dict(json.loads(path.read_text()))
    except (ValueError, TypeError, AttributeError) as error:  # JSON of another shape: a list, a number for a record
        raise ValueError(f"{path}: {error}; restore the file or take another checkpoint") from error
