"""The environment variables that a launcher sets for each process, checked before a library reads them.

Imports nothing heavy.
"""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING

from sparse_accel.errors import UsageError, listed, nearest

if TYPE_CHECKING:
    from accelerate import Accelerator

# In a cluster, host names may become available later than the machines.
_SECONDS_FOR_A_NAME = 60.0
_NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")
_PLACE = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_PRECISIONS = ("no", "fp16", "bf16")
_TRUTH_VALUES = ("false", "true", "0", "1", "no", "yes", "off", "on", "f", "t", "n", "y")
_LAYOUTS = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_MEGATRON_LM")


def is_requested(name: str) -> bool:
    """Returns whether the launcher asked for an option of Accelerate: DEEPSPEED, FSDP, MEGATRON_LM or CPU."""
    return os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("1", "true", "yes", "on", "t", "y")


def check_environment() -> None:
    """Checks the launcher's variables: refuses incomplete or invalid ones, such as leftovers of another launch.

    Call it before creating an `Accelerator`, because Accelerate and PyTorch would print a traceback or wait.
    `torchrun`, `accelerate launch` and DeepSpeed's launcher set all variables. One process without a launcher needs
    none of them, and WORLD_SIZE=1 is harmless there. Empty variables are removed: they count as unset.

    Raises:
        UsageError: names the variables found, the missing ones, and the command to start without them.
    """
    for name in (*_PLACE, *_LAYOUTS, "ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU"):
        if not os.environ.get(name, "-").strip():
            del os.environ[name]
    found = {name: os.environ[name] for name in _PLACE if name in os.environ}
    found |= {name: os.environ[name] for name in _LAYOUTS if is_requested(name.removeprefix("ACCELERATE_USE_"))}
    numbers: dict[str, int] = {}
    for name in _NUMBERS:
        value = found.get(name, "-1").strip()
        if value.isdecimal():
            numbers[name] = int(value)
        elif value != "-1":  # some programs write -1 for "not distributed"
            raise _refusal(f"{name}={value} is not an integer", found)
    several = numbers.get("WORLD_SIZE", 1)
    if several < 1:
        raise _refusal(f"WORLD_SIZE={several} is below 1", found)
    if numbers.get("RANK", 0) >= several:
        known = f"WORLD_SIZE={several}" if "WORLD_SIZE" in numbers else "WORLD_SIZE (not set, counts as 1)"
        raise _refusal(f"RANK={numbers['RANK']} is not below {known}", found)
    if {"WORLD_SIZE", "RANK", "LOCAL_RANK"} <= numbers.keys() and several == 1 and not found.keys() & set(_LAYOUTS):
        for name in _PLACE:  # one process needs no rendezvous, and PyTorch would wait for a main machine that is gone
            os.environ.pop(name, None)
        found, numbers = {}, {}
    if "LOCAL_RANK" in numbers or several > 1 or any(name in found for name in _LAYOUTS):
        # On CPUs, Accelerate defaults to 0 for LOCAL_RANK and 29500 for MASTER_PORT.
        needed = ["WORLD_SIZE", "RANK", "MASTER_ADDR", *([] if is_requested("CPU") else ["LOCAL_RANK", "MASTER_PORT"])]
        missing = [name for name in needed if name not in (found if name == "MASTER_ADDR" else numbers)]
        if missing:
            verb = "is" if len(missing) == 1 else "are"
            raise _refusal(f"{listed(missing)} {verb} missing", found)
        _check_address(found)
    _check_backend(os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no"))
    for name, words in (("ACCELERATE_MIXED_PRECISION", _PRECISIONS), ("ACCELERATE_USE_CPU", _TRUTH_VALUES)):
        value = os.environ.get(name, words[0]).lower()
        if value not in words:
            raise UsageError(
                f"{name}={value} is not a valid value.{nearest(value, words)} Use one of {', '.join(words)}, or start "
                f"without it: env -u {name} python ..."
            )
    if "ACCELERATE_USE_MEGATRON_LM" in found:
        raise UsageError("Megatron-LM is not supported: launch with a file in accelerate_configs/, such as ddp.yaml")


def _check_address(found: dict[str, str]) -> None:
    """Refuses a main machine whose name does not resolve; PyTorch would try to reach it for hours."""
    until = time.monotonic() + _SECONDS_FOR_A_NAME
    while True:
        try:
            socket.getaddrinfo(found["MASTER_ADDR"], None)
            return
        except OSError as error:
            if time.monotonic() > until:
                without = " ".join(f"-u {name}" for name in found)
                raise UsageError(
                    f"MASTER_ADDR={found['MASTER_ADDR']} cannot be resolved ({error.strerror}). Correct the address of "
                    f"the main machine or, if it is left over from an earlier launch, start without it: env {without} "
                    "python ..."
                ) from error
        time.sleep(1)


def _check_backend(name: str) -> None:
    from accelerate.utils import DynamoBackend

    known = [backend.lower() for backend in DynamoBackend.list()]
    if name.lower() not in known:
        raise UsageError(
            f"ACCELERATE_DYNAMO_BACKEND={name} is not a backend of torch.compile.{nearest(name, known)} Set it to no, "
            "or start without it: env -u ACCELERATE_DYNAMO_BACKEND python ..."
        )


def compilation(accelerator: Accelerator) -> str:
    """Returns the backend of torch.compile that the launcher asks for, as text; empty if there is none."""
    backend = accelerator.state.dynamo_plugin.backend.value.lower()
    return "" if backend == "no" else f"ACCELERATE_DYNAMO_BACKEND={backend}"


def _refusal(reason: str, found: dict[str, str]) -> UsageError:
    set_ones = ", ".join(f"{name}={value}" for name, value in found.items())
    without = " ".join(f"-u {name}" for name in found)
    error = UsageError(
        f"the environment has launcher variables ({set_ones}), but no launcher started this process: {reason}. "
        f"For one process, start without them: env {without} python ... For several, start with `accelerate launch` "
        "or `torchrun`, which set all of them"
    )
    error.of_one_process = True  # other processes are not known yet
    return error
