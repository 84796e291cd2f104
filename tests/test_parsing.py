"""Parsing: every hostile file is decided as documented, in bounded memory, and no bad row costs its neighbours."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.config import Limits
from tasks.parsing import PARSED, Rejected, kind_of, parse
from tasks.parsing.parquet_pages import Page, pages
from tasks.parsing.rows import SHOWN_CHARS
from tests.hostile_files import CSV_HEADER, FILES, ONE, TWO, between, parquet

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "docs" / "hostile-input.md"
MOST_MIB = 600


def taken(key: str, body: bytes, limits: Limits | None = None) -> tuple[list[dict[str, Any]], list[Rejected]]:
    """All accepted rows and all rejected ones."""
    chunks = list(parse(key, body, limits))
    assert all(chunk.rows.schema == PARSED for chunk in chunks)
    return [row for chunk in chunks for row in chunk.rows.to_pylist()], [r for chunk in chunks for r in chunk.rejected]


def documented() -> Iterator[tuple[str, int, int]]:
    """Name, accepted and rejected of every row of the tables."""
    for line in TABLE.read_text().splitlines():
        if found := re.fullmatch(r"\| `([^`]+)` \| .* \| (\d+) \| (\d+) \| .* \|", line):
            yield found[1], int(found[2]), int(found[3])


# --- the documented decisions ----------------------------------------------------------------------------


def test_every_hostile_file_is_documented_once() -> None:
    """The tables and the files are the same set, and a large one."""
    names = [name for name, _, _ in documented()]
    assert sorted(names) == sorted(FILES)
    assert len(names) >= 60


@pytest.mark.parametrize(("name", "accepted", "rejected"), list(documented()))
def test_a_hostile_file_is_decided_as_documented(name: str, accepted: int, rejected: int) -> None:
    """Accepted and rejected counts are those of the table; each record can be stored, and says where and why."""
    file = FILES[name]
    rows = records = 0
    lines: set[int] = set()
    for chunk in parse(file.key, file.make()):
        rows += chunk.rows.num_rows
        records += len(chunk.rejected)
        chunk.rows.validate(full=True)
        here = [*chunk.rows["line"].to_pylist(), *(record.line for record in chunk.rejected)]
        assert lines.isdisjoint(here)
        assert len(set(here)) == len(here)
        lines.update(here)
        for record in chunk.rejected:
            assert record.object == file.key
            assert record.reason
            assert len(record.text) <= SHOWN_CHARS
            record.text.encode()  # no lone surrogate: it can be written and shown
    assert (rows, records) == (accepted, rejected)


def test_no_hostile_file_takes_much_memory(tmp_path: Path) -> None:
    """In a process of its own, parsing all of them one after the other stays under 600 MB."""
    write = "import sys; from pathlib import Path; from tests.hostile_files import FILES\n"
    write += "for n, f in enumerate(FILES.values()): Path(sys.argv[1], str(n)).write_bytes(f.make())"
    subprocess.run([sys.executable, "-c", write, str(tmp_path)], cwd=ROOT, check=True)
    keys = [file.key for file in FILES.values()]
    peaks = _peaks(tmp_path, keys)
    worst = max(peaks, key=lambda key: peaks[key])
    assert peaks[worst] < MOST_MIB, f"{worst}: {peaks[worst]} MiB"


def _peaks(folder: Path, keys: list[str]) -> dict[str, int]:
    """Peak memory in MiB of a process after it has parsed each object; object n is the file n in the folder."""
    program = """
import json, re, sys
from pathlib import Path
from tasks.parsing import parse
for number, key in enumerate(json.loads(sys.stdin.read())):
    body = Path(sys.argv[1], str(number)).read_bytes()
    for chunk in parse(key, body):
        pass
    # not ru_maxrss: that starts at the size of the process which started this one
    peak = int(re.search("VmHWM:[^0-9]*([0-9]+) kB", Path("/proc/self/status").read_text())[1])
    print(json.dumps([key, peak // 1024]))
"""
    run = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        input=json.dumps(keys), capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    return dict(json.loads(line) for line in run.stdout.splitlines())


@pytest.mark.slow
def test_objects_just_within_the_caps_take_little_memory(tmp_path: Path) -> None:
    """What is as large as it may be, and taken, or rejected line by line, stays under 600 MB too."""
    row = b'{"query": "%08d", "document": "%s"}\n'
    text = "%x" % (3**4000)
    documents = [text[i % 1000 : i % 1000 + 250] for i in range(1_000_000)]
    long = [random.Random(number).randbytes(500_000).hex() for number in range(350)]
    noise = {"query": ["q"], "document": ["d" * (39 << 20)], "noise": [random.Random(0).randbytes(196 << 20)]}
    rows = {"query": documents[:350], "document": long}
    bodies = {
        "pairs/as-stored.jsonl": b"".join(row % (i, documents[i].encode()) for i in range(750_000))[: 200 << 20],
        "pairs/as-unpacked.jsonl.gz": gzip.compress(b"".join(row % (i, b"%1020d" % i) for i in range(999_000)), 1),
        "pairs/all-rejected.jsonl": b'{"query": "a question without an answer, and long enough to be cut"}\n' * 999_999,
        "pairs/all-rejected.csv": CSV_HEADER + b"\n" + b"one cell, and another, and a third\n" * 999_998,
        "pairs/long-rows.parquet": parquet(rows, use_dictionary=False, compression="zstd"),
        "pairs/one-page.parquet": parquet({"query": ["q"], "document": ["d" * (88 << 20)]}, use_dictionary=False),
        "pairs/beside-noise.parquet": parquet(noise, use_dictionary=False, write_statistics=False),
        "pairs/whole.parquet": parquet({"query": documents, "document": documents}),
    }
    for number, body in enumerate(bodies.values()):
        assert len(body) <= Limits().max_object_bytes
        (tmp_path / str(number)).write_bytes(body)
    peaks = _peaks(tmp_path, list(bodies))
    assert max(peaks.values()) < MOST_MIB, peaks


# --- what an accepted row is -----------------------------------------------------------------------------


def test_rows_keep_their_line_and_their_text() -> None:
    """Line numbers count every line; texts are neither stripped nor folded."""
    rows, rejected = taken("pairs/a.jsonl", b'\n{"query": " Q  ", "document": "d\\n"}\nbad\n' + ONE)
    assert [(row["line"], row["query"], row["document"]) for row in rows[:1]] == [(2, " Q  ", "d\n")]
    assert rows[1]["line"] == 4
    assert rejected == [Rejected("pairs/a.jsonl", 3, "not JSON: unexpected character, expected a JSON value", "bad")]


def test_csv_cells_stay_texts() -> None:
    """What pandas would turn into NaN, 7 and a number is a text; a blank score is none."""
    rows, _ = taken("pairs/a.csv", b'query,document,score\nNA,007,0.25\n"a ""b""","c\r\nd",\n')
    assert [(row["query"], row["document"], row["score"], row["line"]) for row in rows] == [
        ("NA", "007", 0.25, 2),
        ('a "b"', "c\r\nd", None, 3),
    ]


def test_after_an_unclosed_quote_reading_goes_on_at_a_sure_beginning() -> None:
    """Lines that may belong to the broken record are named; a line that cannot be inside of quotes begins another."""
    rows, rejected = taken("pairs/a.csv", b'query,document\na,b\nc,"d\nsecond, line\n"e","f, g"\nh,i\n')
    found = [(row["line"], row["query"], row["document"]) for row in rows]
    assert found == [(2, "a", "b"), (5, "e", "f, g"), (6, "h", "i")]
    assert [record.line for record in rejected] == [3, 4]
    assert rejected[1].reason == "may belong to the broken record of line 3"


def test_every_part_of_a_row_arrives() -> None:
    """Query, document, negatives under both names, score, and names; the same from JSON lines and Parquet."""
    parts = {
        "query": "q",
        "document": "d",
        "score": 0.75,
        "slice": "en",
        "source": "clicks",
        "labeller": "ann",
        "train_only": True,
    }
    row = {**parts, "negative": "n", "negatives": ["m", "o"]}
    wanted = {**parts, "negatives": ["n", "m", "o"], "line": 1}
    assert taken("pairs/a.jsonl", orjson.dumps(row)) == ([wanted], [])
    assert taken("pairs/a.parquet", parquet(pa.Table.from_pylist([row]))) == ([wanted], [])


@pytest.mark.parametrize(
    ("key", "kind"), [("pairs/a.jsonl", "pair"), ("golden/b/a.csv", "golden"), ("corpus/dt=2026-01-01/a.csv", "corpus")]
)
def test_the_first_folder_says_what_rows_are(key: str, kind: str) -> None:
    """Whatever the rest of the key is."""
    assert kind_of(key) == kind


def test_corpus_rows_have_no_query() -> None:
    """A further document is only a document, even where the row says more."""
    rows, _ = taken("corpus/a.jsonl", b'{"text": "t", "query": "q", "score": 7}')
    assert [(row["query"], row["document"], row["score"]) for row in rows] == [(None, "t", None)]


# --- caps ------------------------------------------------------------------------------------------------


THREE = {"query": ["q", "q", "q"], "document": ["d", "d", "d"]}
PACKED = gzip.compress(ONE * 20)
NEGATIVES = b'{"query": "q", "document": "d", "negatives": ["a", "b"]}'


@pytest.mark.parametrize(
    ("limits", "key", "body", "reason"),
    [
        (Limits(max_line_bytes=64), "pairs/a.jsonl", ONE, "longer than 64 bytes"),
        (Limits(max_object_rows=2), "pairs/a.jsonl", between(ONE), "more than 2 lines"),
        (Limits(max_object_rows=2), "pairs/a.parquet", parquet(THREE), "more than 2 rows"),
        (Limits(max_text_chars=10), "pairs/a.jsonl", ONE, "document longer than 10 characters"),
        (
            Limits(max_decompressed_bytes=1024),
            "pairs/a.csv.gz",
            gzip.compress(ONE * 20),
            "unpacks to more than 1024 bytes",
        ),
        (
            Limits(max_object_bytes=10),
            "pairs/a.csv",
            CSV_HEADER,
            "larger than 10 bytes: write several smaller ones, or raise limits.max_object_bytes",
        ),
        (Limits(max_negatives=1), "pairs/a.jsonl", NEGATIVES, "more than 1 negatives"),
    ],
)
def test_every_cap_can_be_set(limits: Limits, key: str, body: bytes, reason: str) -> None:
    """A lower cap rejects what the default accepts, and the reason says the number."""
    assert reason not in {record.reason for record in taken(key, body)[1]}
    assert reason in {record.reason for record in taken(key, body, limits)[1]}


def test_pages_are_believed_rather_than_the_index() -> None:
    """A page header that says 2 GiB is found whatever the index says; a header that is none is an error."""
    plain = parquet(THREE, compression="none", use_dictionary=False, write_statistics=False)
    column = pq.ParquetFile(io.BytesIO(plain)).metadata.row_group(0).column(0)
    start, end = column.data_page_offset, column.data_page_offset + column.total_compressed_size
    assert list(pages(plain, start, end)) == [Page(3 * (4 + 1) + 6, 3)]  # three texts, and which of them are null
    # type 0, unpacked 2**31 - 1, packed 1, data page of 7 values; zigzag varints, then the page's one byte
    lie = bytes.fromhex("1500 15feffffff0f 1502 2c 150e 00 00 ff")
    assert list(pages(lie, 0, len(lie))) == [Page(2**31 - 1, 7)]
    for broken in (b"\x15", b"\x00" * 9, b"\x15\x00" + b"\x15" + b"\xff" * 11, b"\x1c" * 9, b"\x19" * 9):
        with pytest.raises(ValueError, match=r"page header|ten bytes"):
            list(pages(broken, 0, len(broken)))


# --- properties ------------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30).map(
    lambda text: "x" + text
)
PAIRS = st.lists(st.tuples(TEXTS, TEXTS, st.lists(TEXTS, max_size=3), st.none() | st.floats(0, 1)), max_size=20).map(
    # two scores that differ, as one that is the same in all rows is none
    lambda pairs: [*pairs, ("x", "x", [], 0.25), ("x", "x", [], 0.75)] if pairs else []
)
QUICK = settings(max_examples=60, deadline=None)


@QUICK
@given(PAIRS, st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans())
def test_json_lines_come_back_as_they_were_written(pairs: Any, end: str, bom: bool, packed: bool) -> None:
    """Any texts, end of line, byte order mark or none, packed or not: the same rows in the same order."""
    rows = [{"query": q, "document": d, "negatives": n, "score": s} for q, d, n, s in pairs]
    body = b"".join(orjson.dumps(row) + end.encode() for row in rows)
    body = b"\xef\xbb\xbf" + body if bom else body
    found, rejected = taken("pairs/a.jsonl.gz" if packed else "pairs/a.jsonl", gzip.compress(body) if packed else body)
    wanted = [
        {**row, "slice": None, "source": None, "labeller": None, "train_only": None, "line": line}
        for line, row in enumerate(rows, 1)
    ]
    assert found == wanted
    assert rejected == ([] if rows else [Rejected(rejected[0].object, 0, "empty", "")])


@QUICK
@given(PAIRS, st.sampled_from(["\n", "\r\n"]), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_csv_comes_back_as_it_was_written(pairs: Any, end: str, quoting: Any) -> None:
    """What Python's own writer writes, quotes, commas and line feeds in texts included, is read as it was."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator=end, quoting=quoting)
    writer.writerow(["query", "document"])
    texts = [(q, d) for q, d, _, _ in pairs]
    if quoting == csv.QUOTE_MINIMAL:  # of CR, this writer does not say whether it belongs to the text
        texts = [(q.replace("\r", ""), d.replace("\r", "")) for q, d in texts]
    writer.writerows(texts)
    found, rejected = taken("pairs/a.csv", sink.getvalue().encode())
    assert [(row["query"], row["document"]) for row in found] == texts
    assert len(rejected) == (0 if texts else 1)


PARQUET = st.fixed_dictionaries(
    {
        "row_group_size": st.integers(1, 5),
        "compression": st.sampled_from(["snappy", "zstd", "none"]),
        "data_page_version": st.sampled_from(["1.0", "2.0"]),
    }
)
ENCODINGS = st.sampled_from([True, False, "PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])


@QUICK
@given(PAIRS, PARQUET, ENCODINGS)
def test_parquet_comes_back_as_it_was_written(pairs: Any, options: Any, encoding: bool | str) -> None:
    """Any row group size, compression and encoding: the same rows in the same order."""
    rows = [
        {
            "query": q,
            "document": d,
            "negatives": n,
            "score": s,
            "slice": None,
            "source": None,
            "labeller": None,
            "train_only": None,
        }
        for q, d, n, s in pairs
    ]
    schema = pa.schema([field for field in PARSED if field.name != "line"])
    sink = io.BytesIO()
    texts = dict.fromkeys(["query", "document", "negatives.list.element"], encoding)
    written: Any = {"use_dictionary": encoding} if isinstance(encoding, bool) else {"column_encoding": texts}
    pq.write_table(pa.Table.from_pylist(rows, schema), sink, **{"use_dictionary": False, **options, **written})
    found, _ = taken("pairs/a.parquet", sink.getvalue())
    assert found == [{**row, "line": line} for line, row in enumerate(rows, 1)]


@QUICK
@given(st.lists(st.sampled_from([ONE, TWO]) | st.binary(max_size=40), max_size=12))
def test_no_line_costs_its_neighbours(lines: list[bytes]) -> None:
    """Among any other lines, each sound one is accepted under its own number, and each other one is named or blank."""
    lines = [line.replace(b"\n", b"") for line in lines]
    found, rejected = taken("pairs/a.jsonl", b"\n".join([ONE, *lines]))
    sound = {number for number, line in enumerate(lines, 2) if line in {ONE, TWO}}
    assert {row["line"] for row in found} == sound | {1}
    other = {number for number, line in enumerate(lines, 2) if number not in sound and line.strip()}
    assert {record.line for record in rejected} == other


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from(["plain.jsonl.gz", "negatives.parquet", "quoted.csv", "negatives.jsonl"]))
def test_whatever_the_bytes_are_parsing_ends(data: st.DataObject, name: str) -> None:
    """Any few bytes of a sound file changed, cut or repeated: rows and records, never an exception."""
    body = bytearray(FILES[name].make())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(body) - 1))
        action = data.draw(st.sampled_from(["flip", "cut", "repeat"]))
        if action == "flip":
            body[place] = data.draw(st.integers(0, 255))
        elif action == "cut" and place:
            del body[place:]
        else:
            body[place:place] = body[place // 2 : place]
    rows, rejected = taken(FILES[name].key, bytes(body))
    assert rows or rejected


@pytest.mark.parametrize(
    ("rows", "slices", "sources"),
    [
        ([{"source": "clicks"}, {"source": None}, {}], [None] * 3, ["clicks", None, None]),
        ([{"source": "clicks", "slice": "fr"}, {"source": "experts"}], ["fr", None], ["clicks", "experts"]),
        ([{"source": "clicks"}, {"source": " "}], [None] * 2, ["clicks", None]),
        ([{"source": 5}, {"source": "clicks"}], [None] * 2, [None] * 2),
        ([{"source": ["a"]}, {"source": "clicks"}], [None] * 2, [None] * 2),
        ([{"source": f"https://example.org/{i}"} for i in range(300)], [None] * 300, [None] * 300),
    ],
    ids=["words", "beside slices", "blank", "numbers", "lists", "addresses"],
)
def test_where_labels_come_from_is_kept(
    rows: list[dict[str, object]], slices: list[str | None], sources: list[str | None]
) -> None:
    """A column `source` of a few words, beside a column `slice` as well; any other is ignored, and no row refused."""
    body = b"\n".join(json.dumps({"query": f"q {i}", "document": "d", **row}).encode() for i, row in enumerate(rows))
    chunks = list(parse("pairs/a.jsonl", body))
    for name, wanted in (("slice", slices), ("source", sources)):
        assert [one for chunk in chunks for one in chunk.rows[name].to_pylist()] == wanted
    assert not any(chunk.rejected for chunk in chunks)
