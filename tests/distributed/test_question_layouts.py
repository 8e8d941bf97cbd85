"""Question answering under several processes: windows, a ragged table of the teacher's, answers. Real processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import layouts
import pytest
from machines import free_port, launch
from question_fixtures import SCRIPT, SHORT, TinyQuestions, run
from script_fixtures import assert_same_model, flat, read_json, trace, wait
from token_fixtures import unfinished, with_script

pytest_plugins = ["question_fixtures"]
pytestmark = pytest.mark.slow

run_under = with_script(SCRIPT, layouts.run_under)

FLOAT_STEPS = 5  # of one epoch; quantization begins with the 6th


@pytest.fixture(scope="module")
def flags(tiny_questions: TinyQuestions) -> dict[str, Any]:
    """5 steps an epoch, 10 in all; the last batch of an epoch is a short one."""
    return tiny_questions.flags(
        recipe_args={**SHORT, "num_epochs": 2, "qat_start_epoch": 1.0, "observer_epoch": 1.5, "init_lr": 2e-3},
        max_train_samples=99,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=16,
        test_file=tiny_questions.test,
        do_predict=True,
        save_strategy="steps",
        save_steps=3,
    )


@pytest.fixture(scope="module")
def one(flags: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one process with two micro-batches a step."""
    output = tmp_path_factory.mktemp("one") / "out"
    ended = run(**flags, gradient_accumulation_steps=2, output_dir=output)
    assert ended.code == 0, ended.all
    return output


def assert_trains_the_same(one: Path, other: Path) -> None:
    found = layouts.difference(one, other, FLOAT_STEPS)
    assert found.loss_before < 1e-6  # sums in another order
    assert found.loss < 5e-3 and found.weight < 5e-3 and found.scale < 0.02
    assert found.under_masks == 0 and found.rate == 0
    for name in ("train/task_loss", "train/distillation_loss", "train/teacher_agreement"):
        first, second = ([*trace(folder, name).values()][:FLOAT_STEPS] for folder in (one, other))
        assert first == pytest.approx(second, abs=1e-6) and max(first) > 0
    teachers = [
        read_json(folder / "teacher_results.json")["splits"]["validation"]["figures"] for folder in (one, other)
    ]
    assert teachers[0] == pytest.approx(teachers[1], abs=1e-6)
    assert read_json(other / "all_results.json")["quantized_linears"] == 13
    for name in ("eval_predictions", "test_predictions", "eval_nbest_predictions"):
        first, second = (read_json(folder / f"{name}.json") for folder in (one, other))
        assert [*first] == [*second]
        if name != "eval_nbest_predictions":
            assert sum(first[id_] == second[id_] for id_ in first) > 0.9 * len(first)


@pytest.mark.parametrize("layout", ["ddp", "fsdp2"])
def test_it_trains_and_answers_as_one_process(layout: str, flags: dict[str, Any], one: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    ended = run_under(layout, **flags, output_dir=output)
    assert ended.code == 0 and ended.out.count("── results") == 1, ended.all
    assert_trains_the_same(one, output)
    if layout == "ddp":
        resumed = run_under(layout, **flags, output_dir=unfinished(output, tmp_path / "resumed", 3))
        assert resumed.code == 0 and "from step 3" in flat(resumed.out), resumed.all
        assert_same_model(output, tmp_path / "resumed")
        for name in ("eval_predictions.json", "eval_nbest_predictions.json", "test_nbest_predictions.json"):
            assert (output / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes()


def test_evaluation_alone(one: Path, tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    """Of the same model, figures and answers are equal, whatever the number of processes."""
    flags = tiny_questions.of(one, validation_file=tiny_questions.validation, do_eval=True)
    ended = run_under("ddp", **{**flags, "per_device_eval_batch_size": 7}, output_dir=tmp_path / "out")
    assert ended.code == 0, ended.all
    assert read_json(tmp_path / "out" / "eval_predictions.json") == read_json(one / "eval_predictions.json")
    found, expected = (read_json(folder / "eval_results.json") for folder in (tmp_path / "out", one))
    assert found == pytest.approx(expected, abs=1e-6)


def test_two_launches_over_loopback(flags: dict[str, Any], one: Path, tmp_path: Path) -> None:
    port = free_port()
    settings = {**flags, "output_dir": tmp_path / "out"}
    first, second = (
        wait(machine) for machine in [launch(rank, "127.0.0.1", port, settings, program=(SCRIPT,)) for rank in (0, 1)]
    )
    assert first.code == 0 and second.code == 0 and "── run " not in second.out, first.all + second.all
    assert_trains_the_same(one, tmp_path / "out")
