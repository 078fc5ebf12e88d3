"""Numbers of a config: of the right type, finite and in their range before anything runs."""

import math
from typing import Any


def require_number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    whole: bool = False,
) -> None:
    """Raise ValueError, naming `name` and the rule, unless `value` is a finite number within the bounds given.

    Args:
        name: Of the setting, for the error.
        value: What came.
        least: Bounds that it may take.
        above: Bounds that it may not.
        most: As `least`.
        below: As `above`.
        whole: An int.
    """
    fits = isinstance(value, int) if whole else isinstance(value, int | float) and math.isfinite(value)
    if not fits or isinstance(value, bool):
        rule = "a whole number" if whole else "a finite number"
    elif above == 0.0 and not value > 0.0:
        rule = "positive"
    elif above is not None and not value > above:
        rule = f"above {above}"
    elif below is not None and not value < below:
        rule = f"below {below}"
    elif (least is not None and value < least) or (most is not None and value > most):
        one = f"at least {least}" if most is None else f"at most {most}"
        rule = one if most is None or least is None else f"between {least} and {most}"
    else:
        return
    raise ValueError(f"{name} must be {rule}, got {value!r}")
