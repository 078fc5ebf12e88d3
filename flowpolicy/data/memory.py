"""How much memory this process may still take: of the machine, of its container, and of its own limits."""

import resource
from pathlib import Path

GIB = 1 << 30


def available_memory() -> int | None:
    """Bytes that can be taken before something is killed or refused; None where the system does not say.

    The least of: what the kernel calls available, what the control group leaves (v2 or v1; its page cache counts as
    free), and what the process's limits on address space and data leave.
    """
    found = [
        _meminfo(),
        _group_v2(),
        _group_v1(),
        _limit(resource.RLIMIT_AS, "VmSize:"),
        _limit(resource.RLIMIT_DATA, "VmData:"),
    ]
    return min((max(0, size) for size in found if size is not None), default=None)


def _meminfo() -> int | None:
    return _kilobytes(Path("/proc/meminfo"), "MemAvailable:")


def _group_v2() -> int | None:
    """The least that this group or one above it leaves."""
    root = Path("/sys/fs/cgroup")
    lines = [line for line in _lines(Path("/proc/self/cgroup")) if line.startswith("0::")]
    if not lines:
        return None
    own = root / lines[0].strip()[3:].lstrip("/")
    left = [
        _left(folder, "memory.max", "memory.current", "inactive_file")
        for folder in (own, *own.parents)
        if folder.is_relative_to(root)
    ]
    return min((size for size in left if size is not None), default=None)


def _group_v1() -> int | None:
    root = Path("/sys/fs/cgroup/memory")
    return _left(root, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _left(folder: Path, limit: str, used: str, cache: str) -> int | None:
    most, now = (" ".join(_lines(folder / name)).strip() for name in (limit, used))
    if not most.isdigit() or not now.isdigit():  # "max": no limit
        return None
    pages = [int(line.split()[1]) for line in _lines(folder / "memory.stat") if line.startswith(f"{cache} ")]
    return int(most) - int(now) + sum(pages)


def _limit(kind: int, field: str) -> int | None:
    soft, _ = resource.getrlimit(kind)
    used = _kilobytes(Path("/proc/self/status"), field)
    return None if soft == resource.RLIM_INFINITY or used is None else soft - used


def _kilobytes(file: Path, field: str) -> int | None:
    sizes = [int(line.split()[1]) << 10 for line in _lines(file) if line.startswith(field)]
    return sizes[0] if sizes else None


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
