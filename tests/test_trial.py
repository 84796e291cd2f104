"""`ratchet try`: what is read, how queries are held out, and what is said about few of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from rich.console import Console

from deployments import demo
from deployments.cli import common
from deployments.demo.tour import cut
from deployments.terminal import show
from tasks import dataset, trial
from tasks.config import Checks, Gate, Limits, Training
from tasks.encoding import ModelEncoder, Role
from tasks.parsing import KINDS
from tasks.scoring import guards
from tests import tiny_models
from tests.rows import table

_LETTERS = str.maketrans("0123456789", "ghijklmnop")


def _pairs(count: int) -> list[dict[str, str]]:
    """Queries that share few words, so that none nearly repeats another."""
    words = [hashlib.sha256(str(i).encode()).hexdigest()[:12].translate(_LETTERS) for i in range(count)]
    return [
        {"query": f"{words[i]} pump {i}", "document": f"Pump {i}: close the valve, then replace seal {i}."}
        for i in range(count)
    ]


def _write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\n".join(orjson.dumps(row) for row in rows))
    return path


def test_a_folder_is_read_as_a_store_is(tmp_path: Path) -> None:
    """`golden/` and `corpus/` keep their meaning, anything else holds pairs; hidden files are not looked at."""
    _write(tmp_path / "support" / "a.jsonl", _pairs(3))
    _write(tmp_path / "golden" / "g.jsonl", _pairs(1))
    _write(tmp_path / "corpus" / "c.jsonl", [{"text": "a document"}])
    _write(tmp_path / ".cache" / "x.jsonl", _pairs(9))
    (tmp_path / "notes.txt").write_text("no rows")
    labels = trial.read(tmp_path)
    assert Counter(labels.rows["kind"].to_pylist()) == {"pair": 3, "golden": 1, "corpus": 1}
    assert set(KINDS.values()) == {"pair", "golden", "corpus"}
    assert [(row.object, row.line) for row in labels.rejected] == [("pairs/notes.txt", 0)]


def test_side_files_are_left_out_and_a_refused_file_weighs_its_rows(tmp_path: Path) -> None:
    """As in a night: what Spark writes beside its parts is no data, and each file says what was understood of it."""
    _write(tmp_path / "a.jsonl", _pairs(3))
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / "b.csv").write_text("prompt,reply\n" + "a,b\n" * 40)
    labels = trial.read(tmp_path)
    assert [(made.object, made.accepted, made.rejected) for made in labels.understood] == [
        ("pairs/a.jsonl", 3, 0),
        ("pairs/b.csv", 0, 40),
    ]
    assert [row.line for row in labels.rejected] == [0]


def test_rejected_rows_are_named_and_the_others_stay(tmp_path: Path) -> None:
    """The same parser as a night's: object, line and reason."""
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(orjson.dumps(_pairs(1)[0]) + b'\n{"query": ""}\n')
    labels = trial.read(file)
    assert labels.rows.num_rows == 1
    assert [(row.object, row.line) for row in labels.rejected] == [("pairs/pairs.jsonl", 2)]


@pytest.mark.parametrize(
    ("content", "said"), [("", "empty"), ("nonsense", "not JSON"), ('{"text": "a"}', "neither query and document")]
)
def test_a_file_without_pairs_is_an_error_that_says_why(tmp_path: Path, content: str, said: str) -> None:
    """Nothing to compare: the first reason is in the message."""
    file = tmp_path / "pairs.jsonl"
    file.write_text(content)
    with pytest.raises(trial.TrialError, match=said):
        trial.read(file)


def test_every_query_is_tested_once_and_never_trained_on_by_the_model_that_it_tests() -> None:
    """Folds of the key: rewordings stay together, golden queries are trained on by no model."""
    rows = [{**pair} for pair in _pairs(60)]
    rows += [{**pair, "query": pair["query"].upper() + "?!"} for pair in rows[:20]]
    rows += [{"query": "who made pump 3", "document": "Smith made pump 3.", "kind": "golden"}]
    parts = trial._parts(table(rows))
    tested = [query for part in parts for query in part.test.queries]
    assert len(parts) == trial.FOLDS
    assert sorted(tested) == sorted({query["query"] for query in rows[:60]} | {rows[i]["query"] for i in range(60, 81)})
    for part in parts:
        keys = {dataset.query_key(query) for query in part.test.queries}
        assert not keys & {dataset.query_key(query) for query in part.train["query"].to_pylist()}
        assert "who made pump 3" not in part.train["query"].to_pylist()
        assert part.documents == parts[0].documents


def test_many_queries_are_split_as_in_a_night() -> None:
    """From a thousand queries on there is one model, dev and test as usual."""
    (part,) = trial._parts(table([{**pair} for pair in _pairs(1_000)]))
    assert len(part.dev) > 20
    assert 100 < len(part.test) < 200


def test_too_few_queries_are_refused() -> None:
    """Nine queries are an anecdote."""
    with pytest.raises(trial.TrialError, match="9 distinct queries"):
        trial._parts(table([{**pair} for pair in _pairs(9)]))


def test_fifty_pairs_come_to_a_comparison_that_says_how_little_it_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole trial of a tiny model: 50 queries tested, the caution about folds, documents and steps, a kept model."""
    base = tiny_models.save(tmp_path / "base")
    labels = trial.read(_write(tmp_path / "pairs.jsonl", _pairs(50)))
    steps: list[str] = []
    told: list[tuple[str, int, int]] = []
    monkeypatch.setattr(trial, "Pace", lambda what, _: lambda done, total: told.append((what, done, total)))
    training = Training(base_model=str(base), matryoshka_dims=(), max_length=32, precision="fp32")
    found = trial.compare(labels, training, Gate(), Checks(), out=tmp_path / "kept", on_step=steps.append)
    assert (found.folds, found.queries, found.documents, found.steps) == (5, 50, 50, 1)
    assert found.decision.deltas["mrr"].value == pytest.approx(found.tuned["mrr"] - found.base["mrr"], abs=1e-9)
    assert "fewer than 100" in found.guidance
    said = " ".join(found.cautions)
    for part in ("5 folds", "50 documents", "So few steps (1)", "training.epochs=20"):
        assert part in said
    assert (tmp_path / "kept" / "modules.json").exists()
    assert steps[-2] == "fine-tuning on 50 rows, for the model to keep"
    assert steps[-1].startswith("training will take about ")
    assert {("training steps", 1, 1), ("texts encoded", 50, 50)} <= set(told)
    assert "not the scored ones" not in " ".join(found.decision.reasons)


def test_a_comparison_ends_with_the_serving_check_of_a_night(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors other than those that the saved model gives are noticed by the process that loads it afresh."""
    honest = ModelEncoder.encode

    def mirrored(self: ModelEncoder, texts: list[str], role: Role, **options: Any) -> np.ndarray:
        return -honest(self, texts, role, **options)

    monkeypatch.setattr(ModelEncoder, "encode", mirrored)
    labels = trial.read(_write(tmp_path / "pairs.jsonl", _pairs(50)))
    base = tiny_models.save(tmp_path / "base")
    training = Training(base_model=str(base), matryoshka_dims=(), max_length=32, precision="fp32")
    found = trial.compare(labels, training, Gate(), Checks())
    assert "are not the scored ones" in " ".join(found.decision.reasons)


def test_the_model_that_is_kept_is_checked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sixth model, trained on all rows, gives other vectors when it is loaded afresh; the five folds are sound."""
    honest = ModelEncoder.encode

    def mirrored(self: ModelEncoder, texts: list[str], role: Role, **options: Any) -> np.ndarray:
        return honest(self, texts, role, **options) * (-1 if (tmp_path / "kept").exists() else 1)

    monkeypatch.setattr(ModelEncoder, "encode", mirrored)
    labels = trial.read(_write(tmp_path / "pairs.jsonl", _pairs(50)))
    base = tiny_models.save(tmp_path / "base")
    training = Training(base_model=str(base), matryoshka_dims=(), max_length=32, precision="fp32")
    found = trial.compare(labels, training, Gate(), Checks(), out=tmp_path / "kept")
    wrong = [reason for reason in found.decision.reasons if "not the scored ones" in reason]
    assert wrong
    assert all(reason.startswith("the model to keep: ") for reason in wrong)


def test_data_that_would_block_a_night_is_not_compared(tmp_path: Path) -> None:
    """The checks are the night's: a query that is its own document teaches nothing and flatters both models."""
    rows = [{"query": f"pump {i}", "document": f"pump {i}"} for i in range(50)]
    labels = trial.read(_write(tmp_path / "pairs.jsonl", rows))
    with pytest.raises(trial.TrialError, match="Query differs from document"):
        trial.compare(labels, Training(base_model=str(tiny_models.save(tmp_path / "base"))), Gate(), Checks())


def test_a_guard_set_on_which_the_model_falls_holds_a_trial(tmp_path: Path) -> None:
    """The verdict names the set, and the output shows it."""
    words = [hashlib.sha256(str(i).encode()).hexdigest()[:16].translate(_LETTERS) for i in range(40)]
    folder = tmp_path / "general"  # a query is the beginning of its document; letters are tokens that the model knows
    for name, letters in (("corpus", 16), ("queries", 12)):
        texts = [{"_id": str(i), "text": " ".join(word[:letters])} for i, word in enumerate(words)]
        _write(folder / f"{name}.jsonl", texts)
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("".join(f"{i}\t{i}\t1\n" for i in range(40)))
    guarded = guards.read_folder(folder, Limits())
    labels = trial.read(_write(tmp_path / "pairs.jsonl", _pairs(50)))
    base = tiny_models.save(tmp_path / "base")
    training = Training(base_model=str(base), matryoshka_dims=(), max_length=32, precision="fp32", learning_rate=0.1)
    found = trial.compare(labels, training, Gate(), Checks(), guarded=[guarded])
    (result,) = found.guards
    assert (result.name, result.queries) == ("general", 40)
    assert result.before["mrr"] > 0.9
    assert result.verdict == "falls", "a learning rate of 0.1 breaks any model"
    assert any("Guard set 'general' (40 queries) falls" in reason for reason in found.decision.reasons)
    assert found.decision.verdict != "promoted"
    console = Console(record=True, width=200)
    show.to(console, show.trial(found))
    assert "guard set" in console.export_text()


@pytest.mark.slow
def test_real_labels_show_a_gain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """226 pairs of the demonstration among further documents, cut short, on the real model: Recall@10 and MRR rise."""
    data = demo.build()
    (tmp_path / "pairs.jsonl").write_bytes(b"".join(cut(data.pairs, "document")[::6]))
    (tmp_path / "corpus.jsonl").write_bytes(b"".join(cut(data.corpus, "text")[::4]))
    labels = trial.read(tmp_path / "pairs.jsonl", tmp_path / "corpus.jsonl")
    training = Training(epochs=3, batch_size=32, max_length=48, learning_rate=4e-4)
    found = trial.compare(labels, training, Gate(), Checks())
    assert found.queries > 200
    assert found.tuned["recall_at_10"] > found.base["recall_at_10"]
    assert found.decision.deltas["mrr"].low > 0
    show.to(common.console, show.trial(found))
    assert "fine-tuned" in capsys.readouterr().out
