"""The command line: what it says and with which status it ends."""

from __future__ import annotations

import importlib.metadata
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deployments import cli, doctor
from deployments.cli import common
from deployments.stack import local
from tasks.intake import take_in
from tasks.storage import Store

COMMANDS = {
    *("approve", "publish"),
    *("demo", "tour", "try", "convert", "read", "up", "status"),
    *("init", "deploy", "run", "join", "drain", "resume"),
    *("history", "pull", "rollback", "release", "reindex", "retire", "search"),
    *("read", "rows", "quarantine", "suspects", "forget", "metrics", "doctor", "alerts"),
}


def _ratchet(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, with the settings of this one and these; no stack is found."""
    environment = {**os.environ, "RATCHET_STATE": "/nonexistent", "NO_COLOR": "1", "COLUMNS": "200", **settings}
    return subprocess.run(
        [sys.executable, "-m", "deployments.cli", *arguments],
        cwd=local.ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_help_names_every_command() -> None:
    """One page says what there is."""
    done = _ratchet("--help")
    assert done.returncode == 0
    assert set(re.findall(r"^│ (\w+)  ", done.stdout, re.MULTILINE)) == COMMANDS


@pytest.mark.parametrize(
    "arguments",
    [
        ("promote",),
        ("run", "--colour"),
        ("pull",),
        ("rollback",),
        ("run", "--set", "epochs=2"),
        ("run", "--set", "training.epochs=0"),
        ("run", "--set", "training.epoch=2"),
        ("history",),
        ("join", "20261101T000000Z-00000000"),
        ("try", "README.md", "--guard", "no such folder"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_status_2(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unknown commands, options and parameters, values out of bounds, and no store to work on."""
    monkeypatch.setenv("RATCHET_STATE", "/nonexistent")
    monkeypatch.setenv("RATCHET_STORE", "")
    monkeypatch.setattr(sys, "argv", ["ratchet", *arguments])
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the handlers of this process stay as they are
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err


def test_a_guard_set_that_is_broken_is_an_error_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 1, with the folder, the file and the line."""
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text('{"_id": "1", "text": "a"}\n')
    (tmp_path / "queries.jsonl").write_text('{"_id": "1", "text": "q"}\n')
    (tmp_path / "qrels" / "test.tsv").write_text("1\t7\t1\n")
    monkeypatch.setattr(sys, "argv", ["ratchet", "try", str(tmp_path / "corpus.jsonl"), "--guard", str(tmp_path)])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    said = "".join(capsys.readouterr().err.split())
    assert "qrels/test.tsvline1judges'7',whichisnotinthecorpus" in said


def test_an_unreachable_store_is_an_error_in_words() -> None:
    """Status 1, one message that names the store, no traceback."""
    done = _ratchet(
        "history", RATCHET_STORE="s3://nowhere/x", AWS_ENDPOINT_URL="http://127.0.0.1:9",
        AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b",
    )  # fmt: skip
    assert done.returncode == 1
    assert "s3://nowhere/x" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_night_on_an_unreachable_store_is_refused_before_it_begins() -> None:
    """One message with a remedy, and no Prefect server was started for it."""
    done = _ratchet(
        "run", RATCHET_STORE="s3://nowhere/x", AWS_ENDPOINT_URL="http://127.0.0.1:9",
        AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert "AWS_ENDPOINT_URL" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["deploy", "alerts"])
def test_an_unreachable_prefect_server_is_an_error_in_words(command: str) -> None:
    """The address that was tried and what to look at, no traceback."""
    done = _ratchet(*command.split(), PREFECT_API_URL="http://127.0.0.1:9/api")
    assert done.returncode == 1
    assert "does not answer at http://127.0.0.1:9/api" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_path_that_cannot_be_used_is_an_error_in_words(tmp_path: Path) -> None:
    """The path, what is wrong with it, no traceback."""
    (tmp_path / "file").write_text("")
    done = _ratchet("convert", str(local.ROOT / "docs/examples/argilla.json"), str(tmp_path / "file" / "pairs.jsonl"))
    assert done.returncode == 2
    assert f"{tmp_path / 'file' / 'pairs.jsonl'}: Not a directory" in done.stderr
    done = _ratchet("status", "--state", str(tmp_path / "file" / "state"))
    assert done.returncode == 1
    assert "Not a directory: name another" in done.stderr
    assert "Traceback" not in done.stderr


def test_mistakes_in_parameters_are_named_each() -> None:
    """Which parameter, what was given, and the one that was probably meant."""
    with pytest.raises(common.UsageError) as caught:
        common.parameters(["training.epoch=2", "training.batch_size=many"])
    assert "there is no parameter training.epoch: did you mean training.epochs?" in str(caught.value)
    assert "training.batch_size: Input should be a valid integer" in str(caught.value)
    assert "got 'many'" in str(caught.value)


def test_an_empty_store_is_described_and_not_an_error(store: Store) -> None:
    """Before the first night the base model serves, and there is nothing to pull or to go back to."""
    status, history = _ratchet("status", "--store", store.url), _ratchet("history", "--store", store.url)
    assert (status.returncode, history.returncode) == (0, 0)
    assert "the base model serves" in status.stdout
    assert "the base model serves" in history.stdout
    before = _ratchet("history", "--on", "2026-01-31", "--store", store.url)
    assert (before.returncode, before.stdout.strip()) == (0, "On 2026-01-31 the base model served.")
    for command in (("pull", "/nonexistent/model"), ("rollback", "--reason", "test")):
        done = _ratchet(*command, "--store", store.url)
        assert done.returncode == 1
        assert "nothing is in production" in done.stderr


def test_quarantine_counts_reasons_and_names_a_place(store: Store) -> None:
    """Two rows without a document and one that is no JSON: the most frequent reason first, with object and line."""
    rows = [
        b'{"query": "a", "document": ""}',
        b'{"query": "b", "document": "c"}',
        b'{"query": "d", "document": " "}',
        b"{",
    ]
    store.put("pairs/today.jsonl", b"\n".join(rows))
    for command, said in (("quarantine", "no row was rejected"), ("rows", "a night takes in what was uploaded")):
        done = _ratchet(command, "--store", store.url)
        assert said in done.stdout + done.stderr
    take_in(store, writer="test")
    done = _ratchet("quarantine", "--store", store.url)
    assert done.returncode == 0, done.stderr
    first, second = [line for line in done.stdout.splitlines() if "pairs/today.jsonl" in line]
    assert first.startswith("2 ")
    assert "pairs/today.jsonl:1" in first
    assert second.startswith("1 ")
    assert "pairs/today.jsonl:4" in second


def test_starting_the_command_line_loads_nothing_heavy() -> None:
    """Help and mistakes are answered at once: libraries are loaded by the command that needs them."""
    code = "import sys, deployments.cli; print(*sorted(name for name in sys.modules if '.' not in name))"
    done = subprocess.run([sys.executable, "-c", code], cwd=local.ROOT, capture_output=True, text=True, check=True)
    heavy = {"torch", "prefect", "great_expectations", "pandas", "pyarrow", "boto3", "sentence_transformers", "numpy"}
    assert not heavy & set(done.stdout.split())


def test_no_command_shows_progress_bars_of_libraries() -> None:
    """Set before any of them is imported, whichever command it is."""
    code = "import os; from deployments import cli; cli.app = lambda: print(dict(os.environ)); cli.main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=local.ROOT, capture_output=True, text=True, check=True)
    assert "'HF_HUB_DISABLE_PROGRESS_BARS': '1'" in done.stdout


def test_the_version_is_shown() -> None:
    """That of the installed package, alone on its line."""
    done = _ratchet("--version")
    assert (done.returncode, done.stdout) == (0, f"{importlib.metadata.version('ratchet')}\n")


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    """An empty folder, and what is neither a file nor a folder: silence would look like success."""
    for path in (str(tmp_path), os.devnull):
        for command in ("read", "try"):
            done = _ratchet(command, path)
            assert done.returncode in {1, 2}
            assert path in done.stderr


def test_doctor_finds_the_versions_that_break_silently() -> None:
    """Each trap is named with what to install instead; a build's name after + is no other version."""
    good = {
        "prefect": "3.8.8",
        "sentence-transformers": "6.2.0",
        "torch": "2.13.0+cu130",
        "fastapi": "0.150.2",
        "sqlalchemy": "2.0.9",
    }
    assert all(finding.sound for finding in doctor.versions(good.__getitem__))
    bad = {**good, "fastapi": "0.155.0", "sqlalchemy": "2.1.9", "torch": "2.12.0"}
    broken = {finding.name: finding.text for finding in doctor.versions(bad.__getitem__) if not finding.sound}
    assert set(broken) == {"fastapi", "sqlalchemy", "torch"}
    assert "below 2.1" in broken["sqlalchemy"]


def test_doctor_trusts_a_store_that_honours_conditions(store: Store) -> None:
    """The real server passes, rights that no night needs are said, and the probes leave nothing behind."""
    findings = list(doctor.examine_store(store.url))
    assert [finding.sound for finding in findings] == [True] * 6
    assert [finding.name for finding in findings if finding.advice] == ["store, rights"]  # the owner may do everything
    assert "may also write to pairs/" in findings[-2].text
    assert (findings[-1].name, findings[-1].text) == ("store, guard sets", "none")
    assert list(store.entries("")) == []


def test_doctor_reads_the_guard_sets(store: Store) -> None:
    """Each with its number of queries; one that is broken is named, since it would hold every candidate."""
    store.put("guard/general/corpus.jsonl", b'{"_id": "1", "text": "a"}\n{"_id": "2", "text": "b"}\n')
    store.put("guard/general/queries.jsonl", b'{"_id": "1", "text": "which"}\n')
    store.put("guard/general/qrels/test.tsv", b"1\t1\t1\n")
    assert list(doctor.examine_store(store.url))[-1].text == "general (1 queries)"
    store.put("guard/broken/corpus.jsonl", b"")
    finding = list(doctor.examine_store(store.url))[-1]
    assert not finding.sound
    assert "guard/broken/: there is no qrels/test.tsv" in finding.text


def test_doctor_says_what_is_wrong_with_a_store() -> None:
    """A bucket that does not exist is a finding, not an exception."""
    (finding,) = doctor.examine_store("not-a-store")
    assert not finding.sound
    assert "s3://bucket/prefix" in finding.text


def test_doctor_says_which_model_is_missing(tmp_path: Path) -> None:
    """A folder without a model is named."""
    finding = doctor.examine_model(str(tmp_path / "none"))
    assert not finding.sound
    assert str(tmp_path / "none") in finding.text
