"""What software renderers of every simulator need before their first context."""

import importlib.util
import multiprocessing
import os


def before_first_context() -> None:
    """Call it before a process opens its first OpenGL or Vulkan context.

    Mesa's software drivers and triton (part of every CUDA build of torch; creating an optimizer imports it) each bring
    an LLVM, and loading triton's after the driver's ends in a segmentation fault; the other order is fine. So triton
    comes first, where there is one; not in worker processes, which create no optimizer and save the seconds. Those keep
    Mesa to one thread each instead, because they share the cores.
    """
    if multiprocessing.parent_process() is not None:
        os.environ.setdefault("LP_NUM_THREADS", "1")
    elif importlib.util.find_spec("triton") is not None:
        import torch._dynamo  # noqa: F401
