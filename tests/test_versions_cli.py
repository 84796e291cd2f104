"""The commands on what serves, called as functions: what they say, and what they change."""

from __future__ import annotations

import importlib.metadata
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deployments.cli import app, versions
from tasks import registry
from tasks.config import Training
from tasks.registry import promote
from tasks.scoring import describe
from tasks.storage import Store
from tasks.training import train
from tests import tiny_models
from tests.models import published
from tests.test_rehearsal import ROWS


@pytest.fixture
def served(store: Store, tmp_path: Path) -> list[str]:
    """Two versions of which the second serves, and four that never did."""
    names = [published(store, tmp_path / f"{i}", b"%d" % i) for i in range(6)]
    for number, name in enumerate(names[:2]):
        now = registry.read_production(store)
        etag = now.etag if now else None
        promote(store, name, etag, run_id=f"run-{number}", who="night", reason="better", scores={})
    return names


def run(store: Store, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """What a command prints; it must succeed."""
    runner = CliRunner()
    with runner.isolation() as (out, _, _), monkeypatch.context() as patch:
        patch.setattr(versions.console, "_file", None)
        app([*arguments, "--store", store.url], standalone_mode=False)
        return out.getvalue().decode()


def test_rolled_back_released_and_retired(store: Store, served: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of a person who did not like the new model: back, a look, a release, back to the base model."""
    said = run(store, monkeypatch, "rollback", "--reason", "odd results")
    assert f"version {served[0]} serves again, in place of version {served[1]}" in said
    assert f"No night promotes {served[1]} again until `ratchet release" in said
    assert f"Held: version {served[1]} was rolled back by" in run(store, monkeypatch, "history")
    assert "is no longer held" in run(store, monkeypatch, "release", served[1], "--reason", "it was the index")
    assert "Held:" not in run(store, monkeypatch, "history")
    assert "the base model serves again" in run(
        store, monkeypatch, "rollback", "--to", "base", "--reason", "start over"
    )
    assert "base model" in run(store, monkeypatch, "history")


def test_manifest_card_and_pull_name_the_least_versions(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whoever loads a version with older libraries is told before; one of which nothing is known says nothing."""
    training = Training(base_model=str(tiny_models.save(tmp_path / "base")), batch_size=4)
    train(ROWS, None, [], training, tmp_path / "candidate")
    version = registry.publish(store, tmp_path / "candidate", describe(tmp_path / "candidate"))
    requires = registry.read_manifest(store, version).description.requires
    assert requires == {"sentence-transformers": "6.0", "transformers": "5.0"}
    said = run(store, monkeypatch, "pull", str(tmp_path / "pulled"), "--version", version)
    assert "needs sentence-transformers 6.0 or later, transformers 5.0 or later" in said
    card = (tmp_path / "pulled" / "README.md").read_text()
    assert "It loads with sentence-transformers 6.0 and transformers 5.0 or later." in card
    for name, least in requires.items():
        assert int(importlib.metadata.version(name).partition(".")[0]) >= int(least.partition(".")[0])
    unknown = published(store, tmp_path / "other", b"other")
    assert "needs" not in run(store, monkeypatch, "pull", str(tmp_path / "unknown"), "--version", unknown)


def test_retire_says_what_it_would_delete(store: Store, served: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is a day old yet; later those go that never served, but the latest, and a dry run deletes nothing."""
    assert "nothing to delete" in run(store, monkeypatch, "retire", "--keep", "1")
    later = datetime.now(UTC) + timedelta(days=2)
    monkeypatch.setattr("tasks.registry.retention.store_time", lambda _: later)
    said = run(store, monkeypatch, "retire", "--keep", "1", "--dry-run")
    gone = [line.split()[1] for line in said.splitlines() if line.startswith("version ")]
    assert set(gone) <= set(served[2:])
    assert len(gone) >= 3
    assert {entry.key.split("/")[1] for entry in store.entries("models/")} == set(served)
    said = run(store, monkeypatch, "retire", "--keep", "1")
    left = {entry.key.split("/")[1] for entry in store.entries("models/")}
    assert left == set(served) - set(gone)
