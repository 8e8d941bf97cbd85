"""The runtime with the oldest onnxruntime that it supports, and with the newest there is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import GOLDEN, ROOT

pytestmark = pytest.mark.slow

PROGRAM = """
import json, sys
import numpy, onnxruntime
from sparse_accel.runtime import explain, session
from sparse_accel.runtime.library import load_library
from sparse_accel.runtime.timing import plain_session, random_inputs
from pathlib import Path

file = Path(sys.argv[1]) / "model.onnx"
differences = {}
for isa in load_library().instruction_sets:
    import os
    os.environ["SPARSE_ACCEL_ISA"] = isa
    for threads in (1, 2):
        made = session(file.parent, threads=threads)
        assert explain(made).instruction_set == isa, str(explain(made))
        for batch, tokens in ((1, 1), (5, 9)):
            feed = random_inputs(file, batch, tokens)
            own = plain_session(file).run(None, feed)[0]
            differences[f"{isa} {threads} {batch}"] = float(numpy.abs(made.run(None, feed)[0] - own).max())
print(json.dumps({"version": onnxruntime.__version__, "differences": differences}))
"""


def oldest() -> str:
    """The lower bound of the extra `runtime`."""
    text = (ROOT / "pyproject.toml").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("runtime = "))
    return line.split('"onnxruntime>=')[1].split('"')[0]


@pytest.mark.parametrize("version", [f"=={oldest()}.*", ""], ids=["oldest", "newest"])
def test_another_onnxruntime(version: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--upgrade"]
    site = tmp_path / "site"
    subprocess.run([*command, "--target", str(site), f"onnxruntime{version}"], check=True, timeout=600)
    environment = os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(GOLDEN / "old_run" / "deployment")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    if version:
        assert found["version"].startswith(oldest())
    assert max(found["differences"].values()) < 0.02, found
