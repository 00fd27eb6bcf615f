"""The walls of the house: what each room imports, read off the source."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import egcam_lightning

ROOT = Path(egcam_lightning.__file__).parent
# One way of data: a room imports those before it, and itself.
ROOMS = (
    "seeding",
    "state_values",
    "notebook",
    "data",
    "explain",
    "compat",
    "metrics",
    "findings",
    "history",
    "pictures",
    "report",
    "auditing",
    "sinks",
    "config",
    "training",
    "callback",
    "replaying",
    "commands",
    "__main__",
)
WITHOUT_LIGHTNING = ("explain", "compat", "metrics", "findings", "history", "pictures", "auditing")


def modules() -> dict[str, ast.Module]:
    """Every module of the package, by its dotted name."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = ("egcam_lightning", *path.relative_to(ROOT).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text(encoding="utf-8"))
    return found


MODULES = modules()


def imports(name: str) -> set[str]:
    """What a module imports when it runs, inside functions too; what is there for types alone is left out."""
    found: set[str] = set()
    waiting: list[ast.AST] = [MODULES[name]]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            waiting += node.orelse
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, "imports are absolute"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {one if one in MODULES else node.module for one in inner}
        else:
            waiting += ast.iter_child_nodes(node)
    return found


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else name


@pytest.mark.parametrize("name", sorted(MODULES))
def test_data_flow_one_way_through_the_rooms(name):
    if name == "egcam_lightning":
        return
    own = ROOMS.index(room(name))
    later = [one for one in imports(name) & MODULES.keys() if ROOMS.index(room(one)) > own]
    assert not later, f"{name} imports {later}, which come behind it"


def test_no_module_imports_itself_in_a_circle():
    try:
        TopologicalSorter({name: imports(name) & MODULES.keys() for name in MODULES}).prepare()
    except CycleError as circle:
        pytest.fail(f"these import each other: {' -> '.join(circle.args[1])}")


@pytest.mark.parametrize("name", [name for name in sorted(MODULES) if room(name) in WITHOUT_LIGHTNING])
def test_what_computes_knows_no_lightning(name):
    assert not [one for one in imports(name) if one.split(".")[0] in ("lightning", "pytorch_lightning", "wandb")]


def test_no_module_is_too_large_to_be_one_room():
    sizes = {str(path.relative_to(ROOT)): path.stat().st_size for path in ROOT.rglob("*.py")}
    assert not {name: size for name, size in sizes.items() if size > 16 * 1024}


def test_a_metric_has_its_class_and_its_function_in_files_of_one_name():
    files = {path.stem for path in (ROOT / "metrics" / "functional").glob("[a-z]*.py")}
    assert files <= {path.stem for path in (ROOT / "metrics").glob("*.py")}
