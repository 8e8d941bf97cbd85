"""Reads questions, their contexts and answers, and checks that each answer is where its offset says.

Two formats of SQuAD (https://aclanthology.org/D16-1264, https://aclanthology.org/P18-2124) are read: the nested JSON of
its authors, versions 1.1 and 2.0, and flat rows as in the Hub's `squad` and `squad_v2`, from any table.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from datasets import Dataset, Features, List, Value

from sparse_accel.data.reading import Rows, check_signature, read_text
from sparse_accel.data.tables import FileTable, Table, read_table
from sparse_accel.errors import NoLabels, UsageError, first_line, listed, nearest, shown
from sparse_accel.tasks.question_answering.answer_offsets import Fault, find_fault

# Columns of a source.
ID, QUESTION, CONTEXT, ANSWERS, IMPOSSIBLE = "id", "question", "context", "answers", "is_impossible"
# Columns of checked rows, in place of `answers`.
ANSWER_TEXTS, ANSWER_STARTS = "answer_texts", "answer_starts"

_FEATURES = Features({name: Value("string") for name in (ID, QUESTION, CONTEXT)})
_ANSWER_FEATURES = Features({ANSWER_TEXTS: List(Value("string")), ANSWER_STARTS: List(Value("int64"))})
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can spell it, but no encoding has it
# Faults that a message lists; the others are counted.
_MOST = 3

_FORMS = 'write answers as {"text": [...], "answer_start": [...]} or as a list of {"text": ..., "answer_start": ...}'
_FILL = "fill or delete these rows"
_CONTRADICTION = "make is_impossible and answers agree: a question without an answer has an empty list of answers"
_NO_ANSWER = "add --version_2_with_negative if questions without an answer are meant, else delete them"


# --- nested files -----------------------------------------------------------------------------------------------------


class SquadTable(FileTable):
    """The questions of a nested SQuAD file, as a table of flat rows.

    Its places are paths in the file: `train.json, data[2].paragraphs[0].qas[1]`.
    """

    def __init__(self, file: str, columns: dict[str, list[Any]], paths: list[str]) -> None:
        super().__init__(file, Rows(columns, []), typed=True)
        self._paths = paths

    def place(self, row: int, column: str = "") -> str:
        """Returns file and path of a question, for messages; `row` counts from 0."""
        return f"{self.name}, {self._paths[row]}" + (f", '{column}'" if column else "")


def read_squad(file: str) -> Table:
    """Returns the table of a file: of a nested SQuAD .json file, or of any file that `read_table` reads.

    A nested file gives the columns id, question, context, and answers and is_impossible if any question has them; a
    value that is missing in the file is None. `read_questions` checks the values.

    Raises:
        UsageError: the file cannot be read; or a nested file has something else where an object or a list should be,
            with its path.
    """
    if not file.lower().endswith(".json"):
        return read_table(file)
    try:
        check_signature(file)
        text = read_text(file)
        content = json.loads(text) if '"paragraphs"' in text else None
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {first_line(error)}") from None
    except (ValueError, RecursionError):
        return read_table(file)  # says what is wrong, or reads JSON lines
    articles = content.get("data") if isinstance(content, dict) else content
    if isinstance(articles, list) and any(isinstance(each, dict) and "paragraphs" in each for each in articles):
        return _flattened(file, articles, "data" if isinstance(content, dict) else "")
    return read_table(file)


def _flattened(file: str, articles: list[Any], root: str) -> SquadTable:
    names = (ID, QUESTION, CONTEXT, ANSWERS, IMPOSSIBLE)
    columns: dict[str, list[Any]] = {name: [] for name in names}
    paths, given = [], {ID, QUESTION, CONTEXT}
    for number, article in enumerate(articles):
        for path, paragraph in _entries(file, f"{root}[{number}]", article, "paragraphs"):
            for place, question in _entries(file, path, paragraph, "qas"):
                if not isinstance(question, dict):
                    raise UsageError(f"{file}, {place}: expected an object with 'question', got {shown(question)}.")
                given |= question.keys()
                paths.append(place)
                for name in names:
                    columns[name].append((paragraph if name == CONTEXT else question).get(name))
    return SquadTable(file, {name: column for name, column in columns.items() if name in given}, paths)


def _entries(file: str, path: str, value: Any, name: str) -> list[tuple[str, Any]]:
    """Returns the entries of a list inside an object, each with its path."""
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, list):
        got = shown(found if isinstance(value, dict) and name in value else value)
        raise UsageError(f"{file}, {path}: expected an object with a list '{name}', got {got}.")
    return [(f"{path}.{name}[{number}]", each) for number, each in enumerate(found)]


# --- rows -------------------------------------------------------------------------------------------------------------


def has_answers(table: Table) -> bool:
    """Whether the rows of a table have answers."""
    return ANSWERS in table.column_names


def read_questions(table: Table, *, answers: bool, with_negatives: bool) -> Dataset:
    """Returns the checked rows of a table, in its order.

    Args:
        table: columns id, question, context and, if they are needed, answers; from `read_squad` or any other source.
            A column is_impossible (true or false) must agree with the answers.
        answers: whether answers are needed, for training or evaluation. If not, they are not read.
        with_negatives: whether questions may have no answer (--version_2_with_negative).

    Returns:
        id, question and context: texts, as they are in the source (a number as id becomes text). If `answers`:
        answer_texts, and answer_starts: offsets in the context in characters from 0; both empty for a question without
        an answer. Each answer is `context[start : start + len(text)]`.

    Raises:
        NoLabels: answers are needed, but the table has no such column.
        UsageError: a column is missing, or rows are wrong: an empty, missing or duplicate value, an answer that is not
            in its place, a question without an answer. The message counts the wrong rows, gives place, id and cause of
            the first ones, and says what to do.
    """
    for name in (ID, QUESTION, CONTEXT):
        if name not in table.column_names:
            raise _no_column(table, name)
    if answers and ANSWERS not in table.column_names:
        raise NoLabels(
            f"{table.name} has no column '{ANSWERS}'; its columns are: {listed(table.column_names)}. Answers are "
            "needed unless the rows are only predicted (--do_predict)."
        )
    ids, questions, contexts = (table.values(name) for name in (ID, QUESTION, CONTEXT))
    given = table.values(ANSWERS) if answers else [None] * len(table)
    marked = answers and IMPOSSIBLE in table.column_names
    impossible = table.values(IMPOSSIBLE) if marked else [None] * len(table)
    faults: dict[int, Fault] = {}
    first_rows: dict[str, int] = {}
    texts: list[list[str]] = []
    starts: list[list[int]] = []
    for row, (id_, context) in enumerate(zip(ids, contexts, strict=True)):
        fault = _wrong_texts(id_, questions[row], context)
        if fault is None and (first := first_rows.setdefault(str(id_), row)) != row:
            place = _short_place(table, first)
            fault = Fault(f"the id is a duplicate: {place} has it too", "give each question its own id")
        if fault is None and answers:
            read = _read_answers(given[row], context)
            fault = read if isinstance(read, Fault) else _contradiction(read, impossible[row], with_negatives)
            if not isinstance(read, Fault):
                texts.append([text for text, _ in read])
                starts.append([start for _, start in read])
        if fault is not None:
            faults[row] = fault
    if faults:
        raise _wrong_rows(table, ids, faults)
    columns = {ID: [str(each) for each in ids], QUESTION: questions, CONTEXT: contexts}
    if not answers:
        return Dataset.from_dict(columns, features=_FEATURES)
    columns |= {ANSWER_TEXTS: texts, ANSWER_STARTS: starts}
    return Dataset.from_dict(columns, features=Features({**_FEATURES, **_ANSWER_FEATURES}))


def _no_column(table: Table, name: str) -> UsageError:
    names = table.column_names
    hint = nearest(name, names)
    if {"data", "paragraphs", "qas"} & {*names}:
        hint = (
            ' Its rows are nested: give one nested .json file per split, {"data": [{"paragraphs": [...]}]}, with '
            "--train_file and --validation_file."
        )
    return UsageError(
        f"{table.name} has no column '{name}'; its columns are: {listed(names)}.{hint} Question answering reads the "
        f"columns {ID}, {QUESTION}, {CONTEXT} and {ANSWERS}."
    )


def _wrong_texts(id_: Any, question: Any, context: Any) -> Fault | None:
    named = str(id_) if isinstance(id_, int) and not isinstance(id_, bool) else id_
    for name, text in ((ID, named), (QUESTION, question), (CONTEXT, context)):
        if text is None or (isinstance(text, str) and not text.strip()):
            return Fault(f"the {name} is {'missing' if text is None else 'empty'}", _FILL)
        if not isinstance(text, str):
            return Fault(f"the {name} is {shown(text)}, which is not text", f"write each {name} as text")
        if _LONE_SURROGATE.search(text):
            return Fault(f"the {name} has a lone surrogate (half of a \\u pair)", "write whole characters in UTF-8")
    return None


def _read_answers(value: Any, context: str) -> list[tuple[str, int]] | Fault:
    """Returns text and offset of each answer of a question, or what is wrong with them."""
    if value is None:
        return Fault("the answers are missing (null)", f"{_FORMS}; without an answer, the lists are empty")
    if isinstance(value, dict):
        texts, starts = value.get("text"), value.get("answer_start")
    elif isinstance(value, list) and all(isinstance(each, dict) for each in value):
        texts, starts = ([each.get(name) for each in value] for name in ("text", "answer_start"))
    else:
        return Fault(f"the answers are {shown(value)}", _FORMS)
    if not isinstance(texts, list) or not isinstance(starts, list):
        return Fault(f"the answers are {shown(value)}", _FORMS)
    if len(texts) != len(starts):
        return Fault(f"the answers have {len(texts)} texts and {len(starts)} offsets", _FORMS)
    for number, (text, start) in enumerate(zip(texts, starts, strict=True), 1):
        if not isinstance(text, str) or not text.strip():
            return Fault(f"the text of answer {number} is {shown(text)}", f"{_FORMS}; delete answers without text")
        if isinstance(start, bool) or not isinstance(start, int) or start < 0:
            wrong = f"the answer_start of answer {number} ({shown(text)}) is {shown(start)}"
            return Fault(wrong, "write each answer_start as an integer: characters of the context, from 0")
        if fault := find_fault(context, text, start):
            return Fault(f"answer {number} is {fault.what}", fault.remedy)
    return list(zip(texts, starts, strict=True))


def _contradiction(answers: list[tuple[str, int]], impossible: Any, with_negatives: bool) -> Fault | None:
    if impossible not in (True, False, None):
        return Fault(f"is_impossible is {shown(impossible)}", "write is_impossible as true or false")
    if impossible and answers:
        return Fault(f"is_impossible is true, but it has {_counted(len(answers), 'answer')}", _CONTRADICTION)
    if impossible is not None and not impossible and not answers:
        return Fault("is_impossible is false, but it has no answer", _CONTRADICTION)
    return None if answers or with_negatives else Fault("it has no answer", _NO_ANSWER)


# --- messages ---------------------------------------------------------------------------------------------------------


def _wrong_rows(table: Table, ids: list[Any], faults: dict[int, Fault]) -> UsageError:
    lines = []
    for row, fault in list(faults.items())[:_MOST]:
        named = f", id {shown(ids[row])}" if ids[row] not in (None, "") else ""
        lines.append(f"\n  {_short_place(table, row)}{named}: {fault.what}")
    number = len(faults)
    remedies = Counter(fault.remedy for fault in faults.values()).most_common()
    todo = [f"{remedy} ({count} of {number})" if len(remedies) > 1 else remedy for remedy, count in remedies[:_MOST]]
    if len(remedies) > _MOST:
        todo.append(f"then run this again, for {_counted(len(remedies) - _MOST, 'other cause')}")
    header = f"{table.name}: {number} of {_counted(len(table), 'question')} cannot be used"
    more = f". The first {_MOST} of them:" if number > _MOST else ":"
    return UsageError(f"{header}{more}{''.join(lines)}\nTo fix this: {'; '.join(todo)}.")


def _short_place(table: Table, row: int) -> str:
    """Returns the place of a row, without the name of the table."""
    return table.place(row).removeprefix(f"{table.name}, ")


def _counted(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")
