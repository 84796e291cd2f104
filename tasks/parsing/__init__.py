"""Uploaded bytes to rows: JSON lines, CSV and Parquet, each row accepted or rejected with its line. Knows no store."""

from tasks.parsing.objects import parse, refuse_unread
from tasks.parsing.rows import KINDS, PARSED, Chunk, Rejected, kind_of

__all__ = ["KINDS", "PARSED", "Chunk", "Rejected", "kind_of", "parse", "refuse_unread"]
