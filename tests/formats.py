"""A small sample of each format that docs/formats.md lists, as its tool or its documentation writes it."""

from __future__ import annotations

import gzip
import io
import json
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq


class Sample(NamedTuple):
    """A file, and what is read of it: query, document and negatives of each row, or what its refusal says."""

    key: str
    body: bytes
    pairs: list[tuple[str | None, str, list[str]]]
    said: str = ""


def _lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _zstd(body: bytes) -> bytes:
    return pa.Codec("zstd").compress(body, asbytes=True)


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


_ONE: Final[list[tuple[str | None, str, list[str]]]] = [("q", "d", [])]
_PASSAGE: Final = {"docid": "7", "title": "T", "text": "d"}

SAMPLES: Final[dict[str, Sample]] = {
    "pairs": Sample("a.jsonl", _lines({"query": "q", "document": "d"}), _ONE),
    "query, answer": Sample("a.jsonl", _lines({"query": "q", "answer": "d"}), _ONE),
    "n-tuple": Sample("a.csv", b"anchor,positive,negative_1,negative_2\nq,d,n,m\n", [("q", "d", ["n", "m"])]),
    "scored": Sample("a.tsv", b"sentence1\tsentence2\tscore\nq\td\t0.8\nr\te\t0.1\n", [("q", "d", []), ("r", "e", [])]),
    "labelled": Sample("a.csv", b"question1,question2,is_duplicate\nq,d,1\nq,e,0\n", [("q", "d", ["e"])]),
    "JSON array": Sample("a.json", json.dumps([{"query": "q", "document": "d"}], indent=2).encode(), _ONE),
    "gzip": Sample("a.jsonl.gz", gzip.compress(_lines({"query": "q", "document": "d"})), _ONE),
    "Zstandard": Sample("a.jsonl.zst", _zstd(_lines({"query": "q", "document": "d"})), _ONE),
    "Excel CSV": Sample("a.csv", b"\xef\xbb\xbfsep=;\r\nquery;document\r\nq;d\r\n", _ONE),
    "Excel Unicode text": Sample("a.tsv", "query\tdocument\r\nq\td\r\n".encode("utf-16"), _ONE),
    "Spark CSV": Sample("a.csv", b'query,document\n"q \\"x\\", y","d\nd"\n', [('q "x", y', "d\nd", [])]),
    "pandas lists": Sample("a.csv", b"query,pos,neg\nq,\"['d', 'e']\",[]\n", [("q", "d", []), ("q", "e", [])]),
    "FlagEmbedding": Sample(
        "a.jsonl",
        _lines({"query": "q", "pos": ["d", "e"], "neg": ["n"], "pos_scores": [0.9, 0.8], "neg_scores": [0.1]}),
        [("q", "d", ["n"]), ("q", "e", ["n"])],
    ),
    "Tevatron": Sample(
        "a.jsonl",
        _lines(
            {
                "query_id": "1",
                "query": "q",
                "positive_passages": [_PASSAGE],
                "negative_passages": [_PASSAGE | {"text": "n"}],
            }
        ),
        [("q", "T d", ["T n"])],
    ),
    "DPR": Sample(
        "a.json",
        json.dumps(
            [
                {
                    "dataset": "nq",
                    "question": "q",
                    "answers": ["a"],
                    "positive_ctxs": [{"title": "T", "text": "d", "score": 9}],
                    "negative_ctxs": [],
                    "hard_negative_ctxs": [{"title": "U", "text": "n", "passage_id": "3"}],
                }
            ]
        ).encode(),
        [("q", "T d", ["U n"])],
    ),
    "NeMo": Sample(
        "a.jsonl", _lines({"question": "q", "pos_doc": ["d"], "neg_doc": ["n", "m"]}), [("q", "d", ["n", "m"])]
    ),
    "Prodigy, accept and reject": Sample(
        "a.jsonl",
        _lines(
            {"query": "q", "document": "d", "answer": "accept", "_input_hash": 1, "_task_hash": 2},
            {"query": "q", "document": "n", "answer": "reject", "_input_hash": 3, "_task_hash": 4},
        ),
        [("q", "d", ["n"])],
    ),
    "BEIR corpus": Sample(
        "corpus/corpus.jsonl", _lines({"_id": "1", "title": "T", "text": "d", "metadata": {}}), [(None, "T d", [])]
    ),
    "Parquet": Sample(
        "a.parquet",
        _parquet(pa.table({"query": ["q"], "document": ["d"], "negatives": pa.array([["n"]], pa.list_(pa.string()))})),
        [("q", "d", ["n"])],
    ),
    "BEIR queries": Sample("corpus/queries.jsonl", _lines({"_id": "1", "text": "q"}), [], "ratchet convert FOLDER"),
    "BEIR qrels": Sample("qrels/train.tsv", b"query-id\tcorpus-id\tscore\n1\t2\t1\n", [], "ratchet convert FOLDER"),
    "context, question, answer": Sample(
        "a.jsonl", _lines({"context": "c", "question": "q", "answer": "a"}), [], "rename the one that is to document"
    ),
    "sentence-transformers texts": Sample(
        "a.jsonl", _lines({"texts": ["q", "d"]}), [], "write them as anchor, positive"
    ),
    "sentence-transformers set": Sample(
        "a.jsonl", _lines({"set": ["a", "b"]}), [], "write pairs with query and document"
    ),
    "arrays on lines": Sample("a.jsonl", _lines(["q", "d"]), [], 'write {"query": ..., "document": ...}'),
    "inference": Sample(
        "a.csv", b"premise,hypothesis,label\np,h,0\n", [], "write query and document where one answers the other"
    ),
    "preferences": Sample(
        "a.jsonl", _lines({"prompt": "q", "chosen": "a", "rejected": "b"}), [], "query, document and negative"
    ),
    "grades": Sample("a.csv", b"query,document,grade\nq,d,2\nq,e,0\n", [], "map it to 1 and 0"),
    "Label Studio CSV": Sample(
        "a.csv",
        b"annotation_id,annotator,document,id,lead_time,query,relevance\n1,1,d,1,2.5,q,Relevant\n",
        [],
        "export it as JSON",
    ),
    "Argilla, flat": Sample(
        "a.csv", b"query,document,relevance.responses\nq,d,relevant\n", [], "dataset.records.to_json(path)"
    ),
    "spreadsheet": Sample("a.xlsx", b"PK\x03\x04", [], "the name must end in .jsonl"),
}
