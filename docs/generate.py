"""Writes the parts of docs/modifiers.md, migration.md, models.md and performance.md that follow from the code.

    python docs/generate.py

The text of these pages is written by hand. The tables between `<!-- generated: NAME -->` and `<!-- end -->` are made
here, and a test compares them with the pages.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import migration_tables
import model_tables
import modifier_tables

from sparse_accel.demo.scaling import hours_table

DOCS = Path(__file__).resolve().parent
_PART = re.compile(r"(<!-- generated: (?P<name>[a-z_]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def modifiers_page() -> str:
    """Returns docs/modifiers.md as it should be."""
    return filled((DOCS / "modifiers.md").read_text(encoding="utf-8"), modifier_tables.parts())


def migration_page() -> str:
    """Returns docs/migration.md as it should be."""
    return filled((DOCS / "migration.md").read_text(encoding="utf-8"), migration_tables.parts())


def models_page() -> str:
    """Returns docs/models.md as it should be."""
    return filled((DOCS / "models.md").read_text(encoding="utf-8"), model_tables.parts())


def performance_page() -> str:
    """Returns docs/performance.md as it should be."""
    return filled((DOCS / "performance.md").read_text(encoding="utf-8"), {"hours": hours_table()})


PAGES: dict[str, Callable[[], str]] = {
    "modifiers.md": modifiers_page,
    "migration.md": migration_page,
    "models.md": models_page,
    "performance.md": performance_page,
}


def filled(page: str, parts: Mapping[str, str]) -> str:
    """Returns a page with its generated parts replaced.

    Raises:
        ValueError: the page does not have exactly these parts.
    """
    found = [match["name"] for match in _PART.finditer(page)]
    if sorted(found) != sorted(parts):
        raise ValueError(f"the page has the generated parts {sorted(found)}, expected {sorted(parts)}")
    return _PART.sub(lambda match: f"{match[1]}\n{parts[match['name']].strip()}\n\n{match[3]}", page)


if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
