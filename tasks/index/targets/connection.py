"""A connection to PostgreSQL with the extension pgvector, and the remedies for its errors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from tasks.index.targets.protocol import GoneError, TargetError

if TYPE_CHECKING:
    from psycopg import Connection, Error, sql

SCHEMES: Final = ("postgresql", "postgres")
_SECONDS: Final = 10
_LOCK_SECONDS: Final = 5
_LEAST: Final = (0, 5)
"""The first pgvector with HNSW."""

_IDENTIFIER: Final = re.compile(r"[a-z_][a-z0-9_]{0,29}")
"""Names of schema and view. With the name of an index behind it the name of a table still fits in 63 bytes."""

_SECRETS: Final = {"password", "sslpassword"}

_REMEDIES: Final = {
    "42501": "grant the right: docs/targets.md lists those that a target needs",
    "53100": "make room on the server's disk and start again: what was loaded is kept",
    "53200": "the server is out of memory: lower its maintenance_work_mem, or give it more",
    "55P03": "a query or a session holds the view: end it, or try again when the load is lower",
    "25006": "that is a standby, or read-only: name the primary in the address",
    "22P05": "the database is not in UTF-8: name one that is (CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0)",
    "57014": "the server cancelled the statement: raise its statement_timeout for this user",
    "23505": "ids must be unique among the documents",
}
"""SQLSTATE -> what to do."""

_AWAY: Final = "is the server running, and the address its own? What serves is as it was"
_CONNECTING: Final = {
    "password": "the password is wrong or missing: set PGPASSWORD or a pgpass file, or the Prefect block of the target",
    "pg_hba.conf": "the server does not let this user in: look at its pg_hba.conf",
    "does not exist": "create the database and the role, or name others in the address",
    "too many": "the server has no connection left: raise max_connections, or close some",
    "vector type not found": "grant this user USAGE on the schema of the extension",
}
"""What is said of a new connection, where there is no SQLSTATE -> what to do."""


@dataclass(frozen=True)
class Address:
    """A database, and the view in it that searches read.

    Attributes:
        url: for libpq, without a secret.
        schema, view: where the documents are: `schema.view`, after `#` in the address.
        password: None leaves it to libpq: PGPASSWORD, a pgpass file, or none.
    """

    url: str
    schema: str = "ratchet"
    view: str = "documents"
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        """The address for people."""
        return f"{self.url}#{self.schema}.{self.view}"


def parse(address: str, password: str | None = None) -> Address:
    """Read `postgresql://user@host:port/database?sslmode=...#schema.view`; what is after `#` may be left out.

    Raises TargetError, which repeats no part of the address, when it holds a password or names no valid view:
    addresses are parameters, and those are shown.
    """
    try:
        parts = urlsplit(address)
        secret = parts.password is not None or _SECRETS & parse_qs(parts.query, keep_blank_values=True).keys()
    except ValueError as error:
        raise TargetError(f"the address of the target is not valid: {type(error).__name__}") from None
    if secret:
        raise TargetError(
            "the address of the target holds a password, and addresses are shown in the Prefect UI: change that "
            "password, and give the new one as PGPASSWORD, a pgpass file, or a Prefect block (docs/targets.md)"
        )
    schema, dot, view = (unquote(parts.fragment) or "ratchet.documents").partition(".")
    if not dot or not _IDENTIFIER.fullmatch(schema) or not _IDENTIFIER.fullmatch(view):
        raise TargetError(
            "the address of the target ends in an invalid view: after # write schema.view, each of at most 30 "
            "lowercase letters, digits and underscores, or nothing for ratchet.documents"
        )
    return Address(address.partition("#")[0], schema, view, password)


def connect(address: Address) -> Connection[Any]:
    """Open a connection that commits each statement, finds the extension, and knows its type.

    Raises TargetError when the server is away or refuses, or the extension is missing or too old.
    """
    try:
        import psycopg
        from pgvector.psycopg import register_vector
    except ImportError as error:
        raise TargetError(
            "psycopg or pgvector is not installed: install Ratchet with its extra `index` (pip install '.[index]')"
        ) from error
    secret = {} if address.password is None else {"password": address.password}
    with said(address, "be reached"):
        settings = psycopg.conninfo.make_conninfo(address.url, **secret, client_encoding="UTF8")
        connection = psycopg.connect(settings, autocommit=True, connect_timeout=_SECONDS, application_name="ratchet")
        try:
            home = _extension(connection, address)
            connection.execute(
                "SELECT set_config('search_path', %s, false), set_config('lock_timeout', %s, false)",
                (f"{home}, pg_catalog", f"{_LOCK_SECONDS}s"),
            )
            register_vector(connection)
        except BaseException:
            connection.close()
            raise
    return connection


def _extension(connection: Connection[Any], address: Address) -> str:
    """The quoted schema of the extension, created where it is missing. Raises TargetError where that is not allowed."""
    import psycopg

    find = (
        "SELECT quote_ident(n.nspname), e.extversion FROM pg_catalog.pg_extension e "
        "JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector'"
    )
    row = connection.execute(find).fetchone()
    if row is None:
        try:
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        except psycopg.Error as error:
            raise TargetError(
                f"{address} has no extension pgvector, and it cannot be created ({_first(error)}): install pgvector on "
                "the server, and let a superuser run CREATE EXTENSION vector there"
            ) from error
        row = connection.execute(find).fetchone()
        assert row is not None  # noqa: S101 - created a line above
    home, version = row
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < _LEAST:
        least = ".".join(map(str, _LEAST))
        raise TargetError(
            f"{address} has pgvector {version}, which has no HNSW: install {least} or later on the server, then run "
            "ALTER EXTENSION vector UPDATE"
        )
    return str(home)


@contextmanager
def said(address: Address, what: str) -> Iterator[None]:
    """PostgreSQL's errors as TargetError: what could not be done, what the server says, what to do."""
    import psycopg

    try:
        yield
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
        raise GoneError(f"there is no index in {address} to {what} ({_first(error)}): run `ratchet reindex`") from error
    except psycopg.Error as error:
        remedy = _REMEDIES.get(error.sqlstate or "", "")
        if not remedy and (error.sqlstate is None or isinstance(error, psycopg.OperationalError)):
            away = _AWAY if isinstance(error, psycopg.OperationalError) else ""
            remedy = next((advice for text, advice in _CONNECTING.items() if text in str(error)), away)
        raise TargetError(f"{address} cannot {what}: {_first(error)}{remedy and f'; {remedy}'}") from error


def _first(error: Error) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


def table(address: Address, name: str) -> sql.Composed:
    """The quoted table of an index, or of what the target keeps about all of them (names with an underscore)."""
    from psycopg import sql

    return sql.SQL("{}.{}").format(sql.Identifier(address.schema), sql.Identifier(f"{address.view}_{name}"))
