"""A launcher's variables: what a launcher sets passes, and what is left over is refused by name before Accelerate."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from accelerate import Accelerator
from accelerate.utils import DistributedType, DynamoBackend
from hypothesis import given
from hypothesis import strategies as st
from places import ROOT
from script_fixtures import Tiny, environment, run
from tiny import make_bert

from sparse_accel import entry_points
from sparse_accel.cli.text_classification import TextClassificationArguments
from sparse_accel.distributed import processor
from sparse_accel.distributed.environment import check_environment, compilation
from sparse_accel.errors import UsageError
from sparse_accel.recipe_run import RecipeRun
from sparse_accel.training import setup
from sparse_accel.training.start_table import start_table

pytest_plugins = ["script_fixtures"]

NAMES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LAYOUTS = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_MEGATRON_LM")
LAUNCH = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    others = ("ACCELERATE_USE_CPU", "ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_MIXED_PRECISION")
    for name in (*NAMES, *LAYOUTS, *others):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        LAUNCH,
        {**LAUNCH, "LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_DEEPSPEED": "true"},
        {**LAUNCH, "WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "ACCELERATE_USE_FSDP": "true"},
        {"WORLD_SIZE": "1"},
        {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "pod-0", "MASTER_PORT": "23456"},  # a pod of one
        {"RANK": "0"},
        {"LOCAL_RANK": "-1"},
        {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},  # `accelerate launch` leaves them to one process
        {"ACCELERATE_USE_DEEPSPEED": "false", "ACCELERATE_DYNAMO_BACKEND": "NO"},
        {"SLURM_PROCID": "3", "SLURM_NTASKS": "4"},
        {"ACCELERATE_USE_CPU": "true", "WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "localhost"},
    ],
)
def test_what_launches_and_single_processes_have(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    check_environment()


def test_a_main_machine_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparse_accel.distributed.environment._SECONDS_FOR_A_NAME", 0.0)
    for name, value in {**LAUNCH, "MASTER_ADDR": "nowhere.invalid"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"MASTER_ADDR=nowhere\.invalid cannot be resolved"):
        check_environment()


@pytest.mark.parametrize("variable", ["ACCELERATE_MIXED_PRECISION=fp8", "ACCELERATE_USE_CPU=maybe"])
def test_values_that_are_not_known(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, _, value = variable.partition("=")
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=f"{variable} is not a valid value"):
        check_environment()


@pytest.mark.parametrize(("flags", "precision"), [((), "float32"), (("avx2", "avx512_bf16"), "bf16")])
def test_a_precision_that_is_left_over(
    flags: tuple[str, ...], precision: str, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "cpu_flags", lambda: frozenset(flags))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    flags_of_run: dict[str, Any] = {"model_name_or_path": tiny.model, "train_file": tiny.train, "do_train": True}
    done = run(**flags_of_run, max_steps=1, output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    assert f"fp16 (ACCELERATE_MIXED_PRECISION) needs a GPU, but there is none: training in {precision}" in done.err
    assert re.search(rf"precision +{precision}\b", done.out)


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({**LAUNCH, "LOCAL_RANK": ""}, "LOCAL_RANK is missing"),
        ({"LOCAL_RANK": "0"}, "WORLD_SIZE, RANK, MASTER_ADDR, MASTER_PORT are missing"),
        ({"WORLD_SIZE": "2"}, "RANK, MASTER_ADDR, LOCAL_RANK, MASTER_PORT are missing"),
        *(({name: "true"}, "WORLD_SIZE, RANK, MASTER_ADDR, LOCAL_RANK, MASTER_PORT are missing") for name in LAYOUTS),
        ({"RANK": "abc"}, "RANK=abc is not an integer"),
        ({**LAUNCH, "WORLD_SIZE": "two"}, "WORLD_SIZE=two is not an integer"),
        ({**LAUNCH, "MASTER_PORT": "tcp://10.0.0.1:80"}, "MASTER_PORT=tcp://10.0.0.1:80 is not an integer"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0 is below 1"),
        ({**LAUNCH, "RANK": "2"}, "RANK=2 is not below WORLD_SIZE=2"),
        ({"RANK": "1"}, "RANK=1 is not below WORLD_SIZE (not set, counts as 1)"),
    ],
)
def test_left_over(variables: dict[str, str], reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError) as refused:
        check_environment()
    message = str(refused.value)
    assert f"no launcher started this process: {reason}. " in message and "`accelerate launch` or `torchrun`" in message
    assert refused.value.of_one_process, "whichever process it takes itself for says it at once"
    without = {name for name, value in variables.items() if value}
    assert set(re.findall(r"-u (\w+)", message)) == without
    assert all(f"{name}={variables[name]}" in message for name in without)


@given(
    st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["", " ", "0", "1", "2", "-1", "x", "1.5", "29500"])),
    st.dictionaries(st.sampled_from(LAYOUTS), st.sampled_from(["", "true", "false", "1"])),
)
def test_any_environment_passes_or_is_refused(place: dict[str, str], layouts: dict[str, str]) -> None:
    """The command of the message always helps; an empty variable is the same as none."""
    variables = place | layouts

    def judged(**others: str) -> str:
        clean = {name: value for name, value in os.environ.items() if name not in (*NAMES, *LAYOUTS)}
        with patch.dict(os.environ, {**clean, **others}, clear=True):
            try:
                check_environment()
            except UsageError as refused:
                return str(refused)
            assert not [name for name in others if not os.environ.get(name, "0").strip()]
        return ""

    message = judged(**variables)
    assert judged(**{name: value for name, value in variables.items() if value.strip()}) == message
    if message and "Megatron-LM is not supported" not in message:
        without = re.findall(r"-u (\w+)", message)
        assert without and judged(**{name: value for name, value in variables.items() if name not in without}) == ""


def test_megatron_is_refused_where_it_was_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**LAUNCH, "ACCELERATE_USE_MEGATRON_LM": "true"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="Megatron-LM is not supported"):
        check_environment()


def test_the_script_says_it_before_accelerate_is_asked(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")  # no launcher: nobody else would speak
    monkeypatch.setenv("LOCAL_RANK", "0")
    refused = run(**tiny.flags(output_dir=tmp_path / "out"))
    assert refused.code == 2 and refused.err.startswith("error: the environment has launcher variables"), refused.all
    assert "Traceback" not in refused.err and not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["torch.distributed.run", "--standalone", "--nproc_per_node", "1"],
        ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
        ["accelerate.commands.launch", "--config_file", str(ROOT / "accelerate_configs" / "cpu.yaml")],
    ],
)
def test_launchers_pass(launcher: list[str], tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("from sparse_accel.distributed.environment import check_environment\ncheck_environment()\n")
    command = [sys.executable, "-m", *launcher, str(program)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# --- the installed commands -------------------------------------------------------------------------------------------


def test_an_empty_variable_does_not_hide_a_launch_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file may be named in the home folder, which no shell has looked at."""
    file = tmp_path / "ddp.yaml"
    file.touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ACCELERATE_CONFIG_FILE", "~/ddp.yaml")
    monkeypatch.setenv("LOCAL_RANK", "")
    assert entry_points.launch_settings() == file
    monkeypatch.setenv("RANK", "0")  # in a launch, or left over: the script says which
    assert entry_points.launch_settings() is None


# --- torch.compile, which the environment may ask for -----------------------------------------------------------------


def test_a_backend_that_is_not_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "induktor")
    with pytest.raises(UsageError, match=r"induktor is not a backend .* Did you mean 'inductor'"):
        check_environment()


def compiled(backend: str) -> Any:
    plugin = SimpleNamespace(backend=DynamoBackend(backend))
    return SimpleNamespace(
        state=SimpleNamespace(dynamo_plugin=plugin, deepspeed_plugin=SimpleNamespace(zero_stage=2)),
        distributed_type=DistributedType.DEEPSPEED,
        num_processes=2,
        mixed_precision="no",
        log_with=[],
    )


def test_compilation_by_the_launcher() -> None:
    assert compilation(compiled("NO")) == ""
    assert compilation(compiled("INDUCTOR")) == "ACCELERATE_DYNAMO_BACKEND=inductor"


def test_the_start_up_table_says_that_the_environment_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator, model = Accelerator(cpu=True), make_bert()
    run_of_nothing = RecipeRun(None)
    run_of_nothing.attach(model)
    run_of_nothing.model = model
    assert "compiled" not in start_table(accelerator, run_of_nothing, [])
    monkeypatch.setattr(accelerator.state.dynamo_plugin, "backend", DynamoBackend.EAGER)
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    assert re.search(r"compiled +ACCELERATE_DYNAMO_BACKEND=eager", start_table(accelerator, run_of_nothing, []))


@pytest.mark.parametrize(
    ("flags", "variables", "asked"),
    [
        ({"torch_compile": True}, {}, "--torch_compile"),
        ({}, {"ACCELERATE_DYNAMO_BACKEND": "inductor"}, "ACCELERATE_DYNAMO_BACKEND=inductor"),
    ],
)
def test_compilation_is_refused_however_it_was_asked_for(
    flags: dict[str, Any], variables: dict[str, str], asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    arguments = TextClassificationArguments(
        model_name_or_path="model", output_dir="out", do_train=True, task_name="sst2", **flags
    )
    monkeypatch.setattr(setup, "Accelerator", lambda **_: compiled("INDUCTOR"))
    monkeypatch.setattr(setup, "check_launch", lambda _: None)
    with pytest.raises(UsageError, match=rf"torch.compile \({asked}\) under DeepSpeed ZeRO-2, 2 proc"):
        setup.make_accelerator(arguments)
