"""Versions of the model: published whole, verified by hash, pulled atomically.

A version is `models/<version>/`: the files of a sentence-transformers folder, and `manifest.json` with the size
and sha256 of each. The version's name is the hash of its manifest, so a name fixes every byte: a manifest or
a file that was changed, cut or swapped no longer verifies. The manifest is written last: without it there is no
version, and publishing again after a crash at any write comes to the same end.

A folder that was pulled holds the manifest as well: by it `pull` knows a folder as its own, and replaces no other.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from tasks.config import MODEL_FILES
from tasks.storage import Blob, Store, file_sha256

MANIFEST: Final = "manifest.json"
RETIRED: Final = "RETIRED"
"""Marker in the folder of a version that is being deleted; its name has no allowed suffix, so no file can be it."""

_DIGITS: Final = 32
_OLD_DIGITS: Final = 16
"""Digits of the names that earlier releases gave; such versions stay valid."""

VersionName = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{32}|[0-9a-f]{16})$")]
"""The first 32 hex digits (of earlier releases: 16) of the sha256 of the version's manifest."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class RegistryError(Exception):
    """A version, production or the ledger is not what it must be; the message says which and why."""


class VersionError(RegistryError):
    """A version is missing, malformed, or does not verify."""


class _Record(BaseModel):
    """Base of what is stored: frozen, and a field that is not known is an error, not a surprise."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Description(_Record):
    """What a search with the vectors must know about them."""

    dimension: int = Field(ge=1)
    normalisation: Literal["l2", "none"]
    prompts: dict[str, str] = Field(default_factory=dict)
    max_length: int | None = Field(ge=1, description="Tokens beyond which a text is cut; null: never.")
    similarity: Literal["cosine", "dot", "euclidean", "manhattan"] = "cosine"
    requires: dict[str, str] = Field(default_factory=dict, description="Least versions of the libraries that load it.")
    matryoshka_dims: tuple[int, ...] = ()
    documents: Sha256 | None = Field(
        default=None, description="Identity of all that changes the vector of a document; null in earlier releases."
    )

    @field_validator("matryoshka_dims")
    @classmethod
    def _positive(cls, dims: tuple[int, ...]) -> tuple[int, ...]:
        if any(dim < 1 for dim in dims):
            raise ValueError(f"Matryoshka dimensions must be positive, got {list(dims)}")
        return dims


class File(_Record):
    """One file of a version: its size in bytes and its hash."""

    size: int = Field(ge=0)
    sha256: Sha256


class Manifest(_Record):
    """What a version consists of: files by their path in its folder, and the description of its vectors."""

    files: dict[str, File] = Field(min_length=1)
    weights: Sha256
    description: Description

    @field_validator("files")
    @classmethod
    def _safe(cls, files: dict[str, File]) -> dict[str, File]:
        check_paths(files)
        return files

    def body(self) -> bytes:
        """The one way to write this manifest down: the same files and description give the same bytes."""
        return _json(self.model_dump(mode="json"))

    @property
    def version(self) -> str:
        """The name that the manifest's bytes give the version."""
        return version_of(self.body())

    def same_vectors(self, other: Manifest) -> bool:
        """Whether both versions are certain to give the same vectors: every file that can change one is the same."""
        return _working(self.files) == _working(other.files)


def _working(files: Mapping[str, File]) -> dict[str, File]:
    return {path: file for path, file in files.items() if not path.endswith(".md")}


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, indent=1, allow_nan=False).encode() + b"\n"


def version_of(manifest: bytes) -> str:
    """The name of the version whose manifest has these bytes."""
    return hashlib.sha256(manifest).hexdigest()[:_DIGITS]


def _names(version: str, manifest: bytes) -> bool:
    """Whether a version's name belongs to a manifest with these bytes."""
    return is_version(version) and hashlib.sha256(manifest).hexdigest().startswith(version)


def is_version(name: str) -> bool:
    """Whether a text has the form of a version's name."""
    return len(name) in {_DIGITS, _OLD_DIGITS} and set(name) <= set("0123456789abcdef")


def weights_hash(files: Mapping[str, File]) -> str:
    """The sha256 of what `sha256sum` prints for the weight files, in the order of their paths."""
    lines = [f"{file.sha256}  {path}\n" for path, file in sorted(files.items()) if path.endswith(".safetensors")]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_paths(paths: Iterable[str]) -> None:
    """Refuse paths that leave the folder, that are read differently elsewhere, or that may not be in a version.

    Raises ValueError with the first such path and the reason.
    """
    known = set(paths)
    for path in sorted(known):
        parts = path.split("/")
        if not path.isprintable() or "\\" in path or ":" in path:
            raise ValueError(f"{path!r} holds a character that a path of a version may not")
        if any(part in {"", ".", ".."} for part in parts):
            raise ValueError(f"{path!r} leaves the folder of the version")
        if PurePosixPath(path).suffix not in MODEL_FILES:
            raise ValueError(f"{path!r} has none of the endings {', '.join(sorted(MODEL_FILES))}")
        if path.lower() == MANIFEST:
            raise ValueError(f"{path!r} is the name of the manifest itself")
        above = {str(parent) for parent in PurePosixPath(path).parents} & known
        if above:
            raise ValueError(f"{path!r} lies in {above.pop()!r}, which is a file")


# --- publishing ----------------------------------------------------------------------------------------------


def publish(store: Store, folder: Path, description: Description) -> str:
    """Write a model folder to the store as a version, and return the version's name.

    The same folder and description always give the same version; whatever an interrupted earlier call wrote is
    kept and completed. Raises VersionError, before anything is written, for a folder with symbolic links, special
    files, names that may not be in a version, or no weights; and for a version that is being deleted.
    """
    manifest = describe_folder(folder, description)
    version = manifest.version
    _check_not_retired(store, version)
    for path in manifest.files:
        store.upload_if_absent(f"models/{version}/{path}", folder / path)
    key = f"models/{version}/{MANIFEST}"
    if store.put_if_absent(key, manifest.body()) is None:
        raise VersionError(f"{store.uri(key)} exists with other bytes than its name says")
    hold(store, version)
    return version


def describe_folder(folder: Path, description: Description) -> Manifest:
    """The manifest of a model folder. Raises VersionError when the folder cannot be a version."""
    files: dict[str, File] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise VersionError(f"{path} is not a plain file: a version holds no links and no devices")
        if path.is_file():
            files[name] = File(size=path.stat().st_size, sha256=file_sha256(path))
    if not any(name.endswith(".safetensors") for name in files):
        raise VersionError(f"{folder} holds no *.safetensors: there are no weights to publish")
    try:
        return Manifest(files=files, weights=weights_hash(files), description=description)
    except ValidationError as error:
        raise VersionError(f"{folder} cannot be published: {_first(error)}") from error


def _first(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"


# --- verifying -----------------------------------------------------------------------------------------------


def read_manifest(store: Store, version: str) -> Manifest:
    """The manifest of a version; raises VersionError when it is missing, changed, or not to be trusted."""
    return _parse(store, version, _find_manifest(store, version))


def _find_manifest(store: Store, version: str) -> Blob:
    if not is_version(version):
        raise VersionError(
            f"{version!r} is not a version: a version is {_DIGITS} hex digits (older ones: {_OLD_DIGITS})"
        )
    blob = store.find(f"models/{version}/{MANIFEST}")
    if blob is None:
        raise VersionError(f"there is no version {version} in {store.url}: it has no manifest")
    return blob


def _parse(store: Store, version: str, blob: Blob) -> Manifest:
    uri = store.uri(f"models/{version}/{MANIFEST}")
    if not _names(version, blob.body):
        raise VersionError(f"{uri} was changed: its bytes belong to version {version_of(blob.body)}")
    try:
        return Manifest.model_validate_json(blob.body)
    except ValidationError as error:
        raise VersionError(f"{uri} is refused: {_first(error)}") from error


def verify(store: Store, version: str) -> Manifest:
    """Check that a version is whole: its manifest is the one it is named after, every file is there in its size.

    Hashes of the files are checked when they are read (`pull`). Raises VersionError.
    """
    manifest = read_manifest(store, version)
    stored = {entry.key.removeprefix(f"models/{version}/"): entry for entry in store.entries(f"models/{version}/")}
    for path, file in manifest.files.items():
        if path not in stored:
            raise VersionError(f"version {version} is not whole: {path} is missing")
        if stored[path].size != file.size:
            raise VersionError(
                f"version {version}: {path} has {stored[path].size} bytes, the manifest says {file.size}"
            )
    return manifest


def hold(store: Store, version: str) -> Manifest:
    """Verify a version that is about to be used, and keep it from being retired for a day.

    The manifest is written once more, under its own ETag and with its own bytes, which makes it young; only then
    the version is verified. `retention.py` goes the other way about: it marks, then looks at the age. So one of
    the two always sees the other.
    """
    blob = _find_manifest(store, version)
    _parse(store, version, blob)
    if store.put_if_match(f"models/{version}/{MANIFEST}", blob.body, blob.etag) is None:
        raise VersionError(f"version {version} changed while it was being verified")
    _check_not_retired(store, version)
    return verify(store, version)


def _check_not_retired(store: Store, version: str) -> None:
    if store.find(f"models/{version}/{RETIRED}") is not None:
        raise VersionError(
            f"version {version} is being deleted from {store.url}: let that end (retire), then try again"
        )


# --- pulling -------------------------------------------------------------------------------------------------


def pull_to_work(store: Store, version: str, work: Path) -> Path:
    """Bring a version's verified files to its place in the folder of this machine; see `pull`."""
    return pull(store, version, work / "models" / version)


def pull(store: Store, version: str, folder: Path) -> Path:
    """Bring a version's verified files to `folder`, and return it.

    A folder that holds exactly these files already is kept. Otherwise they are downloaded beside it, verified, and
    renamed into place: the folder never holds part of a version. What was there is replaced by that rename, if it is
    empty, or was written by an earlier pull: its own `manifest.json` says so, and names every file in it. Any other
    folder is somebody's, and VersionError is raised, as it is for everything that does not verify.
    """
    blob = _find_manifest(store, version)
    manifest = verify(store, version)
    target = folder.absolute()
    if target.is_symlink():
        target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(target.parent):
        if target.exists():
            if not differences(target, manifest):
                _mark(target, blob.body)
                return folder
            _check_replaceable(target)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as beside:
            fresh = Path(beside) / "new"
            download(store, version, manifest, fresh)
            _mark(fresh, blob.body)
            _replace(target, fresh, Path(beside) / "old")
    return folder


@contextlib.contextmanager
def _alone(parent: Path) -> Iterator[None]:
    """Wait until no other process pulls into a folder of this one; the lock ends with the process."""
    descriptor = os.open(parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _mark(folder: Path, manifest: bytes) -> None:
    """Leave the manifest in a folder that holds its files, unless it is there."""
    mark = folder / MANIFEST
    if not mark.is_file() or mark.read_bytes() != manifest:
        mark.write_bytes(manifest)


def _replace(target: Path, fresh: Path, old: Path) -> None:
    """Rename `fresh` to `target`; what was there goes to `old`, and comes back when that fails."""
    if target.exists():
        target.rename(old)
    try:
        fresh.rename(target)
    except BaseException:
        if old.exists():
            old.rename(target)
        raise


def download(store: Store, version: str, manifest: Manifest, folder: Path) -> None:
    """Fill a new folder with a version's files and verify every hash. Raises VersionError."""
    for path in manifest.files:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        store.download(f"models/{version}/{path}", folder / path)
    wrong = differences(folder, manifest)
    if wrong:
        raise VersionError(f"version {version} does not verify: {'; '.join(wrong)}")


def differences(folder: Path, manifest: Manifest) -> list[str]:
    """How the files in a folder differ from a manifest, for people; empty when they are exactly its files.

    The mark of an earlier pull may lie beside them.
    """
    if not folder.is_dir():
        return [f"{folder} is not a directory"]
    there = _files(folder)
    there.pop(MANIFEST, None)
    wrong = [f"{path} is missing" for path in manifest.files if path not in there]
    for path, at in sorted(there.items()):
        file = manifest.files.get(path)
        if file is None:
            wrong.append(f"{path} is not in the manifest")
        elif at.is_symlink() or not at.is_file():
            wrong.append(f"{path} is not a plain file")
        elif at.stat().st_size != file.size:
            wrong.append(f"{path} has {at.stat().st_size} bytes, the manifest says {file.size}")
        elif file_sha256(at) != file.sha256:
            wrong.append(f"{path} has another sha256 than the manifest says")
    return wrong


def _files(folder: Path) -> dict[str, Path]:
    """Everything below a folder but directories, by its path in the folder."""
    return {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }


def _check_replaceable(target: Path) -> None:
    """Refuse to replace what no pull has written: `ratchet pull .` must not cost anybody their work."""
    if not target.is_dir():
        raise VersionError(f"{target} exists and is not a directory: name another")
    there = _files(target)
    if not there and not any(target.iterdir()):
        return
    remedy = "name a folder that is new or empty, or move what is in this one"
    mark = there.pop(MANIFEST, None)
    if mark is None or mark.is_symlink():
        raise VersionError(f"{target} was not written by `ratchet pull` (it holds no {MANIFEST}): {remedy}")
    try:
        own = Manifest.model_validate_json(mark.read_bytes()).files
    except ValidationError as error:
        raise VersionError(f"{mark} is not what `ratchet pull` writes: {remedy}") from error
    for path, at in sorted(there.items()):
        if path not in own or at.is_symlink():
            raise VersionError(f"{target} holds {path}, which `ratchet pull` did not write: {remedy}")
