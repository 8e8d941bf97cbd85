"""The training scripts, by the fixture that has flags for a small run of theirs."""

from __future__ import annotations

import embedding_fixtures
import language_fixtures
import question_fixtures
import script_fixtures
import token_fixtures

TASK_SCRIPTS = {
    "tiny": script_fixtures.SCRIPT,
    "tokens": token_fixtures.SCRIPT,
    "tiny_questions": question_fixtures.SCRIPT,
    "language": language_fixtures.SCRIPT,
    "embeddings": embedding_fixtures.SCRIPT,
}
TASK_FIXTURES = [
    "embedding_fixtures",
    "language_fixtures",
    "question_fixtures",
    "script_fixtures",
    "token_fixtures",
]
