"""Versions: published whole or not at all, verified by hash, pulled atomically, hostile manifests refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.registry.versions import (
    MANIFEST,
    RETIRED,
    Manifest,
    VersionError,
    check_paths,
    describe_folder,
    hold,
    publish,
    pull,
    read_manifest,
    verify,
    version_of,
)
from tasks.storage import Store
from tests.faults import Crash, faulty, writes
from tests.models import DESCRIPTION, model_folder, published


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its path, but the mark of a pull."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {path: body for path, body in found.items() if path != MANIFEST}


def forge(store: Store, files: dict[str, Any], bodies: dict[str, bytes] | None = None) -> str:
    """Put a manifest into the store under the name its bytes deserve: what an attacker with write access can do."""
    body = json.dumps({"files": files, "weights": "0" * 64, "description": DESCRIPTION.model_dump()}).encode()
    version = version_of(body)
    store.put(f"models/{version}/manifest.json", body)
    for path, content in (bodies or {}).items():
        store.put(f"models/{version}/{path}", content)
    return version


def entry(body: bytes) -> dict[str, Any]:
    """A manifest's honest line for a file."""
    return {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}


# --- publishing ----------------------------------------------------------------------------------------------


def test_a_published_version_comes_back_byte_for_byte(store: Store, tmp_path: Path) -> None:
    """Publish, pull: the same files; and the manifest names each with its size and sha256."""
    folder = model_folder(tmp_path / "model", b"abc")
    version = publish(store, folder, DESCRIPTION)
    assert pull(store, version, tmp_path / "pulled") == tmp_path / "pulled"
    assert contents(tmp_path / "pulled") == contents(folder)
    manifest = json.loads(store.get(f"models/{version}/manifest.json").body)
    # sha256 of "abc" is the example of FIPS 180-2
    assert manifest["files"]["model.safetensors"] == {
        "size": 3,
        "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    }
    assert set(manifest["files"]) == {"model.safetensors", "modules.json", "1_Pooling/config.json", "README.md"}


def test_a_version_is_named_by_its_content(store: Store, tmp_path: Path) -> None:
    """The same files and description are the same version; another byte or another description is another."""
    one = published(store, tmp_path / "a", b"one")
    assert published(store, tmp_path / "elsewhere", b"one") == one
    assert published(store, tmp_path / "b", b"two") != one
    described = DESCRIPTION.model_copy(update={"matryoshka_dims": (64,)})
    assert publish(store, model_folder(tmp_path / "a", b"one"), described) != one
    assert hashlib.sha256(store.get(f"models/{one}/manifest.json").body).hexdigest()[:32] == one


def test_a_crash_at_any_write_and_a_second_publish_come_to_the_same_end(store: Store, tmp_path: Path) -> None:
    """Until the manifest is there, there is no version; afterwards all of it; publishing again completes."""
    folder = model_folder(tmp_path / "model")
    version = publish(store, folder, DESCRIPTION)
    whole = {entry.key: store.get(entry.key).body for entry in store.entries("models/")}
    at = 0
    while True:
        at += 1
        for when in ("before", "after"):
            other = Store(f"{store.url}-{at}-{when}", store._client)
            dying = faulty(other, at, when)
            try:
                publish(dying, folder, DESCRIPTION)
            except Crash:
                has_manifest = other.find(f"models/{version}/manifest.json") is not None
                if has_manifest:
                    verify(other, version)
                else:
                    with pytest.raises(VersionError, match="has no manifest"):
                        verify(other, version)
            assert publish(other, folder, DESCRIPTION) == version
            assert {entry.key: other.get(entry.key).body for entry in other.entries("models/")} == whole
        if writes(dying) < at:
            break
    assert at == 7  # 4 files, the manifest, and the manifest again to hold the version: all six were tried


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("model.bin", "has none of the endings"),
        ("pickle.pkl", "has none of the endings"),
        ("modeling.py", "has none of the endings"),
        ("noextension", "has none of the endings"),
        (".json", "has none of the endings"),
        ("model.SAFETENSORS", "has none of the endings"),
        ("manifest.json", "name of the manifest"),
        ("back\\slash.json", "may not"),
        ("line\nbreak.json", "may not"),
        ("C:drive.json", "may not"),
    ],
)
def test_a_folder_with_anything_but_weights_and_text_is_not_published(
    store: Store, tmp_path: Path, name: str, match: str
) -> None:
    """The refusal comes before anything is written."""
    folder = model_folder(tmp_path / "model")
    (folder / name).write_bytes(b"x")
    with pytest.raises(VersionError, match=match):
        publish(store, folder, DESCRIPTION)
    assert list(store.entries("")) == []


@pytest.mark.parametrize("target", ["model.safetensors", "/etc/hostname", "nowhere", "1_Pooling"])
def test_symbolic_links_are_not_published(store: Store, tmp_path: Path, target: str) -> None:
    """A link could publish a file that is not part of the model."""
    folder = model_folder(tmp_path / "model")
    (folder / "link.json").symlink_to(target)
    with pytest.raises(VersionError, match="not a plain file"):
        publish(store, folder, DESCRIPTION)
    assert list(store.entries("")) == []


def test_a_folder_without_weights_is_not_published(store: Store, tmp_path: Path) -> None:
    """Neither an empty folder nor one with the text files alone is a model."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(VersionError, match="no weights to publish"):
        publish(store, tmp_path / "model", DESCRIPTION)


def test_publishing_over_a_corrupt_object_is_refused(store: Store, tmp_path: Path) -> None:
    """A damaged object under a version's key is not taken for the version's."""
    folder = model_folder(tmp_path / "model")
    version = describe_folder(folder, DESCRIPTION).version
    store.put(f"models/{version}/manifest.json", b"{}")
    with pytest.raises(VersionError, match="other bytes than its name says"):
        publish(store, folder, DESCRIPTION)


def test_a_named_pipe_is_not_published(store: Store, tmp_path: Path) -> None:
    """Reading one would wait for ever."""
    folder = model_folder(tmp_path / "model")
    os.mkfifo(folder / "pipe.json")
    with pytest.raises(VersionError, match="not a plain file"):
        publish(store, folder, DESCRIPTION)


# --- verifying -----------------------------------------------------------------------------------------------


def test_a_manifest_that_was_changed_no_longer_has_its_name(store: Store, tmp_path: Path) -> None:
    """One changed byte in the manifest, and the version does not verify."""
    version = published(store, tmp_path / "model", b"w")
    body = store.get(f"models/{version}/manifest.json").body
    store.put(f"models/{version}/manifest.json", body.replace(b"256", b"257", 1))
    for act in (read_manifest, verify, hold):
        with pytest.raises(VersionError, match="was changed"):
            act(store, version)


def test_a_missing_or_cut_file_is_found_without_reading_the_files(store: Store, tmp_path: Path) -> None:
    """`verify` lists: a file that is gone or has another size is named."""
    version = published(store, tmp_path / "model", b"weights")
    store.put(f"models/{version}/model.safetensors", b"weight")
    with pytest.raises(VersionError, match=r"model\.safetensors has 6 bytes, the manifest says 7"):
        verify(store, version)
    store.delete([f"models/{version}/model.safetensors"])
    with pytest.raises(VersionError, match=r"model\.safetensors is missing"):
        verify(store, version)


@pytest.mark.parametrize("name", ["", "0" * 15, "0" * 17, "../production", "A" * 16, "0" * 16])
def test_what_is_no_version_is_said_to_be_none(store: Store, tmp_path: Path, name: str) -> None:
    """Malformed and unknown names give an error with the name, not a request for a strange key."""
    with pytest.raises(VersionError, match=r"is not a version|there is no version"):
        pull(store, name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_version_that_is_being_deleted_can_be_neither_held_nor_published(store: Store, tmp_path: Path) -> None:
    """Whoever promotes gives way to a deletion that came first."""
    version = published(store, tmp_path / "model", b"w")
    store.put(f"models/{version}/{RETIRED}", b"")
    with pytest.raises(VersionError, match="being deleted"):
        hold(store, version)
    with pytest.raises(VersionError, match="being deleted"):
        published(store, tmp_path / "model", b"w")


# --- pulling -------------------------------------------------------------------------------------------------


def test_a_file_with_other_bytes_of_the_same_size_is_refused(store: Store, tmp_path: Path) -> None:
    """The hash decides; nothing is left behind, beside the target either."""
    version = published(store, tmp_path / "model", b"good")
    store.put(f"models/{version}/model.safetensors", b"evil")
    with pytest.raises(VersionError, match=r"model\.safetensors has another sha256"):
        pull(store, version, tmp_path / "out" / "model")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_that_holds_the_version_is_kept_as_it_is(store: Store, tmp_path: Path) -> None:
    """A second pull writes nothing: same inodes, and no request for the files."""
    version = published(store, tmp_path / "model", b"w")
    target = pull(store, version, tmp_path / "out")
    before = {path: path.stat().st_ino for path in target.rglob("*")}
    pull(store, version, target)
    assert {path: path.stat().st_ino for path in target.rglob("*")} == before


@pytest.mark.parametrize("damage", ["cut", "another", "missing", "swapped", "empty"])
def test_a_folder_of_an_earlier_pull_is_replaced_whole(store: Store, tmp_path: Path, damage: str) -> None:
    """A half-written or altered model, or another version, gives way to exactly the verified files."""
    version = published(store, tmp_path / "model", b"weights")
    target = pull(store, version, tmp_path / "out")
    if damage == "cut":
        (target / "model.safetensors").write_bytes(b"wei")
    elif damage == "another":
        version = published(store, tmp_path / "model", b"another")
    elif damage == "missing":
        (target / "modules.json").unlink()
    elif damage == "swapped":
        (target / "model.safetensors").write_bytes(b"another")
    else:
        shutil.rmtree(target)
        target.mkdir()
    pull(store, version, target)
    assert contents(target) == contents(tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


@pytest.mark.parametrize("name", ["thesis.tex", ".git/config", "train.py"])
def test_a_folder_of_somebody_is_not_replaced(store: Store, tmp_path: Path, name: str) -> None:
    """`ratchet pull .` in the wrong folder costs nobody their work."""
    version = published(store, tmp_path / "model", b"w")
    mine = tmp_path / "work" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("years of work")
    with pytest.raises(VersionError, match="new or empty"):
        pull(store, version, tmp_path / "work")
    assert mine.read_text() == "years of work"


def test_a_folder_of_notes_is_not_replaced(store: Store, tmp_path: Path) -> None:
    """Texts have the endings that a model's files have: without weights among them they are somebody's."""
    version = published(store, tmp_path / "model", b"w")
    notes = tmp_path / "notes" / "today.md"
    notes.parent.mkdir()
    notes.write_text("mine")
    with pytest.raises(VersionError, match="new or empty"):
        pull(store, version, notes.parent)
    assert notes.read_text() == "mine"


@pytest.mark.parametrize("marked", [False, True], ids=["never pulled into", "pulled into before"])
def test_a_folder_that_holds_other_models_is_not_replaced(store: Store, tmp_path: Path, marked: bool) -> None:
    """`ratchet pull models` among other models costs none of them, even where an earlier pull was made."""
    version, newer = published(store, tmp_path / "one", b"w"), published(store, tmp_path / "two", b"newer")
    models = tmp_path / "models"
    if marked:
        pull(store, version, models)
    model_folder(models / "trained by hand", b"months of work")
    before = contents(models)
    with pytest.raises(VersionError, match="name a folder that is new or empty"):
        pull(store, newer, models)
    assert contents(models) == before


def test_a_mark_that_no_pull_wrote_is_no_mark(store: Store, tmp_path: Path) -> None:
    """Other programs have a manifest.json as well."""
    version = published(store, tmp_path / "model", b"w")
    site = tmp_path / "site"
    site.mkdir()
    (site / MANIFEST).write_text('{"name": "a web app"}')
    with pytest.raises(VersionError, match="not what `ratchet pull` writes"):
        pull(store, version, site)
    assert [path.name for path in site.iterdir()] == [MANIFEST]


def test_a_folder_of_an_earlier_release_that_holds_the_version_gets_its_mark(store: Store, tmp_path: Path) -> None:
    """It has exactly the files; from then on it follows production."""
    version, newer = published(store, tmp_path / "one", b"w"), published(store, tmp_path / "two", b"newer")
    target = model_folder(tmp_path / "out", b"w")
    pull(store, version, target)
    pull(store, newer, target)
    assert contents(target) == contents(tmp_path / "two")


def test_two_pulls_into_one_folder_at_once_both_succeed(store: Store, tmp_path: Path) -> None:
    """A shared work folder: each finds the version whole, whoever brought it."""
    versions = [published(store, tmp_path / f"{i}", b"%d" % i) for i in range(2)]
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda n: pull(store, versions[n % 2], tmp_path / "out" / "model"), range(24)):
            pass
    assert contents(tmp_path / "out" / "model") in [contents(tmp_path / f"{i}") for i in range(2)]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]


def test_a_version_with_a_name_of_an_earlier_release_stays_valid(store: Store, tmp_path: Path) -> None:
    """16 digits then, 32 now: 64 bits can be met by somebody who looks for two manifests with one name."""
    version = published(store, tmp_path / "model", b"w")
    assert len(version) == 32
    old = version[:16]
    for entry in list(store.entries(f"models/{version}/")):
        store.put(entry.key.replace(version, old), store.get(entry.key).body)
    assert verify(store, old) == verify(store, version)
    assert contents(pull(store, old, tmp_path / "out")) == contents(tmp_path / "model")
    store.put(f"models/{version[:15]}0/{MANIFEST}", store.get(f"models/{version}/{MANIFEST}").body)
    if version[15] != "0":
        with pytest.raises(VersionError, match="was changed"):
            verify(store, f"{version[:15]}0")


def test_a_link_in_the_target_is_not_followed(store: Store, tmp_path: Path) -> None:
    """A file that is a link to the right bytes may change later: the folder does not count as verified."""
    version = published(store, tmp_path / "model", b"w")
    target = pull(store, version, tmp_path / "out")
    (target / "model.safetensors").unlink()
    (target / "model.safetensors").symlink_to(tmp_path / "model" / "model.safetensors")
    with pytest.raises(VersionError, match="did not write"):
        pull(store, version, target)


def test_a_target_that_is_a_link_keeps_being_one(store: Store, tmp_path: Path) -> None:
    """`current -> disk2/model`: the folder behind the link is replaced."""
    version = published(store, tmp_path / "model", b"w")
    (tmp_path / "disk2").mkdir()
    (tmp_path / "current").symlink_to(tmp_path / "disk2" / "model")
    pull(store, version, tmp_path / "current")
    assert (tmp_path / "current").is_symlink()
    assert contents(tmp_path / "disk2" / "model") == contents(tmp_path / "model")


def test_a_pull_that_dies_leaves_the_target_as_it_was(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each download, and at the rename: afterwards the old model is there, whole, and the next pull succeeds."""
    old, new = published(store, tmp_path / "old", b"old"), published(store, tmp_path / "new", b"new!")
    target = pull(store, old, tmp_path / "out")
    real_download, real_rename = Store.download, Path.rename

    def die_at(count: int, operation: Any) -> Any:
        calls = iter(range(1, 100))

        def dying(*arguments: Any) -> Any:
            if next(calls) == count:
                raise Crash
            return operation(*arguments)

        return dying

    for at in range(1, 5):
        monkeypatch.setattr(Store, "download", die_at(at, real_download))
        with pytest.raises(Crash):
            pull(store, new, target)
        assert contents(target) == contents(tmp_path / "old")
    monkeypatch.setattr(Store, "download", real_download)
    for at in (1, 2):
        monkeypatch.setattr(Path, "rename", die_at(at, real_rename))
        with pytest.raises(Crash):
            pull(store, new, target)
        assert contents(target) == contents(tmp_path / "old")
    monkeypatch.setattr(Path, "rename", real_rename)
    assert contents(pull(store, new, target)) == contents(tmp_path / "new")


# --- hostile manifests ---------------------------------------------------------------------------------------

HOSTILE = [
    "../evil.json",
    "a/../../evil.json",
    "/tmp/evil.json",  # noqa: S108 - the path is refused, that is the test
    "a//b.json",
    "./a.json",
    "a\\..\\evil.json",
    "nul\x00.json",
    "evil.py",
    "evil.bin",
    "evil.json.pkl",
    "evil.safetensors/",
    "",
    "..",
    "manifest.json",
    "\ud800.json",
    "file\u202egpj.json",
]


@pytest.mark.parametrize("path", HOSTILE)
def test_a_hostile_path_is_refused_before_anything_is_written(store: Store, tmp_path: Path, path: str) -> None:
    """Also when the manifest's own hash is right: paths that leave the folder, and types that can hold code."""
    good = entry(b"w")
    version = forge(store, {"model.safetensors": good, path: good}, {"model.safetensors": b"w"})
    with pytest.raises(VersionError, match="refused"):
        pull(store, version, tmp_path / "inner" / "out")
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"a.json": {"size": -1, "sha256": "0" * 64}},
        {"a.json": {"size": 1, "sha256": "0" * 63}},
        {"a.json": {"size": 1, "sha256": "Z" * 64}},
        {"a.json": {"size": 1}},
        {"a.json": {"size": 1, "sha256": "0" * 64, "url": "http://elsewhere"}},
        {"a.json": {"size": 1, "sha256": "0" * 64}, "a.json/b.json": {"size": 1, "sha256": "0" * 64}},
        [],
    ],
)
def test_a_malformed_manifest_is_refused(store: Store, tmp_path: Path, files: Any) -> None:
    """Sizes, hashes and fields are checked, and a file is not a folder."""
    version = forge(store, files)
    with pytest.raises(VersionError, match="refused"):
        pull(store, version, tmp_path / "out")


@pytest.mark.parametrize("body", [b"", b"not json", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_a_manifest_that_is_none_is_refused(store: Store, tmp_path: Path, body: bytes) -> None:
    """Garbage under the key, named by its own hash, gives an error and not a traceback from a parser."""
    version = version_of(body)
    store.put(f"models/{version}/manifest.json", body)
    with pytest.raises(VersionError, match="refused"):
        pull(store, version, tmp_path / "out")


def test_a_file_larger_than_declared_is_refused_before_it_is_downloaded(store: Store, tmp_path: Path) -> None:
    """A small manifest does not bring a large file."""
    version = forge(store, {"model.safetensors": entry(b"w")}, {"model.safetensors": b"w" * 1_000_000})
    with pytest.raises(VersionError, match="has 1000000 bytes, the manifest says 1"):
        pull(store, version, tmp_path / "inner" / "out")
    assert list(tmp_path.rglob("*")) == []


def test_objects_that_the_manifest_does_not_name_are_not_pulled(store: Store, tmp_path: Path) -> None:
    """What somebody laid beside the model stays in the store."""
    version = published(store, tmp_path / "model", b"w")
    store.put(f"models/{version}/modeling.py", b"import os")
    assert contents(pull(store, version, tmp_path / "out")) == contents(tmp_path / "model")


@given(st.lists(st.text(max_size=8), max_size=6).map("/".join), st.sampled_from(["", ".json", ".txt", ".md"]))
def test_an_accepted_path_stays_in_the_folder(stem: str, suffix: str) -> None:
    """Whatever is accepted resolves to a place inside the folder, and to the same text again."""
    path = stem + suffix
    try:
        check_paths([path])
    except ValueError:
        return
    root = Path("/srv/models/v")
    assert Path(os.path.normpath(root / path)) == root / path
    assert (root / path).relative_to(root).as_posix() == path


def test_equal_vectors_are_claimed_only_for_equal_files(tmp_path: Path) -> None:
    """A model card may differ; weights, settings and vocabulary may not."""
    one = describe_folder(model_folder(tmp_path / "a"), DESCRIPTION)
    (model_folder(tmp_path / "b") / "README.md").write_text("another card")
    card = describe_folder(tmp_path / "b", DESCRIPTION)
    (model_folder(tmp_path / "c") / "modules.json").write_text("[ ]")
    settings = describe_folder(tmp_path / "c", DESCRIPTION)
    assert one.same_vectors(card)
    assert not one.same_vectors(settings)
    assert Manifest.model_validate_json(one.body()) == one
