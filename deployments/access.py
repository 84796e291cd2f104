"""Who may do what under each key of the store: one table, and the policies and probes that follow from it.

`python -m deployments.access` writes `deployments/iam/` anew; a test compares them, and another the table with
`docs/store.md`. `BUCKET` and `PREFIX` in the policies are to be replaced.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from tasks.storage import Store

Role = Literal["trainer", "labeller", "curator", "consumer", "approver", "eraser"]
"""Workers; people who label; people who are trusted with what is tested on; services that search; people who approve a
candidate by `ratchet approve`; `ratchet forget`."""

Written = Literal["by others", "once", "conditionally", "freely"]
"""`once`: put-if-absent, so that it never changes; `conditionally`: put-if-absent or put-if-match."""

ROLES: Final[tuple[Role, ...]] = get_args(Role)
_EVERYTHING: Final = frozenset({"trainer", "eraser"})
"""Roles that list and read the whole store."""

POLICIES: Final = Path(__file__).with_name("iam")
APPEND_ONLY: Final = "append-only"
"""Name of the bucket policy for stores that know the condition keys of conditional writes."""


@dataclass(frozen=True)
class Key:
    """Keys under the prefix; `*` stands for the rest."""

    pattern: str
    written: Written
    writer: Role
    readers: tuple[Role, ...] = ()
    """Besides the trainer, who reads everything, and the writer."""
    deleted: str | None = None
    """What the trainer may delete of it."""
    erasing: Literal["", "rewrites", "deletes"] = ""
    """What forgetting a text does there; whoever deletes also rewrites."""


TABLE: Final = (
    Key("pairs/*", "by others", "labeller", erasing="deletes"),
    Key("corpus/*", "by others", "labeller", erasing="deletes"),
    # what is tested on: whoever labels must not choose it, nor see which rows it takes
    Key("golden/*", "by others", "curator", erasing="deletes"),
    Key("guard/*", "by others", "curator", erasing="deletes"),
    Key("documents/*", "by others", "curator", ("consumer",), erasing="deletes"),
    Key("split.json", "once", "trainer", erasing="rewrites"),
    Key("log/*", "once", "trainer", erasing="rewrites"),
    Key("batches/*", "once", "trainer", erasing="deletes"),
    Key("quarantine/*", "once", "trainer", ("labeller", "curator"), erasing="deletes"),
    Key("runs/*", "freely", "trainer", ("approver",), deleted="runs/*/checkpoints/*", erasing="deletes"),
    # also written by the night, where the answer comes by the form or not at all
    Key("runs/*/approval.json", "once", "approver"),
    Key("watch/*", "once", "trainer", erasing="deletes"),
    Key("indexes/*", "once", "trainer", ("consumer",), deleted="indexes/*", erasing="deletes"),
    Key("models/*", "conditionally", "trainer", ("consumer",), deleted="models/*"),
    Key("production.json", "conditionally", "trainer", ("consumer",)),
    Key("promotions/*", "once", "trainer", ("consumer",)),
    Key("releases/*", "once", "trainer"),
    Key("erasures/*", "once", "eraser"),
    Key("metrics.txt", "freely", "trainer"),
    Key("cache/*", "freely", "trainer", deleted="cache/*", erasing="deletes"),
)


def readable(role: Role) -> list[str]:
    """Patterns of the keys that a role reads."""
    return [key.pattern for key in TABLE if role in {key.writer, *key.readers} or (role == "eraser" and key.erasing)]


def writable(role: Role) -> list[str]:
    """Patterns of the keys that a role writes."""
    return [key.pattern for key in TABLE if role == key.writer or (role == "eraser" and key.erasing)]


def deletable(role: Role) -> list[str]:
    """Patterns of the keys that a role deletes."""
    if role == "eraser":
        return [key.pattern for key in TABLE if key.erasing == "deletes"]
    return [key.deleted for key in TABLE if key.deleted] if role == "trainer" else []


def policy(role: Role) -> dict[str, Any]:
    """The identity policy of a role."""
    if role in _EVERYTHING:
        # S3 answers "not found" only to those who may list the bucket, and "forbidden" to others
        listing: dict[str, Any] = _statement("List", ["s3:ListBucket"], [])
        reading = ["*"]
    else:
        listing = _statement("List", ["s3:ListBucket"], [])
        listing["Condition"] = {"StringLike": {"s3:prefix": [f"PREFIX/{pattern}" for pattern in readable(role)]}}
        reading = readable(role)
    statements = [listing, _statement("Read", ["s3:GetObject"], reading)]
    if writable(role):
        statements.append(_statement("Write", ["s3:PutObject", "s3:AbortMultipartUpload"], writable(role)))
    if deletable(role):
        statements.append(_statement("Delete", ["s3:DeleteObject"], deletable(role)))
    if role == "eraser":  # versioning keeps what was deleted or overwritten; from there it must go as well
        statements += [
            _statement("ListVersions", ["s3:ListBucketVersions"], []),
            _statement("EraseVersions", ["s3:GetObjectVersion", "s3:DeleteObjectVersion"], deletable(role)),
        ]
    return {"Version": "2012-10-17", "Statement": statements}


def _append_only() -> dict[str, Any]:
    """A bucket policy: what is written once or conditionally is written so by everybody but the eraser.

    Creating a multipart upload and sending its parts carry no condition; completing it does.
    """

    def deny(name: str, written: Written, headers: Sequence[str]) -> dict[str, Any]:
        resources = [key.pattern for key in TABLE if key.written == written]
        lacks = {f"s3:{header}": "true" for header in headers}
        return {
            **_statement(name, ["s3:PutObject"], resources),
            "Effect": "Deny",
            "Principal": "*",
            "Condition": {
                "Null": lacks,
                "Bool": {"s3:ObjectCreationOperation": "true"},
                "ArnNotLike": {"aws:PrincipalArn": "arn:aws:iam::*:role/ratchet-eraser"},
            },
        }

    return {
        "Version": "2012-10-17",
        "Statement": [
            deny("RecordsAreOnlyAdded", "once", ["if-none-match"]),
            deny("PointerAndModelsOnlyUnderACondition", "conditionally", ["if-none-match", "if-match"]),
        ],
    }


def _statement(name: str, actions: list[str], patterns: Sequence[str]) -> dict[str, Any]:
    bucket = "arn:aws:s3:::BUCKET"
    resources = [f"{bucket}/PREFIX/{pattern}" for pattern in patterns] or [bucket]
    return {"Sid": name, "Effect": "Allow", "Action": actions, "Resource": resources}


def files() -> Iterator[tuple[Path, str]]:
    """Every stored policy's path, and what it must hold."""
    documents: dict[str, dict[str, Any]] = {role: policy(role) for role in ROLES}
    documents[APPEND_ONLY] = _append_only()
    for name, document in documents.items():
        yield POLICIES / f"{name}.json", json.dumps(document, indent=2) + "\n"


# --- what credentials may do ---------------------------------------------------------------------------------


def lacking(store: Store) -> list[str]:
    """What nights, watch, rollback or retention need and these credentials may not do; empty when all is granted.

    Nothing is changed to find out, see `Store.may_write`. A bucket policy may refuse the write that is tried for want
    of a condition; then beginning an upload tells.
    """
    written = [_probe(pattern) for pattern in writable("trainer")]
    may = [store.may_write(key) or store.may_upload(key) for key in written]
    found = [f"write {pattern}" for pattern, granted in zip(writable("trainer"), may, strict=True) if not granted]
    deleted = deletable("trainer")
    found += [f"delete {pattern}" for pattern in deleted if not store.may_delete(_probe(pattern))]
    return found + [f"read {key.pattern}" for key in TABLE if not store.may_read(_probe(key.pattern))]


def excess(store: Store) -> list[str]:
    """What these credentials may do that no night needs; empty when they are as narrow as they can be."""
    foreign = [key.pattern for key in TABLE if key.written == "by others"]
    kept = [key.pattern for key in TABLE if not key.deleted]
    found = [f"write to {pattern.removesuffix('*')}" for pattern in foreign if store.may_write(_probe(pattern))]
    # production.json and split.json have no other key beside them that could be tried without harm
    tried = [pattern for pattern in kept if pattern.endswith("*")]
    found += [f"remove from {pattern.removesuffix('*')}" for pattern in tried if store.may_delete(_probe(pattern))]
    if store.prefix:
        found += ["read outside the prefix"] * store.may_read(_PROBE, outside=True)
        found += ["write outside the prefix"] * store.may_write(_PROBE, outside=True)
    return found


_PROBE: Final = ".ratchet-probe-1f8a60d2c4b94e7c"
"""A name that no object has: nothing is written, read or deleted under it."""


def _probe(pattern: str) -> str:
    """A key that a pattern stands for, and that no object has unless the pattern is a whole key."""
    return pattern.replace("*", _PROBE)


if __name__ == "__main__":
    for file, text in files():
        file.write_text(text)
