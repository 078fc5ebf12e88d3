"""Importing the library, all of it, changes nothing that a process shares."""

import json
import subprocess
import sys
from pathlib import Path

from tests.test_architecture import imports, module_name, python_files

ROOT = Path(__file__).resolve().parents[1]

# What others load stays theirs: everything that our modules import at their top is loaded before the first look.
SCRIPT = """
import importlib, sys
sys.path[:0] = {paths!r}
for name in {others!r}:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:  # a name in a module
        importlib.import_module(name.rpartition(".")[0])
import gc, json, locale, logging, os, random, signal, socket, sys, threading, warnings
import multiprocessing
import numpy, torch

def look():
    root, handlers = logging.root, [name for name in logging.root.manager.loggerDict
                                    if getattr(logging.getLogger(name), "handlers", [])]
    return {{
        "logging": [root.level, root.manager.disable, len(root.handlers), sorted(handlers)],
        "threads": [sorted(thread.name for thread in threading.enumerate()), torch.get_num_threads(),
                    torch.get_num_interop_threads()],
        "processes": [multiprocessing.get_start_method(allow_none=True), len(multiprocessing.active_children())],
        "warnings": [str(entry) for entry in warnings.filters] + [str(warnings.showwarning)],
        "signals": [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
        "hooks": [str(hook) for hook in (sys.excepthook, sys.displayhook, threading.excepthook, sys.stdout)],
        "cuda": [torch.cuda.is_initialized(), torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic,
                 torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32,
                 torch.get_float32_matmul_precision()],
        "torch": [str(torch.get_default_dtype()), str(torch.get_default_device()), torch.is_grad_enabled(),
                  torch.are_deterministic_algorithms_enabled(), torch.is_anomaly_enabled()],
        "random": [torch.get_rng_state().tolist(), str(random.getstate()), str(numpy.random.get_state())],
        "numpy": [str(numpy.geterr()), str(numpy.get_printoptions())],
        "process": [dict(os.environ), os.getcwd(), sys.path, sys.argv, os.umask(os.umask(0o22)), gc.get_threshold(),
                    locale.setlocale(locale.LC_ALL), sys.getrecursionlimit(), sys.getswitchinterval(),
                    socket.getdefaulttimeout()],
    }}

before = look()
for name in {ours!r}:
    importlib.import_module(name)
{extra}
after = look()
print(json.dumps([topic for topic in before if before[topic] != after[topic]]))
"""


def changed(folder: Path, *, ours: list[str], others: list[str], extra: str = "") -> list[str]:
    """Topics on which a fresh interpreter is another one after it imported `ours`."""
    code = SCRIPT.format(paths=[str(ROOT), str(ROOT / "envs")], ours=ours, others=others, extra=extra)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_all_of_it_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    files = [path for path in python_files("flowpolicy") if path.name != "__main__.py"]
    targets = {target for path in files for node, target in imports(path) if getattr(node, "col_offset", 1) == 0}
    others = sorted(target for target in targets if target.split(".")[0] not in ("flowpolicy", "flowpolicy_envs"))
    assert len(files) > 100 and "torch" in others and "hydra.compose" in others
    assert changed(tmp_path, ours=sorted(module_name(path) for path in files), others=others) == []
    assert not list(tmp_path.iterdir())


def test_the_check_sees_every_topic(tmp_path: Path) -> None:
    """One line that changes each; what a module must not do."""
    extra = """
logging.basicConfig(); threading.Thread(target=threading.Event().wait, daemon=True).start()
multiprocessing.set_start_method("spawn"); warnings.simplefilter("ignore"); sys.excepthook = print
signal.signal(signal.SIGTERM, signal.SIG_IGN); torch.backends.cudnn.benchmark = True
torch.set_default_dtype(torch.float64); torch.manual_seed(7); numpy.seterr(all="raise"); os.environ["OWN"] = "1"
"""
    topics = [
        "logging",
        "threads",
        "processes",
        "warnings",
        "signals",
        "hooks",
        "cuda",
        "torch",
        "random",
        "numpy",
        "process",
    ]
    assert changed(tmp_path, ours=[], others=[], extra=extra) == topics


def test_a_collector_that_only_starts_workers_does_not_wait_for_torch(tmp_path: Path) -> None:
    """More than a second, before which no worker began: two workers were slower than one for 20 episodes."""
    code = """
import sys
from flowpolicy.data import collect
def started(make_expert, workers):
    print(workers, "torch" in sys.modules)
    raise SystemExit
collect.Workers = started
from flowpolicy.cli.main import main
main(["data", "collect", "task=maniskill", "episodes=1", "workers=2", "out=a.zarr"])
"""
    paths = f"import sys; sys.path[:0] = {[str(ROOT), str(ROOT / 'envs')]!r}\n"
    done = subprocess.run([sys.executable, "-c", paths + code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "2 False\n", done.stderr
