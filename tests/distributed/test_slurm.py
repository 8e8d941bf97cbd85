"""accelerate_configs/slurm on a real SLURM of one node: submitted, warned, requeued, preempted, finished.

Needs root and Debian's packages slurmctld, slurmd, slurm-client and munge; without them these tests say so and are
skipped.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from layouts import SHORT, make_flags, recipe_flags
from places import ROOT
from script_fixtures import assert_same_model, environment, run, words

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
missing = [name for name in PROGRAMS if shutil.which(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing), reason=f"SLURM is not installed here: no {', '.join(missing)}"),
    pytest.mark.skipif(not missing and os.geteuid() != 0, reason="starting SLURM's programs needs root"),
]

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPort={port}
SlurmdPort={second_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SchedulerParameters=sched_interval=1,bf_interval=1
ReturnToService=2
KillWait=60
MinJobAge=3600
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A SLURM of this machine; gives the environment in which its commands find it."""
    folder = tmp_path_factory.mktemp("slurm")
    for parent in [folder, *folder.parents][:3]:
        parent.chmod(0o755)  # munged, which is not root, goes through
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    ports = {"port": free_port(), "second_port": free_port()}
    host, cpus = socket.gethostname().partition(".")[0], os.cpu_count()
    settings = CONFIGURATION.format(folder=folder, host=host, cpus=cpus, **ports)
    (folder / "slurm.conf").write_text(settings)
    variables = {"SLURM_CONF": str(folder / "slurm.conf")}
    environ = os.environ | variables
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    munge = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munge += [f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed"]
    started = [subprocess.Popen(munge, stderr=subprocess.DEVNULL)]
    try:
        wait_for(lambda: (folder / "munge.socket").exists())
        started.append(subprocess.Popen(["slurmctld", "-D", "-c"], env=environ, stderr=subprocess.DEVNULL))
        started.append(subprocess.Popen(["slurmd", "-D", "-N", host], env=environ, stderr=subprocess.DEVNULL))
        wait_for(lambda: "idle" in ask(variables, "sinfo", "--noheader", "--format=%t"))
        yield variables
    finally:
        subprocess.run(["scancel", "--user=root"], env=environ, capture_output=True)
        for process in reversed(started):
            process.terminate()
            process.wait(timeout=60)


def wait_for(condition: Callable[[], bool], timeout: float = 120) -> None:
    limit = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.1)


def ask(variables: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True).stdout.strip()


def test_a_job_is_warned_requeued_preempted_and_finished(cluster: dict[str, str], tmp_path: Path) -> None:
    flags: dict[str, Any] = {**make_flags(tmp_path), "save_strategy": "steps", "save_steps": 2}
    flags |= recipe_flags(tmp_path, "tutorial") | {"seed": 42, "recipe_args": {**SHORT, "num_epochs": 6}}
    asked_for = {**flags, "seed": "{seed}", "output_dir": tmp_path / "run-{seed}"}
    output = tmp_path / "run-42"
    variables = environment(
        ACCELERATE_USE_CPU="true",
        ACCELERATE_MIXED_PRECISION="no",
        PROCESSES="2",
        LAUNCH_CONFIG=str(ddp_without_bf16(tmp_path)),
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    )
    # This cluster has no GPUs to ask for, and few processors.
    script = tmp_path / "one_node.sbatch"
    text = (ROOT / "accelerate_configs/slurm/one_node.sbatch").read_text()
    script.write_text(text.replace("#SBATCH --gpus-per-node=8\n", "").replace("per-task=64", "per-task=1"))
    submitted = subprocess.run(
        ["sbatch", "--parsable", "--array=42", f"--output={tmp_path}/log", str(script), *words(**asked_for)],
        cwd=ROOT,
        env=variables | cluster,
        capture_output=True,
        text=True,
    )
    assert submitted.returncode == 0, submitted.stderr
    job = submitted.stdout.strip() + "_42"

    def log() -> str:
        return (tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""

    def state() -> str:
        return ask(cluster, "squeue", f"--jobs={job}", "--noheader", "--states=all", "--format=%T")

    def until(condition: Callable[[], bool]) -> None:
        wait_for(lambda: condition() or state() == "COMPLETED")
        assert condition(), f"{state()}\n{log()}"

    until(lambda: (output / "checkpoint-2").is_dir())
    subprocess.run(["scancel", "--signal=USR1", "--batch", job], env=os.environ | cluster, check=True)  # as --signal=B:
    until(lambda: "is requeued" in log())
    assert "stopped by SIGUSR1" in log()
    until(lambda: log().count("resuming from step") == 1)
    subprocess.run(["scontrol", "requeue", job], env=os.environ | cluster, check=True)  # as a preemption without grace
    until(lambda: log().count("resuming from step") == 2)
    # One with grace: what has to go saves, ends before its time is over, and asks to come back.
    first = ["sbatch", "--partition=high", "--exclusive", f"--output={tmp_path}/first", "--wrap", "true"]
    subprocess.run(first, env=variables | cluster, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    until(lambda: f"preempted: job {job} is requeued" in log())
    assert "stopped by SIGTERM" in log()
    until(lambda: log().count("resuming from step") == 3)
    until(lambda: state() == "COMPLETED")
    assert log().count("── results") == 1, log()
    whole = run(**flags, gradient_accumulation_steps=2, output_dir=tmp_path / "whole")
    assert whole.code == 0, whole.all
    assert (output / "model.safetensors").exists()
    assert_same_model(tmp_path / "whole", output)


def test_a_job_that_is_cancelled_stays_away(cluster: dict[str, str], tmp_path: Path) -> None:
    """The step is a stand-in for the training script: it ends at once where that would save first."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "text_classification.py").write_text(
        "import time; print('runs', flush=True); time.sleep(300)"
    )
    text = (ROOT / "accelerate_configs/slurm/one_node.sbatch").read_text()
    (tmp_path / "job").write_text(text.replace("#SBATCH --gpus-per-node=8\n", "").replace("per-task=64", "per-task=1"))
    variables = environment(PROCESSES="1", PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}") | cluster
    log = tmp_path / "log"
    command = ["sbatch", "--parsable", "--array=7", f"--output={log}", str(tmp_path / "job")]
    job = subprocess.run(
        command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=True
    ).stdout.strip()
    wait_for(lambda: log.exists() and "runs" in log.read_text())
    subprocess.run(["scancel", job], env=variables, check=True)

    def states() -> str:
        return ask(cluster, "squeue", f"--jobs={job}", "--noheader", "--states=all", "--format=%T")

    wait_for(lambda: states() == "CANCELLED")
    time.sleep(3)
    assert states() == "CANCELLED" and "is requeued" not in log.read_text(), log.read_text()


def ddp_without_bf16(folder: Path) -> Path:
    path = folder / "ddp.yaml"
    text = (ROOT / "accelerate_configs" / "ddp.yaml").read_text()
    path.write_text(text.replace("mixed_precision: bf16", "mixed_precision: 'no'"))
    return path
