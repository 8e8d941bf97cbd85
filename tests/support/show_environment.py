"""Writes this process's environment variables as JSON into a folder, as a file named by its rank."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

Path(sys.argv[1], os.environ["RANK"]).write_text(json.dumps(dict(os.environ)))
