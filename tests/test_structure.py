"""The structure the project promises: the import contracts, one home per library, nothing read at import."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("flows", "tasks", "data_checks", "deployments")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

HOMES = {
    "boto3": {"tasks/storage.py"},
    "botocore": {"tasks/storage.py", "deployments/demo/data.py"},  # the demo's texts are botocore's data files
    "obstore": {"tasks/storage.py"},
    "sentence_transformers": {"tasks/training/fine_tune.py", "tasks/encoding/"},
    "great_expectations": {"data_checks/"},
    "matplotlib": {"tasks/report/charts.py"},
    "ray": {"tasks/index/on_ray.py"},
    "prefect": {"flows/", "tasks/steps.py", "tasks/alerts.py", "deployments/"},
}


def _imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, anywhere in it, with the line; imports for types alone are left out."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.dump(branch.test)
        for statement in branch.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module, node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_a_library_is_imported_in_its_home_only(path: Path) -> None:
    """One library, one home: so that it can be replaced, and its traps are dealt with once."""
    for module, line in _imports(path):
        homes = HOMES.get(module.split(".")[0])
        if homes is not None:
            name = _name(path)
            allowed = any(name == home or (home.endswith("/") and name.startswith(home)) for home in homes)
            assert allowed, f"{name}:{line} imports {module}, whose home is {sorted(homes)}"


def _lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on a source tree; its contracts are in pyproject.toml."""
    program = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [program, "--no-cache", "--config", ROOT / "pyproject.toml"],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_imports_keep_the_contracts() -> None:
    """What `make lint` checks."""
    result = _lint_imports(ROOT)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("file", "line", "named"),
    [
        ("tasks/gate.py", "import tasks.registry", "tasks.gate -> tasks.registry"),
        ("tasks/storage.py", "from tasks.config import Gate", "tasks.storage -> tasks.config"),
        ("tasks/training/losses.py", "from tasks import scoring", "tasks.training.losses -> tasks.scoring"),
        (
            "tasks/night/judging.py",
            "def late():\n    from tasks.watch import drift",
            "tasks.night.judging -> tasks.watch.drift",
        ),
        ("tasks/report/page.py", "import data_checks.run", "tasks.report.page -> data_checks.run"),
        ("data_checks/suite.py", "from tasks.storage import Store", "data_checks.suite -> tasks.storage"),
        ("flows/retrain.py", "import deployments.doctor", "flows.retrain -> deployments.doctor"),
        ("tasks/alerts.py", "import tasks.steps", "tasks.alerts -> tasks.steps"),
        ("tasks/novelty.py", "", "tasks.novelty"),  # a module without a place in the contract
    ],
)
def test_a_forbidden_import_is_refused(file: str, line: str, named: str, tmp_path: Path) -> None:
    """A planted import breaks a contract, which names both ends; also inside a function."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / file).open("a") as module:
        module.write(f"\n{line}\n")
    result = _lint_imports(tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert named in result.stdout


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_nothing_is_read_from_the_environment_at_import(path: Path) -> None:
    """A module that reads the environment when it is imported cannot be configured by the run that uses it."""
    pending: list[ast.AST] = list(ast.parse(path.read_text()).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue  # a body runs when it is called
        if isinstance(node, ast.If) and "__main__" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}:
            pytest.fail(f"{_name(path)}:{node.lineno} reads the environment at import")
        pending.extend(ast.iter_child_nodes(node))
