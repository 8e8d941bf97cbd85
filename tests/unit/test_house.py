"""The files around the code: launch configurations, package metadata, pinned versions."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from places import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIGS = sorted((ROOT / "accelerate_configs").glob("*.yaml"))


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def project_name(requirement: str) -> str:
    """`Name[extra]>=1; marker` -> `name`, as package indexes spell it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", requirement)[0]).lower()


# --- launch configurations --------------------------------------------------------------------------------------------


def test_expected_configurations_are_there() -> None:
    names = {"cpu", "single_gpu_bf16", "single_gpu_fp16", "ddp", "ddp_two_nodes", "fsdp2", "fsdp2_two_nodes"}
    assert {path.stem for path in CONFIGS} == names | {f"deepspeed_zero{stage}" for stage in (1, 2, 3)}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_every_key(path: Path) -> None:
    written = yaml.safe_load(path.read_text())
    read = load_config_from_file(str(path)).to_dict()
    assert {key: read[key] for key in written} == written


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configuration_explains_itself(path: Path) -> None:
    header = path.read_text().split("\n\ncompute_environment", 1)[0]
    for heading in ("# Hardware:", "# Cost:", "# Launch:"):
        assert heading in header
    launched = re.findall(r"accelerate launch --config_file (\S+) .*?(scripts/\S+)", header, flags=re.DOTALL)
    assert launched == [(f"accelerate_configs/{path.name}", "scripts/text_classification.py")]


# --- package metadata -------------------------------------------------------------------------------------------------


def test_extras() -> None:
    extras = set(pyproject()["project"]["optional-dependencies"])
    for_users = {"onnx", "runtime", "report", "wandb", "deepspeed", "sentence-transformers", "quickstart"}
    assert extras == for_users | {"wheel", "docs", "dev"}


def test_every_requirement_is_pinned() -> None:
    project = pyproject()["project"]
    required = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins[0] == "torch==2.13.0"
    assert {project_name(name) for name in required} - {"sparse-accel"} <= {project_name(pin) for pin in pins}


def test_all_recipes_are_packaged() -> None:
    patterns = pyproject()["tool"]["setuptools"]["package-data"]["sparse_accel"]
    packaged = {path.name for pattern in patterns for path in (ROOT / "sparse_accel").glob(pattern)}
    assert packaged >= {path.name for path in (ROOT / "sparse_accel" / "zoo" / "recipes").iterdir()}


# --- tests ------------------------------------------------------------------------------------------------------------


def test_every_folder_of_code_is_packaged() -> None:
    """Those of the wheel are named one by one; a folder that is missing there is missing in a wheel, not in a clone."""
    folders = {file.parent.relative_to(ROOT) for file in (ROOT / "sparse_accel").rglob("__init__.py")}
    listed = set(pyproject()["tool"]["setuptools"]["packages"])
    outside = {"sparse_accel.scripts", "sparse_accel.accelerate_configs"}
    assert listed - outside == {".".join(folder.parts) for folder in folders}


def test_no_test_module_imports_another() -> None:
    """What tests share is in tests/support."""
    found = [
        f"{path.relative_to(ROOT)}: {line}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.match(r"(from|import) test_\w+", line)
    ]
    assert found == []
