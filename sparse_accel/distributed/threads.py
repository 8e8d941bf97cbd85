"""The CPUs that this process may use, and the threads that PyTorch takes of them. Imports nothing heavy.

PyTorch takes a thread for each core of the machine. Where a container may use fewer CPUs, the kernel stops all of its
threads for a part of each period; and threads of several runs that wait in a loop take the cores from each other.
"""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

_ROOT = Path("/")
# About half a millisecond. Fewer cost a run alone, more a neighbour: see docs/performance.md.
_LOOKS = "10000"


@dataclass(frozen=True)
class Share:
    """What this process may use of the machine.

    Attributes:
        cpus: number of CPUs, at least 1.
        reason: what limits it, in words.
        by_quota: whether that is the quota of a cgroup, which few libraries know of, and not the affinity.
    """

    cpus: int
    reason: str
    by_quota: bool = False


@dataclass(frozen=True)
class Threads:
    """The threads of PyTorch in this process.

    Attributes:
        number: at least 1.
        reason: in words.
    """

    number: int
    reason: str

    def __str__(self) -> str:
        return f"{self.number}: {self.reason}"


def wait_asleep() -> None:
    """Makes threads that wait for each other sleep soon. Call it before torch is imported.

    By default they look for work for some 3 to 16 ms first, on a core that another run could use. libgomp, which the
    packages of torch for Linux have, reads the number of these looks once, when it is loaded. Processes that this one
    starts inherit it. OMP_WAIT_POLICY and GOMP_SPINCOUNT of the environment win (GNU libgomp manual, "Environment
    Variables").
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _LOOKS)


def share(root: Path = _ROOT) -> Share:
    """Returns the CPUs of this process: those of its affinity, or the quota of its cgroup if that is less.

    A part of a CPU counts as a whole one: two threads use 1.5 CPUs up, one would leave a third of them. The kernel then
    stops both for a quarter of each period. It costs nothing else, as threads that wait sleep (`wait_asleep`).

    Args:
        root: folder with `proc` and the mounted cgroups; the affinity is always that of this process.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(root)
    if quota is None or math.ceil(quota) >= cpus:
        return Share(cpus, "the CPUs that this process may use")
    return Share(math.ceil(quota), f"the container may use {quota:.3g} CPU{'s' * (quota != 1)}", by_quota=True)


def threads(default: int, found: Share, environment: Mapping[str, str]) -> Threads:
    """Returns the threads that a process should take.

    OMP_NUM_THREADS wins; `accelerate launch` and `torchrun` set it too. Else it is the least of PyTorch's default and
    the share of this process, divided by the processes of the run on this machine.

    Args:
        default: number of threads that PyTorch takes; it has read OMP_NUM_THREADS.
        environment: variables of this process: OMP_NUM_THREADS, LOCAL_WORLD_SIZE.
    """
    # The forms that libgomp takes: a number, or a list for nested regions. It ignores anything else.
    if re.match(r"\s*0*[1-9]\d*\s*(,|$)", environment.get("OMP_NUM_THREADS", "")):
        return Threads(default, "OMP_NUM_THREADS")
    several = local_processes(environment)
    least, reason = (default, "PyTorch's default") if default < found.cpus else (found.cpus, found.reason)
    divided = f", for {several} processes" if several > 1 else ""
    return Threads(max(1, least // several), f"{reason}{divided}")


def local_processes(environment: Mapping[str, str]) -> int:
    """Returns the number of processes of this run on this machine, as a launcher tells in LOCAL_WORLD_SIZE, or 1."""
    told = environment.get("LOCAL_WORLD_SIZE", "").strip()
    return max(1, int(told)) if told.isdecimal() else 1


def set_threads() -> None:
    """Makes PyTorch take the threads that this process should take. A second call changes nothing."""
    import torch

    if (found := _chosen().number) != torch.get_num_threads():
        torch.set_num_threads(found)


def threads_in_use() -> Threads:
    """Returns the threads that PyTorch uses now, and why."""
    import torch

    chosen, number = _chosen(), torch.get_num_threads()
    return chosen if number == chosen.number else Threads(number, "torch.set_num_threads")


@cache
def _chosen() -> Threads:
    """Found once: `set_threads` replaces PyTorch's default."""
    import torch

    return threads(torch.get_num_threads(), share(), os.environ)


def warn_of_processes(asked: Mapping[str, int | None]) -> None:
    """Warns of flags that start more processes on this machine than it has CPUs for this run.

    Args:
        asked: number of processes, all together, by the flag; None: the flag was not given.
    """
    from sparse_accel.console import warn  # here, as a session of sparse_accel.runtime must not need tqdm

    found = share()
    for flag, number in asked.items():
        if number and number > found.cpus:
            # torch says so for each loader, and knows the affinity alone.
            warnings.filterwarnings("ignore", "This DataLoader will create")
            warn(f"{flag}: {number} processes share {found.cpus} CPU{'s' * (found.cpus != 1)} ({found.reason})")


def cpu_quota(root: Path = _ROOT) -> float | None:
    """Returns the CPU quota of this process's cgroup in CPUs: the least of its own and its parents'; None: no quota.

    Version 2 has it in cpu.max, version 1 in cpu.cfs_quota_us and cpu.cfs_period_us (Linux kernel documentation,
    "Control Group v2" and "CFS Bandwidth Control"); a hybrid system has both. What is missing or cannot be read is no
    quota: other systems than Linux have none of these files.
    """
    quotas = [quota for folder in _groups(root) for quota in (_quota_v2(folder), _quota_v1(folder)) if quota]
    return min(quotas, default=None)


def _groups(root: Path) -> Iterator[Path]:
    """Folders of the cgroups of this process that can limit its CPUs, and of all their parents that it can see."""
    paths = {}  # of the process's group, by the version of its hierarchy
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if "cpu" in controllers.split(","):
            paths["cgroup"] = path
        elif (number, controllers) == ("0", ""):
            paths["cgroup2"] = path
    for line in _lines(root / "proc/self/mountinfo"):
        # 31 23 0:26 /group /sys/fs/cgroup options ... - type source options: see man 5 proc_pid_mountinfo
        before, _, after = line.partition(" - ")
        mount, kind = before.split(), after.split()
        if len(mount) < 5 or len(kind) < 3 or kind[0] not in paths:
            continue
        if kind[0] == "cgroup" and "cpu" not in kind[2].split(","):
            continue
        top = root / _unescaped(mount[4]).lstrip("/")
        yield top
        # A path that is not below the mounted one is of a namespace that this process cannot see.
        mounted, group = PurePosixPath(_unescaped(mount[3])), PurePosixPath(paths[kind[0]])
        if group.is_relative_to(mounted) and ".." not in group.parts:
            for part in group.relative_to(mounted).parts:
                yield (top := top / part)


def _quota_v2(folder: Path) -> float | None:
    """Returns the quota in cpu.max, `QUOTA PERIOD` in microseconds or `max PERIOD`, in CPUs."""
    quota, _, period = "".join(_lines(folder / "cpu.max")).partition(" ")
    return _ratio(quota, period)


def _quota_v1(folder: Path) -> float | None:
    """Returns the quota in cpu.cfs_quota_us, -1 for none, and cpu.cfs_period_us, in CPUs."""
    return _ratio("".join(_lines(folder / "cpu.cfs_quota_us")), "".join(_lines(folder / "cpu.cfs_period_us")))


def _ratio(quota: str, period: str) -> float | None:
    quota, period = quota.strip(), period.strip()
    known = quota.isdecimal() and period.isdecimal() and int(quota) > 0 and int(period) > 0
    return int(quota) / int(period) if known else None


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _unescaped(path: str) -> str:
    """A path of mountinfo, where spaces and the like are octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)
