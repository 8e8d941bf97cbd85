"""A recipe in which nothing is a modifier is an error that names the line to look at."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipe_texts import command, error_of

from sparse_accel.recipe import load_recipe

PAGE = "---\nlayout: null\ntitle: A recipe\n---\n\n"
RECIPE = "num_epochs: 2\n\nmodifiers:\n  - !EpochRangeModifier\n    end_epoch: eval(num_epochs)\n"


@pytest.mark.parametrize(
    ("below", "line", "shown"),
    [
        (RECIPE, 8, "`modifiers:`"),
        (f"# A card\n\n```yaml\n{RECIPE}```\n", 11, "`modifiers:`"),
        (
            "training_modifiers: # of the first stage\n  - !EpochRangeModifier {end_epoch: 1}\n",
            6,
            "`training_modifiers: #",
        ),
        ("modifiers: [!EpochRangeModifier {end_epoch: 1}]\n", 6, "`modifiers: [!Epoch"),
        ("stage:\n  stage_modifiers:\n    - !EpochRangeModifier {end_epoch: 1}\n", 7, "`stage_modifiers:`"),
        ("Words.\n\n- !pytorch.EpochRangeModifier\n", 8, "`- !pytorch.EpochRangeModifier`"),
        (f"---\n{RECIPE}---\n", 9, "`modifiers:`"),
    ],
)
def test_modifiers_below_the_front_matter(tmp_path: Path, below: str, line: int, shown: str) -> None:
    path = tmp_path / "recipe.md"
    for text in (PAGE + below, (PAGE + below).replace("\n", "\r\n")):
        path.write_bytes(text.encode())
        error = error_of(path)
        assert (error.source, error.line) == (str(path), line)
        for part in (shown, "is below the front matter", "`---` lines (1 and 4) is read", "keys there: layout, title"):
            assert part in str(error)
        assert "Move the recipe, with its variables, there" in str(error)


def test_the_lines_of_the_marks_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.md"
    path.write_text(f"<!-- a licence -->\n\n+++\n+++\n{RECIPE}")
    error = error_of(path)
    assert error.line == 7 and "`+++` lines (3 and 4) is read; it is empty" in str(error)


def test_words_about_modifiers_below_are_not_taken_for_them(tmp_path: Path) -> None:
    path = tmp_path / "recipe.md"
    path.write_text(PAGE + "# modifiers:\nmodifiers: what they do\nNo `- !EpochRangeModifier` here\n")
    message = str(error_of(path))
    assert "below the front" not in message and "keys there: layout, title" in message and "`- !Name`" in message


def test_front_matter_with_modifiers_may_have_others_below_it(tmp_path: Path) -> None:
    path = tmp_path / "recipe.md"
    path.write_text(f"---\n{RECIPE}---\n{RECIPE}")
    assert len(load_recipe(path).modifiers) == 1


@pytest.mark.parametrize(
    ("text", "line", "key", "part"),
    [
        ("a: 1\nb: eval(a)\n", None, None, "Keys in it: a, b. List modifiers under"),
        ("{}\n", None, None, "It is empty"),
        ("a: 1\nmodifiers:\n", 2, "modifiers", "'modifiers' is an empty list"),
        ("a: 1\nx_modifiers: []\n", 2, "x_modifiers", "'x_modifiers' is an empty list"),
        ("s:\n  n: 1\n  s_modifiers: []\nt:\n  t_modifiers:\n", 3, "s_modifiers", "'s_modifiers' is an empty list"),
        (
            "modifiers:\n#  - !EpochRangeModifier\n#    end_epoch: 1\n",
            2,
            None,
            "`#  - !EpochRangeModifier` is a comment",
        ),
        ("# modifiers:\n#\n#  - !EpochRangeModifier {end_epoch: 1}\n", 3, None, "is a comment. It is empty"),
    ],
)
def test_other_recipes_without_modifiers(text: str, line: int | None, key: str | None, part: str) -> None:
    error = error_of(text)
    assert (error.line, error.key) == (line, key)
    assert "the recipe has no modifiers, so it would change nothing" in str(error) and part in str(error)


def test_one_group_or_stage_may_list_nothing() -> None:
    text = "s:\n  s_modifiers:\nt:\n  t_modifiers:\n    - !EpochRangeModifier {end_epoch: 1}\n  u_modifiers: []\n"
    assert len(load_recipe(text).modifiers) == 1


def test_the_command_exits_with_2(tmp_path: Path) -> None:
    path = tmp_path / "recipe.md"
    path.write_text(PAGE + RECIPE)
    result = command(str(path))
    assert result.returncode == 2 and result.stderr.startswith(f"error: {path}:8: the recipe has no modifiers")
    assert "Traceback" not in result.stderr and result.stdout == "imported: []\n"


def test_modifiers_below_a_front_matter_that_has_some_are_warned_of(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.md"
    recipe.write_text(
        "---\nmodifiers:\n  - !EpochRangeModifier {start_epoch: 0.0, end_epoch: 1.0}\n---\n# Pruning\n\n"
        "pruning_modifiers:\n  - !ConstantPruningModifier {start_epoch: 0.0}\n"
    )
    (warning,) = load_recipe(recipe).warnings
    assert warning.startswith(f"{recipe}:7: `pruning_modifiers:` is below the front matter and is not read")
