"""What the program around us may have set in torch, and how a policy keeps out of it.

Default dtype and device, autocast, inference and grad mode are the host's business; the numbers of a policy are ours.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from threading import Lock
from typing import final

import torch


@contextmanager
def standard_torch() -> Iterator[None]:
    """While it is open torch makes float32 tensors on the CPU that can be trained, and casts nothing; also a decorator.

    For building, loading, preparing and exporting. The default dtype is the process's own: tensors that other threads
    make meanwhile are float32 too, which is why `predict` does without and says dtype and device at every tensor.
    """
    with ExitStack() as stack:
        stack.enter_context(_FLOAT32)
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for device in ("cpu", "cuda"):
            stack.enter_context(without_autocast(device))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        yield


def without_autocast(device: torch.device | str) -> AbstractContextManager[object]:
    """While it is open autocast leaves the operations of this device alone.

    Args:
        device: Where torch computes, e.g. "cpu" or "cuda".
    """
    kind = torch.device(device).type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


@final
class _Float32:
    """float32 as the default dtype from the first `with` to the end of the last, whatever threads they are in."""

    def __init__(self) -> None:
        self._lock, self._open, self._before = Lock(), 0, torch.float32

    def __enter__(self) -> None:
        with self._lock:
            if self._open == 0:
                self._before = torch.get_default_dtype()
                torch.set_default_dtype(torch.float32)
            self._open += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._open -= 1
            if self._open == 0:
                torch.set_default_dtype(self._before)


_FLOAT32 = _Float32()
