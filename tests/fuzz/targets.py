"""What a campaign feeds inputs to: the functions that read what people write, or what lies on a disk."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

IN_A_CHECKPOINT = (
    "model.safetensors",
    "training_state.safetensors",
    "recipe_state.safetensors",
    "trainer_state.json",
    "checksums.json",
)
WORDS = ("good", "bad", "film", "a", "the", "plot", "and", "dull", "fine")


@dataclass(frozen=True)
class Target:
    """A kind of input.

    Attributes:
        seeds: inputs that are accepted, or nearly; it may write to the folder, which it shares with `read`.
        read: reads an input. The folder is new for each input, `shared` is that of the seeds.
        places: pattern that each refusal contains.
        words: returns those of the format, such as its keys.
    """

    seeds: Callable[[Path], Sequence[bytes]]
    read: Callable[[bytes, Path, Path], object]
    places: str
    words: Callable[[], Sequence[str]] = tuple


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


# --- recipes and flags ------------------------------------------------------------------------------------------------


def _recipes(shared: Path) -> list[bytes]:
    from published_recipes import published_recipes

    from sparse_accel.zoo import RECIPES

    shipped = [file.read_bytes() for file in sorted(RECIPES.glob("*.yaml"))]
    return [*shipped, *(text.encode() for text in published_recipes().values() if len(text) < 6000)]


def _modifier_words() -> tuple[str, ...]:
    import dataclasses

    from sparse_accel.modifiers import REGISTRY

    keys = {field.name for kind in REGISTRY.values() for field in dataclasses.fields(kind)}
    return (*(f"!{name}" for name in REGISTRY), *sorted(keys), "eval(num_epochs)", "eval(1/0)", "eval(9**9**9)")


def _read_recipe(data: bytes, folder: Path, shared: Path) -> None:
    from sparse_accel.recipe import load_recipe

    file = folder / "recipe.yaml"
    file.write_bytes(data)
    recipe = load_recipe(file)
    recipe.timeline()
    load_recipe(recipe.resolved(), None)


def _recipe_args(shared: Path) -> list[bytes]:
    return [
        b"num_epochs=12,init_lr=1e-4",
        b'{"num_epochs": 12, "init_lr": 0.0001}',
        b"num_epochs:13,qat_start_epoch=1.5",
    ]


def _read_recipe_args(data: bytes, folder: Path, shared: Path) -> None:
    from sparse_accel.recipe import load_recipe
    from sparse_accel.zoo import RECIPES

    load_recipe(RECIPES / "sst2_pruned90_quant.yaml", os.fsdecode(data)).timeline()


def _flags(shared: Path) -> list[bytes]:
    return [
        b"--model_name_or_path\nm\n--task_name\nsst2\n--output_dir\no\n--do_train\n--seed\n3\n--bf16=true",
        b"--model_name_or_path=m\n--task_name\nsst2\n--output_dir=~/o\n--do_eval\n--max_seq_length\n128",
        b"--model_name_or_path\nm\n--dataset_name\nimdb\n--output_dir\no\n--do_predict\n--recipe\nr.yaml",
    ]


def _flag_words() -> tuple[str, ...]:
    from sparse_accel.cli.help import flag_fields
    from sparse_accel.cli.text_classification import TextClassificationArguments

    names = (*flag_fields(TextClassificationArguments), *TextClassificationArguments.refused)
    return tuple(f"--{name}" for name in names)


def _read_flags(data: bytes, folder: Path, shared: Path) -> None:
    from sparse_accel.cli.parser import parse_arguments
    from sparse_accel.cli.text_classification import TextClassificationArguments

    words = [os.fsdecode(word) for word in data.split(b"\n") if b"\0" not in word]  # a system passes no NUL
    with _quiet():
        parse_arguments(TextClassificationArguments, words)


def _settings(shared: Path) -> list[bytes]:
    flags = {
        "model_name_or_path": "m",
        "task_name": "sst2",
        "output_dir": "o",
        "do_train": True,
        "learning_rate": 3e-5,
    }
    return [json.dumps(flags).encode(), json.dumps(flags | {"report_to": ["wandb"], "seed": 3}, indent=1).encode()]


def _read_settings(data: bytes, folder: Path, shared: Path) -> None:
    from sparse_accel.cli.parser import parse_arguments
    from sparse_accel.cli.text_classification import TextClassificationArguments

    (folder / "settings.json").write_bytes(data)
    with _quiet():
        parse_arguments(TextClassificationArguments, [str(folder / "settings.json")])


# --- data -------------------------------------------------------------------------------------------------------------


def _rows(labels: tuple[Any, Any] = (0, 1), count: int = 24) -> list[dict[str, Any]]:
    return [
        {"text": " ".join(WORDS[(i * 7 + j) % len(WORDS)] for j in range(3)), "label": labels[i % 2]}
        for i in range(count)
    ]


def _table(ending: str) -> Callable[[Path], list[bytes]]:
    def seeds(shared: Path) -> list[bytes]:
        from data_files import write

        found = []
        pairs = [{"sentence1": "a b", "sentence2": 'c "d", e', "label": "yes" if i % 2 else "no"} for i in range(12)]
        for number, rows in enumerate(
            (_rows(), _rows(("bad", "good")), pairs, [{"text": "x", "label": 0.5 * i} for i in range(9)])
        ):
            found.append(write(shared / f"seed{number}{ending}", rows).read_bytes())
        if ending == ".json":
            frame = _rows()
            found.append(
                json.dumps({"text": [row["text"] for row in frame], "label": [row["label"] for row in frame]}).encode()
            )
            found.append(json.dumps({"columns": ["text", "label"], "data": [["a", 0], ["b", 1]] * 4}).encode())
        return found

    return seeds


def _read_table(ending: str) -> Callable[[bytes, Path, Path], object]:
    def read(data: bytes, folder: Path, shared: Path) -> None:
        from sparse_accel.cli.text_classification import TextClassificationArguments
        from sparse_accel.tasks import TextClassification

        (folder / f"train{ending}").write_bytes(data)
        _load_task(TextClassification, TextClassificationArguments, folder / f"train{ending}", shared)

    return read


def _load_task(task: Any, arguments: Any, file: Path, shared: Path, **flags: Any) -> None:
    with _quiet():
        asked = arguments(
            model_name_or_path="m",
            output_dir="o",
            do_train=True,
            train_file=str(file),
            cache_dir=str(shared / "cache"),
            **flags,
        )
        data = task.load(asked, None).data
        for split in data.splits.values():
            for row in split:
                assert row


def _conll(shared: Path) -> list[bytes]:
    from token_fixtures import tagged, write_conll

    found = [
        write_conll(shared / f"{n}.conll", tagged(8, seed=n), columns=n, separator=" \t"[n % 2]) for n in (2, 3, 4)
    ]
    return [file.read_bytes() for file in found]


def _read_conll(data: bytes, folder: Path, shared: Path) -> None:
    from sparse_accel.cli.token_classification import TokenClassificationArguments
    from sparse_accel.tasks import TokenClassification

    (folder / "train.conll").write_bytes(data)
    _load_task(TokenClassification, TokenClassificationArguments, folder / "train.conll", shared)


def _squad(shared: Path) -> list[bytes]:
    from question_fixtures import questions, write_questions

    forms = ("nested", "nested v2.0", "flat")
    written = [
        write_questions(shared / f"{n}.json", questions(5, seed=n, impossible=0.3), form)
        for n, form in enumerate(forms)
    ]
    return [(shared / f"{n}.json").read_bytes() for n in range(len(written))]


def _read_squad(data: bytes, folder: Path, shared: Path) -> None:
    from sparse_accel.cli.question_answering import QuestionAnsweringArguments
    from sparse_accel.tasks import QuestionAnswering

    (folder / "train.json").write_bytes(data)
    _load_task(QuestionAnswering, QuestionAnsweringArguments, folder / "train.json", shared)


def _lines(shared: Path) -> list[bytes]:
    return [b"a film\nthe plot\n\nfine\n", "ein Film \u00fcber\r\nnichts\r\n".encode(), b"# title\n\ntext " * 20]


def _read_lines(data: bytes, folder: Path, shared: Path) -> None:
    from sparse_accel.cli.masked_language_modeling import MaskedLanguageModelingArguments
    from sparse_accel.tasks import MaskedLanguageModeling

    (folder / "train.txt").write_bytes(data)
    _load_task(MaskedLanguageModeling, MaskedLanguageModelingArguments, folder / "train.txt", shared)


# --- folders ----------------------------------------------------------------------------------------------------------


def _file_of(folder_of: Callable[[Path], Path], name: str) -> Callable[[Path], list[bytes]]:
    """Seeds: one file of a folder that is made once."""
    return lambda shared: [(folder_of(shared) / name).read_bytes()]


def _read_in(
    folder_of: Callable[[Path], Path], name: str, read: Callable[[Path], object]
) -> Callable[[bytes, Path, Path], object]:
    """Reads a copy of a folder, with the input in place of one of its files."""

    def read_copy(data: bytes, folder: Path, shared: Path) -> None:
        copy = folder / "own_copy"
        shutil.copytree(folder_of(shared), copy)
        (copy / name).write_bytes(data)
        with _quiet():
            read(copy)

    return read_copy


def _model(shared: Path) -> Path:
    """A trained, quantized model: made once."""
    folder = shared / "trained"
    if not folder.is_dir():
        _train(folder, shared)
    return folder


def _unfinished(shared: Path) -> Path:
    """An unfinished run with a checkpoint: made once."""
    folder = shared / "unfinished"
    if not folder.is_dir():
        shutil.copytree(_model(shared), folder)
        shutil.rmtree(folder / "checkpoint-6")
        for file in folder.iterdir():
            if file.is_file() and file.name not in ("run.json", "arguments.json", "environment.json"):
                file.unlink()
        record = (folder / "run.json").read_text().replace('"finished": true', '"finished": false')
        (folder / "run.json").write_text(record)
    return folder


def _flags_of_run(folder: Path, shared: Path) -> dict[str, Any]:
    from script_fixtures import RECIPE, SHORT

    return {
        **{"model_name_or_path": shared / "start", "train_file": shared / "train.csv", "output_dir": folder},
        **{"do_train": True, "recipe": RECIPE, "recipe_args": SHORT | {"num_epochs": 3}, "distill_teacher": "disable"},
        **{
            "save_strategy": "epoch",
            "max_seq_length": 16,
            "per_device_train_batch_size": 16,
            "cache_dir": shared / "cache",
        },
    }


def _train(folder: Path, shared: Path) -> None:
    from script_fixtures import make_model, run, sentences, write_csv

    if not (shared / "start").is_dir():
        make_model(shared / "start", sparse=True)
        write_csv(shared / "train.csv", sentences(32, seed=1))
    ended = run(**_flags_of_run(folder, shared))
    assert ended.code == 0, ended.all


def _load_model(folder: Path) -> None:
    import torch

    import sparse_accel

    model = sparse_accel.load(folder)
    ids = torch.tensor([[2, 5, 6, 3]])
    with torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))


def _load_tokenizer(folder: Path) -> None:
    from sparse_accel.cli.text_classification import TextClassificationArguments
    from sparse_accel.models.loading import load_tokenizer
    from sparse_accel.tasks import TextClassification

    asked = TextClassificationArguments(model_name_or_path=str(folder), output_dir="o", do_train=True, task_name="sst2")
    load_tokenizer(asked, TextClassification)(["a good film"])


def _read_run(data: bytes, folder: Path, shared: Path, name: str) -> None:
    """Resumes a run: to the same weights, or a refusal; the exit code says which."""
    from script_fixtures import assert_same_model, run

    from sparse_accel.errors import UsageError

    copy = folder / "run"
    shutil.copytree(_unfinished(shared), copy)
    (copy / name).write_bytes(data)
    ended = run(**_flags_of_run(copy, shared))
    if ended.code == 2:
        raise UsageError(ended.err)
    assert ended.code == 0, ended.all
    assert_same_model(copy, _model(shared))


def _report(folder: Path) -> None:
    from sparse_accel.publish.facts import facts_of
    from sparse_accel.report import write_report

    write_report(folder)
    facts_of(folder)


def _mirror(shared: Path) -> Path:
    folder = shared / "mirror" / "model"
    if not folder.is_dir():
        shutil.copytree(_model(shared), folder / "training", ignore=shutil.ignore_patterns("checkpoint*"))
        (folder / "stub.txt").write_text(
            "zoo:nlp/text_classification/bert-base/pytorch/huggingface/sst2/pruned90-none\n"
        )
        (folder / "recipe").mkdir()
        from script_fixtures import RECIPE

        shutil.copy(RECIPE, folder / "recipe" / "recipe.md")
    return folder


def _resolve(folder: Path) -> None:
    from sparse_accel.zoo import Model, model_source, recipe_path

    os.environ["SPARSEZOO_MODELS_PATH"] = str(folder.parent)
    for remembered in (model_source, recipe_path):
        remembered.cache_clear()
    model = Model("zoo:nlp/text_classification/bert-base/pytorch/huggingface/sst2/pruned90-none")
    assert Path(model.training.path).is_dir()
    assert model.recipes.default.path


def _graphs(shared: Path) -> list[bytes]:
    from places import ROOT
    from script_fixtures import run_program

    file = shared / "deployment" / "model.onnx"
    if not file.is_file():
        words = ["--model_path", str(_model(shared)), "--task", "text_classification", "--reduce_range"]
        ended = run_program(ROOT / "scripts" / "export_onnx.py", [*words, "--output_dir", str(file.parent)])
        assert ended.code == 0, ended.all
    return [file.read_bytes()]


def _read_onnx(data: bytes, folder: Path, shared: Path) -> None:
    """The runtime is a library: it raises what onnxruntime raises, or FileNotFoundError and ValueError of its own."""
    import numpy as np

    from sparse_accel.errors import UsageError
    from sparse_accel.runtime import session

    (folder / "model.onnx").write_bytes(data)
    os.environ["SPARSE_ACCEL_ISA"] = "portable"  # the kernels, on any CPU
    try:
        made = session(folder / "model.onnx", threads=1)
        feeds = {each.name: np.ones((1, 8), dtype=np.int64) for each in made.get_inputs()}
        made.run(None, feeds)
    except Exception as error:
        if type(error).__module__.startswith("onnxruntime") or type(error) is ValueError:
            raise UsageError(f"model.onnx: {error}") from error
        raise


TARGETS: dict[str, Target] = {
    "recipe": Target(_recipes, _read_recipe, r"recipe\.yaml|<recipe>|the recipe", _modifier_words),
    "recipe_args": Target(_recipe_args, _read_recipe_args, r"recipe_args|sst2_pruned90_quant\.yaml"),
    "flags": Target(_flags, _read_flags, r"--\w|the settings file|a --flag", _flag_words),
    "settings": Target(_settings, _read_settings, r"settings\.json|--\w", _flag_words),
    **{
        ending: Target(_table(f".{ending}"), _read_table(f".{ending}"), rf"train\.{ending}|--\w")
        for ending in ("csv", "tsv", "json", "jsonl", "parquet")
    },
    "conll": Target(_conll, _read_conll, r"train\.conll|--\w", lambda: ("B-PER", "I-PER", "O", "-DOCSTART-")),
    "squad": Target(
        _squad, _read_squad, r"train\.json|--\w", lambda: ("answers", "answer_start", "is_impossible", "context")
    ),
    "text": Target(_lines, _read_lines, r"train\.txt|--\w"),
    **{
        name: Target(_file_of(_model, name), _read_in(_model, name, _load_model), r"own_copy")
        for name in ("config.json", "model.safetensors", "quantization.json")
    },
    **{
        name: Target(_file_of(_model, name), _read_in(_model, name, _load_tokenizer), r"own_copy|--\w")
        for name in ("tokenizer.json", "tokenizer_config.json")
    },
    **{
        f"report of {name}": Target(_file_of(_model, name), _read_in(_model, name, _report), r"own_copy")
        for name in ("run.json", "all_results.json", "trainer_state.json", "sparsity.json")
    },
    **{
        f"mirror's {name}": Target(_file_of(_mirror, name), _read_in(_mirror, name, _resolve), r"own_copy|zoo:")
        for name in ("stub.txt", "recipe/recipe.md")
    },
    **{
        f"run's {name}": Target(_file_of(_unfinished, name), partial(_read_run, name=name), r"run/|run:|run |--\w")
        for name in ("run.json", *(f"checkpoint-4/{each}" for each in IN_A_CHECKPOINT))
    },
    "onnx": Target(_graphs, _read_onnx, r"model\.onnx"),
}
