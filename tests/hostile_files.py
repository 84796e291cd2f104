"""What people upload by mistake, and what somebody might upload on purpose: one small program per file.

The name is the row of the table in docs/hostile-input.md, which says how many rows are accepted and how many
rejected. Unless a key is given, the file is `pairs/<name>`.
"""

from __future__ import annotations

import gzip
import io
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

ONE = b'{"query": "how to list buckets", "document": "ListBuckets returns all buckets."}'
TWO = b'{"query": "how to copy an object", "document": "CopyObject makes a copy."}'
CSV_ONE = b"how to list buckets,ListBuckets returns all buckets."
CSV_TWO = b"how to copy an object,CopyObject makes a copy."
CSV_HEADER = b"query,document"
MIB = 1 << 20


@dataclass(frozen=True)
class HostileFile:
    """An object's key, and the program that writes its bytes."""

    key: str
    make: Callable[[], bytes]


FILES: dict[str, HostileFile] = {}
"""Every file by its name in the table."""


def _file(name: str, make: Callable[[], bytes] | bytes, key: str | None = None) -> None:
    body = make
    FILES[name] = HostileFile(key or f"pairs/{name}", body if callable(body) else lambda: body)


def between(*lines: bytes, end: bytes = b"\n") -> bytes:
    """Lines with a sound row before and after them."""
    return end.join((ONE, *lines, TWO)) + end


def csv_between(*lines: bytes, header: bytes = CSV_HEADER, end: bytes = b"\n") -> bytes:
    """The same as CSV."""
    return end.join((header, CSV_ONE, *lines, CSV_TWO)) + end


def parquet(table: pa.Table | dict[str, object], **options: object) -> bytes:
    """A table as Parquet."""
    sink = io.BytesIO()
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), sink, **options)
    return sink.getvalue()


def repeated(value: str, times: int) -> pa.Array:
    """One text many times, of which Parquet keeps one."""
    return pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), times), pa.array([value]))


# --- JSON lines: the bytes -------------------------------------------------------------------------------

_file("plain.jsonl", between())
_file("no-final-newline.jsonl", between()[:-1])
_file("crlf.jsonl", between(end=b"\r\n"))
_file("cr-only.jsonl", between(end=b"\r"))
_file("blank-lines.jsonl", between(b"", b"  \t", b"\r"))
_file("only-blank-lines.jsonl", b"\n \n\n")
_file("empty.jsonl", b"")
_file("bom.jsonl", b"\xef\xbb\xbf" + between())
_file("only-bom.jsonl", b"\xef\xbb\xbf")
_file("bom-inside.jsonl", between(b"\xef\xbb\xbf" + ONE))
_file("utf-16.jsonl", lambda: between().decode().encode("utf-16"))
_file("latin-1.jsonl", between('{"query": "Größe", "document": "d"}'.encode("latin-1")))
_file("invalid-utf-8.jsonl", between(b'{"query": "a\xff\xfeb", "document": "d"}'))
_file("encoded-surrogate.jsonl", between(b'{"query": "a\xed\xa0\x80b", "document": "d"}'))
_file("overlong-utf-8.jsonl", between(b'{"query": "a\xc0\xafb", "document": "d"}'))
_file("nul-byte.jsonl", between(b'{"query": "a\0b", "document": "d"}'))
_file("nul-line.jsonl", between(b"\0" * 4096))
_file("line-separator.jsonl", between('{"query": "a\u2028b\u0085c", "document": "d"}'.encode()))
_file("control-character.jsonl", between(b'{"query": "a\tb", "document": "d"}'))
_file("binary.jsonl", bytes(range(256)) * 4)
_file("gzip-inside.jsonl", lambda: gzip.compress(between()))
_file("cut-off.jsonl", between(TWO)[:-30])
_file("line-too-long.jsonl", lambda: between(b'{"query": "q", "document": "' + b"a" * MIB + b'"}'))
_file("one-endless-line.jsonl", lambda: b"a" * (64 * MIB))
_file("too-many-lines.jsonl", lambda: b"\n" * 1_000_001)
_file("longest-text.jsonl", lambda: between(b'{"query": "q", "document": "' + b"a" * 1_000_000 + b'"}'))
_file("text-too-long.jsonl", lambda: between(b'{"query": "q", "document": "' + b"a" * 1_000_001 + b'"}'))

# --- JSON lines: the JSON --------------------------------------------------------------------------------

_file("array.jsonl", b"[" + ONE + b", " + TWO + b"]")
_file("pretty-printed.jsonl", b'{\n  "query": "q",\n  "document": "d"\n}\n')
_file("web-page.jsonl", b"<html>\n<body>502 Bad Gateway</body>\n</html>\n")
_file("two-on-a-line.jsonl", between(ONE + ONE))
_file("single-quotes.jsonl", between(b"{'query': 'q', 'document': 'd'}"))
_file("scalar.jsonl", between(b"7", b"null", b'"text"'))
_file("deep-nesting.jsonl", lambda: between(b"[" * 100_000))
_file("deep-nesting-of-a-text.jsonl", between(b'{"query": ' + b"[" * 900 + b"]" * 900 + b', "document": "d"}'))
_file("deep-nesting-beside.jsonl", between(b'{"query": "q", "document": "d", "x": ' + b"[" * 900 + b"]" * 900 + b"}"))
_file("duplicate-keys.jsonl", between(b'{"query": "old", "query": "new", "document": "d"}'))
_file("same-name-in-capitals.jsonl", between(b'{"query": "a", "Query": "b", "document": "d"}'))
_file("lone-surrogate.jsonl", between(b'{"query": "a\\ud800b", "document": "d"}'))
_file("surrogate-pair.jsonl", between(b'{"query": "\\ud83d\\ude80", "document": "d"}'))
_file("nul-escape.jsonl", between(b'{"query": "a\\u0000b", "document": "d"}'))
_file("endless-number.jsonl", between(b'{"query": "q", "document": "d", "score": 1e999}'))
_file("nan.jsonl", between(b'{"query": "q", "document": "d", "score": NaN}'))

# --- JSON lines: the row ---------------------------------------------------------------------------------

_file("anchor.jsonl", b'{"anchor": "q", "positive": "d", "negative": "n"}')
_file("question.jsonl", b'{"question": "q", "answer": "d"}')
_file("sentences.jsonl", b'{"sentence1": "q", "sentence2": "d", "score": 0.5}')
_file("text-a-b.jsonl", b'{"text_a": "q", "text_b": "d", "score": 1}')
_file("capital-names.jsonl", b'{"Query": "q", " Document ": "d"}')
_file("further-fields.jsonl", b'{"query": "q", "document": "d", "id": 7, "answer": [1], "": null}')
_file("two-spellings.jsonl", b'{"query": "q", "document": "d", "question": "other", "answer": "other"}')
_file("mixed-spelling.jsonl", between(b'{"query": "q", "answer": "d"}'))
_file("missing-document.jsonl", between(b'{"query": "q"}', b"{}"))
_file(
    "sentences-without-score.jsonl",
    b'{"sentence1": "q", "sentence2": "d"}\n{"sentence1": "q", "sentence2": "d", "score": null}',
)
_file("number-for-text.jsonl", between(b'{"query": 7, "document": "d"}', b'{"query": "q", "document": 0.5}'))
_file("list-for-text.jsonl", between(b'{"query": ["q"], "document": "d"}', b'{"query": "q", "document": []}'))
_file("object-for-text.jsonl", between(b'{"query": {"text": "q"}, "document": "d"}'))
_file("null-for-text.jsonl", between(b'{"query": null, "document": "d"}', b'{"query": "q", "document": null}'))
_file("true-for-text.jsonl", between(b'{"query": true, "document": "d"}'))
_file("blank-texts.jsonl", between(b'{"query": "", "document": "d"}', b'{"query": "q", "document": " \\n\\t"}'))
_file(
    "unseen-texts.jsonl",
    between('{"query": "\u200b\ufeff", "document": "d"}'.encode(), '{"query": "\u3000", "document": "d"}'.encode()),
)
_file("unseen-beside-seen.jsonl", between('{"query": "\u200bq", "document": "d"}'.encode()))
_file(
    "scores-at-the-bounds.jsonl",
    between(b'{"query": "q", "document": "d", "score": 0}', b'{"query": "q", "document": "d", "score": 1.0}'),
)
_file(
    "scores-beyond.jsonl",
    between(b'{"query": "q", "document": "d", "score": 1.01}', b'{"query": "q", "document": "d", "score": -1}'),
)
_file(
    "scores-of-other-types.jsonl",
    between(b'{"query": "q", "document": "d", "score": "0.5"}', b'{"query": "q", "document": "d", "score": true}'),
)
_file(
    "negatives.jsonl",
    b'{"query": "q", "document": "d", "negatives": ["a", "b"]}\n'
    b'{"query": "q", "document": "d", "negative": null, "negatives": []}',
)
_file(
    "negatives-of-other-types.jsonl",
    between(
        b'{"query": "q", "document": "d", "negatives": ["a", 7]}',
        b'{"query": "q", "document": "d", "negative": {"a": 1}}',
    ),
)
_file("blank-negative.jsonl", between(b'{"query": "q", "document": "d", "negative": ""}'))
_file(
    "too-many-negatives.jsonl", between(b'{"query": "q", "document": "d", "negatives": [' + b'"n", ' * 100 + b'"n"]}')
)
_file("slice-of-another-type.jsonl", between(b'{"query": "q", "document": "d", "slice": 7}'))
_file(
    "corpus.jsonl",
    b'{"text": "t"}\n{"document": "d", "title": "left alone"}\n{"title": "no text"}\n{"text": ""}',
    "corpus/corpus.jsonl",
)

# --- gzip ------------------------------------------------------------------------------------------------


def _cut_gzip() -> bytes:
    packer = zlib.compressobj(wbits=31)
    return packer.compress(between()) + packer.flush(zlib.Z_SYNC_FLUSH) + packer.compress(ONE)


def _repacked(change: Callable[[bytearray], None]) -> bytes:
    body = bytearray(gzip.compress(between(), mtime=0))
    change(body)
    return bytes(body)


def _flip(place: int) -> Callable[[bytearray], None]:
    def change(body: bytearray) -> None:
        body[place] ^= 0xFF

    return change


def _dense_megabyte() -> bytes:
    """A megabyte of rows that gzip makes some thirty times smaller: what a log full of repetitions is like."""
    numbers = random.Random(0)
    rows = (b'{"query": "%032x", "document": "%s"}\n' % (numbers.getrandbits(128), b"d" * 500) for _ in range(1900))
    return b"".join(rows).ljust(MIB)[:MIB]


_file("plain.jsonl.gz", lambda: gzip.compress(between()))
_file("two-members.jsonl.gz", lambda: gzip.compress(ONE + b"\n") + gzip.compress(TWO + b"\n"))
_file("zeros-after.jsonl.gz", lambda: gzip.compress(between()) + b"\0" * 512)
_file("bytes-after.jsonl.gz", lambda: gzip.compress(between()[:-1]) + b"bytes")
_file("cut-off.jsonl.gz", _cut_gzip)
_file("cut-off-header.jsonl.gz", lambda: gzip.compress(between())[:6])
_file("wrong-checksum.jsonl.gz", lambda: _repacked(_flip(-8)))
_file("wrong-length.jsonl.gz", lambda: _repacked(_flip(-1)))
_file("flipped-bits.jsonl.gz", lambda: _repacked(_flip(40)))
_file("not-gzip.jsonl.gz", between())
_file("empty.jsonl.gz", b"")
_file("nothing-inside.jsonl.gz", lambda: gzip.compress(b""))
_file("packed-twice.jsonl.gz", lambda: gzip.compress(gzip.compress(between())))
_file("bomb.jsonl.gz", lambda: gzip.compress(b"\0" * (256 * MIB), 9))
_file("bomb-of-members.jsonl.gz", lambda: gzip.compress(b" " * MIB, 9) * 4096)
_file("bomb-within-the-ratio.jsonl.gz", lambda: gzip.compress(_dense_megabyte(), 9) * 1025)
_file("bomb-of-lines.jsonl.gz", lambda: gzip.compress(b"\n" * (15 * MIB), 9))
_file("many-empty-members.jsonl.gz", lambda: gzip.compress(b"", 9) * 200_000)

# --- CSV -------------------------------------------------------------------------------------------------

_file("plain.csv", csv_between())
_file("plain.csv.gz", lambda: gzip.compress(csv_between()))
_file("bom.csv", b"\xef\xbb\xbf" + csv_between())
_file("crlf.csv", csv_between(end=b"\r\n"))
_file("cr-only.csv", csv_between(end=b"\r"))
_file("blank-lines.csv", csv_between(b"", b"   "))
_file("header-only.csv", CSV_HEADER + b"\n")
_file("no-header.csv", CSV_ONE + b"\n" + CSV_TWO + b"\n")
_file("semicolons.csv", csv_between().replace(b",", b";"))
_file("column-twice.csv", csv_between(header=b"query,query"))
_file("capital-header.csv", csv_between(header=b" Query ,DOCUMENT"))
_file("na-and-007.csv", csv_between(b"NA,007", b"null,1e5", b"None,TRUE"))
_file("quoted.csv", csv_between(b'"a, ""b""","first line\nsecond line"'))
_file("formula.csv", csv_between(b'"=HYPERLINK(""http://x"")",@SUM(1)'))
_file("unclosed-quote.csv", csv_between(b'q,"never closed'))
_file("unclosed-quotes.csv", csv_between(b'q,"never closed', b'"neither,d', CSV_ONE))
_file("unclosed-quote-in-the-header.csv", csv_between(header=b'query,"document'))
_file("text-after-a-quote.csv", csv_between(b'"q"uote,d'))
_file("quote-inside.csv", csv_between(b'5" disk,d'))
_file("fewer-cells.csv", csv_between(b"q"))
_file("more-cells.csv", csv_between(b"q,d,e"))
_file("blank-cells.csv", csv_between(b",d", b"q,"))
_file("invalid-utf-8.csv", csv_between(b"q\xff,d"))
_file("latin-1.csv", csv_between("Größe,d".encode("latin-1")))
_file("utf-16.csv", lambda: csv_between().decode().encode("utf-16"))
_file("nul-byte.csv", csv_between(b"q\0,d"))
_file("line-too-long.csv", lambda: csv_between(b"q," + b"a" * MIB))
_file("long-cell.csv", lambda: csv_between(b"q," + b"a" * 900_000))
_file("scores.csv", b"query,document,score\nq,d,0.5\nq,d, 1 \nq,d,\nq,d,.5e0\n")
_file(
    "scores-that-are-none.csv",
    b"query,document,score\nq,d,nan\nq,d,inf\nq,d,1_0\nq,d,0x1\nq,d,NA\nq,d,2\nq,d,\xd9\xa1\n",
)
_file("optional-cells.csv", b"query,document,negative,slice\nq,d,n,s\nq,d,,\n")
_file("quotes-that-cost.csv", lambda: CSV_HEADER + b"\n" + b'x",",\n' * 100_000)
_file("one-endless-quote.csv", lambda: CSV_HEADER + b'\nq,"' + b"a\n" * 900_000)

# --- Parquet ---------------------------------------------------------------------------------------------

TEXTS = {"query": ["a", "b", "c"], "document": ["x", "y", "z"]}


def _damaged_group() -> bytes:
    """Two row groups of two rows; one byte of the first one's data is wrong, and its checksum tells."""
    table = pa.table({"query": ["unique-a", "b", "c", "d"], "document": ["w", "x", "y", "z"]})
    options = {"write_page_checksum": True, "write_statistics": False, "compression": "none", "use_dictionary": False}
    body = parquet(table, row_group_size=2, **options)
    return body.replace(b"unique-a", b"unique-!", 1)


def _not_utf8() -> bytes:
    query = pa.array([b"a", b"\xff\xfe", b"c"]).cast(pa.string(), safe=False)
    return parquet({"query": pa.Array.from_buffers(pa.string(), 3, query.buffers()), "document": ["x", "y", "z"]})


def _shared_beginnings() -> bytes:
    """Texts of a megabyte that differ in their last characters: written as the length shared, and the rest."""
    texts = ["d" * (MIB - 100) + str(number) for number in range(200)]
    encoding = {"query": "PLAIN", "document": "DELTA_BYTE_ARRAY"}
    table = {"query": [str(n) for n in range(200)], "document": texts}
    return parquet(table, use_dictionary=False, column_encoding=encoding, write_statistics=False)


def _one_row_of(negatives: int) -> pa.Table:
    lists = pa.ListArray.from_arrays(pa.array([0, negatives], pa.int32()), repeated("n" * 50, negatives))
    return pa.table({"query": ["q"], "document": ["d"], "negatives": lists})


def _one_huge_text() -> pa.Table:
    """A text that packs about a hundred times: under the cap on the ratio, in one page of 200 MiB."""
    document = (b"%0512x" % random.Random(0).getrandbits(2048) + b"d" * (32 << 10)) * 6200
    noise = [random.Random(1).randbytes(2 << 20).hex()]
    return pa.table({"query": noise, "document": [document.decode()]})


_file("plain.parquet", lambda: parquet(TEXTS))
_file("PLAIN.PARQUET", lambda: parquet(TEXTS))
_file("dictionary.parquet", lambda: parquet({"query": repeated("q", 3), "document": ["x", "y", "z"]}))
_file("large-strings.parquet", lambda: parquet({k: pa.array(v, pa.large_string()) for k, v in TEXTS.items()}))
_file("negatives.parquet", lambda: parquet({**TEXTS, "negatives": [["n", "m"], [], None]}))
_file("null-columns.parquet", lambda: parquet({**TEXTS, "negative": pa.nulls(3), "score": pa.nulls(3)}))
_file("null-cells.parquet", lambda: parquet({"query": ["a", None, "c"], "document": ["x", "y", "z"]}))
_file("blank-cells.parquet", lambda: parquet({"query": ["a", " ", "c"], "document": ["x", "y", ""]}))
_file("not-utf-8.parquet", _not_utf8)
_file("numbers.parquet", lambda: parquet({"query": [1, 2, 3], "document": ["x", "y", "z"]}))
_file("bytes.parquet", lambda: parquet({"query": [b"a", b"b"], "document": ["x", "y"]}))
_file("lists.parquet", lambda: parquet({"query": [["a"], ["b"]], "document": ["x", "y"]}))
_file("objects.parquet", lambda: parquet({"query": [{"text": "a"}], "document": ["x"]}))
_file("text-scores.parquet", lambda: parquet({**TEXTS, "score": ["0.1", "0.2", "0.3"]}))
_file("scores-beyond.parquet", lambda: parquet({**TEXTS, "score": [0.5, float("nan"), 1.5]}))
_file("missing-column.parquet", lambda: parquet({"query": ["a"]}))
_file("no-rows.parquet", lambda: parquet({"query": pa.array([], pa.string()), "document": pa.array([], pa.string())}))
_file("cut-off.parquet", lambda: parquet(TEXTS)[:-20])
_file("not-parquet.parquet", between())
_file("only-magic.parquet", b"PAR1\0\0\0\0PAR1")
_file("footer-that-lies.parquet", lambda: parquet(TEXTS)[:-8] + b"\xff\xff\xff\x7fPAR1")
_file("damaged-row-group.parquet", _damaged_group)
_file(
    "row-too-long.parquet",
    lambda: parquet({"query": ["a", "b"], "document": ["x", "".join(map(chr, range(32, 55_000))) * 8]}),
)
_file(
    "too-many-negatives.parquet",
    lambda: parquet({"query": ["a", "b"], "document": ["x", "y"], "negatives": [["n"], ["n"] * 101]}),
)
_file(
    "too-many-rows.parquet", lambda: parquet({"query": repeated("q", 1_000_001), "document": repeated("d", 1_000_001)})
)
_file(
    "bomb-of-one-text.parquet",
    lambda: parquet({"query": repeated("q", 50_000), "document": repeated("d" * MIB, 50_000)}),
)
_file(
    "bomb-of-zeros.parquet",
    lambda: parquet({"query": ["q"], "document": ["0" * (64 * MIB)]}, compression="zstd", use_dictionary=False),
)
_file("bomb-of-shared-beginnings.parquet", _shared_beginnings)
_file("bomb-of-one-page.parquet", lambda: parquet(_one_huge_text(), compression="zstd", use_dictionary=False))
_file("bomb-of-negatives.parquet", lambda: parquet(_one_row_of(20_000_000)))

# --- the name --------------------------------------------------------------------------------------------

_file("notes.txt", b"not data")
_file("table.xlsx", b"PK\x03\x04")
_file("no-ending", between())
_file("_SUCCESS", b"")
_file("part.json", between())
_file("part.jsonl.zst", between())
_file("PART.JSONL", between())
_file(".jsonl", between())
_file("dots", between(), "pairs/../../etc/passwd.jsonl")
_file("two slashes", between(), "pairs//absolute.jsonl")
_file("line feed", between(), "pairs/a\nb.jsonl")
_file("NUL", between(), "pairs/a\0b.jsonl")
_file("markup", between(), "pairs/<script>alert(1)</script>.jsonl")
_file("long name", between(), "pairs/" + "n" * 1000 + ".jsonl")
