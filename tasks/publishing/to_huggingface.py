"""A version in a repository of a Hugging Face hub: one commit with exactly its files, and a tag with its name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.publishing.job import MODEL, Job

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

_KEPT = frozenset({".gitattributes"})
"""Files of a repository that are the hub's own."""


class _TokenError(Exception):
    """There is no right to write."""


def publish(job: Job, folder: Path) -> str:
    """Make the branch main hold the version's files and no others; returns the repository and the commit.

    A repository that does not exist is made, private. The same files again make no commit. Where the base model serves
    the branch stays as it is: there are no files to put in their place.
    """
    from huggingface_hub import HfApi

    token = os.environ.get("HF_TOKEN")
    if not token:
        raise _TokenError("HF_TOKEN is not set: publishing needs a token that may write to the repository")
    api = HfApi(token=token)  # the address is that of HF_ENDPOINT, the hub's own without it
    if job.version is None:
        return f"{job.name} stays as it is: the base model serves, which has no files"
    api.create_repo(job.name, private=True, exist_ok=True)
    head = api.model_info(job.name)
    local = sorted(
        path.relative_to(folder / MODEL).as_posix() for path in (folder / MODEL).rglob("*") if path.is_file()
    )
    there = {file.rfilename for file in head.siblings or ()}
    # in one commit: `upload_folder` makes several of a large folder, and who loads main in between gets parts of two
    commit = api.create_commit(
        job.name,
        _operations(folder / MODEL, local, there),
        commit_message=job.title,
        commit_description=job.reason,
        parent_commit=head.sha,
    )
    api.create_tag(job.name, tag=job.version, revision=commit.oid, exist_ok=True)
    return f"{job.name}@{commit.oid}"


def _operations(folder: Path, local: list[str], there: set[str]) -> list[CommitOperationAdd | CommitOperationDelete]:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    gone = sorted(there - set(local) - _KEPT)
    return [
        *(CommitOperationDelete(path) for path in gone),
        *(CommitOperationAdd(path, str(folder / path)) for path in local),
    ]
