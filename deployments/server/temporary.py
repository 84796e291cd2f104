"""The server that Prefect starts for a run in this process, where no other one is configured."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_SETTINGS: Final = ("PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING")


@contextmanager
def private_server() -> Iterator[None]:
    """Have Prefect's temporary server ask for a password that only this process and its children know.

    It listens on loopback, and hands out the secrets of the blocks in this user's Prefect database: other users of the
    machine must not get at it. Nothing changes where PREFECT_API_URL or a profile names a server.
    """
    from prefect.context import refresh_global_settings_context
    from prefect.settings import get_current_settings

    if get_current_settings().api.url:
        yield
        return
    before = {name: os.environ.get(name) for name in _SETTINGS}
    # through the environment: the server and every thread of this process read it there
    os.environ.update(dict.fromkeys(_SETTINGS, f"ratchet:{secrets.token_urlsafe(24)}"))
    refresh_global_settings_context()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        refresh_global_settings_context()
