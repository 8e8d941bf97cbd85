"""Runs a script that waits for lost processes only a tenth as long:  short_waits.py SCRIPT FLAG ..."""

from __future__ import annotations

import os
import runpy
import sys

from sparse_accel.distributed import heartbeat

heartbeat._END_AFTER /= 10
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
