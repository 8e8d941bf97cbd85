"""The site of these pages: `make docs` builds it into build/docs, and fails at a dead link."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from myst_parser.mdit_to_docutils.base import default_slugify
from sphinx.application import Sphinx
from sphinx.util import logging

project = "sparse_accel"
extensions = ["myst_parser", "sphinxcontrib.mermaid"]
html_theme = "furo"
html_title = project
html_copy_source = False
myst_heading_anchors = 4  # [text](page.md#heading), as on GitHub
myst_fence_as_directive = ["mermaid"]  # ```mermaid, as on GitHub

ROOT = Path(__file__).resolve().parent.parent
# Where links to other files of the repository lead: from build/docs to the working tree. A published site sets
# DOCS_REPOSITORY to https://github.com/OWNER/NAME/blob/main.
REPOSITORY = os.environ.get("DOCS_REPOSITORY", "../..")
myst_url_schemes = {
    **dict.fromkeys(("http", "https", "mailto")),
    "repository": {"url": f"{REPOSITORY}/{{{{path}}}}#{{{{fragment}}}}"},
}
_LINK = re.compile(r"\]\(\.\./(?P<path>[^)\s#]*)#?(?P<heading>[^)\s]*)\)")


def link_to_repository(app: Sphinx, page: str, source: list[str]) -> None:
    """Points the links of a page to `../FILE` at the repository, with a warning where there is no such file."""

    def replaced(link: re.Match[str]) -> str:
        file, heading = ROOT / link["path"], link["heading"]
        line = source[0].count("\n", 0, link.start()) + 1
        if not file.exists():
            logger.warning("there is no %s in the repository", link["path"], location=(page, line))
        elif heading and heading not in headings(file):
            logger.warning("%s has no heading #%s", link["path"], heading, location=(page, line))
        return f"](repository:{link['path']}#{heading})"

    logger = logging.getLogger(__name__)
    source[0] = _LINK.sub(replaced, source[0])


def headings(file: Path) -> set[str]:
    """The anchors of a Markdown file's headings; empty for any other file."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.suffix == ".md" else []
    return {default_slugify(line.lstrip("#").strip()) for line in lines if line.startswith("#")}


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", link_to_repository)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
