"""The layers of docs/architecture.md: imports go down or stay level, and only certain modules import mpi4py."""

import ast
import re

import pytest

from tests.conftest import ROOT

FLOORS = {
    "main": 9,
    "program": 9,
    "ranks": 8,
    "in_threads": 9,
    "api": 9,
    "cli": 8,
    "programs": 8,
    "build": 8,
    "trained": 8,
    "config": 7,
    "usage": 7,
    "algorithms": 6,
    "learners": 5,
    "federation": 4,
    "cost": 3,
    "training": 3,
    "wire": 2,
    "report": 2,
    "launching": 2,
    "data": 2,
    "log": 1,
    "models": 1,
    "placement": 1,
    "cores": 1,
    "errors": 1,
    "plain": 1,
    "extras": 1,
    "lookup": 1,
    "facts": 1,
    "startup": 1,
    "units": 1,
    "torchvision_import": 1,
    "wording": 1,
    "yaml_text": 1,
    "seeding": 1,
}
MPI4PY = ("wire/mpi", "wire/peers.py")  # what the names of these files begin with
FILES = sorted((ROOT / "gkt_mpi").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def imported(path):
    """Every module that a file imports, including inside functions; gkt_mpi's own by their full name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(name):
    return name.split(".")[1] if name.startswith("gkt_mpi.") else None


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_from_its_own_layer_or_below(path):
    own = path.relative_to(ROOT).with_suffix("").parts[1]
    if own == "__init__":  # only for type checkers; tests/unit/test_api.py measures what an import loads
        (only,) = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.If)]
        assert ast.unparse(only.test) == "TYPE_CHECKING"
        return
    floor = FLOORS[own]
    for name in imported(path):
        target = room(name)
        if target in FLOORS:
            assert FLOORS[target] <= floor, f"{path} on floor {floor} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_mpi4py_is_imported_only_in_its_modules(path):
    uses = [name for name in imported(path) if name.split(".")[0] == "mpi4py"]
    assert not uses or path.relative_to(ROOT / "gkt_mpi").as_posix().startswith(MPI4PY)


def test_no_algorithm_imports_another():
    for path in (ROOT / "gkt_mpi/algorithms").glob("[a-z]*.py"):
        assert not [name for name in imported(path) if name.startswith("gkt_mpi.algorithms")]


def test_tests_are_in_packages_of_the_same_names():
    """A file test_X.py in a package of tests/unit is about that package, usually about its X.py."""
    rooms = {path.name for path in (ROOT / "gkt_mpi").iterdir() if path.is_dir() and list(path.glob("*.py"))}
    assert {path.name for path in (ROOT / "tests/unit").iterdir() if list(path.glob("*.py"))} == rooms


def private_members(path):
    """Every private name that a file reads, replaces or imports from objects other than its own."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            if called in ("setattr", "getattr") and isinstance(node.args[1], ast.Constant):
                yield node.args[1].value


# Of namedtuples, pytest, torch, and matplotlib.
NOT_OURS = {"_replace", "_fields", "_tw", "_file", "_dynamo", "_unscaled_dash_pattern", "_exit"}


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_test_reaches_a_private_member_of_the_package(path):
    private = {name for name in private_members(path) if re.fullmatch("_[a-z].*", name)}
    assert private <= NOT_OURS


def test_every_package_has_a_layer():
    rooms = {path.relative_to(ROOT).with_suffix("").parts[1] for path in FILES} - {"__init__"}
    assert rooms == set(FLOORS)
