"""Runs a script and disturbs it:  disturbed.py SPEC SCRIPT FLAG ...

SPEC is JSON: `folder`, whose changes are counted (files opened for writing, renamed, removed, folders made); `kind`;
and `at`, the number of the change at which it happens, from 1. Kinds: kill (-9), term (SIGTERM), full (no space from
then on), read_only (from then on), short (no file grows beyond `at` kilobytes), alarm (killed after `at` hundredths of
a second, wherever it is), slow (stopped for as long). `rank`: of the process that is disturbed, where a launcher starts
several. `changes`: a file for their number.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
from typing import Any

_CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.truncate")


class Disturbance:
    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec, self.seen = spec, 0
        self.folder = os.path.realpath(spec["folder"])

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            if not (any(letter in (mode or "") for letter in "wax+") or (flags or 0) & (os.O_WRONLY | os.O_RDWR)):
                return
        elif event in _CHANGES:
            path = arguments[0]
        else:
            return
        if not isinstance(path, str | bytes | os.PathLike) or not os.path.realpath(os.fsdecode(path)).startswith(
            self.folder
        ):
            return
        self.seen += 1
        if self.spec.get("changes"):
            fd = os.open(self.spec["changes"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.write(fd, str(self.seen).encode())
            os.close(fd)
        kind, at = self.spec["kind"], self.spec["at"]
        if kind == "kill" and self.seen == at:
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "term" and self.seen == at:
            os.kill(os.getpid(), signal.SIGTERM)
        if kind in ("full", "read_only") and self.seen >= at and not (kind == "full" and event == "os.remove"):
            number = errno.ENOSPC if kind == "full" else errno.EROFS
            raise OSError(number, os.strerror(number), os.fsdecode(path))


def main() -> None:
    spec = json.loads(sys.argv[1])
    sys.argv = sys.argv[2:]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    if spec["kind"] and int(os.environ.get("RANK", "0")) == spec.get("rank", 0):
        sys.addaudithook(Disturbance(spec))
        if spec["kind"] == "short":  # in the middle of a file, also where C or Rust writes it
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * spec["at"], resource.RLIM_INFINITY))
        if spec["kind"] == "alarm":  # nobody handles it: the process ends, wherever it is
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, spec["at"] / 100)
        if spec["kind"] == "slow":
            own, seconds = os.getpid(), spec["at"] / 100
            subprocess.Popen(["sh", "-c", f"sleep 1; kill -STOP {own}; sleep {seconds}; kill -CONT {own}"])
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
