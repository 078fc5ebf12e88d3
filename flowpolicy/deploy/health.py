"""Whether a bundle runs on this computer: opened, its checksums held against it, one prediction made.

    python -m flowpolicy.deploy.health BUNDLE [MILLISECONDS]

The health check of docker/robot.Dockerfile. Like runtime.py it needs numpy and onnxruntime, no torch. It prints one
line. Exit codes: 0 healthy, 1 not, 2 usage.
"""

import sys
import time
from argparse import ArgumentParser
from collections.abc import Sequence

import numpy as np

from flowpolicy.checks import require_number
from flowpolicy.deploy.runtime import OnnxPolicy

REPEATS = 5  # the fastest of these counts: a busy computer is not a broken one


def check_health(bundle: str, *, within_ms: float | None = None) -> str:
    """Predict from zeros; returns one line with the fastest time of five.

    Args:
        bundle: Folder that `flowpolicy export` wrote.
        within_ms: Longest that a prediction may take, ms; None takes any.

    Raises:
        FileNotFoundError: For a folder that is no bundle.
        ImportError: Without onnxruntime.
        ValueError: For a bundle that is damaged, edited or not finite, and for a prediction that takes too long.
    """
    if within_ms is not None:
        require_number("within_ms", within_ms, above=0)
    policy = OnnxPolicy(bundle)
    obs = {key: np.zeros(spec["shape"], spec["dtype"]) for key, spec in policy.facts["obs"].items()}
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        policy.predict(obs, noise="zero")
        times.append(1000 * (time.perf_counter() - start))
    if within_ms is not None and min(times) > within_ms:
        raise ValueError(
            f"{bundle}: wanted a prediction within {within_ms:g} ms, got {min(times):.2f}; "
            "give the computer less to do, or allow more"
        )
    return f"healthy: {bundle} predicts in {min(times):.2f} ms"


def main(argv: Sequence[str]) -> int:
    """Check the bundle that the command line names; the exit code.

    Args:
        argv: Without the program's name.
    """
    parser = ArgumentParser(prog="python -m flowpolicy.deploy.health", description="Does this bundle run here?")
    parser.add_argument("bundle")
    parser.add_argument("milliseconds", type=float, nargs="?", help="longest that a prediction may take")
    asked = parser.parse_args(argv)
    try:
        print(check_health(asked.bundle, within_ms=asked.milliseconds))
    except (ImportError, OSError, ValueError) as error:
        print(f"unhealthy: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
