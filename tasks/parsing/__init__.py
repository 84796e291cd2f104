"""Uploaded bytes to rows: JSON lines, CSV and Parquet, each row accepted or rejected with its line. Knows no store."""

from tasks.parsing.objects import parse, refuse_unread
from tasks.parsing.rows import KINDS, PARSED, Chunk, Rejected, kind_of
from tasks.parsing.understood import PARSER_VERSION, Refusal, Understood, is_ignored

__all__ = [
    "KINDS",
    "PARSED",
    "PARSER_VERSION",
    "Chunk",
    "Refusal",
    "Rejected",
    "Understood",
    "is_ignored",
    "kind_of",
    "parse",
    "refuse_unread",
]
