"""The house: no module imports one above it. Imports inside of functions and under TYPE_CHECKING count."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

from places import ROOT

FLOORS = (
    "errors console files fingerprints native progress wilson_interval",
    "main cli distributed zoo",
    "nn hub",
    "modifiers data",
    "recipe tasks",
    "models",
    "recipe_run entry_points runtime",
    "run_folder",
    "training export",
    "report publish integrations demo",
    "scripts examples __main__",
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}


def room_of(file: Path) -> str:
    """The file or folder of the package, or `scripts` or `examples`, that a file is in."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "sparse_accel" else parts[0]


def arrows() -> dict[tuple[str, str], str]:
    """Which room imports which, with a place that shows it."""
    found = {}
    files = [file for folder in ("sparse_accel", "scripts", "examples") for file in (ROOT / folder).rglob("*.py")]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [each.name for each in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""] if node.module != "sparse_accel" else [f"sparse_accel.{n}" for n in names]
            for name in names:
                if name.startswith("sparse_accel.") and (target := name.split(".")[1]) in FLOOR:
                    found[room_of(file), target] = f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
    return found


def test_no_module_imports_upward() -> None:
    """The package's own front door, which names what is public, is above all."""
    found = {pair: place for pair, place in arrows().items() if pair[0] not in ("__init__", pair[1])}
    assert {room for pair in found for room in pair} <= FLOOR.keys()
    upward = {f"{one} -> {other}": place for (one, other), place in found.items() if FLOOR[one] < FLOOR[other]}
    assert upward == {}
    rooms: dict[str, set[str]] = {}
    for one, other in found:
        rooms.setdefault(one, set()).add(other)
    assert list(TopologicalSorter(rooms).static_order())  # raises CycleError for a circle


def test_no_circle_of_files() -> None:
    files: dict[str, set[str]] = {}
    for file in (ROOT / "sparse_accel").rglob("*.py"):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found = files.setdefault(name, set())
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sparse_accel"):
                modules = {f"{node.module}.{each.name}" for each in node.names} | {str(node.module)}
                paths = {module: ROOT.joinpath(*module.split(".")) for module in modules}
                found |= {m for m, path in paths.items() if path.with_suffix(".py").is_file()} or {str(node.module)}
    assert len(list(TopologicalSorter(files).static_order())) > 90  # raises CycleError for a circle


def test_the_demo_is_for_scripts_alone() -> None:
    assert {one for one, other in arrows() if other == "demo"} <= {"demo", "scripts"}


def test_no_file_outside_of_modifiers_knows_a_kind_of_modifier() -> None:
    """What must be known of one is an attribute or a hook of the base: a second kind of a family is then seen."""
    allowed = {"Modifier", "FieldError", "State", "REGISTRY", "KNOWN_LATER", "no_teacher", "check_gradients"}
    found: dict[str, int] = {}
    for file in (ROOT / "sparse_accel").rglob("*.py"):
        if "modifiers" in file.relative_to(ROOT).parts:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sparse_accel.modifiers"):
                found |= {f"{file.name}: {each.name}": node.lineno for each in node.names if each.name not in allowed}
            if isinstance(node, ast.Compare):
                texts = [str(each.value) for each in ast.walk(node) if isinstance(each, ast.Constant)]
                found |= {f"{file.name}: {text}": node.lineno for text in texts if text.endswith("Modifier")}
    assert found == {}
