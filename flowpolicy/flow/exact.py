"""Float32 products in which no input is rounded, where what is left of a difference would be rounding."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, final

import torch

_Switch = tuple[Callable[[], Any], Callable[[Any], Any], Any]
"""How to read it, how to set it, and its value for products in float32."""


def without_tf32() -> AbstractContextManager[object]:
    """While it is open no matrix product or convolution rounds its float32 inputs; afterwards all is as it was.

    TF32, in which GPUs convolve by default, keeps 11 significant bits: enough for a forward pass, but a quotient of
    differences over 0.01 of flow time is off by some 5 % of u itself: 6 to 28 % of du/dt for random U-Nets (emulated),
    all of it where the flow is nearly straight.
    The switches are the process's own: other threads see them too. Under torch.compile, whose graphs cannot switch in
    the middle, it does nothing; open it around the compiled function.
    """
    return nullcontext() if torch.compiler.is_dynamo_compiling() else _WithoutTf32()


@final
class _WithoutTf32(AbstractContextManager[None]):
    def __enter__(self) -> None:
        switches = _switches()
        self._before = [(write, read()) for read, write, _ in switches]
        for _, write, exact in switches:
            write(exact)

    def __exit__(self, *error: object) -> None:
        for write, value in self._before:
            write(value)


def _switches() -> list[_Switch]:
    """In the order in which to set them, and to set them back: those for all operators set single ones too."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    overall: list[_Switch] = [
        (partial(getattr, cudnn, "allow_tf32"), partial(setattr, cudnn, "allow_tf32"), False),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
    ]
    if not hasattr(cudnn, "conv"):  # torch < 2.9
        return overall
    mkldnn: Any = torch.backends.mkldnn  # whose declarations lack the two
    each: list[_Switch] = [
        (partial(getattr, operator, "fp32_precision"), partial(setattr, operator, "fp32_precision"), "ieee")
        for operator in (cudnn.conv, cudnn.rnn, matmul, mkldnn.conv, mkldnn.matmul)
    ]
    try:
        for read, _, _ in overall:
            read()
    except RuntimeError:  # somebody has set single operators, after which the overall switches cannot be read
        return each
    return overall + each
