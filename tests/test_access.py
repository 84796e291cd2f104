"""Who may do what in the store: one table, and the policies and pages that follow from it."""

from __future__ import annotations

import json
import re

from deployments import access
from deployments.places import ROOT
from tests import docs

PAGE = (ROOT / "deployments" / "README.md").read_text()


def test_the_stored_policies_are_those_of_the_table() -> None:
    """Written anew by `python -m deployments.access`; no other file lies beside them."""
    files = dict(access.files())
    for path, text in files.items():
        assert path.read_text() == text, f"{path.name}: run python -m deployments.access"
        json.loads(text)
    assert set(access.POLICIES.iterdir()) == set(files)
    for path in files:
        assert f"(iam/{path.name})" in PAGE, path.name


def test_every_key_of_the_store_has_a_row_in_the_table() -> None:
    """Those of docs/store.md, which another test compares with the code and with the store of real nights."""
    known = {key.pattern.removesuffix("*") for key in access.TABLE}
    text = (docs.DOCS / "store.md").read_text()
    first = re.findall(r"^\| `([a-z]+(?:/|\.json))` \|", text, re.MULTILINE)
    assert len(first) > 10
    assert set(first) - known == set()


def test_each_role_has_what_its_work_needs_and_no_more() -> None:
    """Literally: the keys that a role reads and writes."""
    assert access.writable("labeller") == ["pairs/*", "corpus/*"]
    assert access.readable("labeller") == ["pairs/*", "corpus/*", "quarantine/*"]
    assert access.writable("curator") == ["golden/*", "guard/*", "documents/*"]
    assert access.writable("consumer") == []
    assert access.readable("consumer") == ["documents/*", "indexes/*", "models/*", "production.json", "promotions/*"]
    assert {"watch/*", "promotions/*", "log/*"} <= set(access.writable("trainer"))
    assert not {"pairs/*", "golden/*", "guard/*"} & set(access.writable("trainer"))


def test_nothing_may_be_deleted_but_what_can_be_made_again() -> None:
    """Checkpoints, caches, vectors of indexes, and versions of models; no record, no label, no pointer."""
    assert access.deletable("trainer") == ["runs/*/checkpoints/*", "indexes/*", "models/*", "cache/*"]
    assert not {"log/*", "promotions/*", "models/*", "production.json", "split.json"} & set(access.deletable("eraser"))
    for role in access.ROLES:
        actions = [action for statement in access.policy(role)["Statement"] for action in statement["Action"]]
        assert ("s3:DeleteObject" in actions) == (role in {"trainer", "eraser"})
        assert ("s3:DeleteObjectVersion" in actions) == (role == "eraser")
        assert not any("*" in action for action in actions)
