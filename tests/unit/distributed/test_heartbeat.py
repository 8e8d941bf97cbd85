"""A process ends by itself when the store of its launcher fails, or does not answer; not because it was paused."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from sparse_accel.distributed import heartbeat
from sparse_accel.distributed.heartbeat import Heartbeat


class Store:
    """Counters in this process, which may fail, or wait as long as a cut network does."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.fails, self.answers = False, threading.Event()
        self.answers.set()

    def set(self, key: str, value: str) -> None: ...

    def add(self, key: str, amount: int) -> int:
        self.answers.wait()
        if self.fails:
            raise RuntimeError("Connection reset by peer")
        self.counts[key] = self.counts.get(key, 0) + amount
        return self.counts[key]


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The reasons with which the process would have ended; all waits are a hundred times shorter."""
    found: list[str] = []
    for name in ("_BEAT", "_GONE_AFTER", "_END_AFTER", "_PAUSED"):
        monkeypatch.setattr(heartbeat, name, getattr(heartbeat, name) / 100)
    monkeypatch.setattr(heartbeat, "_end", found.append)
    with socket.socket() as nobody:  # a port that nobody listens on
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(nobody.getsockname()[1]))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    return found


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store()
    yield made
    made.answers.set()


def wait_for(ends: list[str], word: str) -> None:
    limit = time.monotonic() + 30
    while not any(word in each for each in ends):
        assert time.monotonic() < limit, ends
        time.sleep(0.01)


def test_a_store_that_answers(ends: list[str], store: Store) -> None:
    beating = Heartbeat(store, 0, 1)
    while store.counts.get("beat/0", 0) < 150:  # longer than _END_AFTER
        time.sleep(0.01)
    beating.end()
    assert ends == []


@pytest.mark.parametrize("cut", [True, False])
def test_a_store_that_is_gone(ends: list[str], store: Store, cut: bool) -> None:
    """A machine that is cut off gets no error for a quarter of an hour: TCP repeats what it sent."""
    beating = Heartbeat(store, 1, 2)
    while not store.counts:
        time.sleep(0.01)
    if cut:
        store.answers.clear()
    else:
        store.fails = True
    wait_for(ends, "the launcher's store cannot be reached")
    store.answers.set()
    beating.end()


def test_a_launcher_that_was_paused(ends: list[str], store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-Z stops a launcher, and the store in it; its processes are in sessions of their own, and go on training."""
    with socket.create_server(("127.0.0.1", 0)) as paused:  # connections wait to be accepted
        monkeypatch.setenv("MASTER_PORT", str(paused.getsockname()[1]))
        beating = Heartbeat(store, 1, 2)
        while not store.counts:
            time.sleep(0.01)
        store.answers.clear()
        time.sleep(4 * heartbeat._END_AFTER)
        store.answers.set()
        beating.end()
    assert ends == []


def test_a_process_that_was_paused_is_not_ended(ends: list[str], store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clock jumps; so do the counters of the others."""
    jumped: Any = [0.0]
    clock = time.monotonic
    monkeypatch.setattr("sparse_accel.distributed.heartbeat.time.monotonic", lambda: clock() + jumped[0])
    beating = Heartbeat(store, 0, 2)
    store.add("beat/1", 1)
    for _ in range(5):
        before = store.counts.get("beat/0", 0)
        jumped[0] += 1000.0
        store.add("beat/1", 1)
        while store.counts.get("beat/0", 0) < before + 3:
            time.sleep(0.005)
    beating.end()
    assert ends == []
