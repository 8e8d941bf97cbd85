"""Programs run in children of one process that has imported the heavy libraries: each starts within milliseconds.

The libraries read HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE when they are imported: one server has one environment.

    with ForkServer(hub.environment(home)) as server:
        done = server.run("print(1)", "an argument")
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import Any, TextIO, cast

from places import ROOT


class ForkServer:
    """One child at a time.

    Args:
        environment: of the server and its children.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def __enter__(self) -> ForkServer:
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._orders, self._answers = cast(TextIO, self._server.stdin), cast(TextIO, self._server.stdout)
        return self

    def __exit__(self, *_: object) -> None:
        self._orders.close()
        self._server.wait()
        self._answers.close()

    def start(self, program: str | Path, *arguments: str, cwd: Path = ROOT) -> int:
        """Starts Python code, or a script, with these words behind it; returns the number of its process."""
        self._folder = tempfile.TemporaryDirectory()
        order = {
            "program": str(program),
            "is_script": isinstance(program, Path),
            "arguments": arguments,
            "cwd": str(cwd),
            "folder": self._folder.name,
        }
        print(json.dumps(order), file=self._orders, flush=True)
        self._child = int(self._answers.readline())
        return self._child

    def wait(self, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Waits for the child; one that takes longer than `timeout` seconds is killed."""
        killer = threading.Timer(timeout, os.kill, (self._child, signal.SIGKILL))
        killer.start()
        try:
            code = int(self._answers.readline())
        finally:
            killer.cancel()
        with self._folder:
            out, err = (Path(self._folder.name, name).read_text(encoding="utf-8") for name in ("out", "err"))
        return subprocess.CompletedProcess([], code, out, err)

    def run(self, program: str | Path, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        self.start(program, *arguments, cwd=cwd)
        return self.wait()


def serve() -> None:
    import accelerate  # noqa: F401
    import datasets  # noqa: F401
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification

    del AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification  # imported for the children
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(run_child(order))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def run_child(order: dict[str, Any]) -> int:
    """Runs what is ordered, its output in files, and returns its exit code."""
    os.chdir(order["cwd"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(os.path.join(order["folder"], name), os.O_WRONLY | os.O_CREAT), number)
    sys.argv = [order["program"] if order["is_script"] else "-c", *order["arguments"]]
    # As Python itself sets it, and not the folder of this file: a program must not find what tests share.
    sys.path[0] = os.path.dirname(order["program"]) if order["is_script"] else order["cwd"]
    code: Any = 0
    try:
        program = order["program"]
        if not order["is_script"]:
            program = os.path.join(order["folder"], "program.py")
            Path(program).write_text(order["program"], encoding="utf-8")
        runpy.run_path(program, run_name="__main__")
    except SystemExit as ended:
        code = ended.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code & 0xFF


if __name__ == "__main__":
    serve()
