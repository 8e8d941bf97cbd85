"""Two machines, as two launches: over loopback, and where this machine allows it in two networks of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forked import wait_for
from layouts import difference, make_flags, recipe_flags
from machines import free_port, launch
from places import SUPPORT
from script_fixtures import SCRIPT, flat, run, wait

pytestmark = pytest.mark.slow

ADDRESSES = ("10.77.77.1", "10.77.77.2")


def check(machines: list[subprocess.Popen[str]], flags: dict[str, Any], tmp_path: Path, kind: str = "DDP") -> None:
    first, second = (wait(machine) for machine in machines)
    assert first.code == 0 and second.code == 0, first.all + second.all
    assert f"{kind}, 2 processes" in flat(first.out) and "── run " not in second.out
    one = run(**{**flags, "output_dir": tmp_path / "one"}, gradient_accumulation_steps=2)
    assert one.code == 0, one.all
    found = difference(tmp_path / "one", tmp_path / "two", float_steps=7)
    assert found.loss_before < 1e-6 and found.loss < 5e-3 and found.under_masks == 0 and found.rate == 0


@pytest.fixture
def flags(tmp_path: Path) -> dict[str, Any]:
    return {**make_flags(tmp_path), **recipe_flags(tmp_path, "tutorial"), "output_dir": tmp_path / "two"}


def test_two_launches_over_loopback(flags: dict[str, Any], tmp_path: Path) -> None:
    port = free_port()
    check([launch(rank, "127.0.0.1", port, flags) for rank in (0, 1)], flags, tmp_path)


def test_two_launches_of_deepspeed(flags: dict[str, Any], tmp_path: Path) -> None:
    """Not by DeepSpeed's own launcher, which would train on each machine alone."""
    port = free_port()
    machines = [launch(rank, "127.0.0.1", port, flags, layout="deepspeed_zero2") for rank in (0, 1)]
    check(machines, flags, tmp_path, kind="DeepSpeed ZeRO-2")


@pytest.fixture
def networks() -> Iterator[list[str]]:
    """Two network namespaces, joined by a cable; gives their names."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root, and the program ip")
    names = [f"sparse-accel-{os.getpid()}-{number}" for number in (0, 1)]
    commands = [f"ip netns add {name}" for name in names]
    commands += [f"ip link add eth0 netns {names[0]} type veth peer name eth0 netns {names[1]}"]
    for name, address in zip(names, ADDRESSES, strict=True):
        commands += [f"ip -n {name} address add {address}/24 dev eth0", f"ip -n {name} link set eth0 up"]
        commands += [f"ip -n {name} link set lo up"]
    try:
        for command in commands:
            made = subprocess.run(command.split(), capture_output=True, text=True)
            if made.returncode != 0:
                pytest.skip(f"this machine allows no network namespaces: {made.stderr.strip()}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def in_network(rank: int, name: str, flags: dict[str, Any], *wrappers: Path) -> subprocess.Popen[str]:
    inside = ["ip", "netns", "exec", name, "env", "GLOO_SOCKET_IFNAME=eth0"]
    return launch(rank, ADDRESSES[0], 29500, flags, *inside, program=(*wrappers, SCRIPT))


def test_two_launches_in_networks_of_their_own(flags: dict[str, Any], tmp_path: Path, networks: list[str]) -> None:
    check([in_network(rank, name, flags) for rank, name in enumerate(networks)], flags, tmp_path)


def test_a_cut_between_two_machines(flags: dict[str, Any], tmp_path: Path, networks: list[str]) -> None:
    """No packet comes any more, and no error either. Both end by themselves; once there is a network, they go on."""
    flags |= {"save_strategy": "steps", "save_steps": 2}
    waits = SUPPORT / "short_waits.py"
    machines = [in_network(rank, name, flags, waits) for rank, name in enumerate(networks)]
    wait_for(lambda: (tmp_path / "two" / "checkpoint-4").is_dir())
    cable = ["ip", "-n", networks[1], "link", "set", "eth0"]
    subprocess.run([*cable, "down"], check=True)
    first, second = (wait(machine, timeout=120) for machine in machines)
    assert first.code != 0 and "error: process 1 (on " in first.err and "of 2 ended" in first.err, first.all
    assert second.code != 0 and "store cannot be reached" in second.err, second.all
    subprocess.run([*cable, "up"], check=True)
    check([in_network(rank, name, flags) for rank, name in enumerate(networks)], flags, tmp_path)
