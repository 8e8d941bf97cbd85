"""The rows of a text classification run, with the names of their labels."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasets import Dataset, List, Value

from sparse_accel.errors import UsageError
from sparse_accel.tasks.columns import check_column, find_label_column, find_text_columns
from sparse_accel.tasks.glue import GLUE
from sparse_accel.tasks.labels import (
    MULTI_LABEL,
    REGRESSION,
    SINGLE_LABEL,
    are_indicators,
    are_unpublished,
    check_known,
    find_problem_type,
    match_names,
    name_order,
    read_labels,
)
from sparse_accel.tasks.sources import load_tables
from sparse_accel.tasks.splitting import draw, hold_out
from sparse_accel.tasks.tables import Table

if TYPE_CHECKING:
    from sparse_accel.arguments import TextClassificationArguments

LABEL = "label"


@dataclass(frozen=True)
class TextClassificationData:
    """Rows and labels, before a tokenizer or a model is known.

    Attributes:
        splits: train, validation, test, and MNLI's validation_mismatched and test_mismatched, as far as they are asked
            for. `validation` is what is evaluated on, be it the test rows (--eval_on_test) or a hold-out. Columns: the
            text columns, and `label` (a name; a float; a list of names) unless the rows have none. The position of a
            row in its split is the row's id.
        text_columns: one column, or two for pairs.
        label_column: name of the labels' column in the source; None when no split has labels.
        problem_type: as in config.json: single_label_classification, multi_label_classification or regression.
        label_names: in the order of the model's outputs; ["score"] for regression.
        metrics: name of the metric set: a GLUE task, or "default".
        sources: where the rows of each split come from, for people.
        cache_dir: folder for tokenized rows; None: the Hugging Face cache.
    """

    splits: dict[str, Dataset]
    text_columns: tuple[str, ...]
    label_column: str | None
    problem_type: str
    label_names: list[str]
    metrics: str
    sources: dict[str, str]
    cache_dir: str | None = None

    @property
    def label2id(self) -> dict[str, int]:
        """Name -> position among the model's outputs."""
        return {name: position for position, name in enumerate(self.label_names)}

    @property
    def id2label(self) -> dict[int, str]:
        """Position among the model's outputs -> name."""
        return dict(enumerate(self.label_names))

    def has_labels(self, split: str) -> bool:
        """Whether the rows of the split are labelled."""
        return LABEL in self.splits[split].column_names

    def digest(self, split: str) -> str:
        """A SHA-256 of the rows, texts and labels in order: the same data gives the same digest on any machine."""
        result = hashlib.sha256()
        dataset = self.splits[split].with_format(None)
        columns = [*self.text_columns, *([LABEL] if self.has_labels(split) else [])]
        for batch in dataset.select_columns(columns).iter(batch_size=1000):
            result.update(repr([batch[column] for column in columns]).encode())
        return result.hexdigest()


def load_text_classification(
    arguments: TextClassificationArguments,
    label_names: Sequence[str] | None = None,
    problem_type: str | None = None,
) -> TextClassificationData:
    """Loads the splits that a run needs, finds their columns and reads their labels.

    Args:
        arguments: which data, and what is done with it.
        label_names: names of a fine-tuned model's outputs, in order, for a run that does not train: labels of the data
            are turned into these names (`match_names`), and rows without labels can be predicted. Without them the
            names come from the training rows, or else from the rows at hand.
        problem_type: of that model, where its config.json says so.

    Raises:
        UsageError: data that is not there or not as asked: with file, row, line and column.
    """
    found = load_tables(arguments)
    tables = _needed_splits(arguments, found)
    label_column = _label_column(arguments, tables)
    task = GLUE[arguments.task_name] if arguments.task_name else None
    named_columns = arguments.input_column_names or (task.text_columns if task else None)
    text_columns = find_text_columns(next(iter(tables.values())), named_columns, label_column)
    for table in tables.values():
        _check_texts(table, text_columns)
    labelled = {split: table for split, table in tables.items() if _is_labelled(split, table, label_column)}

    if arguments.do_train:
        label_names = problem_type = None
    teaching = found.get("train")
    if teaching is None or label_column not in teaching.column_names:
        teaching = next(iter(labelled.values()), None)
    reader = _LabelReader(
        teaching, label_column or "", label_names, task.problem_type if task else problem_type, arguments.do_train
    )
    splits = {split: table.texts(text_columns) for split, table in tables.items()}
    for split, table in labelled.items():
        splits[split] = splits[split].add_column(LABEL, reader.read(table), feature=reader.feature)
    data = TextClassificationData(
        splits=splits,
        text_columns=text_columns,
        label_column=label_column if labelled else None,
        problem_type=reader.problem_type,
        label_names=reader.names,
        metrics=arguments.task_name or "default",
        sources={split: table.name for split, table in tables.items()},
        cache_dir=arguments.cache_dir,
    )
    return _draw_rows(arguments, data)


# --- which splits, which columns --------------------------------------------------------------------------------------


def _needed_splits(arguments: TextClassificationArguments, found: dict[str, Table]) -> dict[str, Table]:
    """The tables that the run reads, by what they are for; train first."""
    needed: dict[str, Table] = {}
    name = next(iter(found.values())).name.partition(", split")[0]

    def take(purpose: str, split: str, advice: str) -> None:
        if split not in found:
            raise UsageError(f"{name} has no {split} rows, which {advice}")
        needed[purpose] = found[split]

    if arguments.do_train or arguments.validation_ratio is not None:
        take("train", "train", "--do_train and --validation_ratio need.")
    elif arguments.one_shot and "train" in found:
        needed["train"] = found["train"]
    if arguments.validation_ratio is not None and "validation" in found:
        raise UsageError(f"{name} has validation rows of its own: leave out --validation_ratio.")
    if arguments.eval_on_test:
        take("validation", "test", "--eval_on_test needs.")
    elif arguments.do_eval and arguments.validation_ratio is None:
        advice = "--do_eval needs: add --validation_ratio 0.1 to hold out a tenth of the training rows"
        take("validation", "validation", advice + (", or --eval_on_test." if "test" in found else "."))
        if "validation_mismatched" in found:
            needed["validation_mismatched"] = found["validation_mismatched"]
    if arguments.do_predict:
        take("test", "test", "--do_predict needs.")
        if "test_mismatched" in found:
            needed["test_mismatched"] = found["test_mismatched"]
    for table in needed.values():
        if not len(table):
            raise UsageError(f"{table.name} has no rows.")
    return needed or found


def _label_column(arguments: TextClassificationArguments, tables: dict[str, Table]) -> str | None:
    """The labels' column; None where only rows to predict are read, and these have none."""
    columns = {split: find_label_column(table, arguments.label_column_name) for split, table in tables.items()}
    column = next((column for column in columns.values() if column), None)
    for split, table in tables.items():
        if columns[split] is not None or split.startswith("test"):
            continue
        if arguments.label_column_name or column:
            check_column(table, arguments.label_column_name or str(column), "--label_column_name")
        raise UsageError(
            f"{table.name} has no column 'label' or 'labels'; its columns are: {', '.join(table.column_names)}. "
            "Name the column of labels with --label_column_name."
        )
    return column


def _check_texts(table: Table, columns: tuple[str, ...]) -> None:
    for column in columns:
        check_column(table, column, "--input_column_names")
    unusable = table.unusable_text(columns)
    if unusable is not None:
        row, column, wrong = unusable
        raise UsageError(f"{table.place(row, column)} {wrong}: mend the row or take it out.")


def _is_labelled(split: str, table: Table, column: str | None) -> bool:
    """Whether the split has labels; rows to predict may be without, all others may not."""
    if column in table.column_names and not are_unpublished(table, str(column)):
        return True
    if split.startswith("test"):
        return False
    raise UsageError(f"{table.name} has no labels (column '{column}'), so it can be predicted and not evaluated.")


# --- labels -----------------------------------------------------------------------------------------------------------


class _LabelReader:
    """Reads the labels of every split by what one of them, the training rows where they are at hand, has taught.

    Args:
        teaching: the rows that say what labels there are; None: no rows with labels.
        column: their column of labels.
        model_names: names of a fine-tuned model's outputs, which the labels of the data are turned into.
        problem_type: where it is known.
        training: whether the rows will be trained on, and so must hold two labels or more.
    """

    def __init__(
        self,
        teaching: Table | None,
        column: str,
        model_names: Sequence[str] | None,
        problem_type: str | None,
        training: bool,
    ) -> None:
        self.column = column
        self.model_names = list(model_names or [])
        self.known_from = teaching.name if teaching else ""
        if problem_type is None and len(self.model_names) == 1:
            problem_type = REGRESSION
        if teaching is None:
            if not self.model_names:
                raise UsageError(
                    "no rows with labels, so their names are not known: predict with a fine-tuned model (a folder that "
                    "training wrote, as --model_name_or_path)."
                )
            self.problem_type, self.indicators, self.names = problem_type or SINGLE_LABEL, False, self.model_names
            return
        self.problem_type = problem_type or find_problem_type(teaching, column)
        if len(self.model_names) > 1 and self.problem_type == REGRESSION:
            # Numbers for a model of classes: reading them as names says which row does not fit.
            self.problem_type = SINGLE_LABEL
        self.indicators = self.problem_type == MULTI_LABEL and are_indicators(teaching, column)
        self.names = self.model_names or self._names_in(teaching)
        if training and self.problem_type != REGRESSION:
            self._check_names(teaching)

    @property
    def feature(self) -> Any:
        """The column type of labels: a float, a name, or a list of names."""
        return {REGRESSION: Value("float64"), MULTI_LABEL: List(Value("string"))}.get(
            self.problem_type, Value("string")
        )

    def read(self, table: Table) -> list[Any]:
        """The labels of a table, row by row, as `feature` says; names are among `names`."""
        labels = read_labels(table, self.column, self.problem_type, self.indicators)
        if self.problem_type == REGRESSION:
            return labels
        if self.model_names:
            declared = table.class_names(self.column)
            matched = match_names(declared, self.names) if declared else None
            matched = matched or match_names(name_order(_flat(labels)), self.names, complete=False)
            if matched is None:
                check_known(table, self.column, labels, self.names, "the model")
            else:
                return [
                    [matched[name] for name in label] if isinstance(label, list) else matched[label] for label in labels
                ]
        check_known(table, self.column, labels, self.names, self.known_from)
        return labels

    def _names_in(self, teaching: Table) -> list[str]:
        if self.problem_type == REGRESSION:
            return ["score"]
        if self.indicators:
            return [str(position) for position in range(len(teaching.values(self.column)[0]))]
        declared = teaching.class_names(self.column)
        return declared or name_order(_flat(read_labels(teaching, self.column, self.problem_type)))

    def _check_names(self, teaching: Table) -> None:
        if len(self.names) < 2:
            raise UsageError(
                f"{teaching.name}, column '{self.column}': all labels are {', '.join(self.names) or 'empty'}; "
                "training needs two or more."
            )
        if len(self.names) > max(100, len(teaching) // 2):
            raise UsageError(
                f"{teaching.name}, column '{self.column}': {len(self.names)} different labels in {len(teaching)} rows. "
                "If these are scores, write them with a decimal point (3.0) for regression; if they are not labels, "
                "name the right column with --label_column_name."
            )


def _flat(labels: list[Any]) -> list[str]:
    """All names, whether rows hold one or a list of them."""
    return [name for label in labels for name in (label if isinstance(label, list) else [label])]


# --- draws of rows ----------------------------------------------------------------------------------------------------


def _draw_rows(arguments: TextClassificationArguments, data: TextClassificationData) -> TextClassificationData:
    """Holds out validation rows, then takes subsets; names of labels stay those of all rows.

    Rows to predict are the first ones, so that a prediction's row is the row of the data; others are drawn.
    """
    splits, sources = dict(data.splits), dict(data.sources)
    if arguments.validation_ratio is not None:
        train = splits["train"]
        strata = train[LABEL][:] if data.problem_type == SINGLE_LABEL else [0] * len(train)
        kept, held = hold_out(strata, arguments.validation_ratio, arguments.seed)
        if not held or not kept:
            raise UsageError(
                f"--validation_ratio {arguments.validation_ratio} of {len(train)} rows ({sources['train']}) leaves "
                f"{len(kept)} to train on and {len(held)} to evaluate on."
            )
        splits["train"], splits["validation"] = train.select(kept), train.select(held)
        sources["validation"] = f"{sources['train']} ({len(held)} rows held out)"
        if not (arguments.do_train or arguments.one_shot):
            del splits["train"], sources["train"]
    limits = {
        "train": arguments.max_train_samples,
        "validation": arguments.max_eval_samples,
        "test": arguments.max_predict_samples,
    }
    for split, dataset in splits.items():
        purpose = split.partition("_")[0]
        limit = limits[purpose]
        if purpose == "test":
            splits[split] = dataset if limit is None else dataset.select(range(min(limit, len(dataset))))
            continue
        rows = draw(len(dataset), limit, arguments.seed)
        splits[split] = dataset if rows is None else dataset.select(rows)
    return dataclasses.replace(data, splits=splits, sources=sources)
