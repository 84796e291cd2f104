"""`ratchet read`: what files mean as people really make them, through the command; one table of formats in the docs."""

from __future__ import annotations

import csv
import io
import json
import random
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from deployments.cli import app
from tasks.parsing import PARSER_VERSION, is_ignored, parse
from tests import formats

ROOT = Path(__file__).parent.parent
FORMATS = ROOT / "docs" / "formats.md"


class Read(NamedTuple):
    """What the command printed, and how it ended."""

    rows: list[dict[str, Any]]
    said: str
    code: int

    @property
    def pairs(self) -> list[tuple[str, str, list[str]]]:
        """Query, document and negatives of each row."""
        return [(row["query"], row["document"], row["negatives"]) for row in self.rows]


def read(folder: Path, name: str, body: bytes | str, *options: str) -> Read:
    """Write a file, and read it with the command."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body.encode() if isinstance(body, str) else body)
    done = CliRunner().invoke(app, ["read", str(path), *options])
    rows = [] if options else [json.loads(line) for line in done.stdout.splitlines()]
    return Read(rows, " ".join(done.stderr.split()), done.exit_code)


def lines(*rows: dict[str, Any]) -> str:
    """JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def parquet(**columns: Any) -> bytes:
    """A Parquet file."""
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def judged(name: str, *values: Any) -> str:
    """Documents d0, d1, ... of one query, and a judgement of each."""
    return lines(*({"question": "q", "answer": f"d{n}", name: value} for n, value in enumerate(values)))


# --- the command -----------------------------------------------------------------------------------------


def test_the_rows_have_the_documented_shape(tmp_path: Path) -> None:
    """One JSON object per line on stdout; columns, counts and refused rows on stderr."""
    body = lines(
        {"question": "q", "answer": "d", "negative": "n", "score": 0.5, "slice": "en", "id": 7},
        {"question": "", "answer": "d", "score": 1},
    )
    found = read(tmp_path, "a.jsonl", body)
    name = str(tmp_path / "a.jsonl")
    assert found.rows == [
        {"query": "q", "document": "d", "negatives": ["n"], "score": 0.5, "slice": "en", "object": name, "line": 1}
    ]
    assert found.code == 0
    assert f"{name}:2: empty query" in found.said
    assert "JSON lines; columns used: question as query, answer as document" in found.said
    assert "ignored: id" in found.said
    assert "1 row accepted, 1 rejected" in found.said


def test_a_refused_file_ends_in_1_and_the_others_are_read(tmp_path: Path) -> None:
    """In a process of its own; rows go to stdout alone."""
    (tmp_path / "a.jsonl").write_text(lines({"query": "q", "document": "d"}))
    (tmp_path / "b.jsonl").write_text(lines({"prompt": "q"}))
    command = [sys.executable, "-m", "deployments.cli", "read", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert [json.loads(line)["query"] for line in done.stdout.splitlines()] == ["q"]
    assert "refused (JSON lines): neither query and document nor another spelling of them; its columns are prompt" in (
        done.stderr
    )


def test_a_file_that_is_not_there_is_bad_usage(tmp_path: Path) -> None:
    """Exit status 2, as for any bad usage."""
    command = [sys.executable, "-m", "deployments.cli", "read", str(tmp_path / "none.jsonl")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "there is no file or folder" in done.stderr


def test_the_summary_is_a_table(tmp_path: Path) -> None:
    """Counts and format of each file, and no rows."""
    (tmp_path / "a.csv").write_text("query;document;label\nq;d;1\nq;e;0\n")
    (tmp_path / "_SUCCESS").write_text("")
    done = CliRunner().invoke(app, ["read", "--summary", str(tmp_path)], env={"COLUMNS": "300"})
    assert done.exit_code == 0
    assert re.search(r"1 +0 +1 +\S*a\.csv +CSV, separated by semicolons", done.stdout)
    assert re.search(r"_SUCCESS +a side file, ignored", done.stdout)


def test_what_a_file_is_follows_from_its_folder_or_its_name(tmp_path: Path) -> None:
    """Further documents have no query; `--as` says otherwise."""
    text = lines({"_id": "1", "title": "T", "text": "x"})
    for name, options in (("corpus/a.jsonl", ()), ("corpus.jsonl", ()), ("a.jsonl", ("--as", "corpus"))):
        found = read(tmp_path, name, text, *options)
        assert found.code == 0, name
    assert read(tmp_path, "corpus/a.jsonl", text).pairs == [(None, "T x", [])]
    refused = read(tmp_path, "a.jsonl", text)
    assert refused.code == 1
    assert "put a corpus under corpus/" in refused.said


def test_characters_that_a_terminal_obeys_are_escaped_in_json(tmp_path: Path) -> None:
    """The text stays the same for whoever parses it."""
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"query": "a\x9b31m\u202eb", "document": "d"}))
    done = CliRunner().invoke(app, ["read", str(path)])
    assert not {"\x9b", "\u202e"} & set(done.stdout)
    assert json.loads(done.stdout)["query"] == "a\x9b31m\u202eb"


# --- judgements ------------------------------------------------------------------------------------------

NAMES = ["label", "Label", "relevance", "relevant", "is_relevant", "isRelevant", "rating", "grade", "judgement"]
WORDS = [
    (1, 0),
    (1.0, 0.0),
    ("1", "0"),
    (True, False),
    ("true", "false"),
    ("yes", "No"),
    ("Relevant", "not_relevant"),
    ("relevant", "irrelevant"),
    ("RELEVANT", "Not-Relevant"),
    (1, -1),
    ("accept", "reject"),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("folder", ["pairs", "golden"])
def test_what_is_judged_not_relevant_is_a_negative(tmp_path: Path, folder: str, name: str) -> None:
    """It makes no row of its own, and is a negative of each relevant document of its query."""
    found = read(tmp_path, f"{folder}/a.jsonl", judged(name, 1, 0, 1))
    assert found.pairs == [("q", "d0", ["d1"]), ("q", "d2", ["d1"])]
    assert "judged relevant 2, not relevant (negatives) 1" in found.said


@pytest.mark.parametrize(("right", "wrong"), WORDS, ids=str)
def test_a_judgement_may_be_spelt_in_many_ways(tmp_path: Path, right: Any, wrong: Any) -> None:
    """Numbers, booleans and words; the same from CSV and Parquet."""
    wanted = [("q", "d0", ["d1"])]
    assert read(tmp_path, "a.jsonl", judged("label", right, wrong)).pairs == wanted
    assert read(tmp_path, "a.csv", f"query,document,label\nq,d0,{right}\nq,d1,{wrong}\n").pairs == wanted
    table = parquet(query=["q", "q"], document=["d0", "d1"], label=[right, wrong])
    assert read(tmp_path, "a.parquet", table).pairs == wanted


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("label", (0, 1, 2), "label holds 0 to 2"),
        ("rating", (1, 3, 5), "rating holds 1 to 5"),
        ("relevance", (0.2, 0.9), "relevance holds 0.2 to 0.9"),
        ("label", (-1, 0, 1), "label holds -1 to 1"),
        ("relevance", ("highly relevant", "somewhat relevant"), "relevance holds highly relevant, somewhat relevant"),
        ("label", ("billing", "account"), "label holds billing, account"),
        ("label", (0, 0), "no row is judged relevant"),
        ("label", ([1], [0]), "label holds lists"),
        ("is_negative", (True, False), "is_negative may hold judgements"),
        ("irrelevant", (0, 1), "irrelevant may hold judgements"),
        ("user_feedback", ("yes", "no"), "user_feedback may hold judgements"),
        ("decision", ("relevant", "not relevant"), "decision may hold judgements"),
    ],
)
def test_a_column_that_may_change_the_meaning_is_used_or_the_file_refused(
    tmp_path: Path, name: str, values: tuple[Any, ...], said: str
) -> None:
    """Never left alone in silence: the message names the column, what it holds and what to do."""
    for file, body in {
        "a.jsonl": judged(name, *values),
        "golden/a.json": json.dumps([json.loads(line) for line in judged(name, *values).splitlines()]),
    }.items():
        found = read(tmp_path, file, body)
        assert (found.rows, found.code) == ([], 1)
        assert said in found.said
        assert f"about {len(values)} rows not read" in found.said


def test_two_columns_that_could_judge_are_refused(tmp_path: Path) -> None:
    """Which one counts is not said; neither where a score stands beside a judgement."""
    rows = [{"query": "q", "document": f"d{n}", "label": n % 2, "relevance": n % 2, "score": n / 4} for n in range(4)]
    two = [{name: value for name, value in row.items() if name != "score"} for row in rows]
    scored = [{name: value for name, value in row.items() if name != "relevance"} for row in rows]
    assert "label and relevance could each be the judgement" in read(tmp_path, "a.jsonl", lines(*two)).said
    assert "a judgement and score both say how relevant" in read(tmp_path, "a.jsonl", lines(*scored)).said


def test_judgements_are_read_by_query_and_what_contradicts_itself_is_not_taken(tmp_path: Path) -> None:
    """Queries differ by more than case; both judgements of one pair, and negatives without a relevant document, go."""
    rows = [
        ("How?", "right", 1), ("how? ", "wrong", 0), ("other", "alone", 0), ("both", "x", 1), ("both", "x", 0),
        ("unsure", "y", None),
    ]  # fmt: skip
    found = read(tmp_path, "a.jsonl", lines(*({"query": q, "document": d, "label": j} for q, d, j in rows)))
    assert found.pairs == [("How?", "right", ["wrong"])]
    name = tmp_path / "a.jsonl"
    assert f"{name}:3: judged not relevant, and no document of the object is relevant to its query" in found.said
    assert f"{name}:4: judged both relevant and not relevant" in found.said
    assert f"{name}:6: no judgement" in found.said


def test_a_column_of_later_lines_decides_as_well(tmp_path: Path) -> None:
    """The label begins at line 2: line 1 has no judgement, and is not taken for relevant."""
    found = read(
        tmp_path,
        "a.jsonl",
        lines({"query": "q", "document": "a"}, {"query": "q", "document": "b", "label": 0})
        + lines({"query": "q", "document": "c", "label": 1}),
    )
    assert found.pairs == [("q", "c", ["b"])]
    assert ":1: no judgement, though other rows have one" in found.said


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        (
            "label-studio.csv",
            "annotation_id,annotator,document,id,lead_time,query,relevance\n1,1,d,1,2.5,q,Relevant\n",
            "an export of Label Studio",
        ),
        (
            "json-min.json",
            '[{"id": 1, "query": "q", "document": "d", "relevance": "Not relevant", "annotator": 1, "lead_time": 2}]',
            "an export of Label Studio",
        ),
        ("argilla.csv", "query,document,label.responses,label.suggestion\nq,d,\"['relevant']\",\n", "Argilla"),
        ("argilla.jsonl", lines({"query": "q", "document": "d", "xyz.responses": [1]}), "an export of Argilla"),
        ("argilla-1.jsonl", lines({"query": "q", "document": "d", "rel-suggestion": None}), "an export of Argilla"),
        (
            "prodigy.jsonl",
            lines({"query": "q", "document": "d", "accept": ["relevant"], "answer": "accept", "_task_hash": 1}),
            "an export of Prodigy",
        ),
        ("prodigy-2.jsonl", lines({"query": "q", "answer": "accept", "_input_hash": 1}), "an export of Prodigy"),
        ("answers.jsonl", lines({"question": "q", "answer": "reject"}), "answer holds judgements"),
    ],
)
def test_exports_of_labelling_tools_are_recognised(tmp_path: Path, name: str, body: str, said: str) -> None:
    """What it was recognised as, and what to do."""
    found = read(tmp_path, name, body)
    assert (found.rows, found.code) == ([], 1)
    assert said in found.said


def test_prodigys_accept_and_reject_are_judgements(tmp_path: Path) -> None:
    """With query and document; what was ignored is named."""
    rows = [
        {"query": "q", "text": f"d{n}", "answer": answer, "_input_hash": n, "_task_hash": n}
        for n, answer in enumerate(["accept", "reject", "ignore"])
    ]
    found = read(tmp_path, "a.jsonl", lines(*rows))
    assert found.pairs == [("q", "d0", ["d1"])]
    assert ":3: no judgement" in found.said


# --- scores ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", [1.0, 1, 0.9])
def test_a_constant_score_is_no_score(tmp_path: Path, score: float) -> None:
    """The rows are pairs, and the command says so."""
    found = read(tmp_path, "a.jsonl", lines(*({"query": "q", "document": f"d{n}", "score": score} for n in range(3))))
    assert [row["score"] for row in found.rows] == [None] * 3
    assert f"score is {score:g} in every row, which is no score" in found.said
    table = parquet(sentence1=["a", "b"], sentence2=["c", "d"], score=[score, score])
    assert [row["score"] for row in read(tmp_path, "a.parquet", table).rows] == [None, None]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((0, 1, 2), "0 to 2; expected is 0 to 1"),
        ((1, 2, 1), "1 to 2"),
        ((0.5, 4.5), "0.5 to 4.5"),
        ((-0.2, 0.8), "-0.2 to 0.8"),
        ((0, 0), "score is 0 in every row"),
    ],
)
def test_a_score_on_another_scale_is_refused_with_its_range(
    tmp_path: Path, values: tuple[float, ...], said: str
) -> None:
    """Not cell by cell: a grade of 1 among grades up to 2 is not fully relevant."""
    cells = "".join(f"q,d{n},{value}\n" for n, value in enumerate(values))
    for name, body in {
        "a.csv": "query,document,score\n" + cells,
        "a.jsonl": lines(*({"query": "q", "document": f"d{n}", "score": value} for n, value in enumerate(values))),
    }.items():
        found = read(tmp_path, name, body)
        assert (found.rows, found.code) == ([], 1)
        assert said in found.said


# --- negatives, lists and titles -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"anchor": "q", "positive": "d", "negative_1": "a", "negative_2": "b"},
        {"anchor": "q", "positive": "d", "negative1": "a", "negative2": "b"},
        {"query": "q", "document": "d", "neg": ["a", "b"]},
        {"query": "q", "document": "d", "hard_negatives": ["a", "b"]},
        {"query": "q", "document": "d", "Hard Negative": "a", "negatives": ["b"]},
        {"query": "q", "document": "d", "negative_passages": [{"docid": "1", "title": "", "text": "a"}, {"text": "b"}]},
        {"question": "q", "pos_doc": "d", "neg_doc": ["a", "b"]},
        {"query": "q", "document": "d", "negative": "['a', 'b']"},
        {"query": "q", "document": "d", "negative": '["a", "b"]'},
    ],
    ids=lambda row: ", ".join(row),
)
def test_negatives_under_every_name(tmp_path: Path, row: dict[str, Any]) -> None:
    """Used, and never dropped in silence."""
    assert read(tmp_path, "a.jsonl", lines(row)).pairs == [("q", "d", ["a", "b"])]


def test_a_column_that_seems_to_hold_negatives_is_not_ignored(tmp_path: Path) -> None:
    """Scores and ids of negatives are."""
    row = {"query": "q", "document": "d", "negative_examples": ["a"]}
    assert "negative_examples may hold negatives" in read(tmp_path, "a.jsonl", lines(row)).said
    row = {"query": "q", "document": "d", "neg": ["a"], "neg_scores": [0.5], "negative_ids": ["7"]}
    assert "ignored: neg_scores, negative_ids" in read(tmp_path, "a.jsonl", lines(row)).said


def test_lists_that_are_spelt_in_cells_and_cells_that_say_nothing(tmp_path: Path) -> None:
    r"""A list, an empty list, and \N for nothing; lists as NumPy prints them lack their commas."""
    body = "query,document,negative\nq,d,\"['a', 'b']\"\nq,e,[]\nq,f,\\N\n\\N,g,\nq,\\N,\n"
    found = read(tmp_path, "a.csv", body)
    assert found.pairs == [("q", "d", ["a", "b"]), ("q", "e", []), ("q", "f", [])]
    assert ":5: no query" in found.said
    assert ":6: no document" in found.said
    broken = read(tmp_path, "a.csv", "query,document,negative\nq,d,\"['a' 'b']\"\n")
    assert broken.code == 1
    assert "write lists as JSON" in broken.said
    mixed = read(tmp_path, "a.csv", "query,document,negative\nq,d,\"['a']\"\nq,d,b\n")
    assert (mixed.code, mixed.rows) == (1, [])


def test_title_and_text_are_joined_in_the_same_way_everywhere(tmp_path: Path) -> None:
    """The document of a pair is the document of the corpus, so that it is not searched twice."""
    document = "Reset Open Settings."
    parts = {"title": "Reset", "text": "Open Settings."}
    for name, body in {
        "corpus/a.jsonl": lines({"_id": "1", **parts}),
        "corpus/a.csv": "title,text\nReset,Open Settings.\n",
        "a.jsonl": lines({"query": "q", "document": parts["text"], "title": parts["title"]}),
        "b.jsonl": lines({"query": "q", **parts}),
        "c.jsonl": lines({"query": "q", "positive_passages": [{"docid": "1", **parts}], "negative_passages": []}),
        "a.parquet": parquet(query=["q"], document=[parts["text"]], title=[parts["title"]]),
    }.items():
        assert [row["document"] for row in read(tmp_path, name, body).rows] == [document], name
    blank = lines({"query": "q", "document": "d", "title": ""}, {"query": "q", "document": "e", "title": "T"})
    assert [row["document"] for row in read(tmp_path, "a.jsonl", blank).rows] == ["d", "T e"]
    unclear = lines({"question": "q", "answer": "d", "title": "T"})
    assert "could belong to the question or to the answer" in read(tmp_path, "a.jsonl", unclear).said


# --- CSV -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ('query,document\n"say \\"hi\\", please","first\nsecond, line"\nq2,d2\n', 2),
        ('query;document\n"q;1";d\n', 1),
        ("sep=;\nquery;document\nq;d\n", 1),
        ('query\tdocument\nq\t5" disk\nq2\td\n', 2),
        ('query|document\nq|"a\nb"\n', 1),
        ('query,document\nq,"C:\\"\nq2,d\n', 2),
    ],
    ids=["escaped quotes", "semicolons", "sep=", "tabs", "bars", "a backslash at the end"],
)
def test_the_dialect_is_recognised_from_the_whole_file(tmp_path: Path, body: str, wanted: int) -> None:
    """Separator and quotes; nothing is rejected."""
    found = read(tmp_path, "a.csv", body)
    assert (len(found.rows), found.code) == (wanted, 0)
    assert f"{wanted} row{'s' * (wanted > 1)} accepted, 0 rejected" in found.said


def test_texts_of_several_lines_keep_them(tmp_path: Path) -> None:
    """Escaped or doubled quotes inside."""
    found = read(tmp_path, "a.csv", 'query,document\n"say \\"hi\\"","first\nsecond, line"\n')
    assert found.pairs == [('say "hi"', "first\nsecond, line", [])]
    found = read(tmp_path, "a.csv", 'query,document\n"say ""hi""","first\nsecond, line"\n')
    assert found.pairs == [('say "hi"', "first\nsecond, line", [])]


BROKEN = {
    "never closed": '"q1","first line\nsecond, line\nthird, line\n',
    "lone quote inside": '"q1","first "lone quote\nsecond, line\nthird, line"\n',
    "quoted words inside": '"q1","he said "hi", then\nsecond, line\nthird"\n',
    "closed early": '"q1","first" line\nsecond, line\n',
    "lone quote at the beginning": 'q1,"first line\nsecond, line\n',
    "quote before a comma": '"q1","first", and\nsecond, line\n',
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("escaped", [False, True], ids=["doubled", "escaped"])
def test_lines_of_a_broken_record_are_never_pairs(tmp_path: Path, broken: str, escaped: bool) -> None:
    """Nothing of it is taken; sound records before it are, and after it from a sure beginning on."""
    before = '"say ""a""","before, it"\n' if not escaped else '"say \\"a\\"","before, it"\n'
    found = read(tmp_path, "a.csv", f'query,document\n{before}{broken}"next question","next, answer"\nlast,one\n')
    assert [row["document"] for row in found.rows] == ["before, it", "next, answer", "one"]
    rejected = re.findall(r"a\.csv:(\d+):", found.said)
    assert [int(line) for line in rejected] == list(range(3, 3 + broken.count("\n")))


def test_without_a_sure_beginning_nothing_more_is_taken(tmp_path: Path) -> None:
    """Lines without quotes may all be the inside of the text."""
    found = read(tmp_path, "a.csv", 'query,document\nq1,d1\nq2,"first\nsecond, line\nq3,d3\n')
    assert found.pairs == [("q1", "d1", [])]
    assert "1 row accepted, 3 rejected" in found.said


def test_other_encodings(tmp_path: Path) -> None:
    """UTF-16 says what it is; what is not UTF-8 otherwise is refused as a whole, with the rows that it holds."""
    rows = "".join(f"Größe {n};Maß {n}\n" for n in range(500))
    sixteen = read(tmp_path, "a.csv", ("query;document\n" + rows).encode("utf-16"))
    assert sixteen.pairs[0] == ("Größe 0", "Maß 0", [])
    assert len(sixteen.rows) == 500
    western = read(tmp_path, "b.csv", ("query;document\n" + rows).encode("cp1252"))
    assert (western.rows, western.code) == ([], 1)
    assert "iconv -f WINDOWS-1252 -t UTF-8" in western.said
    assert "about 500 rows not read" in western.said
    bare = read(tmp_path, "c.csv", ("query;document\n" + "a;b\n" * 50).encode("utf-16-le"))
    assert bare.code == 1
    assert "UTF-16 text without a byte order mark" in bare.said


# --- formats ---------------------------------------------------------------------------------------------


def _documented() -> dict[str, str]:
    """Name and decision of every row of the table of formats."""
    found = re.findall(r"^\| `([^`]+)` \| .* \| (read|refused) \|.*\|$", FORMATS.read_text(), re.MULTILINE)
    return dict(found)


def test_every_format_is_documented_once() -> None:
    """The table and the samples are the same set."""
    assert sorted(_documented()) == sorted(formats.SAMPLES)
    assert len(formats.SAMPLES) >= 20


@pytest.mark.parametrize("name", formats.SAMPLES)
def test_a_format_is_read_or_refused_as_documented(tmp_path: Path, name: str) -> None:
    """What is read gives the rows of the sample; what is refused says what to do."""
    sample = formats.SAMPLES[name]
    found = read(tmp_path, sample.key, sample.body)
    if _documented()[name] == "read":
        assert found.pairs == sample.pairs
        assert found.code == 0
    else:
        assert (found.rows, found.code) == ([], 1)
        assert sample.said
        assert sample.said in found.said


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.string(), 2), pa.list_view(pa.string()), pa.large_list_view(pa.string()), pa.list_(pa.string()),
        pa.large_list(pa.large_string()), pa.list_(pa.string_view()),
    ],
    ids=str,
)  # fmt: skip
def test_every_kind_of_list_and_decimals_in_parquet(tmp_path: Path, kind: pa.DataType) -> None:
    """Lists of fixed size and list views hold negatives as others do; a decimal is a number."""
    table = parquet(
        query=["q", "r"],
        document=["d", "e"],
        negatives=pa.array([["a", "b"], ["c", "x"]], kind),
        score=pa.array([Decimal("0.25"), Decimal("1.00")], pa.decimal128(5, 2)),
    )
    found = read(tmp_path, "a.parquet", table)
    assert found.pairs == [("q", "d", ["a", "b"]), ("r", "e", ["c", "x"])]
    assert [row["score"] for row in found.rows] == [0.25, 1.0]


# --- what parsing hands on -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "_SUCCESS", "day=1/_SUCCESS", "_committed_123", "_started_1", "_temporary/0/part-0.csv", ".part-0.csv.crc",
        "_delta_log/0.json", ".hidden.jsonl", "a/.ipynb_checkpoints/b.csv", "part-0.parquet.crc", "x_$folder$",
        "__MACOSX/a.csv", "_metadata", "part-0._COPYING_", "Thumbs.db",
    ],
)  # fmt: skip
def test_side_files_hold_no_rows(tmp_path: Path, name: str) -> None:
    """Listed as ignored, neither data nor a refusal."""
    assert is_ignored(f"pairs/{name}")
    found = read(tmp_path, f"pairs/{name}", lines({"query": "q", "document": "d"}))
    assert (found.rows, found.code) == ([], 0)
    assert "ignored: a side file" in found.said


@pytest.mark.parametrize("key", ["pairs/a.csv", "pairs/_day=1/a.csv", "pairs/a_b.csv", "_pairs/a.csv", "pairs/a.b.csv"])
def test_other_keys_are_data(key: str) -> None:
    """A partition may begin with an underscore; the first folder is the store's own."""
    assert not is_ignored(key)


def test_a_refusal_weighs_as_much_as_the_rows_it_holds() -> None:
    """One record, and an estimate of the rows, by lines or by the index of Parquet."""
    many = "prompt,reply\n" + "a,b\n" * 500
    chunks = list(parse("pairs/a.csv", many.encode()))
    understood = chunks[-1].understood
    assert understood is not None
    assert understood.refusal is not None
    assert [len(chunk.rejected) for chunk in chunks] == [1]
    assert (understood.rejected, understood.refusal.rows, understood.refusal.remedy != "") == (500, 500, True)
    table = parquet(prompt=["a"] * 300)
    assert list(parse("pairs/a.parquet", table))[-1].understood.rejected == 300  # type: ignore[union-attr]
    assert PARSER_VERSION >= 2


def test_only_the_last_chunk_says_what_was_understood() -> None:
    """Also where rows are many, and where none can be taken."""
    body = lines(*({"query": f"q{n}", "document": "d" * 500} for n in range(5_000)))
    for key, content in {"pairs/a.jsonl": body, "pairs/b.jsonl": "x", "pairs/c.txt": "x"}.items():
        said = [chunk.understood is not None for chunk in parse(key, content.encode())]
        assert said[-1]
        assert sum(said) == 1


def _damaged_csv(numbers: random.Random) -> str:
    """A sound CSV of texts of several lines, with one quote removed, escaped or added.

    Texts begin with S, their further lines with C.
    """

    def text(name: str) -> str:
        first = f"S{name} a" + numbers.choice(["", " b, c", ' "x"', ' "y, z" w'])
        ends = ["", " b", ", d", ', "q"', " e, f", ',"g"']
        more = [f"C{name}{n}" + numbers.choice(ends) for n in range(numbers.choice([0, 0, 1, 2, 3]))]
        return "\n".join([first, *more])

    sink = io.StringIO()
    quoting: Any = numbers.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    writer = csv.writer(sink, lineterminator="\n", quoting=quoting)
    writer.writerow(["query", "document"])
    writer.writerows([(text(f"q{n}"), text(f"d{n}")) for n in range(numbers.randint(3, 8))])
    body = sink.getvalue()
    start = body.index("\n") + 1
    quotes = [place for place in range(start, len(body)) if body[place] == '"']
    action = numbers.choice(["remove", "escape", "add"])
    if action == "add" or not quotes:
        place = numbers.randrange(start, len(body))
        return body[:place] + '"' + body[place:]
    place = numbers.choice(quotes)
    return body[:place] + ("\\" if action == "escape" else "") + body[place + (action == "remove") :]


def test_one_wrong_quote_never_makes_pairs_of_continuation_lines() -> None:
    """In 300 damaged files.

    Not among them: a quote put at the very beginning of a line can make a whole record of it, which nothing tells.
    """
    taken = 0
    for seed in range(300):
        body = _damaged_csv(random.Random(seed))
        rows = [row for chunk in parse("pairs/a.csv", body.encode()) for row in chunk.rows.to_pylist()]
        taken += len(rows)
        for row in rows:
            assert not row["query"].lstrip('" ').startswith("C"), body
            assert not row["document"].lstrip('" ').startswith("C"), body
    assert taken > 600
