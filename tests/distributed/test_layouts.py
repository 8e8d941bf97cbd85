"""One recipe gives one result under DDP, FSDP2 and DeepSpeed, and a run may move between them. Real processes."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from layouts import LAYOUTS, SHORT, difference, launcher, make_flags, masks_of, recipe_flags, run_under, start_under
from places import SUPPORT
from script_fixtures import (
    assert_same_model,
    environment,
    flat,
    make_model,
    read_json,
    run,
    start,
    trace,
    wait,
    weights,
)

pytestmark = pytest.mark.slow

FLOAT_STEPS = 7  # quantization begins with the 8th
ONCE = ("deepspeed_zero1", "gradual")  # ZeRO-1 differs from ZeRO-2 in when gradients are shared out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layouts")


@pytest.fixture(scope="module")
def flags(folder: Path) -> dict[str, Any]:
    return {**make_flags(folder), "save_strategy": "steps", "save_steps": 5}


@pytest.fixture(scope="module")
def whole(folder: Path, flags: dict[str, Any]) -> Callable[[str, str], Path]:
    """Gives the folder of a whole run under a layout with a recipe; each is run once."""

    def train(layout: str, recipe: str) -> Path:
        output = folder / recipe / layout
        if not output.exists():
            ended = run_under(layout, **flags, **recipe_flags(folder, recipe), output_dir=output)
            assert ended.code == 0, ended.all
            assert ended.out.count("── results") == 1 and ended.out.count("── run ") == 1  # one process speaks
            words = {"one": "one process", "ddp": "DDP, 2", "fsdp2": "FSDP2, 2"}
            assert words.get(layout, f"DeepSpeed ZeRO-{layout[-1]}, 2") in flat(ended.out)
        return output

    return train


def unfinished(whole: Path, output: Path, step: int) -> Path:
    """The folder as a kill after checkpoint `step` would have left it."""
    output.mkdir()
    shutil.copytree(whole / f"checkpoint-{step}", output / f"checkpoint-{step}")
    record = (whole / "run.json").read_text().replace('"finished": true', '"finished": false')
    (output / "run.json").write_text(record)
    return output


@pytest.mark.parametrize(
    ("layout", "recipe"),
    [(layout, recipe) for layout in LAYOUTS for recipe in ("tutorial", "gradual") if (layout, recipe) != ONCE],
)
def test_it_trains_what_one_process_trains(whole: Callable[[str, str], Path], layout: str, recipe: str) -> None:
    one, other = whole("one", recipe), whole(layout, recipe)
    found = difference(one, other, FLOAT_STEPS)
    assert found.loss_before < 1e-6  # sums in another order
    # From there a sum in another order may round to the next integer, and the weights behind it move otherwise.
    assert found.loss < 5e-3 and found.weight < 5e-3 and found.scale < 0.02
    assert found.under_masks == 0 and found.rate == 0
    first, second = masks_of(one), masks_of(other)
    assert first.keys() == second.keys() and len(first) == 14
    for name, mask in first.items():
        assert int(mask.sum()) == int(second[name].sum())
        assert float((mask == second[name]).float().mean()) > 0.999
    for name in ("eval_loss", "eval_accuracy"):
        assert trace(other, name) == pytest.approx(trace(one, name), abs=0.02)
    results = read_json(other / "all_results.json")
    assert results["quantized_linears"] == 14
    assert read_json(other / "sparsity.json")["prunable"] == read_json(one / "sparsity.json")["prunable"]


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != ONCE[0]])
def test_it_goes_on_from_the_middle_of_an_epoch(
    whole: Callable[[str, str], Path], folder: Path, flags: dict[str, Any], tmp_path: Path, layout: str
) -> None:
    expected = whole(layout, "gradual")
    output = unfinished(expected, tmp_path / "out", 10)
    ended = run_under(layout, **flags, **recipe_flags(folder, "gradual"), output_dir=output)
    assert ended.code == 0 and "from step 10" in flat(ended.out), ended.all
    losses, before = trace(output, "train/loss"), trace(expected, "train/loss")
    assert losses.keys() == before.keys()
    assert losses[11] == pytest.approx(before[11], abs=1e-6)
    assert difference(expected, output, FLOAT_STEPS).under_masks == 0
    if layout == "ddp":
        assert losses == before
        assert_same_model(expected, output)


def test_a_run_moves_from_layout_to_layout(
    whole: Callable[[str, str], Path], folder: Path, flags: dict[str, Any], tmp_path: Path
) -> None:
    """Begun by FSDP2 on four processes, gone on with by DDP on two, then by ZeRO-3, finished by one process."""
    output, settings = tmp_path / "out", recipe_flags(folder, "gradual")
    first = {**flags, **settings, "per_device_train_batch_size": 8, "output_dir": output}
    stop_after(output, 5, start_under("fsdp2", "--num_processes", "4", **first))
    stop_after(output, 10, start_under("ddp", **flags, **settings, output_dir=output))
    stop_after(output, 15, start_under("deepspeed_zero3", **flags, **settings, output_dir=output))
    ended = run(**flags, **settings, gradient_accumulation_steps=2, output_dir=output)
    assert ended.code == 0 and "resuming from step" in flat(ended.out), ended.all
    found = difference(whole("one", "gradual"), output, FLOAT_STEPS)
    assert found.loss_before < 1e-6 and found.loss < 5e-3 and found.under_masks == 0 and found.rate == 0
    assert [*trace(output, "train/loss")] == [*range(1, 22)]  # each step once


def stop_after(output: Path, step: int, process: subprocess.Popen[str], number: int = signal.SIGTERM) -> None:
    """Asks the launcher to stop once a checkpoint is there; its processes save before they end."""
    wait_for(lambda: (output / f"checkpoint-{step}").is_dir() or process.poll() is not None)
    process.send_signal(number)
    ended = wait(process, timeout=120)
    assert ended.code != 0 and f"stopped by {signal.Signals(number).name}" in ended.err, ended.all
    assert not list(output.glob(".*.partial"))


def wait_for(condition: Callable[[], bool], timeout: float = 240) -> None:
    limit = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_process_stops_all_at_the_same_step(
    folder: Path, flags: dict[str, Any], whole: Callable[[str, str], Path], tmp_path: Path, number: int
) -> None:
    output, settings = tmp_path / "out", {**recipe_flags(folder, "tutorial"), "save_steps": 2}
    process = start_under("ddp", **{**flags, **settings}, output_dir=output)
    wait_for(lambda: (output / "checkpoint-2").is_dir())
    os.kill(worker(process.pid, rank=1), number)
    ended = wait(process, timeout=120)
    assert f"stopped by {signal.Signals(number).name}" in ended.err and "exitcode  : 75" in ended.err, ended.all
    again = run_under("ddp", **{**flags, **settings}, output_dir=output)
    assert again.code == 0 and "resuming from step" in flat(again.out), again.all
    assert_same_model(whole("ddp", "tutorial"), output)


def worker(launcher: int, rank: int) -> int:
    """Returns the process of a rank under a launcher."""
    found = subprocess.run(["pgrep", "-P", str(launcher)], capture_output=True, text=True, check=True).stdout.split()
    for number in map(int, found):
        if f"RANK={rank}" in Path(f"/proc/{number}/environ").read_text().split("\0"):
            return number
    raise AssertionError(f"no rank {rank} among {found}")


@pytest.mark.parametrize("moment", ["run.json", "checkpoint-5"])
def test_a_process_that_dies_is_named(folder: Path, flags: dict[str, Any], tmp_path: Path, moment: str) -> None:
    """Before training too: the launcher ends the other one at once, which looks who is missing before it goes."""
    output, settings = tmp_path / "out", {**flags, **recipe_flags(folder, "tutorial")}
    process = start_under("ddp", **settings, output_dir=output)
    wait_for(lambda: (output / moment).exists())
    os.kill(worker(process.pid, rank=1), signal.SIGKILL)
    ended = wait(process, timeout=90)
    assert ended.code != 0 and "error: process 1 (on " in ended.err and "of 2 ended" in ended.err, ended.all
    if moment == "checkpoint-5":
        again = run_under("ddp", **settings, output_dir=output)
        assert again.code == 0 and "resuming from step" in flat(again.out), again.all


def test_processes_whose_launcher_ends_save(
    folder: Path, flags: dict[str, Any], whole: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """SIGUSR1 kills a launcher that was not told to pass it on. The same command, typed at once, waits for the save."""
    output, settings = tmp_path / "out", {**flags, **recipe_flags(folder, "tutorial"), "save_steps": 2}
    process = start_under("ddp", **settings, output_dir=output)
    wait_for(lambda: (output / "checkpoint-2").is_dir())
    process.send_signal(signal.SIGUSR1)
    again = run_under("ddp", **settings, output_dir=output)
    ended = wait(process, timeout=120)
    assert "stopped by the end of its launcher" in ended.err, ended.all
    assert again.code == 0 and "resuming from step" in flat(again.out), again.all
    assert_same_model(whole("ddp", "tutorial"), output)


def test_machines_whose_caches_differ(folder: Path, flags: dict[str, Any], tmp_path: Path) -> None:
    """The second run finds the teacher's table on one of them only."""
    program = tmp_path / "own_cache.py"
    program.write_text(
        "import os, runpy, sys\n"
        "os.environ['SPARSE_ACCEL_CACHE'] = os.path.join(os.environ['OWN_CACHES'], os.environ['RANK'])\n"
        "sys.argv.pop(0)\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    launch, variables = launcher("ddp")
    variables = {**variables, "OWN_CACHES": str(tmp_path / "caches")}
    settings: dict[str, Any] = {**flags, **recipe_flags(folder, "tutorial"), "recipe_args": {**SHORT, "num_epochs": 1}}
    for name in ("first", "second"):
        ended = wait(start(launcher=[*launch, str(program)], env=variables, **settings, output_dir=tmp_path / name))
        assert ended.code == 0, ended.all
    assert [path.name for path in (tmp_path / "caches").iterdir()] == ["0"]
    assert_same_model(tmp_path / "first", tmp_path / "second")


def test_ctrl_c_saves_under_several_processes(folder: Path, flags: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "out"
    process = start_under("ddp", **flags, **recipe_flags(folder, "tutorial"), output_dir=output)
    wait_for(lambda: (output / "checkpoint-5").is_dir())
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the launcher, and each process
    ended = wait(process, timeout=90)
    assert ended.code != 0 and "interrupted: run the same command again" in ended.err, ended.all
    again = run_under("ddp", **flags, **recipe_flags(folder, "tutorial"), output_dir=output)
    assert again.code == 0 and "resuming from step" in flat(again.out), again.all


@pytest.mark.parametrize("layout", ["fsdp2", "deepspeed_zero3"])
def test_bfloat16_gives_float32_files(
    whole: Callable[[str, str], Path], folder: Path, flags: dict[str, Any], tmp_path: Path, layout: str
) -> None:
    settings: dict[str, Any] = {**flags, **recipe_flags(folder, "tutorial")}
    output = tmp_path / "out"
    ended = run_under(layout, precision="bf16", **settings, output_dir=output)
    assert ended.code == 0 and "bf16" in flat(ended.out), ended.all
    found = difference(whole("one", "tutorial"), output, FLOAT_STEPS)
    assert found.loss < 0.1 and found.under_masks == 0 and found.rate == 0
    rounded = [name for name, tensor in weights(output).items() if tensor.equal(tensor.bfloat16().float())]
    assert len(rounded) <= 3, "weights are the optimizer's, not their 16-bit copies"
    # From its own checkpoint it goes on with the very weights.
    resumed = unfinished(output, tmp_path / "resumed", 10)
    again = run_under(layout, precision="bf16", **settings, output_dir=resumed)
    assert again.code == 0, again.all
    losses, before = trace(resumed, "train/loss"), trace(output, "train/loss")
    assert losses[11] == pytest.approx(before[11], abs=1e-6)


def test_gradient_checkpointing_and_frozen_weights(folder: Path, flags: dict[str, Any], tmp_path: Path) -> None:
    """Recomputed forwards observe nothing twice; weights that never train need no look for unused ones."""
    recipe = (folder / "gradual.yaml").read_text()
    frozen = recipe + "  - !TrainableParamsModifier {params: ['re:bert.embeddings'], trainable: false}\n"
    (tmp_path / "frozen.yaml").write_text(frozen)
    settings: dict[str, Any] = {**flags, "recipe": tmp_path / "frozen.yaml"}
    plain = run_under("one", **settings, output_dir=tmp_path / "plain")
    assert plain.code == 0, plain.all
    for layout in ("ddp", "fsdp2"):
        ended = run_under(layout, **settings, gradient_checkpointing=True, output_dir=tmp_path / layout)
        assert ended.code == 0, ended.all
        found = difference(tmp_path / "plain", tmp_path / layout, FLOAT_STEPS)
        assert found.loss_before < 1e-6 and found.loss < 5e-3 and found.under_masks == 0


def test_compiled_under_ddp(folder: Path, flags: dict[str, Any], tmp_path: Path) -> None:
    """Three steps, each of another graph: pruned, quantized for the first time, quantized with ranges."""
    none: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_hidden_layers": 2}
    settings: dict[str, Any] = {**flags, **recipe_flags(folder, "tutorial"), "do_eval": None, "eval_strategy": "no"}
    settings |= {"recipe_args": {**SHORT, "num_epochs": 1, "qat_start_epoch": 0.3, "observer_epoch": 0.9}}
    settings |= {"model_name_or_path": make_model(tmp_path / "narrow", sparse=True, **none), "max_train_samples": 75}
    for name, compiled in (("eager", None), ("compiled", True)):
        ended = run_under("ddp", **settings, torch_compile=compiled, output_dir=tmp_path / name)
        assert ended.code == 0, ended.all
    found = difference(tmp_path / "eager", tmp_path / "compiled", float_steps=1)
    assert found.loss_before < 1e-6 and found.loss < 1e-3 and found.weight < 5e-3 and found.scale < 0.02
    assert found.under_masks == 0 and found.rate == 0


@pytest.mark.parametrize("layout", ["ddp", "fsdp2", "deepspeed_zero2"])
def test_micro_batches(folder: Path, flags: dict[str, Any], tmp_path: Path, layout: str) -> None:
    """Two processes with two micro-batches each take the steps of one process with four."""
    settings: dict[str, Any] = {
        **flags,
        **recipe_flags(folder, "gradual"),
        "per_device_train_batch_size": 8,
        "save_strategy": "epoch",
    }
    one = run(**settings, gradient_accumulation_steps=4, output_dir=tmp_path / "one")
    assert one.code == 0, one.all
    ended = run_under(layout, **settings, gradient_accumulation_steps=2, output_dir=tmp_path / "two")
    assert ended.code == 0, ended.all
    found = difference(tmp_path / "one", tmp_path / "two", FLOAT_STEPS)
    assert found.loss_before < 1e-6 and found.loss < 5e-3 and found.under_masks == 0 and found.rate == 0


def test_a_full_disk_ends_all_processes(folder: Path, flags: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "out"
    process = start_under("ddp", **flags, **recipe_flags(folder, "tutorial"), output_dir=output)
    wait_for(lambda: (output / "checkpoint-5").is_dir())
    resource.prlimit(worker(process.pid, rank=0), resource.RLIMIT_FSIZE, (20_000, 20_000))
    ended = wait(process, timeout=120)
    assert ended.code != 0 and ended.err.count("cannot be written") == 1 and "Free disk space" in ended.err, ended.all
    assert not list(output.glob(".*.partial"))


def test_weights_that_no_forward_uses(tmp_path: Path) -> None:
    """DDP has to be told to look for them; without being told it stops in the second step, and the flag is named."""
    for flag in ("--find_unused_parameters", ""):
        launch, variables = launcher("ddp")
        program = [sys.executable, *launch, str(SUPPORT / "unused_weights.py"), *flag.split()]
        done = subprocess.run(program, env=environment(**variables), capture_output=True, text=True, timeout=120)
        if flag:
            assert done.returncode == 0 and done.stdout.count("trained 3 steps") == 2, done.stderr
        else:
            assert done.returncode != 0 and "--ddp_find_unused_parameters" in done.stderr, done.stderr
