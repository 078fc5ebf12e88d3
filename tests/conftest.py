"""One torch thread and one seed for every test; property tests draw the same examples each run."""

import os
import random
import signal

import numpy as np
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of what a shell starts in the background; the tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the first test module imports it
# No deadline: the first call of a numba kernel or a torch operator is far slower than the rest.
settings.register_profile("flowpolicy", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("flowpolicy")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
