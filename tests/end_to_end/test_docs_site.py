"""The site of docs/ is built strictly: a dead link ends the build."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conf import headings
from places import ROOT

# Dead links, and what the message names.
DEAD = {
    "page": ("[link](absent.md)", "absent.md"),
    "heading": ("[link](#absent)", "absent"),
    "heading of another page": ("[link](modifiers.md#absent)", "absent"),
    "file": ("[link](../scripts/absent.py)", "scripts/absent.py"),
    "folder": ("[link](../absent/)", "absent/"),
    "heading of a file": ("[link](../README.md#absent)", "README.md has no heading #absent"),
}


def build(docs: Path, out: Path, builder: str) -> subprocess.CompletedProcess[str]:
    """Runs Sphinx as `make docs` does."""
    strictly = ["-E", "-W", "--keep-going", "-n", "-q"]
    command = [
        sys.executable,
        "-m",
        "sphinx",
        *strictly,
        "-b",
        builder,
        "-d",
        str(out / "doctrees"),
        str(docs),
        str(out),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_the_site_is_built(tmp_path: Path) -> None:
    done = build(ROOT / "docs", tmp_path, "html")
    assert done.returncode == 0, done.stderr
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")}
    assert pages >= {"index", "modifiers", "migration"}
    assert all((tmp_path / f"{page}.html").is_file() for page in pages)
    migration = (tmp_path / "migration.html").read_text(encoding="utf-8")
    assert 'href="../../examples/own_loop.py' in migration and 'href="modifiers.html"' in migration


@pytest.mark.parametrize("what", DEAD)
def test_a_dead_link_is_an_error(what: str, tmp_path: Path) -> None:
    for entry in ROOT.iterdir():
        if not entry.name.startswith(".") and entry.name != "docs":
            (tmp_path / entry.name).symlink_to(entry)
    docs = tmp_path / "docs"
    shutil.copytree(ROOT / "docs", docs)
    link, named = DEAD[what]
    page = docs / "migration.md"
    text = page.read_text(encoding="utf-8")
    page.write_text(f"{text}\n{link}\n", encoding="utf-8")
    done = build(docs, tmp_path / "out", "dummy")
    assert done.returncode == 1
    (warning,) = (line for line in done.stderr.splitlines() if named in line)
    assert f"migration.md:{text.count(chr(10)) + 2}: WARNING" in warning


@pytest.mark.parametrize(
    "file", [*sorted(ROOT.glob("*.md")), ROOT / "tests" / "README.md"], ids=lambda file: str(file.relative_to(ROOT))
)
def test_links_of_files_outside_of_the_site(file: Path) -> None:
    for path, heading in re.findall(r"\]\((?!\w+:)([^)\s#]*)#?([^)\s]*)\)", file.read_text(encoding="utf-8")):
        target = (file.parent / path).resolve() if path else file
        assert target.exists(), path
        assert not heading or heading in headings(target), f"{path}#{heading}"
