"""Imports point down only."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "yarnconv"
FLOORS = {
    "errors": 0,
    "progress": 0,
    "sizes": 0,
    "templates": 0,
    "worker": 1,
    "worker_side": 1,
    "rope": 0,
    "model": 1,
    "checkpoint": 2,
    "binding": 3,
    "plan": 3,
    "rope_plan": 3,
    "artifact": 3,
    "targets": 4,
    "verify": 5,
    "console": 6,
    "cli": 6,
    "__main__": 6,
    "__init__": 0,
}
# Rooms on one floor that may know each other, in one direction.
SAME_FLOOR = {
    ("cli", "console"),
    ("__main__", "cli"),
    ("rope", "errors"),
    ("plan", "rope_plan"),
    ("plan", "binding"),
    ("rope_plan", "__init__"),
}
# What takes seconds to import, and the rooms that may.
HEAVY = {
    "torch": {"verify/reference.py", "verify/placing.py", "verify/rotations.py"},
    "transformers": {"verify/reference.py"},
}
HEAVY["torch"].add("verify/activations.py")
HEAVY |= {"accelerate": {"verify/placing.py"}}
HEAVY |= {"llama_cpp": {"verify/runners/llama_cpp_worker.py", "targets/gguf/quantiser_worker.py"}}


def room(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_modules(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the floor"
            yield node.module
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = room(path)
    for module in imported_modules(ast.parse(path.read_text())):
        parts = module.split(".")
        if parts[0] in HEAVY:
            assert str(path.relative_to(PACKAGE)) in HEAVY[parts[0]], f"{path} imports {module}"
        if parts[0] != "yarnconv":
            continue
        other = parts[1] if len(parts) > 1 else "__init__"
        if other in {own, "__init__"}:
            continue
        lower = FLOORS[other] < FLOORS[own] or (own, other) in SAME_FLOOR
        assert lower, f"{path} (floor {FLOORS[own]}) imports {module} (floor {FLOORS[other]})"


# What the files beside an artefact may import: packages that their install line names, and each other. The
# runtime of an engine is not here: it is imported by the name that yarnconv.json has.
BESIDE = {
    "onnx": {"numpy", "onnxruntime", "generation"},
    "shared": {"numpy", "tokenizers"},
    "tensorrt": {
        "numpy",
        "cuda",
        "generation",
        "engine",
        "sidecar",
    },
}


@pytest.mark.parametrize(
    "path",
    sorted((PACKAGE / "templates").rglob("*.py")),
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_what_is_copied_beside_an_artefact_needs_nothing_of_ours(path):
    roots = {module.split(".")[0] for module in imported_modules(ast.parse(path.read_text()))}
    assert roots - sys.stdlib_module_names <= BESIDE[path.parent.name]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_has_walls(path):
    assert len(path.read_text().splitlines()) <= 400


def test_upward_import_is_noticed(tmp_path):
    tree = ast.parse("from yarnconv.cli import app")
    modules = list(imported_modules(tree))
    assert modules == ["yarnconv.cli"]
    assert FLOORS["cli"] > FLOORS["rope"]
