"""Runs a script under FSDP2 on CPU processes, for which Accelerate has no launch mode: asked for a CPU, it falls back
to DDP, and without one it starts runs that know nothing of each other.

    accelerate launch --config_file accelerate_configs/fsdp2.yaml tests/fsdp2_on_cpu.py SCRIPT FLAGS
"""

from __future__ import annotations

import runpy
import sys

from accelerate import PartialState
from accelerate.utils import DistributedType

PartialState(cpu=True)
# What a process on a GPU would find; the launcher's settings then make it FSDP.
PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
