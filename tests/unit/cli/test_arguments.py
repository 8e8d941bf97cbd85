"""Flags: what parses, what is refused and how, and that every flag of the Trainer is one or the other."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sparse_accel.cli.parser import parse_arguments
from sparse_accel.cli.refused import REFUSED
from sparse_accel.cli.tasks import ARGUMENTS
from sparse_accel.cli.text_classification import TextClassificationArguments
from sparse_accel.errors import UsageError

START = "--model_name_or_path model --output_dir out "
TRAIN = START + "--do_train --task_name sst2 "


def parse(words: str) -> TextClassificationArguments:
    return parse_arguments(TextClassificationArguments, shlex.split(words))


def refusal(words: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse(words)
    return str(caught.value)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three data files in the working directory."""
    for name in ("train.csv", "validation.csv", "test.csv"):
        (tmp_path / name).write_text("text,label\nfine,1\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- what parses ------------------------------------------------------------------------------------------------------

TUTORIAL_TAIL = """
  --max_seq_length 128 --per_device_train_batch_size 32 --per_device_eval_batch_size 32 --preprocessing_num_workers 6
  --do_train --do_eval --evaluation_strategy epoch --fp16 --save_strategy epoch --save_total_limit 1"""

TUTORIAL = {
    "sst2": "--task_name sst2 --model_name_or_path zoo:a/b/c --recipe zoo:d/e/f --distill_teacher zoo:g/h/i "
    "--output_dir out",
    "hub dataset": "--model_name_or_path zoo:a/b/c --recipe zoo:d/e/f "
    """--recipe_args '{"num_epochs":12,"qat_start_epoch":7.0, "observer_epoch": 11.0}' """
    '--distill_teacher disable --dataset_name rotten_tomatoes --input_column_names "text" --label_column_name "label" '
    "--output_dir out",
    "files": "--model_name_or_path zoo:a/b/c --recipe zoo:d/e/f --distill_teacher disable --train_file ./train.csv "
    "--validation_file ./validation.csv  --input_column_names text --label_column_name label --output_dir out",
    "teacher": "--output_dir out --model_name_or_path zoo:a/b/c --recipe zoo:d/e/f "
    """--recipe_args '{"init_lr":0.00003}' --dataset_name rotten_tomatoes --input_column_names "text" """
    '--label_column_name "label"',
    "own teacher": "--model_name_or_path zoo:a/b/c --recipe zoo:d/e/f --distill_teacher --distill_teacher ./teacher "
    '--dataset_name rotten_tomatoes --input_column_names "text" --label_column_name "label" --output_dir out',
}


@pytest.mark.parametrize("name", TUTORIAL)
def test_tutorial_commands_parse(name: str, files: Path) -> None:
    arguments = parse(TUTORIAL[name] + TUTORIAL_TAIL)
    assert (arguments.do_train, arguments.do_eval, arguments.fp16) == (True, True, True)
    assert (arguments.eval_strategy, arguments.save_strategy, arguments.save_total_limit) == ("epoch", "epoch", 1)
    assert (arguments.max_seq_length, arguments.per_device_train_batch_size) == (128, 32)
    assert arguments.preprocessing_num_workers == 6
    assert arguments.input_column_names == (None if name == "sst2" else ("text",))


def test_valueless_first_distill_teacher_gives_way_to_the_second(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = parse(TUTORIAL["own teacher"] + TUTORIAL_TAIL)
    assert arguments.distill_teacher == "./teacher"
    assert capsys.readouterr().err == "warning: --distill_teacher is given 2 times; the last one is used: ./teacher\n"


def test_defaults_are_those_of_the_trainer() -> None:
    arguments = parse(TRAIN)
    transformers = pytest.importorskip("transformers")
    peer = transformers.TrainingArguments(output_dir="out")
    same = [
        "per_device_train_batch_size", "per_device_eval_batch_size", "num_train_epochs", "max_steps", "learning_rate",
        "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "label_smoothing_factor", "seed",
        "gradient_accumulation_steps", "save_steps", "logging_steps", "save_total_limit", "fp16", "bf16", "do_eval",
        "load_best_model_at_end", "dataloader_num_workers", "torch_compile",
    ]  # fmt: skip
    assert {name: getattr(arguments, name) for name in same} == {name: getattr(peer, name) for name in same}


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--max_steps -1", "max_steps", -1),
        ("--max-steps=12", "max_steps", 12),
        ("--learning_rate 3e-5", "learning_rate", 3e-5),
        ("--per-device-train-batch-size 4", "per_device_train_batch_size", 4),
        ("--fp16 false", "fp16", False),
        ("--fp16=True", "fp16", True),
        ("--eval_strategy no", "eval_strategy", "no"),
        ("--task_name MRPC", "task_name", "mrpc"),
        ("--lr_scheduler_type COSINE", "lr_scheduler_type", "cosine"),
        ("--no_pad_to_max_length", "pad_to_max_length", False),
        ("--pad_to_max_length --no-pad-to-max-length", "pad_to_max_length", False),
        ("--resume_from_checkpoint", "resume_from_checkpoint", True),
        ("--resume_from_checkpoint true", "resume_from_checkpoint", True),
        ("--resume_from_checkpoint false", "resume_from_checkpoint", None),
        ("--resume_from_checkpoint out/checkpoint-5", "resume_from_checkpoint", "out/checkpoint-5"),
        ("--report_to all", "report_to", ("wandb", "tensorboard", "trackio", "mlflow")),
        ("--report_to tensorboard,wandb", "report_to", ("wandb", "tensorboard")),
        ("--report_to tensorboard wandb", "report_to", ("wandb", "tensorboard")),
        ("--report_to none", "report_to", ()),
        ("--input_column_names a,b", "input_column_names", ("a,b",)),
        ("--input_column_names a b", "input_column_names", ("a", "b")),
        ("--metric_for_best_model eval_accuracy", "metric_for_best_model", "accuracy"),
        ("--metric_for_best_model accuracy", "greater_is_better", True),
        ("--metric_for_best_model eval_loss", "greater_is_better", False),
        ("--metric_for_best_model mse", "greater_is_better", False),
        ("--metric_for_best_model loss_mm", "greater_is_better", False),
        ("--metric_for_best_model f1_loss", "greater_is_better", True),
        ("--logging_steps 7", "eval_steps", 7),
        ("--eval_strategy epoch", "do_eval", True),
        ("--distill_teacher=self --recipe r.yaml", "distill_teacher", "self"),
    ],
)
def test_value(words: str, name: str, value: object) -> None:
    assert getattr(parse(TRAIN + words), name) == value


def test_predicting_alone_starts_from_the_output_folder(files: Path) -> None:
    assert parse("--output_dir out --do_predict --test_file test.csv").model_name_or_path == "out"


def test_repeated_flag_counts_as_given_last(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(TRAIN + "--seed 1 --seed 2").seed == 2
    assert "--seed is given 2 times; the last one is used: 2" in capsys.readouterr().err


def test_old_name_and_new_name_are_one_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(TRAIN + "--evaluation_strategy epoch --eval_strategy steps").eval_strategy == "steps"
    assert "--eval_strategy is given 2 times" in capsys.readouterr().err


def test_only_the_first_process_warns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    parse(TRAIN + "--seed 1 --seed 2")
    assert capsys.readouterr().err == ""


# --- a JSON file ------------------------------------------------------------------------------------------------------


def write_settings(folder: Path, content: Any) -> str:
    file = folder / "settings.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(file)


SETTINGS = {"model_name_or_path": "model", "output_dir": "out", "do_train": True, "task_name": "sst2"}


def test_json_file_is_the_same_as_flags(tmp_path: Path) -> None:
    more = {"learning_rate": 1e-4, "num_train_epochs": 2, "evaluation-strategy": "epoch", "report_to": ["wandb"]}
    more |= {"recipe": "r.yaml", "recipe_args": {"num_epochs": 2}, "max_train_samples": None}
    by_file = parse(write_settings(tmp_path, SETTINGS | more))
    by_flags = parse(
        TRAIN
        + "--learning_rate 1e-4 --num_train_epochs 2 --evaluation_strategy epoch --report_to wandb --recipe r.yaml "
        """--recipe_args '{"num_epochs": 2}'"""
    )
    assert by_file == by_flags
    assert by_file.num_train_epochs == 2.0 and isinstance(by_file.num_train_epochs, float)


def test_flags_after_a_json_file_replace_its_values(tmp_path: Path) -> None:
    assert parse(write_settings(tmp_path, SETTINGS | {"seed": 1}) + " --seed 5").seed == 5


def test_to_dict_reads_back(tmp_path: Path) -> None:
    arguments = parse(TRAIN + "--report_to wandb --eval_strategy steps --save_steps 20 --input_column_names a b")
    assert parse(write_settings(tmp_path, json.dumps(arguments.to_dict()))) == arguments


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (SETTINGS | {"lerning_rate": 1}, "'lerning_rate' is not a known key. Did you mean 'learning_rate'?"),
        (SETTINGS | {"fsdp": "full_shard"}, "'fsdp' is not supported: configure this for `accelerate launch`"),
        (SETTINGS | {"seed": "many"}, "'seed': expected an integer, got \"many\""),
        (SETTINGS | {"seed": 1.5}, "'seed': expected an integer, got 1.5"),
        (SETTINGS | {"seed": True}, "'seed': expected an integer, got true"),
        (SETTINGS | {"do_eval": 2}, "'do_eval': expected true or false, got 2"),
        (SETTINGS | {"report_to": 3}, "'report_to': expected one or more words, got 3"),
        (SETTINGS | {"learning_rate": -1}, "--learning_rate must be at least 0, got -1"),
        (
            SETTINGS | {"eval_strategy": "no", "evaluation_strategy": "no"},
            "duplicate key 'eval_strategy', given as 'eval_strategy' and as 'evaluation_strategy'",
        ),
        ('{"seed": 1, "seed": 2}', "duplicate key 'seed'"),
        ("[1]", "expected a JSON object"),
        ('{"seed": 1\n"x": 2}', "line 2, column 1: not valid JSON: Expecting ',' delimiter."),
    ],
)
def test_error_in_a_json_file_names_the_file(tmp_path: Path, content: Any, message: str) -> None:
    error = refusal(write_settings(tmp_path, content))
    assert error.startswith(str(tmp_path / "settings.json"))
    assert message in error


def test_json_file_that_is_not_there() -> None:
    assert refusal("no_such.json") == "there is no file no_such.json."


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--evaluation_strategi epoch",
            "--evaluation_strategi is not a known flag. Did you mean '--evaluation_strategy'?",
        ),
        ("--maxsteps 3", "Did you mean '--max_steps'?"),
        ("--no_dataloader_pin_memory", "--dataloader_pin_memory is not supported: "),
        ("--no_pad_to_max_length 3", "--no_pad_to_max_length takes no value, got 3."),
        ("--no_max_steps", "--no_max_steps is not a known flag. Did you mean '--max_steps'?"),
        ("--task_name imdb", "--task_name imdb is not a GLUE task: use --dataset_name imdb."),
        ("--optim adamw_torch", "--optim is not supported: the optimizer is AdamW"),
        ("--group-by-length", "--group_by_length is not supported: batches are always grouped by length."),
        ("--task sst2", "--task is not supported: use --task_name"),
        ("--seed", "--seed has no value; expected an integer."),
        ("--distill_teacher", "--distill_teacher has no value"),
        ("--seed 1 2", "--seed takes one value, got 2: 1, 2."),
        ("--seed 1.5", '--seed: expected an integer, got "1.5"'),
        ("--learning_rate fast", '--learning_rate: expected a number, got "fast"'),
        ("--learning_rate nan", "--learning_rate: expected a number"),
        ("--do_eval maybe", "--do_eval: expected true or false"),
        ("--run_name ''", "--run_name: expected a string"),
        ("--eval_strategy epochs", "unknown value 'epochs'. Did you mean 'epoch'? Expected one of: no, steps, epoch."),
        ("--task_name sst3", "--task_name: unknown value 'sst3'. Did you mean 'sst2'?"),
        ("--report_to mlflwo", "--report_to: unknown value 'mlflwo'. Did you mean 'mlflow'?"),
        ("--report_to none,wandb", "--report_to none contradicts wandb"),
        ("--per_device_train_batch_size 0", "--per_device_train_batch_size must be at least 1, got 0"),
        ("--validation_ratio 1", "--validation_ratio must be above 0 and below 1, got 1.0"),
        ("--validation_ratio 0", "--validation_ratio must be above 0 and below 1"),
        ("--warmup_ratio 1.5", "--warmup_ratio must be at least 0 and below 1"),
        ("--max_steps -2", "--max_steps must be at least -1"),
        ("--max_steps 0", "--max_steps must be at least 1, or -1 for none."),
        ("--max_train_samples -5", "--max_train_samples must be at least 1"),
        ("--fp16 --bf16", "--fp16 and --bf16"),
        ("--warmup_steps 5 --warmup_ratio 0.1", "--warmup_ratio and --warmup_steps"),
        ("--lr_scheduler_type constant --warmup_steps 5", "use constant_with_warmup"),
        ("--dataset_name imdb", "--task_name and --dataset_name both name the data"),
        ("--dataset_config_name x", "--dataset_config_name needs --dataset_name"),
        ("--eval_on_test", "add --do_eval"),
        ("--do_eval --eval_on_test --validation_ratio 0.1", "--eval_on_test and --validation_ratio"),
        ("--recipe_args a=1", "--recipe_args needs a recipe: add --recipe."),
        ("--distill_teacher teacher", "add --recipe"),
        ("--one_shot --recipe r.yaml", "remove --do_train"),
        ("--recipe r --use_teacher_tokenizer --distill_teacher self", "--use_teacher_tokenizer needs"),
        (
            "--overwrite_output_dir --resume_from_checkpoint",
            "--overwrite_output_dir starts a new run, --resume_from_checkpoint resumes",
        ),
        ("--load_best_model_at_end", "add --eval_strategy epoch and --save_strategy epoch"),
        ("--load_best_model_at_end --eval_strategy epoch", "--save_strategy is steps and --eval_strategy is epoch"),
        (
            "--load_best_model_at_end --eval_strategy steps --eval_steps 3 --save_steps 4",
            "--save_steps 4 must be a multiple of --eval_steps 3",
        ),
        ("--debug stray", '--debug: expected true or false, got "stray".'),
    ],
)
def test_refusal(words: str, message: str) -> None:
    assert message in refusal(TRAIN + words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "--output_dir is missing"),
        ("--output_dir out --do_train --task_name sst2", "--model_name_or_path is missing"),
        ("stray --do_train", "'stray' is neither a flag nor a .json settings file"),
        (START, "nothing to do: add --do_train, --do_eval, --do_predict or --one_shot."),
        (START + "--do_train", "no data: add --task_name, --dataset_name, or --train_file."),
        (
            START + "--do_train --train_file trian.csv",
            "--train_file: there is no file trian.csv. Did you mean 'train.csv'?",
        ),
        (START + "--do_train --train_file a/b.csv", "there is no file a/b.csv (and no folder a)."),
        (START + "--do_eval --validation_file notes.txt", "must end in one of .csv, .tsv, .json, .jsonl, .parquet"),
        (START + "--do_train --validation_file validation.csv", "--do_train needs --train_file."),
        (
            START + "--do_train --do_eval --train_file train.csv",
            "add --validation_file FILE, or --validation_ratio 0.1",
        ),
        (START + "--do_train --eval_strategy epoch --train_file train.csv", "add --validation_file FILE"),
        (START + "--do_predict --train_file train.csv", "--do_predict needs --test_file."),
        (
            START
            + "--do_train --do_eval --train_file train.csv --validation_file validation.csv --validation_ratio 0.1",
            "--validation_file and --validation_ratio both",
        ),
        (
            START + "--do_eval --validation_ratio 0.1 --test_file test.csv",
            "--validation_ratio holds out rows of --train_file",
        ),
        (
            START + "--task_name sst2 --do_predict --test_file test.csv",
            "--task_name and --test_file both name the data",
        ),
        (START + "--one_shot", "--one_shot needs a recipe"),
    ],
)
def test_refusal_of_what_is_asked(words: str, message: str, files: Path) -> None:
    (files / "notes.txt").write_text("")
    assert message in refusal(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--eval_steps 5", "--eval_steps has no effect without --eval_strategy steps."),
        ("--save_steps 5 --save_strategy epoch", "--save_steps has no effect without --save_strategy steps."),
        ("--run_name x", "--run_name has no effect without --report_to."),
    ],
)
def test_a_flag_that_does_nothing_is_warned_of(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    parse(TRAIN + words)
    assert capsys.readouterr().err == f"warning: {message}\n"


# --- completeness -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ARGUMENTS)
def test_every_trainer_argument_is_honoured_or_refused_with_a_reason(task: str) -> None:
    transformers = pytest.importorskip("transformers")
    honoured, refused = flags_of(task) | {"evaluation_strategy"}, {*vars(ARGUMENTS[task]).get("refused", REFUSED)}
    trainer = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    assert trainer <= honoured | refused and refused >= {*REFUSED} - honoured
    assert honoured & refused <= {"text_column_name"}  # that of token classification


@pytest.mark.parametrize("task", ["text_classification", "question_answering"])
def test_reasons_name_only_flags_that_exist(task: str) -> None:
    reasons = vars(ARGUMENTS[task]).get("refused", REFUSED).values()
    named = {name for reason in reasons for name in re.findall(r"--(\w+)", reason)}
    assert {name for name in named if not any(each.startswith(name) for each in flags_of(task))} == set()


@pytest.mark.parametrize("task", ARGUMENTS)
def test_every_flag_has_help(task: str) -> None:
    for field in dataclasses.fields(ARGUMENTS[task]):
        assert field.metadata["help"], field.name


def flags_of(task: str) -> set[str]:
    return {field.name for field in dataclasses.fields(ARGUMENTS[task])}


@pytest.mark.parametrize("task", ARGUMENTS)
def test_help_lists_every_flag_without_heavy_imports(task: str) -> None:
    code = (
        "import sys\n"
        "from sparse_accel.cli.parser import parse_arguments\n"
        "from sparse_accel.cli.tasks import ARGUMENTS\n"
        "try:\n"
        f"    parse_arguments(ARGUMENTS['{task}'], ['--help'])\n"
        "finally:\n"
        "    heavy = {'torch', 'transformers', 'datasets', 'accelerate', 'numpy', 'pandas'} & set(sys.modules)\n"
        "    print('heavy:', sorted(heavy))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "heavy: []" in result.stdout
    left_out = {*getattr(ARGUMENTS[task], "not_in_help", ())}  # what a task refuses
    assert left_out <= flags_of(task)
    for name in flags_of(task):
        assert (f"--{name} " in result.stdout.replace("\n", " ")) == (name not in left_out), name
    assert max(map(len, result.stdout.splitlines())) <= 120
