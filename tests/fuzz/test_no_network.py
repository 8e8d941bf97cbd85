"""Training and export of local files in a network namespace without any network, not even loopback."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT
from script_fixtures import SCRIPT, Tiny, environment, read_json, words

pytest_plugins = ["script_fixtures"]
pytestmark = pytest.mark.slow

ALONE = ["unshare", "--map-root-user", "--net"]


def test_everything_works_without_a_network(tiny: Tiny, tmp_path: Path) -> None:
    if not shutil.which("unshare") or subprocess.run([*ALONE, "true"], capture_output=True).returncode:
        pytest.skip("this system allows no network namespaces")
    # Not told that there is none: nothing may be tried first.
    variables = environment(HF_HOME=str(tmp_path / "hf"), SPARSE_ACCEL_CACHE=str(tmp_path / "own"))
    del variables["HF_HUB_OFFLINE"]
    output = tmp_path / "out"
    flags = tiny.flags(output_dir=output, distill_teacher="disable", report_to="tensorboard")
    export = ["--model_path", str(output), "--task", "text_classification", "--reduce_range"]
    for script, asked in ((SCRIPT, words(**flags)), (ROOT / "scripts" / "export_onnx.py", export)):
        command = [*ALONE, sys.executable, str(script), *asked]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not any(word in done.stderr.lower() for word in ("connection", "resolve", "retry", "unreachable"))
    assert read_json(output / "run.json")["finished"] and (tmp_path / "deployment" / "model.onnx").is_file()
