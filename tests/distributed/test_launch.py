"""Launches that did not become what they ask for are refused, and processes that are gone are found."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from layouts import launcher
from script_fixtures import Tiny, start, wait
from tiny import make_albert, make_bert, make_distilbert, make_roberta

from sparse_accel.distributed import heartbeat
from sparse_accel.distributed.heartbeat import Heartbeat, report_lost_processes
from sparse_accel.distributed.launch import before_prepare, block_classes, check_launch
from sparse_accel.distributed.optimizer_state import load_scaler_state, scaler_state
from sparse_accel.errors import UsageError

pytest_plugins = ["script_fixtures"]


def accelerator(kind: DistributedType, processes: int = 1, precision: str = "no", **settings: Any) -> Any:
    plugin = SimpleNamespace(**settings)
    state = SimpleNamespace(fsdp_plugin=plugin, deepspeed_plugin=plugin)
    return SimpleNamespace(
        distributed_type=kind,
        num_processes=processes,
        mixed_precision=precision,
        state=state,
        gradient_accumulation_steps=3,
    )


FSDP: dict[str, Any] = {"fsdp_version": 2, "cpu_ram_efficient_loading": False, "activation_checkpointing": False}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fsdp_version": 1}, "set fsdp_version: 2"),
        ({"cpu_ram_efficient_loading": True}, "fsdp_cpu_ram_efficient_loading"),
        ({"activation_checkpointing": True}, "--gradient_checkpointing"),
        ({"precision": "fp16"}, "use bf16"),
    ],
)
def test_settings_under_which_masks_would_be_wrong(settings: dict[str, Any], words: str) -> None:
    check_launch(accelerator(DistributedType.FSDP, **FSDP))
    with pytest.raises(UsageError, match=words):
        check_launch(accelerator(DistributedType.FSDP, **{**FSDP, **settings}))


def test_zero3_init_is_refused() -> None:
    check_launch(accelerator(DistributedType.DEEPSPEED, zero3_init_flag=False))
    with pytest.raises(UsageError, match="zero3_init_flag"):
        check_launch(accelerator(DistributedType.DEEPSPEED, zero3_init_flag=True))


def test_processes_that_did_not_find_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_launch(accelerator(DistributedType.MULTI_GPU, processes=2))
    with pytest.raises(UsageError, match="2 processes, but they do not train together"):
        check_launch(accelerator(DistributedType.NO))
    with pytest.raises(UsageError, match="do not train together"):
        check_launch(accelerator(DistributedType.NO, processes=2))


def test_fsdp_that_became_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UsageError, match="asked for FSDP, but Accelerate uses MULTI_CPU"):
        check_launch(accelerator(DistributedType.MULTI_CPU))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "variables", "words"),
    [
        ("fsdp2", {"ACCELERATE_USE_CPU": "true"}, "asked for FSDP, but Accelerate uses"),
        ("fsdp2", {}, "do not train together"),
        ("ddp", {}, "do not train together"),
    ],
)
def test_a_launch_for_gpus_without_them_is_refused(
    tiny: Tiny, tmp_path: Path, layout: str, variables: dict[str, str], words: str
) -> None:
    """Accelerate turns FSDP into DDP, or starts runs that know nothing of each other, without a word."""
    launch, _ = launcher(layout)
    output = tmp_path / "out"
    words_before = [word for word in launch if not word.endswith("fsdp2_on_cpu.py")]
    ended = wait(start(launcher=words_before, env=variables, **tiny.flags(), output_dir=output))
    assert ended.code != 0 and ended.err.count(words) == 1, ended.all
    assert not output.exists()


def test_deepspeed_is_told_what_it_would_guess() -> None:
    """It would clip gradients at 1.0, and take the launcher's number of micro-batches."""
    found = accelerator(DistributedType.DEEPSPEED, deepspeed_config={"gradient_clipping": "auto"})
    before_prepare(found, make_bert(), 16, 0.0)
    assert found.state.deepspeed_plugin.deepspeed_config == {
        "train_micro_batch_size_per_gpu": 16,
        "gradient_accumulation_steps": 3,
        "gradient_clipping": 0.0,
    }


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (make_bert, ["BertLayer"]),
        (make_roberta, ["RobertaLayer"]),
        (make_distilbert, ["TransformerBlock"]),
        (make_albert, ["AlbertLayerGroup"]),
    ],
)
def test_blocks_are_found(model: Any, names: list[str]) -> None:
    assert block_classes(model()) == names


def test_the_loss_scale_comes_back() -> None:
    """Through tensors of one kind, to numbers of theirs: a count that becomes a float breaks the next step."""
    before, after = (torch.amp.GradScaler("cpu", init_scale=2.0**power) for power in (10, 16))
    found, other = (
        SimpleNamespace(scaler=scaler, mixed_precision="fp16", is_main_process=True) for scaler in (before, after)
    )
    state = {key: torch.tensor(value, dtype=torch.float64).item() for key, value in scaler_state(found, None).items()}
    load_scaler_state(other, None, state)
    assert after.state_dict() == before.state_dict()
    assert [type(value) for value in after.state_dict().values()] == [type(v) for v in before.state_dict().values()]


def test_a_process_that_was_paused_accuses_nobody(fast: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "_PAUSED", 0.0)  # as if it had been, before every count
    monkeypatch.setattr(heartbeat, "_END_AFTER", 0.005)
    monkeypatch.setattr(heartbeat, "_end", lambda reason: ended.append(reason))
    ended: list[str] = []
    beat = Heartbeat(Store(), 0, 2)
    beat.store.add("beat/1", 1)
    time.sleep(0.3)
    beat.end()
    assert not ended


def test_no_thread_outlives_the_run(fast: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is inside the store while Python ends would abort the process, after everything was written."""

    class SlowStore(Store):
        def add(self, key: str, amount: int) -> int:
            time.sleep(0.05)
            return super().add(key, amount)

    monkeypatch.setattr("sparse_accel.distributed.collectives.open_store", SlowStore)
    monkeypatch.setattr("sparse_accel.distributed.collectives.rank_and_size", lambda: (0, 2))
    with report_lost_processes():
        time.sleep(0.1)
    assert "heartbeat" not in [thread.name for thread in threading.enumerate()]


# --- processes that are gone ------------------------------------------------------------------------------------------


class Store:
    """A store of one process; what other processes count, the test counts."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.lock = threading.Lock()

    def set(self, key: str, value: str) -> None:
        self.values[key] = value.encode()

    def get(self, key: str) -> bytes:
        if key not in self.values:
            raise RuntimeError(key)
        return bytes(self.values[key])

    def add(self, key: str, amount: int) -> int:
        with self.lock:
            self.values[key] = int(self.values.get(key, 0)) + amount
            return int(self.values[key])


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "_BEAT", 0.01)
    monkeypatch.setattr(heartbeat, "_GONE_AFTER", 0.3)


def test_whose_count_stands_still_is_gone(fast: None) -> None:
    store = Store()
    beat = Heartbeat(store, 0, 3)
    store.set("host/2", "node7")
    try:
        limit = time.monotonic() + 10
        while beat.gone(0.3) != [2]:
            store.add("beat/1", 1)
            time.sleep(0.01)
            assert time.monotonic() < limit
        assert beat.described([2]) == "process 2 (on node7) of 3"
        assert beat.described([1, 2]) == "processes 1, 2 (on node7) of 3"
    finally:
        beat.end()


@pytest.mark.parametrize("gone", [True, False])
def test_a_failed_operation_names_the_process(fast: None, monkeypatch: pytest.MonkeyPatch, gone: bool) -> None:
    store = Store()
    monkeypatch.setattr("sparse_accel.distributed.collectives.open_store", lambda: store)
    monkeypatch.setattr("sparse_accel.distributed.collectives.rank_and_size", lambda: (0, 2))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    stop = threading.Event()

    def other() -> None:
        while not stop.wait(0.01):
            store.add("beat/1", 1)

    if not gone:
        threading.Thread(target=other, daemon=True).start()
    try:
        with (
            pytest.raises(UsageError if gone else RuntimeError, match="process 1 of 2 ended" if gone else "gloo"),
            report_lost_processes(),
        ):
            raise RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed by peer")
    finally:
        stop.set()


def test_other_errors_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparse_accel.distributed.collectives.open_store", Store)
    monkeypatch.setattr("sparse_accel.distributed.collectives.rank_and_size", lambda: (0, 2))
    with pytest.raises(ValueError, match="of ours"), report_lost_processes():
        raise ValueError("a fault of ours")
