"""Stopping a long command in good order: SIGTERM and a limit of hours become a checkpoint, not a loss."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn, final

SIGINT_CODE, SIGTERM_CODE = 130, 143  # what a shell reports for a command that Ctrl-C or SIGTERM ended
_SAID = {signal.SIGINT: "interrupted", signal.SIGTERM: "stopped by SIGTERM"}


def leave_at_once(name: str) -> None:
    """From now on Ctrl-C and SIGTERM end this process with one line that begins with `name`: for times when there is
    nothing to save, such as imports. A signal that is ignored, as under nohup, stays so.

    Args:
        name: Of the command.
    """

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        del frame
        with suppress(OSError):
            os.write(2, f"{name}: {_SAID[signal.Signals(number)]}\n".encode())
        os._exit(128 + number)

    for number in _heard():
        signal.signal(number, leave)


@contextmanager
def signals_raise() -> Iterator[None]:
    """While the block runs, in the main thread, Ctrl-C raises KeyboardInterrupt and SIGTERM Terminated, so that what
    is open is closed. The next one meets what was there before the block, and so do all after it.
    """
    before = {number: signal.getsignal(number) for number in _heard()}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def end(number: int, frame: FrameType | None) -> NoReturn:
        del frame
        restore()
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated(_SAID[signal.SIGTERM])

    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        restore()


@contextmanager
def signals_wait() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait for the end of the block, in the main thread: what it makes is then known."""
    came: list[int] = []
    heard = [number for number in _heard() if callable(signal.getsignal(number))]
    before = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(came):
            signal.raise_signal(number)


def _heard() -> list[signal.Signals]:
    """The signals that somebody listens to, here: only the main thread can."""
    here = threading.current_thread() is threading.main_thread()
    return [number for number in _SAID if here and signal.getsignal(number) is not signal.SIG_IGN]


@final
class Terminated(SystemExit):
    """SIGTERM came and what there was is on the disk. Exit code 143; `str` is a sentence for the user.

    Args:
        sentence: For the user.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(SIGTERM_CODE)
        self.sentence = sentence

    def __str__(self) -> str:
        return self.sentence


@final
class Stop:
    """Whether a loop should save and end: asked after each of its steps.

    Args:
        max_hours: Of wall time from `watched` on; 0 or None is no limit.
    """

    def __init__(self, max_hours: float | None = None) -> None:
        self.max_hours, self.terminated = max_hours or None, False
        self._begun, self._saved = time.monotonic(), ""

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Turn SIGTERM into `terminated` while the block runs, in the main thread only; a second one ends at once."""
        self._begun, main = time.monotonic(), threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGTERM, self._on_signal) if main else None
        try:
            yield
        finally:
            if main:
                signal.signal(signal.SIGTERM, before or signal.SIG_DFL)

    @contextmanager
    def interruptible(self, sentence: str) -> Iterator[None]:
        """Let SIGTERM raise Terminated(sentence) in the middle of the block, which changes nothing worth saving.

        Args:
            sentence: For the user, should the signal come.
        """
        self._saved = sentence
        try:
            if self.terminated:
                raise Terminated(sentence)
            yield
        finally:
            self._saved = ""

    @property
    def due(self) -> bool:
        """Whether SIGTERM came or the hours are over."""
        return self.terminated or self._over()

    def _over(self) -> bool:
        return self.max_hours is not None and time.monotonic() - self._begun > 3600.0 * self.max_hours

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        again, self.terminated = self.terminated, True
        if again or self._saved:
            raise Terminated(self._saved or "ended by a second SIGTERM; the last checkpoint is whole")
