"""docs/modifiers.md and docs/migration.md: what they say of the code is what the code does."""

from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path
from typing import Any

import generate
import migration_tables
import modifier_tables
import pytest
from places import ROOT

from sparse_accel.cli.export import ExportArguments
from sparse_accel.cli.masked_language_modeling import MaskedLanguageModelingArguments
from sparse_accel.cli.question_answering import QuestionAnsweringArguments
from sparse_accel.cli.text_classification import TextClassificationArguments
from sparse_accel.cli.token_classification import TokenClassificationArguments
from sparse_accel.modifiers import KNOWN_LATER, REGISTRY
from sparse_accel.recipe import load_recipe
from sparse_accel.recipe.fields import key_table, recipe_fields

MODIFIERS, MIGRATION = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("modifiers.md", "migration.md"))


@pytest.mark.parametrize("name", generate.PAGES)
def test_a_page_is_what_the_generator_makes(name: str) -> None:
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == generate.PAGES[name](), "run: python docs/generate.py"


def test_a_page_without_a_generated_part_is_an_error() -> None:
    page = "text\n<!-- generated: one -->\nold\n<!-- end -->\n"
    assert generate.filled(page, {"one": "new"}) == "text\n<!-- generated: one -->\n\nnew\n\n<!-- end -->\n"
    with pytest.raises(ValueError, match=r"expected \['one', 'two'\]"):
        generate.filled(page, {"one": "new", "two": "more"})


# --- modifiers --------------------------------------------------------------------------------------------------------


def test_the_examples_are_recipes() -> None:
    found = [load_recipe(block) for block in re.findall(r"^```yaml\n(.*?)^```", MODIFIERS, re.MULTILINE | re.DOTALL)]
    assert [type(recipe.modifiers[0]) for recipe in found] == list(dict.fromkeys(REGISTRY.values()))
    assert all(recipe.notes == [] for recipe in found)


@pytest.mark.parametrize("name", REGISTRY)
def test_a_modifier_is_there_with_all_its_keys(name: str) -> None:
    (section,) = (part for part in MODIFIERS.split("\n## ") if re.search(rf"\b{name}\b", part.partition("\n")[0]))
    kind = REGISTRY[name]
    for key in recipe_fields(kind):
        (row,) = (line for line in section.splitlines() if line.startswith(f"| `{key}` |"))
        assert all(cell.strip() for cell in row.strip("|").split(" | ")), row
    for key in {*key_table(kind, "without_effect"), *key_table(kind, "known_later")}:
        assert f"| `{key}` |" in MODIFIERS


def test_known_names_are_there() -> None:
    assert all(f"| `{name}` | {reason} |\n" in MODIFIERS for name, reason in KNOWN_LATER.items())


# --- migration --------------------------------------------------------------------------------------------------------

COMMANDS: list[tuple[str, list[str], Any]] = [
    ("Text classification", migration_tables.OWN + migration_tables.TRAINER, TextClassificationArguments),
    ("Token classification", migration_tables.TOKENS, TokenClassificationArguments),
    ("Question answering", migration_tables.QUESTIONS, QuestionAnsweringArguments),
    ("Masked language modelling", migration_tables.LANGUAGE, MaskedLanguageModelingArguments),
    ("Export", migration_tables.EXPORT, ExportArguments),
]


@pytest.mark.parametrize(("heading", "flags", "arguments"), COMMANDS, ids=[heading for heading, *_ in COMMANDS])
def test_every_flag_works_or_is_refused_with_a_reason(heading: str, flags: list[str], arguments: Any) -> None:
    section = MIGRATION.partition(f"\n### {heading}\n")[2].partition("\n### ")[0]
    rows = re.findall(r"^\| `--(\w+)` \| ([\w ]+) \| (.*) \|$", section, re.MULTILINE)
    assert [name for name, _, _ in rows] == flags
    taken = {field.name for field in dataclasses.fields(arguments)} | {"evaluation_strategy"}
    for name, status, reason in rows:
        assert status in (["works", "works differently"] if name in taken else ["refused"]), name
        assert reason.strip() or status == "works", name


def test_there_are_as_many_flags_as_there_were() -> None:
    assert len(set(migration_tables.OWN + migration_tables.TRAINER)) > 140
    others = (migration_tables.TOKENS, migration_tables.QUESTIONS, migration_tables.LANGUAGE, migration_tables.EXPORT)
    assert [len(names) for names in others] == [29, 29, 29, 11]


def test_a_flag_that_is_neither_taken_nor_refused_is_an_error() -> None:
    with pytest.raises(KeyError, match="nonsense"):
        migration_tables.flags_table(["nonsense"], TextClassificationArguments, {}, {})


def test_nothing_is_said_of_what_does_not_exist() -> None:
    tables = migration_tables
    assert {*tables.DIFFERENT, *tables.REMARKS} <= {*tables.OWN, *tables.TRAINER}
    assert {*tables.DIFFERENT_FOR_TOKENS, *tables.REMARKS_FOR_TOKENS} <= set(tables.TOKENS)
    assert {*tables.DIFFERENT_FOR_QUESTIONS, *tables.REMARKS_FOR_QUESTIONS} <= set(tables.QUESTIONS)
    assert {*tables.DIFFERENT_FOR_LANGUAGE, *tables.REMARKS_FOR_LANGUAGE} <= set(tables.LANGUAGE)
    assert {*tables.DIFFERENT_IN_EXPORT, *tables.REMARKS_IN_EXPORT} <= set(tables.EXPORT)
    assert tables.DIFFERENT_MODIFIERS.keys() <= REGISTRY.keys()
    assert modifier_tables.EXAMPLES.keys() == {kind.__name__ for kind in REGISTRY.values()}


def test_every_modifier_is_in_the_table() -> None:
    section = MIGRATION.partition("\n### Modifiers\n")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\w ]+) \|", section, re.MULTILINE))
    assert rows.keys() == {*REGISTRY, *KNOWN_LATER}
    assert {name for name, status in rows.items() if status == "refused"} == KNOWN_LATER.keys()


def test_what_stands_in_for_the_old_functions_exists() -> None:
    names = set(re.findall(r"\bsparse_accel(?:\.\w+)+", MIGRATION.partition("\n## Python\n")[2].partition("\n## ")[0]))
    assert {"sparse_accel.load_recipe", "sparse_accel.RecipeRun", "sparse_accel.zoo.Model"} <= names
    for name in names:
        value = importlib.import_module("sparse_accel")
        for part in name.split(".")[1:]:
            value = getattr(value, part, None) or importlib.import_module(f"{value.__name__}.{part}")
    run = importlib.import_module("sparse_accel.recipe_run").RecipeRun
    for method in re.findall(r"\brun\.(\w+)", MIGRATION):
        assert hasattr(run, method), method


def test_the_snippet_for_a_recipe_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEZOO_MODELS_PATH", str(tmp_path / "mirror"))
    blocks = re.findall(r"^```python\n(.*?)^```", MIGRATION, re.MULTILINE | re.DOTALL)
    exec(next(block for block in blocks if "sparse_accel.zoo" in block), {})
    assert Path(capsys.readouterr().out.strip()).is_file()
