"""Uploaded bytes to rows: JSON lines, CSV and Parquet, each row accepted or rejected with its line. Knows no store."""

from tasks.parsing.documents import Document, read_documents
from tasks.parsing.objects import parse, refuse_unread
from tasks.parsing.rows import KINDS, PARSED, Chunk, Rejected, kind_of
from tasks.parsing.understood import PARSER_VERSION, Refusal, Understood, is_ignored
from tasks.parsing.unpacking import RefusedError

__all__ = [
    "KINDS",
    "PARSED",
    "PARSER_VERSION",
    "Chunk",
    "Document",
    "Refusal",
    "RefusedError",
    "Rejected",
    "Understood",
    "is_ignored",
    "kind_of",
    "parse",
    "read_documents",
    "refuse_unread",
]
