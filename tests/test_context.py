"""What a flow takes from its surroundings: which store is meant, and a work folder that can be trusted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deployments.server.settings import Settings, SettingsError, load
from deployments.terminal import follow
from flows.context import WorkFolderError, store_url, work_folder
from tasks.storage import Store, StoreError, normalise

SPELLINGS = ["s3://bucket/team", "s3://bucket/team/", "s3://bucket/team//"]

REFUSED = [
    "bucket/team",
    "https://bucket/team",
    "s3://",
    "s3:///team",
    "s3://key:hunter2@bucket/team",
    "s3://bucket:80/team",
    "s3://bucket#1/team",
    "s3://bucket/team?versionId=3",
    "s3://bucket/team%2Fother",
    "s3://bucket//team",
    "s3://bucket/a//b",
    "s3://bucket/a/../b",
    "s3://bucket/./a",
    "s3://bucket/te*",  # a wildcard in policies, and in what alerts match
    "s3://bucket/te\\am",
    "s3://bucket/te am",
    "s3://bucket/team\n",
    "s3://bucket/team\u202e",
]


@pytest.mark.parametrize("url", SPELLINGS)
def test_a_store_has_one_spelling_wherever_it_is_named(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Store, settings, flow and environment: the address in events is the one that alerts match."""
    file = tmp_path / "ratchet.toml"
    file.write_text(f'store.url = "{url}"')
    monkeypatch.setenv("RATCHET_STORE", url)
    named = {normalise(url), Store.open(url).url, load(file).store.url, store_url(url), store_url(None)}
    assert named == {"s3://bucket/team"}
    assert Store.open(url).prefix == "team/"
    assert Settings.model_validate({"store": {"url": url}}).store.url == "s3://bucket/team"
    assert follow._address(url) == "s3://bucket/team"


@pytest.mark.parametrize("url", ["s3://bucket", "s3://bucket/"])
def test_a_bucket_alone_is_a_store(url: str) -> None:
    """Without a prefix keys begin at once."""
    store = Store.open(url)
    assert (store.url, store.bucket, store.prefix) == ("s3://bucket", "bucket", "")
    assert store.uri("production.json") == "s3://bucket/production.json"


@pytest.mark.parametrize("url", REFUSED)
def test_an_address_that_could_be_read_as_another_is_refused(url: str, tmp_path: Path) -> None:
    """By the store, by flows and by the settings; the message shows it with its control characters written out."""
    for use in (Store.open, normalise, store_url):
        with pytest.raises(StoreError, match="a store is named s3://bucket/prefix") as raised:
            use(url)
        assert str(raised.value).isprintable()
        assert "hunter2" not in str(raised.value)
    file = tmp_path / "ratchet.toml"
    file.write_text(f"store.url = {url!r}" if "\\" not in repr(url) else 'store.url = "s3://bucket/te am"')
    with pytest.raises(SettingsError, match=r"store\.url: a store is named"):
        load(file)


def test_a_hash_is_a_character_of_the_prefix() -> None:
    """As an address of the web it would end there: team#1 became the store of another team."""
    assert normalise("s3://bucket/team#1/") == Store.open("s3://bucket/team#1").url == "s3://bucket/team#1"
    assert Store.open("s3://bucket/team#1").prefix == "team#1/"


def test_a_work_folder_is_made_for_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the umask; one that others could read, but not write, is closed to them."""
    folder = tmp_path / "a" / "work"
    monkeypatch.setenv("RATCHET_WORK", str(folder))
    before = os.umask(0)
    try:
        assert work_folder() == folder
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert folder.parent.stat().st_mode & 0o777 == 0o700  # else others could put another in its place
    folder.chmod(0o755)
    (folder / "models").mkdir(mode=0o755)
    assert work_folder() == folder
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o757, 0o720])
def test_a_work_folder_that_others_can_write_to_is_refused(
    mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vector planted there would be served as if it had been encoded."""
    folder = tmp_path / "work"
    folder.mkdir()
    folder.chmod(mode)
    monkeypatch.setenv("RATCHET_WORK", str(folder))
    with pytest.raises(WorkFolderError, match=rf"mode {mode:04o}.*RATCHET_WORK"):
        work_folder()


def test_a_planted_folder_inside_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left from a time at which the folder was open: a link, another user's, or one that all can write to."""
    folder = tmp_path / "work"
    monkeypatch.setenv("RATCHET_WORK", str(folder))
    work_folder()
    vectors = folder / "vectors"
    vectors.symlink_to(tmp_path)
    with pytest.raises(WorkFolderError, match="vectors is a symbolic link"):
        work_folder()
    vectors.unlink()
    vectors.mkdir()
    vectors.chmod(0o777)
    with pytest.raises(WorkFolderError, match="vectors can be written to by other users"):
        work_folder()
    vectors.chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)  # as another user would see it
    with pytest.raises(WorkFolderError, match="belongs to another user"):
        work_folder()


def test_a_file_in_place_of_the_work_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a link that leads nowhere."""
    monkeypatch.setenv("RATCHET_WORK", str(tmp_path / "work"))
    (tmp_path / "work").write_text("notes")
    with pytest.raises(WorkFolderError, match="work is not a directory: name a folder"):
        work_folder()
    (tmp_path / "work").unlink()
    (tmp_path / "work").symlink_to(tmp_path / "nowhere")
    with pytest.raises(WorkFolderError, match="work is not a directory: name a folder"):
        work_folder()


def test_a_link_in_place_of_the_work_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In `/tmp`, say, where anybody can make one."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "work").symlink_to(tmp_path / "theirs")
    monkeypatch.setenv("RATCHET_WORK", str(tmp_path / "work"))
    with pytest.raises(WorkFolderError, match="is a symbolic link"):
        work_folder()
