"""`ratchet init`: a file that says everything, means the defaults, and replaces nothing."""

from __future__ import annotations

import re
import signal
import sys
import tomllib
from pathlib import Path

import pytest

from deployments import cli
from deployments.server import settings
from deployments.server import settings_file as init


def test_what_is_written_means_the_defaults(tmp_path: Path) -> None:
    """Nothing changes by writing the file and leaving it as it is."""
    init.write(tmp_path / "ratchet.toml")
    assert settings.load(tmp_path / "ratchet.toml") == settings.Settings()


def test_every_setting_is_there_with_what_it_means() -> None:
    """Each field of each section, and of a channel, comes after its whole description."""
    text = init.toml()
    words = " ".join(re.sub(r"^#\s*", "", line) for line in text.splitlines())
    for section in (
        settings.StoreSettings,
        settings.Schedule,
        settings.Alerts,
        settings.Watch,
        settings.IndexSettings,
        settings.Channel,
    ):
        for name, field in section.model_fields.items():
            assert re.search(rf"^(# )?{name} = ", text, re.MULTILINE), name
            assert field.description
            assert field.description in words


def test_the_channel_in_comments_is_a_valid_one() -> None:
    """Taking away the comment signs of its lines gives a channel that loads."""
    example = init.toml().split("[channels.team]")[1].splitlines()
    lines = [line[2:] for line in example if re.match(r"# (kind|secret_env|only) =", line)]
    channel = settings.Channel.model_validate(tomllib.loads("\n".join(lines)))
    assert channel.kind == "slack"


def test_a_file_that_is_there_is_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2, the name in the message, and the same bytes as before."""
    file = tmp_path / "ratchet.toml"
    file.write_text("# mine\n")
    monkeypatch.setattr(sys, "argv", ["ratchet", "init", str(file)])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "already exists" in capsys.readouterr().err
    assert file.read_text() == "# mine\n"
