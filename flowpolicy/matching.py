"""Whether two embodiments agree, where they differ, and what to do about it."""

from dataclasses import asdict
from typing import Any

from flowpolicy.embodiment import Embodiment, short

_LISTED = 4  # differences that one error message names


def differences(wanted: Embodiment, got: Embodiment) -> list[str]:
    """One line for every field on which the two disagree, e.g. "control_hz: wanted 20.0, got 10.0".

    Args:
        wanted: What must hold.
        got: What is there.
    """
    a, b = wanted.to_dict(), got.to_dict()
    lines = []
    for name in a:
        if name == "obs":
            for key in sorted(set(a["obs"]) | set(b["obs"])):
                lines += _spec_differences(f"obs.{key}", a["obs"].get(key), b["obs"].get(key))
        elif name == "action":
            lines += _spec_differences(name, a[name], b[name])
        elif a[name] != b[name]:
            lines.append(f"{name}: wanted {short(a[name])}, got {short(b[name])}")
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
            lines.append(f"{name}.{entry}: wanted {short(wanted[entry])}, got {short(got[entry])}")
    return lines


def require_match(wanted: Embodiment, got: Embodiment, *, what: str, simulated: bool = False) -> None:
    """Raise ValueError with the first differences when `got` is not the embodiment `wanted`.

    Args:
        wanted: What must hold.
        got: What is there.
        what: Who is being compared, e.g. "checkpoint and task".
        simulated: Whether `got` is a simulator's, which can be told to see as `wanted` does; the error then says how.
    """
    if lines := differences(wanted, got):
        more = f"; and {len(lines) - _LISTED} more" if len(lines) > _LISTED else ""
        words = " ".join(remedies(wanted, got)) if simulated else ""
        fix = f". To see as the {what.partition(' ')[0]} does, pass {words}" if words else ""
        raise ValueError(f"{what} disagree on the embodiment: " + "; ".join(lines[:_LISTED]) + more + fix)


def remedies(wanted: Embodiment, got: Embodiment) -> list[str]:
    """Settings that make the simulator of `got` see what `wanted` does; none where sight agrees.

    Args:
        wanted: What the policy was trained to see.
        got: What the simulator shows.
    """
    kind = _kind(wanted)
    if kind != _kind(got):
        return [f"`obs={kind!r}`"]
    values: dict[str, Any] = {}
    for key in wanted.obs.keys() & got.obs.keys():
        ours, theirs = wanted.obs[key], got.obs[key]
        if ours.cloud is not None and theirs.cloud is not None:
            settings = asdict(ours.cloud)
            del settings["frame"]  # the simulator's own
            values |= {name: value for name, value in settings.items() if value != getattr(theirs.cloud, name)}
        elif len(ours.shape) == 3 and ours.shape[:2] != theirs.shape[:2]:
            values["image_size"] = ours.shape[0]
    return [f"`{name}={value!r}`" for name, value in values.items()]


def _kind(embodiment: Embodiment) -> str:
    """What `obs` must have been."""
    if any(spec.cloud is not None for spec in embodiment.obs.values()):
        return "point_cloud"
    return "rgb" if any(len(spec.shape) == 3 for spec in embodiment.obs.values()) else "state"
