"""Data flags that all tasks share, and their checks. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sparse_accel.cli.parser import flag
from sparse_accel.errors import UsageError, nearest


@dataclass(kw_only=True)
class Data:
    """Data."""

    dataset_name: str | None = flag(
        None, "Hub id of a dataset, or a local folder (data files, or written by save_to_disk)", path=True
    )
    dataset_config_name: str | None = flag(None, "configuration of the Hub dataset, if it has several")
    train_file: str | None = flag(
        None, "training rows: a csv, tsv, json, jsonl or parquet file with named columns", path=True
    )
    validation_file: str | None = flag(None, "rows for --do_eval; same columns as the training rows", path=True)
    test_file: str | None = flag(None, "rows for --do_predict; needs no label column", path=True)
    validation_ratio: float | None = flag(
        None,
        "fraction of the training rows to hold out when there are no validation rows; stratified by class, drawn by "
        "--seed",
        above=0,
        below=1,
    )
    eval_on_test: bool = flag(False, "--do_eval uses the test rows instead of the validation rows")
    cache_dir: str | None = flag(
        None,
        "folder for downloaded models, prepared data and the teacher's logits",
        default_text="the Hugging Face cache",
        path=True,
    )
    max_train_samples: int | None = flag(None, "train on this many rows, drawn by --seed", at_least=1)
    max_eval_samples: int | None = flag(None, "evaluate on this many rows, drawn by --seed", at_least=1)
    max_predict_samples: int | None = flag(None, "predict only this many rows, the first ones", at_least=1)
    max_seq_length: int = flag(
        128, "maximum tokens per row, special tokens included; longer rows are truncated", at_least=3
    )
    pad_to_max_length: bool = flag(
        False,
        "pad every row to max_seq_length instead of to the longest row of its batch (slower; same results without "
        "quantization and dropout)",
    )
    preprocessing_num_workers: int | None = flag(
        None, "number of processes for tokenization", at_least=1, default_text="one for each CPU, if they pay"
    )
    overwrite_cache: bool = flag(False, "tokenize again, even if an earlier result is cached")

    # Flags that name data other than files (only one may be given); allowed file endings; and the endings of files that
    # this project reads itself, because `datasets` would guess types.
    sources: ClassVar[tuple[str, ...]] = ("dataset_name",)
    suffixes: ClassVar[tuple[str, ...]] = ()
    read_here: ClassVar[tuple[str, ...]] = ()

    def check_data(self, *, train: bool, evaluate: bool, predict: bool) -> None:
        """Checks that the flags name existing rows, from one source, for each thing to do.

        Args:
            train, evaluate, predict: what to do with the rows.

        Raises:
            UsageError: no data, data from two sources, a missing file, or a file with a wrong ending.
        """
        files = {name: getattr(self, name) for name in ("train_file", "validation_file", "test_file")}
        given = [name for name in self.sources if getattr(self, name)]
        given += [name for name, file in files.items() if file][:1]
        if len(given) > 1:
            raise UsageError(
                f"--{given[0]} and --{given[1]} both name the data: use one of {self._source_flags()}, or files."
            )
        if not given and (train or evaluate or predict):
            needed = [
                train and "--train_file",
                evaluate and "--validation_file",
                predict and "--test_file",
            ]
            files_needed = " and ".join(name for name in needed if name)
            raise UsageError(f"no data: add {self._source_flags()}, or {files_needed}.")
        if self.dataset_config_name and not self.dataset_name:
            raise UsageError("--dataset_config_name needs --dataset_name.")
        if self.eval_on_test and self.validation_ratio is not None:
            raise UsageError("--eval_on_test and --validation_ratio both select the evaluation rows: use one.")
        if any(files.values()):
            self._check_files(files, train, evaluate, predict)

    def _source_flags(self) -> str:
        return ", ".join(f"--{name}" for name in self.sources)

    def _check_files(self, files: dict[str, str | None], train: bool, evaluate: bool, predict: bool) -> None:
        for name, file in files.items():
            if file is None:
                continue
            path = Path(file)
            if path.is_dir():
                raise UsageError(
                    f"--{name}: {file} is a folder. Give a file in it, or pass the folder as --dataset_name."
                )
            if not path.is_file():
                folder = path.parent
                there = [each.name for each in folder.iterdir() if each.is_file()] if folder.is_dir() else []
                missing = "" if folder.is_dir() else f" (and no folder {folder})"
                raise UsageError(f"--{name}: there is no file {file}{missing}.{nearest(path.name, there)}")
            if path.suffix.lower() not in self.suffixes:
                raise UsageError(f"--{name}: {file} must end in one of {', '.join(self.suffixes)}.")
        if train and not files["train_file"]:
            raise UsageError("--do_train needs --train_file.")
        if self.validation_ratio is not None and files["validation_file"]:
            raise UsageError("--validation_file and --validation_ratio both select the evaluation rows: use one.")
        if self.validation_ratio is not None and not files["train_file"]:
            raise UsageError("--validation_ratio holds out rows of --train_file: add --train_file.")
        if evaluate and not (self.eval_on_test or files["validation_file"] or self.validation_ratio is not None):
            raise UsageError(
                "no rows for evaluation (--do_eval, --eval_strategy): add --validation_file FILE, or "
                "--validation_ratio 0.1 to hold out 10% of the training rows, or --eval_on_test --test_file FILE."
            )
        for name, asked in (("eval_on_test", self.eval_on_test), ("do_predict", predict)):
            if asked and not files["test_file"]:
                raise UsageError(f"--{name} needs --test_file.")
