"""Where numbers of a run go: JSONL always, wandb when asked for."""

import json
import math
import netrc
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, final, get_args
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from flowpolicy.extras import how_to_install
from flowpolicy.files import drop_cut_line, make_folder, sync_file, sync_folder, write_atomic
from flowpolicy.json_files import read_objects

_WANDB_S = 15.0  # to wait for an answer; four times that for the last numbers of a run to be sent
WandbMode = Literal["online", "offline", "disabled", "shared"]


class Tracker(Protocol):
    """Takes scalars as a run produces them. Metric names are slash-separated, as in the logs: "train/loss"."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record `metrics` of training step `step`.

        Args:
            step: Optimiser steps, or iterations, done so far.
            metrics: Name -> number.
        """
        ...

    def sync(self) -> None:
        """Return when what was logged is on the disk: called before a checkpoint, which a resumed run goes on from."""
        ...

    def truncate_after(self, step: int, *, evaluation: bool = False) -> None:
        """Forget what was logged later than `step`: training resumes from there and will log it again.

        evaluation: forget that of `step` too, which comes after the rest of it.

        Args:
            step: Optimiser steps, or iterations, done so far.
            evaluation: Whether what was logged of evaluations at that step goes too.
        """
        ...

    def close(self) -> None:
        """Finish writing; no `log` after this."""
        ...


@final
class JsonlTracker:
    """One JSON object per line: {"step", "time_s", metric...}; written at once, so a killed run keeps its curve.

    time_s: seconds of training so far; after a resume it goes on from the last kept line.
    Values that are not finite are written as null, which every JSON reader takes.

    Args:
        path: The file.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        make_folder(self.path.parent)
        drop_cut_line(self.path)
        self._open()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append one line; the file is open no longer than that, so a tracker that nobody closes leaves none.

        Args:
            step: Optimiser steps, or iterations, done so far.
            metrics: Name -> number.
        """
        values = {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
        line = {"step": int(step), "time_s": round(self._before_s + time.monotonic() - self._start, 3), **values}
        if self._closed:
            raise ValueError(f"{self.path} is closed; make another JsonlTracker of it to go on")
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def sync(self) -> None:
        """Flush the file to the disk; a power cut keeps what is there."""
        sync_file(self.path)

    def truncate_after(self, step: int, *, evaluation: bool = False) -> None:
        """Drop every line later than `step`, if `evaluation` its own "eval/..." too; the file is replaced whole.

        Args:
            step: Optimiser steps, or iterations, done so far.
            evaluation: Whether what was logged of evaluations at that step goes too.
        """

        def stays(line: dict[str, Any]) -> bool:
            return line["step"] < step or (
                line["step"] == step and not (evaluation and any(name.startswith("eval/") for name in line))
            )

        kept = [line for line in read_objects(self.path, {"step": int}) if stays(line)]
        write_atomic(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self._open()

    def close(self) -> None:
        """Take no more lines."""
        self._closed = True

    def _open(self) -> None:
        lines = read_objects(self.path, {"step": int, "time_s": float})
        self._before_s = float(lines[-1]["time_s"]) if lines else 0.0
        self._start = time.monotonic()
        self.path.touch()
        self._closed = False
        sync_folder(self.path.parent)


@final
class WandbTracker:
    """Weights & Biases, imported on construction. Without a key, a login or an answer from its server it records
    offline, and `wandb sync` sends that later; whatever happens to it, the run that it tracks goes on.

    directory: where wandb keeps its files.   run_id: the attribute of an earlier tracker, to continue its run; None
    where wandb does not work at all, which stderr says in one line.
    Raises ImportError naming the extra when wandb is not installed.

    Args:
        directory: Where wandb keeps its files.
        project: Its name.
        name: Of the run.
        config: Of the run, JSON-ready.
        run_id: Of a run to go on with; None begins one.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        project: str = "flowpolicy",
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        run_id: str | None = None,
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError(f"wandb is not installed; {how_to_install('wandb')}") from error
        Path(directory).mkdir(parents=True, exist_ok=True)
        self.mode = wandb_mode()
        self._failures = (wandb.Error, OSError, RuntimeError, ValueError)
        begin = partial(
            wandb.init,
            project=project,
            name=name,
            config=dict(config or {}),
            dir=str(directory),
            id=run_id,
            resume="allow" if run_id else None,
        )
        timed = partial(wandb.Settings, init_timeout=_WANDB_S, finish_timeout=4 * _WANDB_S)
        self._run: Any = None
        with _some_home(Path(directory)):
            try:
                if self.mode == "online" and not _answers(_wandb_url()):
                    raise OSError(f"{_wandb_url()} does not answer")
                self._run = begin(mode=self.mode, settings=timed())
            except self._failures as error:
                self.mode = "offline"
                _say(
                    f"{_short(error)}; recording offline, send it later with: wandb sync "
                    f"{Path(directory) / 'wandb'}/offline-run-*"
                )
                self._run = self._try(begin, mode="offline", settings=timed(silent=True))
        self.run_id: str | None = self._run.id if self._run is not None else run_id

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Send `metrics` under their own names.

        Args:
            step: Optimiser steps, or iterations, done so far.
            metrics: Name -> number.
        """
        if self._run is not None:
            self._try(self._run.log, metrics, step=step)

    def sync(self) -> None:
        """Nothing: wandb keeps its own files."""

    def truncate_after(self, step: int, *, evaluation: bool = False) -> None:
        """Nothing: wandb cannot forget; it ignores steps that it has already seen, so the curve stays right.

        Args:
            step: Optimiser steps, or iterations, done so far.
            evaluation: Whether what was logged of evaluations at that step goes too.
        """
        del step, evaluation

    def close(self) -> None:
        """Finish the wandb run; what it cannot send within a minute stays on the disk."""
        if self._run is not None:
            self._try(self._run.finish)

    def _try(self, call: Callable[..., Any], *arguments: Any, **words: Any) -> Any:
        """The answer of wandb; None, and no further call, where it fails."""
        try:
            return call(*arguments, **words)
        except self._failures as error:
            self._run = None
            _say(f"{_short(error)}; no longer used, metrics.jsonl has everything")


def _say(words: str) -> None:
    print(f"wandb: {words}", file=sys.stderr)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _wandb_url() -> str:
    return os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"


def _answers(url: str) -> bool:
    """Whether something listens there, or where the proxy for it is, within `_WANDB_S`; name servers may hang too."""
    parts, proxies = urlsplit(url), getproxies()
    if parts.scheme in proxies and not proxy_bypass(parts.hostname or ""):
        proxy = proxies[parts.scheme]
        parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    place, answered = (parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)), []

    def knock() -> None:
        with suppress(OSError):
            socket.create_connection(place, timeout=_WANDB_S).close()
            answered.append(True)

    (thread := threading.Thread(target=knock, daemon=True)).start()
    thread.join(_WANDB_S)
    return bool(answered)


@contextmanager
def _some_home(folder: Path) -> Iterator[None]:
    """Let `folder` be the home of what is called in the block where there is none, as for a daemon."""
    if os.path.expanduser("~").startswith("/"):
        yield
        return
    os.environ["HOME"] = str(folder.absolute())
    try:
        yield
    finally:
        del os.environ["HOME"]


def wandb_mode() -> WandbMode:
    """$WANDB_MODE when set; else "online" with a key in $WANDB_API_KEY or a login in ~/.netrc; else "offline".

    Raises ValueError for a $WANDB_MODE that wandb does not know.
    """
    if wanted := os.environ.get("WANDB_MODE"):
        for mode in get_args(WandbMode):
            if wanted == mode:
                return mode
        raise ValueError(f"WANDB_MODE must be one of {', '.join(get_args(WandbMode))}, got {wanted!r}")
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    try:
        login = netrc.netrc().authenticators(_wandb_url().removeprefix("https://").removeprefix("http://").strip("/"))
    except (OSError, netrc.NetrcParseError):  # no ~/.netrc, or one that nobody can read: no login either way
        login = None
    return "online" if login else "offline"


@final
class CompositeTracker:
    """Hands every call to each of `trackers`, in order.

    Args:
        trackers: Who is told.
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = tuple(trackers)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Log to each.

        Args:
            step: Optimiser steps, or iterations, done so far.
            metrics: Name -> number.
        """
        for tracker in self.trackers:
            tracker.log(step, metrics)

    def sync(self) -> None:
        """Flush each."""
        for tracker in self.trackers:
            tracker.sync()

    def truncate_after(self, step: int, *, evaluation: bool = False) -> None:
        """Truncate each.

        Args:
            step: Optimiser steps, or iterations, done so far.
            evaluation: Whether what was logged of evaluations at that step goes too.
        """
        for tracker in self.trackers:
            tracker.truncate_after(step, evaluation=evaluation)

    def close(self) -> None:
        """Close each."""
        for tracker in self.trackers:
            tracker.close()
