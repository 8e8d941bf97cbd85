"""Runs a script under DDP in one process, as one GPU can. Alone, the scripts leave out the wrapper, which one process
does not need.

    accelerate launch --config_file accelerate_configs/ddp.yaml --num_processes 1 tests/support/ddp_of_one.py SCRIPT ...
"""

from __future__ import annotations

import os
import runpy
import sys

from accelerate import PartialState

# Before the script sees the launcher's variables, and removes them.
PartialState(cpu=os.environ.get("ACCELERATE_USE_CPU") == "true")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
