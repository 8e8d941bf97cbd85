"""Labels: their kinds, names and faults; draws of rows; how names of data and model meet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import load, refusal, write
from datasets import ClassLabel, Dataset, Features, List, Value
from hypothesis import given
from hypothesis import strategies as st

from sparse_accel.data.reading import Rows
from sparse_accel.data.splitting import draw, hold_out
from sparse_accel.data.tables import FileTable, Origin
from sparse_accel.data.tokenizing import digest_of_rows
from sparse_accel.errors import UsageError
from sparse_accel.tasks.label_names import Head, match_names, name_order
from sparse_accel.tasks.text_classification.data import TextClassificationData
from sparse_accel.tasks.text_classification.label_reading import LabelReader
from sparse_accel.tasks.text_classification.labels import LabelColumn, are_hidden, are_indicators
from sparse_accel.tasks.text_classification.metrics import compute_metrics

SINGLE, REGRESSION, MULTI = "single_label_classification", "regression", "multi_label_classification"


def rows_of(labels: list[Any]) -> list[dict[str, Any]]:
    return [{"text": f"text {row}", "label": label} for row, label in enumerate(labels)]


@pytest.fixture
def of(tmp_path: Path) -> Callable[..., TextClassificationData]:
    """Loads a training file with these labels."""
    return lambda labels, suffix=".jsonl": load(
        train_file=write(tmp_path / f"train{suffix}", rows_of(labels)), do_train=True
    )


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    """Loads files with these labels, and returns the refusal."""

    def refuse(labels: list[Any], validation: list[Any] | None = None, suffix: str = ".jsonl") -> str:
        flags: dict[str, Any] = {"train_file": write(tmp_path / f"train{suffix}", rows_of(labels)), "do_train": True}
        if validation is not None:
            flags |= {"validation_file": write(tmp_path / f"dev{suffix}", rows_of(validation)), "do_eval": True}
        return refusal(**flags).replace(str(tmp_path) + "/", "")

    return refuse


# --- kinds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
@pytest.mark.parametrize(
    ("labels", "problem_type", "names"),
    [
        ([1, 0, 1], SINGLE, ["0", "1"]),
        ([10, 9, -1], SINGLE, ["-1", "9", "10"]),
        (["b", "a", "B"], SINGLE, ["B", "a", "b"]),
        ([True, False], SINGLE, ["False", "True"]),
        ([0.5, 1.25, 3.0], REGRESSION, ["score"]),
        ([1, 2.5, 3], REGRESSION, ["score"]),
        ([1e-3, -2.5], REGRESSION, ["score"]),
    ],
)
def test_kind_and_names(
    labels: list[Any], problem_type: str, names: list[str], suffix: str, of: Callable[..., TextClassificationData]
) -> None:
    data = of(labels, suffix)
    assert (data.problem_type, data.label_names) == (problem_type, names)
    read = [float(label) if problem_type == REGRESSION else str(label) for label in labels]
    assert data.splits["train"]["label"][:] == read


def test_words_that_look_like_numbers_are_words_in_json(of: Callable[..., TextClassificationData]) -> None:
    assert of(["2.5", "1.0"]).label_names == ["1.0", "2.5"]
    assert of(["10", "9"]).label_names == ["9", "10"]


def test_multi_label_lists_of_names(of: Callable[..., TextClassificationData]) -> None:
    data = of([["joy", "love"], [], ["anger"]])
    assert (data.problem_type, data.label_names) == (MULTI, ["anger", "joy", "love"])
    assert data.splits["train"]["label"][:] == [["joy", "love"], [], ["anger"]]
    assert of([[2, 0], [1]]).label_names == ["0", "1", "2"]


def test_multi_label_indicators(of: Callable[..., TextClassificationData]) -> None:
    data = of([[0, 1, 1], [0, 0, 0], [1, 0, 1]])
    assert data.label_names == ["0", "1", "2"]
    assert data.splits["train"]["label"][:] == [["1", "2"], [], ["0", "2"]]


def test_multi_label_declared_classes(tmp_path: Path) -> None:
    features = Features(text=Value("string"), labels=List(ClassLabel(names=["joy", "anger", "none"])))
    rows = Dataset.from_dict({"text": ["a", "b"], "labels": [[1, 0], [2]]}, features=features)
    rows.to_parquet(tmp_path / "train.parquet")
    data = load(train_file=tmp_path / "train.parquet", do_train=True)
    assert (data.problem_type, data.label_names, data.label_column) == (MULTI, ["joy", "anger", "none"], "labels")
    assert data.splits["train"]["label"][:] == [["anger", "joy"], ["none"]]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize(
    ("texts", "names", "read"),
    [
        (["[0, 1]", "[1, 0]"], ["0", "1"], [["1"], ["0"]]),
        (["[0, 1, 1]", "[0,0,0]"], ["0", "1", "2"], [["1", "2"], []]),
        (["['joy', 'love']", "[]", '["anger"]'], ["anger", "joy", "love"], [["joy", "love"], [], ["anger"]]),
        (["[2]", "[0, 1]"], ["0", "1", "2"], [["2"], ["0", "1"]]),
    ],
)
def test_lists_that_a_csv_file_has_as_text(
    texts: list[str], names: list[str], read: Any, suffix: str, of: Callable[..., TextClassificationData]
) -> None:
    data = of(texts, suffix)
    assert (data.problem_type, data.label_names) == (MULTI, names)
    assert data.splits["train"]["label"][:] == read


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize(
    ("texts", "row"),
    [
        (["[0, 1]", "[0 1]"], 2),
        (["[0 1]", "[1 0]"], 1),
        (["['joy']", "['joy' 'love']"], 2),
        (["['joy']", "['joy', 'love'"], 2),
        (["['joy']", "love"], 2),
    ],
)
def test_lists_that_cannot_be_read(texts: list[str], row: int, suffix: str, refused: Callable[..., str]) -> None:
    """As NumPy prints them, or cut off: never classes of their own, nor joined names."""
    message = refused(texts, suffix=suffix)
    assert f"row {row} " in message and "cannot be read as a list" in message and "--problem_type" in message


def test_names_in_brackets(tmp_path: Path, of: Callable[..., TextClassificationData]) -> None:
    file = write(tmp_path / "train.csv", rows_of(["[OTHER]", "[PERSON]"]))
    data = load(train_file=file, do_train=True, problem_type=SINGLE)
    assert (data.problem_type, data.label_names) == (SINGLE, ["[OTHER]", "[PERSON]"])
    assert of(["[OTHER]", "person"], ".csv").label_names == ["[OTHER]", "person"]


@given(st.integers(2, 6), st.data())
def test_rows_of_zeros_and_ones_are_indicators(count: int, data: st.DataObject) -> None:
    """One label on in each row, the hardest case, included: as names, [0, 1] and [1, 0] would be the same row."""
    rows = data.draw(st.lists(st.lists(st.integers(0, 1), min_size=count, max_size=count), min_size=2, max_size=9))
    labels = column_of(rows)
    assert are_indicators(labels) and are_indicators(labels, count)
    if any(len(set(row)) < count for row in rows):
        with pytest.raises(UsageError, match=f"is a list of {count} zeros and ones, but the model has {count + 1}"):
            are_indicators(labels, count + 1)
    else:
        assert not are_indicators(labels, count + 1), "a model with more labels: these may be names of two of them"


def column_of(values: list[Any], typed: bool = True) -> LabelColumn:
    texts = [f"text {row}" for row in range(len(values))]
    return LabelColumn(FileTable("rows", Rows({"text": texts, "label": values}, []), typed=typed), "label")


def read_by_row(reader: LabelReader, rows: list[Any]) -> list[Any]:
    column = column_of(rows)
    found: list[Any] = column.by_row(reader.read(column), reader.feature).to_pylist()
    return found


@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize("unknown", ["-1", "-1.0", "", "nothing"])
def test_a_test_set_without_its_labels(unknown: str, typed: bool) -> None:
    values: list[Any] = [{"-1": -1, "-1.0": -1.0, "nothing": None}.get(unknown, "") if typed else unknown] * 3
    assert are_hidden(column_of(values, typed)) == (typed or unknown != "nothing")
    assert not are_hidden(column_of([*values, 1 if typed else "1"], typed))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_minus_one_in_rows_to_predict(suffix: str, tmp_path: Path) -> None:
    test = write(tmp_path / f"test{suffix}", rows_of([-1, -1, -1]))
    data = load(["neg", "pos"], test_file=test, do_predict=True)
    assert data.splits["test"].column_names == ["text"]
    assert "has no labels" in refusal(["neg", "pos"], test_file=test, do_eval=True, eval_on_test=True)


# --- what is said with --problem_type ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("labels", "problem_type", "names", "read"),
    [
        ([0.0, 1.0, 2.0], SINGLE, ["0", "1", "2"], ["0", "1", "2"]),
        ([0.0, 1.0, 2.0], REGRESSION, ["score"], [0.0, 1.0, 2.0]),
        ([1, 2, 5], REGRESSION, ["score"], [1.0, 2.0, 5.0]),
        ([1, 0, 1], SINGLE, ["0", "1"], ["1", "0", "1"]),
    ],
)
def test_the_kind_that_is_asked_for(
    labels: list[Any], problem_type: str, names: list[str], read: list[Any], suffix: str, tmp_path: Path
) -> None:
    file = write(tmp_path / f"train{suffix}", rows_of(labels))
    data = load(train_file=file, do_train=True, problem_type=problem_type)
    assert (data.problem_type, data.label_names) == (problem_type, names)
    assert data.splits["train"]["label"][:] == read


@pytest.mark.parametrize(
    ("labels", "problem_type", "message"),
    [
        (["good", "bad"], REGRESSION, "row 1 (line 1), column 'label': the label 'good' is not a number"),
        ([0.5, 1.0], SINGLE, "the label 0.5 is a decimal number, not a class"),
        ([1, 0], MULTI, "the label is 1; expected a list"),
        ([[1, 0], [0, 1]], SINGLE, "the label [1, 0] is a list, not a class"),
    ],
)
def test_labels_that_are_not_of_that_kind(labels: list[Any], problem_type: str, message: str, tmp_path: Path) -> None:
    file = write(tmp_path / "train.jsonl", rows_of(labels))
    assert message in refusal(train_file=file, do_train=True, problem_type=problem_type)


def test_scores_of_a_model_that_gives_scores(tmp_path: Path) -> None:
    """Its head says what 1.0 and 3.0 are, in training and without."""
    file = write(tmp_path / "rows.csv", rows_of([1.0, 3.0, 2.0]))
    assert load(["score"], validation_file=file, do_eval=True).problem_type == REGRESSION
    kept = load(["score"], train_file=file, do_train=True)
    assert kept.problem_type == REGRESSION and kept.keeps_head


def test_many_classes_with_a_row_each(
    of: Callable[..., TextClassificationData], capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(of([f"class {number}" for number in range(150)]).label_names) == 150
    assert "150 different labels in 150 rows. If these are scores" in capsys.readouterr().err


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word", ["nan", "NaN", "<NA>", "NaT", "NA", "N/A", "None", "null", "?", "-", "--", ".", "#NULL!"]
)
@pytest.mark.parametrize("others", [["1", "0"], ["0.5", "1.25"]])
def test_a_missing_label_among_numbers(word: str, others: list[str], refused: Callable[..., str]) -> None:
    message = refused([*others, word], suffix=".csv")
    assert f"row 3 (line 4), column 'label': the label is missing ({word!r})" in message


@pytest.mark.parametrize("word", ["nan", "NaN", "<NA>"])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_missing_label_among_words(word: str, suffix: str, refused: Callable[..., str]) -> None:
    assert f"column 'label': the label is missing ({word!r})" in refused(["good", "bad", word], suffix=suffix)


def test_words_that_may_name_a_class(of: Callable[..., TextClassificationData]) -> None:
    assert of(["None", "joy", "NA"], ".csv").label_names == ["NA", "None", "joy"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", None], "train.jsonl, row 2 (line 2), column 'label': the label is missing."),
        ([1.5, float("nan")], "row 2 (line 2), column 'label': the label is nan; expected a finite number."),
        ([["a"], ["b"], "a"], "row 3 (line 3), column 'label': the label 'a' is a word, but ['a'] in row 1 is a list."),
        ([2.5, "good"], "row 2 (line 2), column 'label': the label 'good' is a word, but 2.5 in row 1 is a decimal"),
        ([1, "good"], "the label 'good' is a word, but 1 in row 1 is an integer."),
        ([{"a": 1}, "b"], "row 1 (line 1), column 'label': a label cannot be {'a': 1}."),
        ([["a", None], ["b"]], "row 1 (line 1), column 'label': the label is missing."),
        ([["a", ["b"]], ["b"]], "the label ['b'] is a list, not a class."),
        (["a", "a"], "all labels are a; training needs two or more."),
        ([0.0, 1.0, 0.0], "the labels are decimal numbers without a fraction (0.0, 1.0): scores or classes?"),
        ([3.0, 1.0, 2.0], "Add --problem_type regression or --problem_type single_label_classification."),
        ([*range(1500)], "1500 different labels in 1500 rows. If these are scores, add --problem_type regression"),
        (["a", "nan", "b"], "row 2 (line 2), column 'label': the label is missing ('nan')."),
    ],
)
def test_fault_of_a_label(labels: list[Any], message: str, refused: Callable[..., str]) -> None:
    assert message in refused(labels)


@pytest.mark.parametrize(
    ("labels", "validation", "suffix", "message"),
    [
        (["pos", "neg"], ["pos", "ngg"], ".csv", "dev.csv, row 2 (line 3), column 'label': the label 'ngg' does not "
         "occur in train.csv. Did you mean 'neg'? Its labels are: neg, pos."),
        ([0, 1], [1, 2], ".jsonl", "dev.jsonl, row 2 (line 2), column 'label': the label '2' does not occur"),
        ([0.5, 1.5], [1, "x"], ".jsonl", "row 2 (line 2), column 'label': the label 'x' is not a number"),
        ([0.5, 1.5], [1, "x"], ".csv", "row 2 (line 3), column 'label': the label 'x' is not a number"),
        ([["a"], ["b"]], [["a"], "b"], ".jsonl", "row 2 (line 2), column 'label': the label is 'b'; expected a list"),
        ([["a"], ["b"]], [["a"], ["c"]], ".jsonl", "row 2 (line 2), column 'label': the label 'c' does not occur"),
        ([[0, 1, 1], [1, 0, 0]], [[1], [0]], ".jsonl", "row 1 (line 1), column 'label': the label [1] is not a list"),
        ([[0, 1, 1], [1, 0, 0]], [[0, 1, 1, 0]], ".jsonl", "the label [0, 1, 1, 0] is not a list of 3 zeros and ones"),
        ([[0, 1, 1], [1, 0, 0]], [[0, 1, 1], [0, 1]], ".jsonl", "[0, 1] is not a list of 3 zeros and ones."),
        (["a", "b"], [["a"]], ".jsonl", "the label ['a'] is a list, not a class."),
        (["2.5", "good"], None, ".csv", "the label 'good' is a word, but '2.5' in row 1 is a decimal number"),
    ],
)  # fmt: skip
def test_fault_between_files(
    labels: list[Any], validation: list[Any] | None, suffix: str, message: str, refused: Callable[..., str]
) -> None:
    assert message in refused(labels, validation, suffix)


def test_row_without_a_label_in_a_dataset(tmp_path: Path) -> None:
    features = Features(text=Value("string"), label=ClassLabel(names=["a", "b"]))
    Dataset.from_dict({"text": ["x", "y"], "label": [0, -1]}, features=features).to_parquet(tmp_path / "train.parquet")
    message = refusal(train_file=tmp_path / "train.parquet", do_train=True)
    assert "row 2, column 'label': the label is -1, which is not a class: the row has no label" in message


# --- with the names of a model ----------------------------------------------------------------------------------------


def test_predicting_rows_without_labels(tmp_path: Path) -> None:
    test = write(tmp_path / "test.csv", [{"text": "a"}, {"text": "b"}])
    data = load(["neg", "pos"], test_file=test, do_predict=True)
    assert data.splits["test"].column_names == ["text"] and not data.has_labels("test")
    assert (data.label_names, data.problem_type, data.label_column) == (["neg", "pos"], SINGLE, None)
    assert load(["score"], test_file=test, do_predict=True).problem_type == REGRESSION
    assert load(["a", "b"], MULTI, test_file=test, do_predict=True).problem_type == MULTI
    assert "predict with a fine-tuned model" in refusal(test_file=test, do_predict=True)
    assert "has no column 'label'" in refusal(["neg", "pos"], test_file=test, do_eval=True, eval_on_test=True)


def test_null_labels_of_rows_to_predict_are_no_labels(tmp_path: Path) -> None:
    test = write(tmp_path / "test.jsonl", [{"text": "a", "label": None}, {"text": "b", "label": None}])
    data = load(["neg", "pos"], test_file=test, do_predict=True)
    assert data.splits["test"].column_names == ["text"]
    message = refusal(["neg", "pos"], test_file=test, do_eval=True, eval_on_test=True)
    assert "has no labels (column 'label'), so it can be predicted but not evaluated." in message


@pytest.mark.parametrize(
    ("labels", "names", "read"),
    [
        (["pos", "pos"], ["neg", "pos"], ["pos", "pos"]),
        (["POSITIVE", "NEGATIVE"], ["negative", "positive"], ["positive", "negative"]),
        ([1, 0], ["neg", "pos"], ["pos", "neg"]),
        ([1, 0], ["LABEL_0", "LABEL_1"], ["LABEL_1", "LABEL_0"]),
        ([1, 1], ["1", "0"], ["1", "1"]),
    ],
)
def test_labels_of_the_data_become_those_of_the_model(
    labels: list[Any], names: list[str], read: list[str], tmp_path: Path
) -> None:
    file = write(tmp_path / "dev.csv", rows_of(labels))
    data = load(names, validation_file=file, do_eval=True)
    assert data.label_names == names and data.splits["validation"]["label"][:] == read


def test_labels_that_the_model_does_not_know(tmp_path: Path) -> None:
    file = write(tmp_path / "dev.csv", rows_of(["good", "bad"]))
    message = refusal(["neg", "pos"], validation_file=file, do_eval=True)
    assert "row 1 (line 2), column 'label': the label 'good' does not occur in the model." in message
    scores = write(tmp_path / "scores.jsonl", rows_of([0.5, 1.5]))
    message = refusal(["neg", "pos"], validation_file=scores, do_eval=True)
    assert "the label 0.5 is a decimal number, not a class." in message


NAMES = st.lists(st.text("abcXYZ_", min_size=1, max_size=5), min_size=1, max_size=6, unique=True)


@given(NAMES, st.randoms())
def test_same_names_in_another_order_match_by_name(names: list[str], random: Any) -> None:
    shuffled = random.sample(names, len(names))
    assert match_names(names, shuffled) == {name: name for name in names}


@given(st.integers(1, 12), st.booleans())
def test_numbers_are_positions(count: int, generic: bool) -> None:
    names = [f"name {position}" for position in range(count)]
    numbers = [str(position) for position in range(count)]
    model = [f"LABEL_{number}" for number in numbers] if generic else numbers
    assert match_names(names, model) == dict(zip(names, model, strict=True))
    assert match_names(numbers, names) == dict(zip(numbers, names, strict=True))


@given(NAMES, NAMES)
def test_a_match_is_one_to_one_and_onto(data: list[str], model: list[str]) -> None:
    matched = match_names(data, model)
    if matched is not None:
        assert sorted(matched) == sorted(data) and sorted(matched.values()) == sorted(model)


@given(
    st.lists(st.sampled_from(["neg", "neu", "pos", "Joy", "odd"]), min_size=2, unique=True), st.randoms(), st.booleans()
)
def test_a_kept_head_has_its_own_order(names: list[str], random: Any, training: bool) -> None:
    """Whatever the order of outputs, the capitals, and the order of rows: an output's number is that of its name."""
    outputs = [random.choice([name, name.upper(), name.lower()]) for name in random.sample(names, len(names))]
    rows = [random.choice(names) for _ in range(4)] + names
    random.shuffle(rows)
    reader = LabelReader(column_of(rows), Head(outputs), None, training)
    assert reader.keeps_head and reader.names == outputs and not reader.by_position
    read = read_by_row(reader, rows)
    assert [name.casefold() for name in read] == [name.casefold() for name in rows]
    fewer = read_by_row(reader, rows[:1])
    assert fewer == read[:1], "rows that lack a class are read alike"


@given(st.integers(2, 6), st.randoms())
def test_an_unnamed_head_is_taken_by_number(count: int, random: Any) -> None:
    rows = [*range(count), *random.choices(range(count), k=3)]
    reader = LabelReader(column_of(rows), Head([f"LABEL_{number}" for number in range(count)]), None, True)
    assert reader.keeps_head and reader.names == [str(number) for number in range(count)]
    assert read_by_row(reader, rows) == [str(row) for row in rows]


@pytest.mark.parametrize(
    ("outputs", "rows", "names"),
    [
        (["neg", "neu", "pos"], ["NEG", "neg", "pos", "Pos", "neu"], ["neg", "neu", "pos"]),
        (["neg", "neu", "pos"], ["neg", "pos"], ["neg", "neu", "pos"]),
        (["joy", "anger", "fear"], [[1, 0, 1], [0, 1, 0]], ["joy", "anger", "fear"]),
        (["1", "2", "3"], [[1, 0, 1], [0, 1, 0]], ["1", "2", "3"]),
        (["LABEL_0", "LABEL_1"], ["no", "yes"], ["no", "yes"]),
        (["a", "b"], ["x", "y", "z"], None),
        (["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"], [[1, 0, 1], [0, 1, 0]], None),
    ],
)
def test_which_heads_are_kept(outputs: list[str], rows: list[Any], names: list[str] | None) -> None:
    reader = LabelReader(column_of(rows), Head(outputs), None, training=True)
    assert reader.keeps_head == (names is not None)
    if names is not None:
        assert reader.names == names
        on = [[name for name, is_on in zip(names, row, strict=True) if is_on] for row in rows if isinstance(row, list)]
        by_name: Any = [next((name for name in names if name.lower() == str(row).lower()), "") for row in rows]
        assert read_by_row(reader, rows) == (on or by_name)


@pytest.mark.parametrize(
    ("outputs", "rows"),
    [
        (["neg", "pos"], ["bad", "good"]),
        (["neg", "neu", "pos"], ["neg", "posi"]),
        (["neg", "neu", "pos"], ["neg", "neu", "pos", "mixed"]),
        (["neg", "neu", "pos"], [0, 1]),
        (["1", "2", "3"], [0, 1, 2]),
        (["us", "US"], ["Us", "uS"]),
    ],
)
def test_heads_that_may_be_meant_or_not(outputs: list[str], rows: list[Any]) -> None:
    with pytest.raises(UsageError, match="do not match those of the model") as caught:
        LabelReader(column_of(rows), Head(outputs), None, training=True)
    assert ", ".join(outputs) in str(caught.value) and "--new_head" in str(caught.value)


def test_whole_numbers_for_a_model_of_scores(tmp_path: Path) -> None:
    file = write(tmp_path / "train.csv", rows_of([0, 1, 4]))
    assert "the model predicts a score: scores or classes?" in refusal(["score"], train_file=file, do_train=True)
    kept = load(["score"], train_file=file, do_train=True, problem_type=REGRESSION)
    assert kept.keeps_head and kept.splits["train"]["label"][:] == [0.0, 1.0, 4.0]
    other = load(["score"], train_file=file, do_train=True, problem_type=SINGLE)
    assert not other.keeps_head and other.label_names == ["0", "1", "4"]


def test_numbers_that_may_be_counted_from_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unnamed = [f"LABEL_{number}" for number in range(3)]
    load(unnamed, validation_file=write(tmp_path / "dev.csv", rows_of([1, 2, 1])), do_eval=True)
    assert "matched by position, not by name: 1 as LABEL_1, 2 as LABEL_2" in capsys.readouterr().err
    load(unnamed, validation_file=write(tmp_path / "dev.csv", rows_of([0, 2, 1])), do_eval=True)
    assert "by position" not in capsys.readouterr().err


def test_a_model_that_does_not_say_its_problem_type(tmp_path: Path) -> None:
    file = write(tmp_path / "dev.jsonl", rows_of([["joy"], ["anger", "joy"]]))
    assert "is a list, not a class" in refusal(["anger", "joy"], validation_file=file, do_eval=True)
    data = load(["anger", "joy"], validation_file=file, do_eval=True, problem_type=MULTI)
    assert data.problem_type == MULTI and data.splits["validation"]["label"][:] == [["joy"], ["anger", "joy"]]
    with pytest.raises(UsageError, match="the model was trained for single_label"):
        load(["anger", "joy"], SINGLE, validation_file=file, do_eval=True, problem_type=MULTI)


def test_labels_of_rows_to_predict_are_not_read(tmp_path: Path) -> None:
    for labels in (["?", "?"], ["unknown", ""], [None, 1]):
        test = write(tmp_path / "test.jsonl", rows_of(labels))
        assert load(["neg", "pos"], test_file=test, do_predict=True).splits["test"].column_names == ["text"]


def test_numbers_that_are_names_are_not_positions() -> None:
    assert match_names(["0", "1", "2"], ["1", "2", "3"]) is None
    assert match_names(["1", "2"], ["0", "1", "2"], complete=False) == {"1": "1", "2": "2"}
    assert match_names(["LABEL_1", "LABEL_0"], ["neg", "pos"]) == {"LABEL_1": "pos", "LABEL_0": "neg"}
    assert match_names(["LABEL_1", "LABEL_0"], ["label_0", "label_1"]) == {"LABEL_1": "label_1", "LABEL_0": "label_0"}


@pytest.mark.parametrize("names", [["not_equivalent", "equivalent"], ["equivalent", "not_equivalent"]])
def test_f1_is_of_the_datas_label_1(names: list[str], tmp_path: Path) -> None:
    """GLUE's F1 is of `equivalent`, also where a model has that output first."""
    features = Features(text=Value("string"), label=ClassLabel(names=["not_equivalent", "equivalent"]))
    rows = Dataset.from_dict({"text": ["a", "b", "c", "d"], "label": [0, 1, 1, 0]}, features=features)
    rows.to_parquet(tmp_path / "dev.parquet")
    data = load(names, validation_file=tmp_path / "dev.parquet", do_eval=True)
    assert data.positive == names.index("equivalent")
    ids = np.array([data.label2id[label] for label in data.splits["validation"]["label"][:]])
    logits = np.eye(2)[
        [data.label2id[name] for name in ("not_equivalent", "equivalent", "not_equivalent", "equivalent")]
    ]
    assert compute_metrics("mrpc", SINGLE, logits, ids, data.positive)["f1"] == pytest.approx(0.5)


def test_names_that_do_not_fit() -> None:
    assert match_names(["neg", "pos"], ["bad", "good"]) is None
    assert match_names(["neg", "pos"], ["neg", "neutral", "pos"]) is None
    assert match_names(["neg", "pos"], ["neg", "neutral", "pos"], complete=False) == {"neg": "neg", "pos": "pos"}
    assert match_names(["a", "A"], ["a", "B"]) is None


@given(st.lists(st.integers(-20, 20), min_size=1))
def test_numbers_are_ordered_as_numbers(numbers: list[int]) -> None:
    assert name_order([str(number) for number in numbers]) == [str(number) for number in sorted(set(numbers))]


@given(st.lists(st.text(max_size=4)), st.randoms())
def test_order_of_names_does_not_depend_on_order_of_rows(names: list[str], random: Any) -> None:
    assert name_order(names) == name_order(random.sample(names, len(names)))


# --- draws ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 4), max_size=200), st.floats(0.01, 0.99), st.integers(0, 2**32 - 1))
def test_hold_out_is_a_stratified_partition(labels: list[int], ratio: float, seed: int) -> None:
    kept, held = (rows.tolist() for rows in hold_out(np.asarray(labels), ratio, seed))
    assert sorted(kept + held) == list(range(len(labels)))
    assert kept == sorted(kept) and held == sorted(held)
    counts, held_counts = Counter(labels), Counter(labels[row] for row in held)
    for label, count in counts.items():
        assert count - held_counts[label] >= 1, "every class stays in training"
        assert abs(held_counts[label] - ratio * count) <= 1 or held_counts[label] == count - 1
    assert [kept, held] == [rows.tolist() for rows in hold_out(np.asarray(labels), ratio, seed)]


@given(st.integers(2, 50), st.integers(1, 4), st.floats(0.1, 0.5))
def test_hold_out_has_the_size_that_was_asked_for(per_class: int, classes: int, ratio: float) -> None:
    labels = [label for label in range(classes) for _ in range(per_class)]
    assert len(hold_out(np.asarray(labels), ratio, 0)[1]) == round(ratio * len(labels))


@given(st.integers(0, 100), st.integers(1, 120), st.integers(0, 2**32 - 1))
def test_draw(rows: int, count: int, seed: int) -> None:
    drawn = draw(rows, count, seed)
    if count >= rows:
        assert drawn is None
    else:
        assert drawn is not None and len(drawn) == count and drawn[-1] < rows
        assert (np.diff(drawn) > 0).all() and (drawn == draw(rows, count, seed)).all()


def test_subset_is_not_the_first_rows_of_data_sorted_by_label(tmp_path: Path) -> None:
    file = write(tmp_path / "train.csv", rows_of(["neg"] * 100 + ["pos"] * 100))
    flags: dict[str, Any] = {"train_file": file, "validation_file": file, "do_train": True, "do_eval": True}
    data = load(**flags, max_train_samples=20, max_eval_samples=10)
    assert (len(data.splits["train"]), len(data.splits["validation"])) == (20, 10)
    assert set(data.splits["train"]["label"][:]) == {"neg", "pos"}
    again = load(**flags, max_train_samples=20, max_eval_samples=10)
    other = load(**flags, max_train_samples=20, max_eval_samples=10, seed=7)
    assert (
        digest_of_rows(data.splits["train"])
        == digest_of_rows(again.splits["train"])
        != digest_of_rows(other.splits["train"])
    )


def test_label_names_are_those_of_all_rows(tmp_path: Path) -> None:
    file = write(tmp_path / "train.csv", rows_of(["a"] * 50 + ["b"] * 50 + ["c"]))
    data = load(train_file=file, do_train=True, max_train_samples=3)
    assert data.label_names == ["a", "b", "c"]


def test_validation_ratio(tmp_path: Path) -> None:
    file = write(tmp_path / "train.csv", rows_of(["a"] * 90 + ["b"] * 10))
    data = load(train_file=file, do_train=True, do_eval=True, validation_ratio=0.2)
    assert Counter(data.splits["validation"]["label"][:]) == {"a": 18, "b": 2}
    assert not set(data.splits["validation"]["text"][:]) & set(data.splits["train"]["text"][:])
    assert data.sources["validation"] == f"{file} (20 rows held out)"
    assert data.origins["validation"] == Origin(str(file), 100, None, None, None), "a part of the training rows"
    evaluated = load(["a", "b"], train_file=file, do_eval=True, validation_ratio=0.2)
    assert list(evaluated.splits) == ["validation"]
    assert digest_of_rows(evaluated.splits["validation"]) == digest_of_rows(data.splits["validation"])
    tiny = write(tmp_path / "tiny.csv", rows_of(["a", "b"]))
    message = refusal(train_file=tiny, do_train=True, do_eval=True, validation_ratio=0.1)
    assert "leaves 2 for training and 0 for evaluation" in message


def test_eval_on_test_measures_on_the_test_rows(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", rows_of(["a", "b"]))
    test = write(tmp_path / "test.csv", rows_of(["b", "a", "a"]))
    data = load(train_file=train, test_file=test, do_train=True, do_eval=True, eval_on_test=True)
    assert data.splits["validation"]["label"][:] == ["b", "a", "a"] and data.sources["validation"] == str(test)
    assert data.origins["validation"] == Origin(str(test), 3, None, None, None)


def test_digest_sees_texts_labels_and_order(of: Callable[..., TextClassificationData]) -> None:
    digests = [
        digest_of_rows(of(labels).splits["train"]) for labels in (["a", "b"], ["b", "a"], ["a", "c"], ["a", "b"])
    ]
    assert digests[0] == digests[3] and len(set(digests)) == 3
