"""Targets by their address."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from tasks.index.targets import connection
from tasks.index.targets.lance import LanceTarget
from tasks.index.targets.postgres import PostgresTarget
from tasks.index.targets.protocol import Target, TargetError

SECRET_BLOCK: Final = "ratchet-index"  # noqa: S105 - a name
"""Name of the Prefect block with the password of the target, where `ratchet deploy` has put one."""

_LANCE: Final = "lancedb"


def check_address(address: str) -> str:
    """Return an address that `open_target` would understand; nothing is connected to.

    Raises TargetError for another kind of target, or a secret in the address. The message does not repeat it.
    """
    scheme, colon, rest = address.partition(":")
    if colon and scheme in connection.SCHEMES:
        connection.parse(address)
    elif not colon or scheme != _LANCE or "://" in rest:
        raise TargetError("a target is lancedb:FOLDER or postgresql://user@host/database: this address is neither")
    return address


def takes_password(address: str | None) -> bool:
    """Whether a target at this address asks for a password."""
    return address is not None and address.partition(":")[0] in connection.SCHEMES


def open_target(address: str | None, *, store: str, work: Path, password: str | None = None) -> Target:
    """Open the target at an address: `lancedb:FOLDER` or `postgresql://user@host/database#schema.view`.

    Without an address, and for `lancedb:` without a folder, it is a folder for this store (by its address) in `work`,
    the folder of this machine. `password` is for PostgreSQL; without one libpq looks for it (PGPASSWORD, pgpass).

    Raises TargetError.
    """
    address = check_address(address or f"{_LANCE}:")
    if takes_password(address):
        return PostgresTarget(connection.parse(address, password))
    folder = address.partition(":")[2]
    own = work / "index" / hashlib.sha256(store.encode()).hexdigest()[:16]
    return LanceTarget(Path(folder).expanduser().absolute() if folder else own)
