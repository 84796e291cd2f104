"""PostgreSQL with pgvector: one table per index, and one view that says which serves.

In schema `ratchet` of the database, or what the address names:

    documents              the view that serves: id, text, metadata, embedding, model
    documents_<index>      the rows of one index, and its HNSW structure
    documents__indexes     indexes by name: document encoder, dimension
    documents__shards      shards that an index holds, each written in the transaction that added its rows
    documents__switches    what was switched to, in order: the last row serves

A switch replaces the view and adds to the switches in one transaction. The view keeps its rights and whatever was
built on it; its column `model` is a constant of its definition, so one statement with `WHERE model = ...` searches
vectors of that model, or finds nothing.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
from pydantic import TypeAdapter

from tasks.index.targets.connection import Address, connect, said, table
from tasks.index.targets.protocol import (
    Contents,
    GoneError,
    Hit,
    Index,
    Live,
    Rows,
    TargetError,
    check_rows,
    contents_of,
    follow,
    storable,
)

if TYPE_CHECKING:
    from psycopg import Connection, sql

T = TypeVar("T")

_INDEXED_DIMENSIONS: Final = 2_000
"""What HNSW of pgvector takes."""

_READ: Final = 2_000
"""Rows read at a time."""

_EF: Final = 100
"""Candidates of an HNSW search (`hnsw.ef_search`), at least; 40 by default."""

_LIVE: Final = TypeAdapter(Live)


class PostgresTarget:
    """Indexes as tables of a database; implements `Target`. Threads that share one take turns."""

    def __init__(self, address: Address) -> None:
        """Connect. Raises TargetError."""
        self._address = address
        self._turn = threading.RLock()
        self._known = False  # whether the tables are known to be there: nobody takes them away
        self._connection = connect(address)

    @property
    def address(self) -> str:
        """The target for people."""
        return str(self._address)

    def live(self) -> Live | None:
        """What serves."""
        return self._do("read what serves", self._live)

    def served(self) -> list[Live]:
        """What can be switched to again, the latest first."""
        there = set(self.indexes())
        rows = self._do("read what served", self._switches) if there else []
        latest = dict.fromkeys(live for live in rows if live.index.name in there)
        return list(latest)

    def indexes(self) -> list[str]:
        """Names of all indexes; not of one whose table somebody has deleted."""

        def read(connection: Connection[Any]) -> list[str]:
            if not self._is_set_up(connection):
                return []
            names = connection.execute(self._sql("SELECT name FROM {_indexes} ORDER BY name")).fetchall()
            return [name for (name,) in names if self._is_there(connection, name)]

        return self._do("list indexes", read)

    def prepare(self, index: Index) -> None:
        """Create a table, or continue one."""
        if index.dimension > _INDEXED_DIMENSIONS:
            raise TargetError(
                f"pgvector indexes at most {_INDEXED_DIMENSIONS} dimensions, not {index.dimension}: train with a "
                "smaller Matryoshka dimension, or use LanceDB"
            )

        def create(connection: Connection[Any]) -> None:
            with connection.transaction():
                self._set_up(connection)
                if not self._is_there(connection, index.name):
                    self._forget(connection, index.name)
                elif not connection.execute(
                    self._sql("SELECT 1 FROM {_indexes} WHERE name = %s"), (index.name,)
                ).fetchone():
                    raise TargetError(f"{self.address}_{index.name} was not made by Ratchet: delete or rename it")
                values = (index.name, index.documents, index.dimension)
                connection.execute(
                    self._sql("INSERT INTO {_indexes} VALUES (%s, %s, %s) ON CONFLICT DO NOTHING"), values
                )
                found = self._dimension(connection, index.name)
                if found != index.dimension:
                    raise TargetError(
                        f"index {index.name} in {self.address} has vectors of {found} dimensions, not "
                        f"{index.dimension}: somebody else made it: delete it there"
                    )
                connection.execute(
                    self._sql(
                        "CREATE TABLE IF NOT EXISTS {table} (id text PRIMARY KEY, text text NOT NULL, "
                        "metadata jsonb NOT NULL, embedding vector({dimension}) NOT NULL)",
                        index.name, dimension=index.dimension,
                    )
                )  # fmt: skip

        self._do("prepare an index", create)

    def loaded(self, name: str) -> set[str]:
        """Shards that a table holds."""
        statement = self._sql("SELECT shard FROM {_shards} WHERE name = %s")
        return self._do(
            "read an index", lambda connection: {row[0] for row in connection.execute(statement, (name,)).fetchall()}
        )

    def load(self, name: str, shard: str, rows: Rows) -> None:
        """Add a shard in one transaction, unless it is there."""

        def copy(connection: Connection[Any]) -> None:
            check_rows(rows, self._dimension(connection, name))
            with connection.transaction():
                served = self._sql("SELECT 1 FROM {_switches} WHERE live->'index'->>'name' = %s")
                if connection.execute(served, (name,)).fetchone():
                    raise TargetError(f"index {name} in {self.address} has served, and is not written again")
                mark = self._sql("INSERT INTO {_shards} VALUES (%s, %s) ON CONFLICT DO NOTHING")
                if connection.execute(mark, (name, shard)).rowcount:
                    self._copy(connection, name, rows)

        self._do("load a shard", copy)

    def build(self, name: str) -> None:
        """Build the HNSW structure."""
        statement = self._sql("CREATE INDEX ON {table} USING hnsw (embedding vector_cosine_ops)", name)

        def create(connection: Connection[Any]) -> None:
            with connection.transaction():
                connection.execute(self._sql("SELECT FROM {_indexes} WHERE name = %s FOR UPDATE"), (name,))
                if not connection.execute(_INDEXED, (self._address.schema, f"{self._address.view}_{name}")).fetchone():
                    connection.execute(statement)
            connection.execute(self._sql("ANALYZE {table}", name))

        self._do("build the HNSW structure", create)

    def contents(self, name: str) -> Contents:
        """What a table holds, read through a cursor of the server."""

        def read(connection: Connection[Any]) -> Contents:
            found = contents_of([], [], np.empty((0, 0), np.float32))
            with connection.transaction(), connection.cursor("contents", binary=True) as cursor:
                cursor.execute(self._sql("SELECT id, text, embedding FROM {table}", name))
                while rows := cursor.fetchmany(_READ):
                    ids, texts, vectors = zip(*rows, strict=True)
                    found += contents_of(ids, texts, np.stack([vector.to_numpy() for vector in vectors]))
            return found

        return self._do("read an index", read)

    def search(self, name: str, vectors: np.ndarray, k: int, *, exact: bool = False) -> list[list[Hit]]:
        """The nearest documents of each query."""
        statement = self._sql(
            "SELECT id, text, metadata, 1 - (embedding <=> %(query)s) FROM {table} "
            "ORDER BY embedding <=> %(query)s LIMIT %(k)s",
            name,
        )

        def ask(connection: Connection[Any]) -> list[list[Hit]]:
            with connection.transaction():
                connection.execute("SELECT set_config('hnsw.ef_search', %s, true)", (str(min(1_000, max(_EF, 2 * k))),))
                if exact:
                    connection.execute("SET LOCAL enable_indexscan = off")
                    connection.execute("SET LOCAL enable_seqscan = on")
                found = (
                    connection.execute(statement, {"query": vector, "k": k})
                    for vector in np.asarray(vectors, np.float32)
                )
                return [
                    [Hit(*row) for row in rows if not math.isnan(row[-1])] for rows in found
                ]  # of a vector of zeros

        return self._do("search", ask)

    def switch(self, live: Live, expected: Live | None) -> None:
        """Replace the view, and say so, in one transaction."""

        def replace(connection: Connection[Any]) -> None:
            with connection.transaction():
                self._set_up(connection)
                connection.execute(self._sql("LOCK TABLE {_switches} IN SHARE ROW EXCLUSIVE MODE"))
                if not follow(live, self._live(connection), expected, self.address):
                    return
                self._dimension(connection, live.index.name)
                self._replace_view(connection, live)

        self._do("switch", replace)

    def drop(self, name: str) -> None:
        """Delete a table, if it is there and does not serve."""

        def delete(connection: Connection[Any]) -> None:
            with connection.transaction():
                self._forget(connection, name)
                connection.execute(self._sql("DROP TABLE IF EXISTS {table}", name))

        if self._do("list indexes", self._is_set_up):
            self._do("delete an index", delete)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    # --- statements ------------------------------------------------------------------------------------------

    def _sql(self, text: str, name: str | None = None, **numbers: int) -> sql.Composed:
        """A statement with the names of tables quoted, and numbers in it; values are always parameters."""
        from psycopg import sql

        known = {which: table(self._address, which) for which in ("_indexes", "_shards", "_switches")}
        if name is not None:
            known["table"] = table(self._address, name)
        schema, view = sql.Identifier(self._address.schema), sql.Identifier(self._address.view)
        literals = {key: sql.Literal(value) for key, value in numbers.items()}
        return sql.SQL(text).format(schema=schema, view=sql.SQL("{}.{}").format(schema, view), **known, **literals)

    def _is_set_up(self, connection: Connection[Any]) -> bool:
        from psycopg.pq import TransactionStatus

        if not self._known:
            row = connection.execute(
                "SELECT 1 FROM pg_catalog.pg_tables WHERE (schemaname, tablename) = (%s, %s)",
                (self._address.schema, f"{self._address.view}__switches"),
            ).fetchone()
            # what a transaction has created may be undone with it
            self._known = row is not None and connection.info.transaction_status == TransactionStatus.IDLE
            return row is not None
        return True

    def _set_up(self, connection: Connection[Any]) -> None:
        """Create what is kept about all indexes, unless it is there; one at a time."""
        if self._is_set_up(connection):
            return
        connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (f"ratchet {self._address.schema}",))
        if connection.execute("SELECT to_regnamespace(%s)", (self._address.schema,)).fetchone() == (None,):
            connection.execute(self._sql("CREATE SCHEMA {schema}"))
        for statement in (
            "CREATE TABLE IF NOT EXISTS {_indexes} "
            "(name text PRIMARY KEY, documents text NOT NULL, dimension int NOT NULL)",
            "CREATE TABLE IF NOT EXISTS {_shards} (name text, shard text, PRIMARY KEY (name, shard))",
            "CREATE TABLE IF NOT EXISTS {_switches} (number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, "
            "live jsonb NOT NULL, at timestamptz NOT NULL DEFAULT now())",
        ):
            connection.execute(self._sql(statement))

    def _live(self, connection: Connection[Any]) -> Live | None:
        rows = self._switches(connection, limit=1)
        if not rows:
            self._check_view(connection)
        return rows[0] if rows else None

    def _check_view(self, connection: Connection[Any]) -> None:
        """Raise TargetError where something of somebody else has the view's name, before anything is embedded."""
        view = self._sql("{view}").as_string(connection)
        if connection.execute("SELECT to_regclass(%s)", (view,)).fetchone() != (None,):
            raise TargetError(
                f"{self.address} is there already, and was not made by Ratchet: name another view after # in the "
                "address of the target"
            )

    def _switches(self, connection: Connection[Any], limit: int = 1_000) -> list[Live]:
        if not self._is_set_up(connection):
            return []
        statement = self._sql("SELECT live FROM {_switches} ORDER BY number DESC LIMIT %s")
        return [_LIVE.validate_python(row[0]) for row in connection.execute(statement, (limit,))]

    def _is_there(self, connection: Connection[Any], name: str) -> bool:
        whole = self._sql("{table}", name).as_string(connection)
        return connection.execute("SELECT to_regclass(%s)", (whole,)).fetchone() != (None,)

    def _forget(self, connection: Connection[Any], name: str) -> None:
        """Delete what is kept about an index. Raises TargetError for the one that serves."""
        connection.execute(self._sql("LOCK TABLE {_switches} IN SHARE ROW EXCLUSIVE MODE"))
        live = self._live(connection)
        if live is not None and live.index.name == name:
            raise TargetError(f"index {name} in {self.address} serves: switch to another before it is deleted")
        connection.execute(self._sql("DELETE FROM {_switches} WHERE live->'index'->>'name' = %s"), (name,))
        connection.execute(self._sql("DELETE FROM {_shards} WHERE name = %s"), (name,))
        connection.execute(self._sql("DELETE FROM {_indexes} WHERE name = %s"), (name,))

    def _dimension(self, connection: Connection[Any], name: str) -> int:
        """Components of an index's vectors. Raises GoneError."""
        row = None
        if self._is_set_up(connection):
            row = connection.execute(self._sql("SELECT dimension FROM {_indexes} WHERE name = %s"), (name,)).fetchone()
        if row is None:
            raise GoneError(f"there is no index {name} in {self.address}: run `ratchet reindex`")
        return int(row[0])

    def _copy(self, connection: Connection[Any], name: str, rows: Rows) -> None:
        from psycopg.types.json import Jsonb

        statement = self._sql("COPY {table} (id, text, metadata, embedding) FROM STDIN WITH (FORMAT BINARY)", name)
        vectors = np.asarray(rows.vectors, np.float32)
        with connection.cursor() as cursor, cursor.copy(statement) as copy:
            copy.set_types(["text", "text", "jsonb", "vector"])
            for identity, text, metadata, vector in zip(rows.ids, rows.texts, rows.metadata, vectors, strict=True):
                copy.write_row((storable(identity), storable(text), Jsonb(_storable(metadata)), vector))

    def _replace_view(self, connection: Connection[Any], live: Live) -> None:
        from psycopg import sql
        from psycopg.types.json import Jsonb

        # without a dimension in its type, the view can be replaced by one of vectors of another length
        text = (
            "CREATE OR REPLACE VIEW {view} AS SELECT id, text, metadata, embedding::vector AS embedding, {model}::text "
            "AS model FROM {table}"
        )
        named = self._sql(text.replace("{model}", "{{model}}"), live.index.name).as_string(connection)
        connection.execute(sql.SQL(named).format(model=sql.Literal(live.model)))
        connection.execute(self._sql("INSERT INTO {_switches} (live) VALUES (%s)"), (Jsonb(asdict(live)),))
        view = f"{self._address.schema}.{self._address.view}"
        for (reader,) in connection.execute(_READERS, (view,)).fetchall():
            grant = "GRANT SELECT ON {table}, {_indexes}, {_switches} TO "
            connection.execute(self._sql(grant, live.index.name) + sql.SQL(reader))

    def _do(self, what: str, work: Callable[[Connection[Any]], T]) -> T:
        """Run something that may be run twice: once more on a new connection where the old one turns out broken."""
        from psycopg import OperationalError

        with self._turn, said(self._address, what):
            if not self._connection.closed:
                try:
                    return work(self._connection)
                except OperationalError:
                    if not self._connection.closed:
                        raise
            self._connection = connect(self._address)
            return work(self._connection)


def _storable(value: Any) -> Any:
    """Metadata as jsonb can store it."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, dict):
        return {storable(key): _storable(inner) for key, inner in value.items()}
    return [_storable(inner) for inner in value] if isinstance(value, list) else value


_INDEXED: Final = """
SELECT 1 FROM pg_catalog.pg_index i
JOIN pg_catalog.pg_class t ON t.oid = i.indrelid JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid JOIN pg_catalog.pg_am a ON a.oid = c.relam
WHERE n.nspname = %s AND t.relname = %s AND a.amname = 'hnsw' AND i.indisvalid
"""

_READERS: Final = """
SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END
FROM pg_catalog.pg_class c, pg_catalog.aclexplode(c.relacl) a
WHERE c.oid = %s::regclass AND a.privilege_type = 'SELECT' AND a.grantee <> c.relowner
"""
"""Quoted names of the roles that may read the view, other than its owner."""
