"""The training scripts of all tasks are one text: what differs between tasks is in sparse_accel/tasks."""

from __future__ import annotations

import ast

import pytest
from places import ROOT

SCRIPTS = ROOT / "scripts"
TASKS = {
    "text_classification": "TextClassification",
    "token_classification": "TokenClassification",
    "question_answering": "QuestionAnswering",
    "masked_language_modeling": "MaskedLanguageModeling",
    "sentence_embedding": "SentenceEmbedding",
}


@pytest.mark.parametrize("task", TASKS)
def test_a_script_is_short(task: str) -> None:
    assert len((SCRIPTS / f"{task}.py").read_text().splitlines()) <= 160


def test_the_scripts_differ_in_their_task_alone() -> None:
    first, *others = (without_names(task) for task in TASKS)
    assert others and all(lines == first for lines in others)
    assert len(first) > 100 and any("X.load(arguments" in line for line in first)


def without_names(task: str) -> list[str]:
    """The lines of a script below its docstring, with the same names for every task. The import of its flags may come
    before or after another one, as their names sort."""
    source = (SCRIPTS / f"{task}.py").read_text()
    docstring = ast.parse(source).body[0]
    assert isinstance(docstring, ast.Expr) and docstring.end_lineno is not None
    body = "\n".join(source.splitlines()[docstring.end_lineno :])
    lines = body.replace(TASKS[task], "X").replace(task, "x").splitlines()
    flags = [line for line in lines if line.startswith("from sparse_accel.cli.")]
    return [*sorted(flags), *(line for line in lines if line not in flags)]
