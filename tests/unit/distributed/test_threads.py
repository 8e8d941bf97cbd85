"""The CPUs of a process, on made-up systems of cgroups; the threads taken of them; and how they wait."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT

from sparse_accel.console import set_log_level
from sparse_accel.distributed import threads as module
from sparse_accel.distributed.threads import (
    Share,
    Threads,
    cpu_quota,
    local_processes,
    set_threads,
    share,
    threads,
    threads_in_use,
    wait_asleep,
    warn_of_processes,
)
from sparse_accel.recipe_run import RecipeRun
from sparse_accel.run_folder.environment import environment_of
from sparse_accel.runtime import loading
from sparse_accel.training.start_table import start_table

V2 = "31 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw"
V1 = "32 31 0:29 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu,cpuacct"
OTHERS = "33 31 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n21 1 0:5 / /proc rw - proc proc rw"


def system(root: Path, cgroup: str, mounts: str, files: Mapping[str, str]) -> Path:
    """Writes a made-up system below `root`.

    Args:
        cgroup, mounts: content of /proc/self/cgroup and /proc/self/mountinfo.
        files: content by the path below /sys/fs/cgroup.
    """
    found = {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mounts}
    for name, text in (found | {f"sys/fs/cgroup/{file}": text for file, text in files.items()}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


# --- the quota --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cgroup, mounts, files, expected",
    [
        ("0::/a/b", V2, {"a/b/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b", V2, {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 50000\n"}, 4.0),  # of a parent
        ("0::/a/b", V2, {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "max 100000\n"}, None),
        ("0::/a", V2, {"a/b/cpu.max": "100000 100000\n", "c/cpu.max": "100000 100000\n"}, None),  # of others
        ("0::/", V2, {"cpu.max": "50000 100000\n"}, 0.5),  # in a namespace, the top is the container's own group
        ("0::/../b", V2, {"cpu.max": "50000 100000\n", "../b/cpu.max": "10000 100000\n"}, 0.5),  # moved out of it
        ("0::/a", V2, {}, None),
        ("0::/a", V2, {"a/cpu.max": "", "cpu.max": "1 0\n"}, None),
        ("0::/a", V2, {"a/cpu.max": "many 100000\n"}, None),
        # A container without a namespace: its group is mounted as the top.
        ("0::/docker/7", V2.replace("0:26 /", "0:26 /docker/7"), {"cpu.max": "300000 100000"}, 3.0),
        ("0::/docker/7/x", V2.replace("0:26 /", "0:26 /docker/7"), {"x/cpu.max": "200000 100000"}, 2.0),
        ("0::/other", V2.replace("0:26 /", "0:26 /docker/7"), {"other/cpu.max": "200000 100000"}, None),
        (
            "4:cpu,cpuacct:/a\n0::/a",
            f"{OTHERS}\n{V1}",
            {"cpu/a/cpu.cfs_quota_us": "250000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
            2.5,
        ),
        ("4:cpu:/a", V1, {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, None),
        ("4:cpu:/a", V1, {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "50000\n"}, 2.0),  # of a parent
        ("4:cpu:/a", V1, {"cpu/a/cpu.cfs_quota_us": "100000\n"}, None),
        (
            "4:cpu,cpuacct:/a\n5:cpuset:/b",
            V1,
            {"cpu/a/cpu.cfs_quota_us": "100000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
            1.0,
        ),
        (  # a controller whose name only begins with cpu, and a hierarchy without one
            "5:cpuset:/a\n2:name=systemd:/a",
            OTHERS,
            {"cpuset/a/cpu.cfs_quota_us": "100000", "cpuset/a/cpu.cfs_period_us": "100000"},
            None,
        ),
        (  # hybrid: the controller is of version 1, the processes are sorted by version 2
            "3:cpu:/box\n0::/user",
            f"{V1}\n{V2.replace('/sys/fs/cgroup', '/sys/fs/cgroup/unified')}",
            {
                "cpu/box/cpu.cfs_quota_us": "300000",
                "cpu/box/cpu.cfs_period_us": "100000",
                "unified/user/cpu.max": "200000 100000",
            },
            2.0,
        ),
        (
            "0::/a",
            V2.replace("/sys/fs/cgroup rw", r"/sys/fs/cgroup/my\040cgroup rw"),
            {"my cgroup/cpu.max": "1 1"},
            1.0,
        ),
        ("0::/a:b/c", V2, {"a:b/c/cpu.max": "100000 100000"}, 1.0),
        ("", "", {"cpu.max": "100000 100000"}, None),
        ("0::", V2, {"a/cpu.max": "100000 100000"}, None),
        ("nonsense\n\n::", "nonsense\n - \n1 2 3 - cgroup2", {"cpu.max": "100000 100000"}, None),
    ],
)
def test_the_quota(cgroup: str, mounts: str, files: Mapping[str, str], expected: float | None, tmp_path: Path) -> None:
    assert cpu_quota(system(tmp_path, cgroup, mounts, files)) == expected


def test_other_systems_have_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None
    for name in ("proc/self/cgroup", "proc/self/mountinfo"):  # cannot be read as files
        (tmp_path / name).mkdir(parents=True)
    assert cpu_quota(tmp_path) is None


def test_a_quota_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    system(tmp_path, "0::/a", V2, {"cpu.max": "200000 100000"})
    (tmp_path / "sys/fs/cgroup/a/cpu.max").mkdir(parents=True)
    assert cpu_quota(tmp_path) == 2.0


@settings(max_examples=25)
@given(st.lists(st.none() | st.integers(1, 10**7), min_size=1, max_size=5), st.integers(1000, 10**6), st.booleans())
def test_the_least_of_nested_quotas(quotas: list[int | None], period: int, is_v2: bool) -> None:
    files = {}
    for depth, quota in enumerate(quotas):
        folder = "/".join(["g"] * depth) or "."
        if is_v2:
            files[f"{folder}/cpu.max"] = f"{'max' if quota is None else quota} {period}\n"
        else:
            files[f"cpu/{folder}/cpu.cfs_quota_us"] = f"{-1 if quota is None else quota}\n"
            files[f"cpu/{folder}/cpu.cfs_period_us"] = f"{period}\n"
    path = "/" + "/".join(["g"] * (len(quotas) - 1))
    with tempfile.TemporaryDirectory() as root:
        system(Path(root), f"0::{path}" if is_v2 else f"2:cpu:{path}", V2 if is_v2 else V1, files)
        known = [quota / period for quota in quotas if quota is not None]
        assert cpu_quota(Path(root)) == (min(known) if known else None)


# --- the share --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "quota, expected",
    [
        (None, Share(8, "the CPUs that this process may use")),
        ("100000", Share(1, "the container may use 1 CPU", by_quota=True)),
        ("10000", Share(1, "the container may use 0.1 CPUs", by_quota=True)),
        ("150000", Share(2, "the container may use 1.5 CPUs", by_quota=True)),
        ("700000", Share(7, "the container may use 7 CPUs", by_quota=True)),
        ("750000", Share(8, "the CPUs that this process may use")),
        ("6400000", Share(8, "the CPUs that this process may use")),
    ],
)
def test_the_share(quota: str | None, expected: Share, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert share(system(tmp_path, "0::/", V2, {"cpu.max": f"{quota} 100000"} if quota else {})) == expected


def test_a_system_without_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert share(tmp_path).cpus == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert share(tmp_path).cpus == 1


def test_this_machine() -> None:
    assert 1 <= share().cpus <= (os.cpu_count() or 1)


# --- threads ----------------------------------------------------------------------------------------------------------

QUOTA, ALL = Share(2, "the container may use 1.5 CPUs", by_quota=True), Share(16, "the CPUs that this process may use")


@pytest.mark.parametrize(
    "default, found, environment, expected",
    [
        (16, QUOTA, {}, Threads(2, "the container may use 1.5 CPUs")),
        (8, ALL, {}, Threads(8, "PyTorch's default")),  # one of two threads of a core
        (16, ALL, {}, Threads(16, "the CPUs that this process may use")),
        (16, ALL, {"LOCAL_WORLD_SIZE": "4"}, Threads(4, "the CPUs that this process may use, for 4 processes")),
        (16, QUOTA, {"LOCAL_WORLD_SIZE": "4"}, Threads(1, "the container may use 1.5 CPUs, for 4 processes")),
        (8, ALL, {"LOCAL_WORLD_SIZE": "3"}, Threads(2, "PyTorch's default, for 3 processes")),
        (4, QUOTA, {"OMP_NUM_THREADS": "4", "LOCAL_WORLD_SIZE": "4"}, Threads(4, "OMP_NUM_THREADS")),
        (3, QUOTA, {"OMP_NUM_THREADS": " 3,2"}, Threads(3, "OMP_NUM_THREADS")),
        (16, QUOTA, {"OMP_NUM_THREADS": ""}, Threads(2, "the container may use 1.5 CPUs")),
        (16, QUOTA, {"OMP_NUM_THREADS": "0"}, Threads(2, "the container may use 1.5 CPUs")),  # libgomp ignores it
        (16, QUOTA, {"OMP_NUM_THREADS": "many"}, Threads(2, "the container may use 1.5 CPUs")),
        (16, QUOTA, {"LOCAL_WORLD_SIZE": "-1"}, Threads(2, "the container may use 1.5 CPUs")),
    ],
)
def test_the_threads(default: int, found: Share, environment: Mapping[str, str], expected: Threads) -> None:
    assert threads(default, found, environment) == expected


@given(st.integers(1, 256), st.integers(1, 256), st.integers(1, 64))
def test_all_processes_together_stay_within_the_share(default: int, cpus: int, processes: int) -> None:
    number = threads(default, Share(cpus, ""), {"LOCAL_WORLD_SIZE": str(processes)}).number
    assert number == max(1, math.floor(min(default, cpus) / processes))


def test_local_processes() -> None:
    assert [local_processes({"LOCAL_WORLD_SIZE": word}) for word in ("", "0", "1", " 8 ", "x")] == [1, 1, 1, 8, 1]
    assert local_processes({}) == 1


@pytest.fixture
def forgotten() -> Iterator[None]:
    """What this process has decided is forgotten, before and after a test."""
    before = torch.get_num_threads()
    module._chosen.cache_clear()
    yield
    torch.set_num_threads(before)
    module._chosen.cache_clear()


@pytest.fixture
def of_three(forgotten: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch would take 4 threads; the process may use 3 CPUs, and is one of two."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(module, "share", lambda: Share(3, "the container may use 3 CPUs", by_quota=True))
    torch.set_num_threads(4)


def test_threads_are_set_once(of_three: None) -> None:
    for _ in range(2):  # the second call does not divide again
        set_threads()
        assert torch.get_num_threads() == 1
        assert threads_in_use() == Threads(1, "the container may use 3 CPUs, for 2 processes")
    torch.set_num_threads(2)
    assert threads_in_use() == Threads(2, "torch.set_num_threads")


def test_the_start_up_table_and_the_record_have_the_threads(of_three: None) -> None:
    accelerator, model = Accelerator(cpu=True), torch.nn.Linear(2, 2)
    run_of_nothing = RecipeRun(None)
    run_of_nothing.attach(model)
    run_of_nothing.model = model
    set_threads()
    words = "1: the container may use 3 CPUs, for 2 processes"
    assert re.search(rf"threads +{words}\n", start_table(accelerator, run_of_nothing, []))
    assert environment_of(accelerator)["threads"] == words


def test_more_processes_than_cpus_are_not_silent(of_three: None, capsys: pytest.CaptureFixture[str]) -> None:
    set_log_level("info")
    warn_of_processes({"--a": 3, "--b": 4, "--c": None, "--d": 0})
    assert capsys.readouterr().err == "warning: --b: 4 processes share 3 CPUs (the container may use 3 CPUs)\n"


@pytest.mark.parametrize("found, expected", [(QUOTA, 2), (ALL, 0)])
def test_a_session_takes_no_more_threads_than_the_quota(
    found: Share, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0: as many as onnxruntime chooses."""
    monkeypatch.setattr(loading, "share", lambda: found)
    assert loading._options().intra_op_num_threads == expected


# --- waiting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{}, {"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}], ids=str)
def test_what_the_user_set_wins(given: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    monkeypatch.setattr(os, "environ", {**given})
    wait_asleep()
    assert {name: os.environ[name] for name in names if name in os.environ} == (given or {"GOMP_SPINCOUNT": "10000"})


# Prints each program whose variable is not set when it first asks for torch, or when its file is imported without that.
# A program is left as soon as it imports something with the variable set.
PROGRAM = """
import os, runpy, sys

class Imports:
    def find_spec(name, path=None, target=None):
        if "GOMP_SPINCOUNT" in os.environ or name.partition(".")[0] == "torch":
            tell(f"asks for {name}")

def tell(what):
    if "GOMP_SPINCOUNT" not in os.environ:
        print(program, what, flush=True)
    os._exit(0)

sys.meta_path.insert(0, Imports)
for program in sys.argv[1:]:
    if os.fork() == 0:
        try:
            (runpy.run_path if program.endswith(".py") else runpy.run_module)(program, run_name="not_started")
            tell("is imported")
        finally:
            os._exit(1)
    if os.wait()[1]:
        print(program, "failed")
"""


def test_every_program_sets_how_threads_wait_before_torch_is_loaded() -> None:
    scripts = [str(script) for script in sorted((ROOT / "scripts").glob("*.py"))]
    programs = [*scripts, "sparse_accel.__main__", *(f"sparse_accel.{name}.__main__" for name in ("recipe", "report"))]
    assert len(programs) > 12
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in names} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *programs], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.returncode) == ("", 0), done.stderr
