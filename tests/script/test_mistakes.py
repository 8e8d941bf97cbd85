"""What a mistake meets: exit code 2, one paragraph that names place and remedy, no traceback, and no long wait."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from script_fixtures import RECIPE, SCRIPT, Outcome, Tiny, environment, make_model, run, sentences, words, write_csv

pytest_plugins = ["script_fixtures"]

HEAVY = ("torch", "transformers", "datasets", "accelerate", "numpy", "pandas", "sklearn")
# Runs the script and says at its end what was imported.
SPY = f"""
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("imported:", *(name for name in {HEAVY} if name in sys.modules))
"""


def spied(*arguments: str, **flags: Any) -> Outcome:
    """Runs the script in a process of its own; the last line of `out` lists heavy imports."""
    command = [sys.executable, "-c", SPY, str(SCRIPT), *arguments, *words(**flags)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60)
    return Outcome(done.returncode, done.stdout, done.stderr)


def assert_refused(outcome: Outcome, *parts: str) -> None:
    """One paragraph on stderr, beginning with `error:` and holding all `parts`; exit code 2."""
    assert outcome.code == 2, outcome.all
    assert "Traceback" not in outcome.err, outcome.all
    lines = [line for line in outcome.err.splitlines() if line and not line.startswith(("warning: ", "tokenizing "))]
    assert len(lines) <= 12 and lines[0].startswith("error: "), outcome.all
    for part in parts:
        assert part in outcome.err, outcome.all


# --- before anything is imported --------------------------------------------------------------------------------------


def test_help_is_light_and_lists_every_flag() -> None:
    shown = spied("--help")
    assert shown.code == 0, shown.all
    assert shown.out.rstrip().endswith("imported:")
    for flag in ("--recipe_args", "--distill_teacher", "--best_model_after_epoch", "--one_shot", "evaluation_strategy"):
        assert flag in shown.out


@pytest.fixture
def flags(tiny: Tiny, tmp_path: Path) -> dict[str, Any]:
    return tiny.flags(output_dir=tmp_path / "out")


def test_recipe_errors_are_light(flags: dict[str, Any], tmp_path: Path) -> None:
    typo = tmp_path / "typo.yaml"
    typo.write_text(RECIPE.read_text().replace("disable_quantization_observer_epoch", "disable_observer_epoch"))
    refused = spied(**{**flags, "recipe": typo, "recipe_args": None})
    line = 1 + next(n for n, text in enumerate(typo.read_text().splitlines()) if "disable_observer" in text)
    assert_refused(refused, f"typo.yaml:{line}: ", "disable_observer_epoch")
    assert refused.out.rstrip() == "imported:"

    refused = spied(**{**flags, "recipe_args": {"num_epoch": 3}})
    assert_refused(refused, "'num_epoch'", "Did you mean 'num_epochs'?")
    assert refused.out.rstrip() == "imported:"


def test_flag_errors_are_light(flags: dict[str, Any]) -> None:
    cases: list[tuple[dict[str, Any], tuple[str, ...]]] = [
        ({"recipee": "x"}, ("--recipee", "Did you mean '--recipe'?")),
        ({"group_by_length": True}, ("--group_by_length is not supported", "always grouped by length")),
        ({"distill_teacher": None}, ("there is no teacher", "--distill_teacher PATH", "self", "disable")),
        ({"validation_file": None}, ("--validation_file", "--validation_ratio 0.1")),
    ]
    for changed, parts in cases:
        refused = spied(**{**flags, **changed})
        assert_refused(refused, *parts)
        assert refused.out.rstrip() == "imported:"


def test_a_tracker_that_is_not_installed(flags: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert_refused(run(**flags, report_to="tensorboard"), "tensorboard is not installed: pip install tensorboard")


def test_a_teacher_and_no_recipe_that_distils(tiny: Tiny, flags: dict[str, Any]) -> None:
    dense = RECIPE.with_name("sst2_dense.yaml")
    refused = run(**{**flags, "recipe": dense, "recipe_args": None, "distill_teacher": tiny.model})
    assert_refused(refused, "--distill_teacher has no effect", "no DistillationModifier")


def test_debug_shows_where_it_happened(flags: dict[str, Any]) -> None:
    refused = run(**flags, debug=True, max_steps=0)
    assert refused.code == 2
    assert "Traceback" in refused.err and refused.err.splitlines()[-1].startswith("error: --max_steps")


def test_flags_in_a_json_file(flags: dict[str, Any], tmp_path: Path) -> None:
    settings = tmp_path / "settings.json"
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in flags.items()}
    settings.write_text(json.dumps({**plain, "epochs": 3}))
    assert_refused(spied(str(settings)), "settings.json: 'epochs' is not a known key")
    settings.write_text(json.dumps(plain))
    done = run(str(settings), max_train_samples=32)
    assert done.code == 0, done.all
    assert (tmp_path / "out" / "model.safetensors").exists()


# --- once models and rows are read ------------------------------------------------------------------------------------


def test_data_that_do_not_fit(flags: dict[str, Any], tmp_path: Path) -> None:
    rows = sentences(20, seed=1)
    unseen = write_csv(tmp_path / "unseen.csv", [*rows, {"text": "a film", "label": 7}])
    empty = write_csv(tmp_path / "empty.csv", [*rows, {"text": "", "label": 1}])
    cases: list[tuple[dict[str, Any], tuple[str, ...]]] = [
        ({"train_file": tmp_path / "trian.csv"}, ("--train_file: there is no file",)),
        ({"input_column_names": "sentence"}, ("--input_column_names", "'sentence'", "text")),
        ({"label_column_name": "lable"}, ("--label_column_name", "Did you mean 'label'?")),
        ({"validation_file": unseen}, ("unseen.csv, row 21", "'label'", "7")),
        ({"train_file": empty}, ("empty.csv, row 21", "'text'")),
    ]
    for changed, parts in cases:
        assert_refused(run(**{**flags, **changed}), *parts)
    assert not (tmp_path / "out").exists(), "a refused run leaves nothing behind"


def test_models_that_do_not_fit(flags: dict[str, Any], tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    many_words = make_model(tmp_path / "many_words", sparse=False, vocabulary=[f"word{n}" for n in range(30)])
    odd = write_csv(tmp_path / "odd.csv", [*sentences(20, seed=1), {"text": "word29", "label": 0}])
    other_parts = tmp_path / "other_parts.yaml"
    other_parts.write_text(RECIPE.read_text().replace("- bert.pooler", "- bert.poolre"))
    cases: list[tuple[dict[str, Any], tuple[str, ...]]] = [
        ({"model_name_or_path": tmp_path / "nothing"}, ("--model_name_or_path", "no readable model", "nothing")),
        ({"distill_teacher": tmp_path / "nothing"}, ("--distill_teacher", "no readable model")),
        ({"recipe": other_parts}, ("submodules", "'bert.poolre'", "Did you mean 'bert.pooler'?")),
        ({"distill_teacher": tiny.model}, ("--distill_teacher", "classifier.weight", "no trained head")),
        ({"tokenizer_name": many_words, "train_file": odd}, ("--tokenizer_name", "'word29'", "34", "30")),
        (
            {"load_best_model_at_end": True, "metric_for_best_model": "f1"},
            ("--metric_for_best_model", "'f1'", "f1_macro", "accuracy"),
        ),
    ]
    for changed, parts in cases:
        assert_refused(run(**{**flags, **changed}), *parts)
    assert not (tmp_path / "out").exists()


def test_evaluating_what_was_never_trained(tiny: Tiny, tmp_path: Path) -> None:
    refused = run(
        model_name_or_path=tiny.model, output_dir=tmp_path / "out", validation_file=tiny.validation, do_eval=True
    )
    assert_refused(refused, "--model_name_or_path", "classifier.weight", "no trained head")


# --- in training ------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_is_never_saved(tiny: Tiny, flags: dict[str, Any], tmp_path: Path) -> None:
    changed = {"recipe": None, "recipe_args": None, "distill_teacher": None, "learning_rate": 1e30}
    refused = run(**{**flags, **changed, "eval_strategy": "no", "do_eval": None, "logging_steps": 1000})
    assert refused.code == 2 and "error: the loss is nan" in refused.err, refused.all
    assert "init_lr" in refused.err
    assert not list((tmp_path / "out").glob("checkpoint-*"))
