"""The documentation against the code: commands, options, tables, links, messages."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import typer.main

from deployments import cli
from deployments.stack.local import ROOT
from tasks import intake, registry, runs, splits
from tasks.config import Verdict
from tasks.intake import commit_log
from tasks.parsing import KINDS
from tasks.telemetry.metrics import METRICS
from tests import docs

PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "deployments" / "README.md", *docs.DOCS.glob("*.md")]
)


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def _code(page: Path) -> list[str]:
    """Everything set as code: lines of blocks, and spans within a line."""
    text = page.read_text()
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    return [line for block in blocks for line in block.splitlines()] + spans


def _table(page: Path, heading: str) -> list[list[str]]:
    """The cells of the rows under the first table whose heading begins like this."""
    lines = page.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {heading}"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


@cache
def _commands() -> dict[str, set[str]]:
    """Every command with its options."""
    group: Any = typer.main.get_command(cli.app)
    found: dict[str, set[str]] = {}

    def walk(prefix: str, command: Any) -> None:
        found[prefix] = {option for param in command.params for option in param.opts} | {"--help", "-h"}
        for name, inner in getattr(command, "commands", {}).items():
            walk(f"{prefix} {name}".strip(), inner)

    walk("", group)
    return found


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_command_and_option_named_exists(page: Path) -> None:
    """`ratchet X --option` in any code of any page."""
    for code in _code(page):
        for used in re.findall(r"(?:^|[;&(] *|\| )ratchet ([a-z][^#;&]*)", code):
            words = used.split()
            command = next((c for c in (" ".join(words[:2]), words[0]) if c in _commands()), None)
            assert command is not None, f"{_name(page)}: there is no command in {code!r}"
            for option in re.findall(r"(?<=\s)--[a-z-]+", f" {used}"):
                assert option in _commands()[command], f"{_name(page)}: {command} has no {option}"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_target_of_make_exists(page: Path) -> None:
    """`make X` names a target of the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)) | {".venv/.ready"}
    for code in _code(page):
        for target in re.findall(r"(?:^|[;&(] *)make ([a-z./-]+)", code):
            assert target in targets, f"{_name(page)}: make {target}"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_link_within_the_project_leads_somewhere(page: Path) -> None:
    """Files exist, and headings for the parts after `#`."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        found = (page.parent / file).resolve() if file else page
        assert found.exists(), f"{_name(page)}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", found.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{_name(page)}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_parameters_that_are_set_exist(page: Path) -> None:
    """`--set group.name=value` is accepted as it stands."""
    from deployments.cli.common import parameters

    settings = [
        found for code in _code(page) for found in re.findall(r"--set ((?:training|gate|checks)\.[a-z_]+=\S+)", code)
    ]
    parameters([found for found in settings if "VALUE" not in found])


def test_the_readme_is_short() -> None:
    """At most 900 words, tables and commands included."""
    assert len((ROOT / "README.md").read_text().split()) <= 900


def test_the_map_for_contributors_is_right() -> None:
    """Every file of "Where to change what" exists and defines the names beside it."""
    rows = _table(ROOT / "CONTRIBUTING.md", "to change")
    assert len(rows) >= 5
    for row in rows:
        files, names = (re.findall(r"`([^`]+)`", cell) for cell in row[1:])
        defined = {
            node.name
            for file in files
            for node in ast.walk(ast.parse((ROOT / file).read_text()))
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
        }
        assert set(names) <= defined, row


def test_the_index_names_every_page() -> None:
    """docs/README.md leads everywhere."""
    text = (docs.DOCS / "README.md").read_text()
    for page in docs.DOCS.glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in text, page.name


def test_the_page_of_parameters_is_the_code() -> None:
    """Written anew by `python -m tests.docs`."""
    assert (docs.DOCS / "parameters.md").read_text() == docs.parameters(), "run: python -m tests.docs"


@pytest.mark.parametrize("page", [ROOT / "README.md", docs.DOCS / "concepts.md"], ids=_name)
def test_every_verdict_is_explained(page: Path) -> None:
    """The table of verdicts has each once, and no other."""
    assert {row[0].strip("`") for row in _table(page, "verdict")} == set(get_args(Verdict))


def test_the_store_is_described_as_the_code_writes_it() -> None:
    """Every first part of a key that the code knows is in the table, and nothing else."""
    keys = {
        *(f"{folder}/" for folder in KINDS),
        splits.SPLIT_KEY,
        registry.POINTER,
        METRICS,
        *(key.partition("/")[0] + "/" for key in _stored_keys()),
    }
    assert {row[0].strip("`") for row in _table(docs.DOCS / "store.md", "key")} == keys
    described = (row[0].strip("`") for row in _table(docs.DOCS / "store.md", "object"))
    in_runs = {key.removeprefix("runs/<run_id>/") for key in described if key.startswith("runs/<run_id>/")}
    assert {name.removesuffix("<path>") for name in in_runs} == {*runs.NAMES}
    assert commit_log.log_key(1) == "log/000000000001.json"
    assert set(intake.BATCH.names) >= {"object", "line"}


def _texts() -> Iterator[str]:
    """Every text in the code, the parts of f-strings and of texts that are put together joined as far as they are."""
    for package in ("deployments", "flows", "tasks", "data_checks"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value
                elif isinstance(node, ast.JoinedStr):
                    yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)


def _stored_keys() -> set[str]:
    """Keys that the code names: texts such as `models/...` whose first part is a folder of the store."""
    return {
        text
        for text in _texts()
        if re.match(
            r"(guard|log|batches|quarantine|runs|models|promotions|releases|erasures|indexes|cache|watch)/", text
        )
    }


def test_every_file_of_a_run_is_described() -> None:
    """The code's one list of names is in the table of all keys; a name that is not stands out."""
    run = "runs/20260131T033000Z-01d3db86"
    assert {"parameters.json", "start.json", "per_query.parquet", "outcome.json"} <= {*runs.NAMES}
    assert docs.undescribed(f"{run}/{name}" for name in runs.NAMES if not name.endswith("/")) == []
    assert docs.undescribed([f"{run}/diary.json", "log/1.json"]) == [f"{run}/diary.json", "log/1.json"]


_FOR_PEOPLE = frozenset(
    {
        *("CliError", "UsageError", "StackError", "RunError", "DeployError", "DrainError", "SettingsError"),
        *("StoreError", "LogError", "SplitError", "RegistryError", "RefusedError", "VersionError", "LedgerError"),
        *("TrialError", "ConvertError", "GuardError", "ModelError", "TrainingError", "ApprovalError"),
        *("TargetError", "NoIndexError", "GoneError", "SwitchedError", "VerificationError", "IndexSecretError"),
        *("DocumentsError", "ShardError", "ProductionMovedError", "RayError"),
    }
)
"""Errors whose message is what a command or a failed night says."""

_OF_ROWS = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tasks" / "parsing").glob("*.py")} - {
    "tasks/parsing/exports.py"
}
"""Why rows and objects are rejected is on a page of its own, `hostile-input.md`."""


def _raised() -> Iterator[tuple[str, str]]:
    """Where an error for people is raised, and the words of its message that are the code's own."""
    for package in ("deployments", "flows", "tasks", "data_checks"):
        for path in (ROOT / package).rglob("*.py"):
            where = path.relative_to(ROOT).as_posix()
            calls = [n.exc for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Raise)]
            for call in calls:
                named = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in _FOR_PEOPLE
                if named and call.args and where not in _OF_ROWS:
                    yield f"{where}:{call.lineno}", _words(call.args[0])


def _words(node: ast.expr) -> str:
    """A message with a NUL for each part that differs from case to case."""
    if isinstance(node, ast.BinOp):
        return _words(node.left) + _words(node.right)
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in parts)


def _troubles() -> list[str]:
    """The messages of the troubleshooting page, as the code says them."""
    page = (docs.DOCS / "troubleshooting.md").read_text()
    found = re.findall(r"^\| `((?:[^`\\]|\\`)+)` \|", page, re.MULTILINE)
    return [message.replace("\\`", "`") for message in found]


def test_every_message_of_the_troubleshooting_page_is_said_by_the_code() -> None:
    """What the first column says is part of a text in the code."""
    said = list(_texts())
    messages = _troubles()
    assert len(messages) > 100
    for message in messages:
        assert any(message in text for text in said), f"nothing in the code says {message!r}"


def test_every_error_for_people_is_on_the_troubleshooting_page() -> None:
    """Whoever searches the page for the message finds what to do; a message made of other errors' is left to them."""
    known = _troubles()
    lacking = [
        f"{where}: {words}"
        for where, words in _raised()
        if len(re.findall(r"[A-Za-z]", words)) >= 10 and not any(message in words for message in known)
    ]
    assert lacking == []
