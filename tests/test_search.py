"""`ratchet search`: before and after, side by side, on real servers and with small random models."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import psutil
import pytest
from typer.testing import CliRunner

from deployments.cli import app
from deployments.cli.common import CliError, UsageError, console
from deployments.demo import index as demo_index
from deployments.stack import local
from flows.context import work_folder
from tasks import index
from tasks.encoding import BF16, FP32, CachedEncoder, ModelEncoder, NumericPath, VectorCache, encode, load
from tasks.index import TargetError, open_target
from tasks.index.client import Searcher, query_encoders
from tasks.index.comparison import Comparison, compare
from tasks.records import Moved, Scored, SideScored
from tasks.registry import BASE, promote, publish, pull, read_production
from tasks.runs import SCORED, Run
from tasks.scoring import serving
from tasks.storage import Store
from tests import tiny_models

COUNT = 12
HOSTILE = "\x1b]52;c;cGF3bmVk\x07 [bold]not markup[/] \u202edrow"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base model, and two that give other vectors."""
    return [
        tiny_models.save(tmp_path_factory.mktemp(pooling), pooling=pooling) for pooling in ("mean", "cls", "lasttoken")
    ]


@pytest.fixture(autouse=True)
def _base(models: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What serves before anything is promoted."""
    monkeypatch.setattr("tasks.index.serving.BUNDLED_MODEL", str(models[0]))


@pytest.fixture
def filled(store: Store) -> Store:
    """A store with documents."""
    return _fill(store)


def _fill(store: Store) -> Store:
    """Documents, one of which would act on a terminal."""
    rows = [f'{{"id": "d{i}", "text": "the {"quick " * i}fox number {i}"}}' for i in range(COUNT - 1)]
    rows.append(
        '{"id": "hostile", "text": "' + HOSTILE.encode("unicode_escape").decode().replace("\\x", "\\u00") + '"}'
    )
    store.put("documents/a.jsonl", "\n".join(rows).encode())
    return store


def _promote(store: Store, folder: Path, path: NumericPath = FP32) -> str:
    """As a night does it: the version, how its vectors were computed, and the pointer."""
    version = publish(store, folder, serving.describe(folder))
    side = SideScored(version=None, fingerprint="c", scores={}, by_dimension={})
    scored = Scored(candidate=side, production=side, counts={}, moved=Moved(), serving=[], numeric_path=path.name)
    Run(store, version).once(SCORED, lambda: scored)
    now = read_production(store)
    promote(store, version, now and now.etag, run_id=version, who="night", reason="better", scores={})
    return version


def _compared(store: Store, work: Path, k: int = 5, steps: list[str] | None = None) -> Comparison:
    said = [] if steps is None else steps
    return compare(store, open_target(None, store=store.url, work=work), "the quick fox", k, work, said.append)


def test_the_model_before_is_shown_without_an_index_of_its_own(
    filled: Store, models: list[Path], tmp_path: Path
) -> None:
    """As after the demo: the base model's vectors are computed, or come from the cache of the night."""
    version = _promote(filled, models[1])
    assert demo_index.build(filled, tmp_path) == COUNT
    steps: list[str] = []
    found = _compared(filled, tmp_path, COUNT, steps)
    assert steps == [f"encoding {COUNT} documents by the base model, which has no index here; they are kept"]
    assert _compared(filled, tmp_path, COUNT, steps) == found
    assert len(steps) == 1
    assert found.before is not None
    assert (found.before.model, found.after.model) == ("the base model", f"version {version}")
    assert {hit.text for hit in found.before.hits} == {hit.text for hit in found.after.hits}
    assert [hit.score for hit in found.before.hits] != [hit.score for hit in found.after.hits]
    scores = [hit.score for hit in found.before.hits]
    assert scores == sorted(scores, reverse=True)
    assert found.notes == ()
    assert demo_index.build(filled, tmp_path) == COUNT


def test_what_a_night_has_encoded_is_not_encoded_again(filled: Store, models: list[Path], tmp_path: Path) -> None:
    """Its cached vectors, on the numeric path that it chose, fill the index; another path's do not."""
    version = _promote(filled, models[1], BF16)
    texts = [f"the {'quick ' * i}fox number {i}" for i in range(4)]
    folder = pull(filled, version, tmp_path / "models" / version)
    CachedEncoder(ModelEncoder.open(folder, BF16), VectorCache(tmp_path / "vectors", filled)).encode(texts, "document")
    serves = index.find_serving(filled, tmp_path)
    assert index.embed(filled, serves, tmp_path, workers=0).encoded == COUNT - len(texts)


def test_the_former_index_is_used_while_the_target_has_it(filled: Store, models: list[Path], tmp_path: Path) -> None:
    """After a second promotion both sides are searches of an index."""
    first = _promote(filled, models[1])
    demo_index.build(filled, tmp_path)
    second = _promote(filled, models[2])
    lagging = _compared(filled, tmp_path)
    assert lagging.after.model == f"version {first}"
    assert lagging.notes == (
        f"version {second} is in production, but the index is still that of version {first}: run `ratchet reindex`",
    )
    demo_index.build(filled, tmp_path)
    found = _compared(filled, tmp_path)
    assert found.before is not None
    assert (found.before.model, found.after.model) == (f"version {first}", f"version {second}")
    assert found.before.how == f"{COUNT} documents, its former index"
    assert found.before.hits == lagging.after.hits
    assert found.notes == ()


def test_before_any_promotion_there_is_one_side(filled: Store, tmp_path: Path) -> None:
    """The base model alone."""
    demo_index.build(filled, tmp_path)
    found = _compared(filled, tmp_path)
    assert (found.before, found.after.model) == (None, "the base model")
    assert found.notes == ("nothing served before: after a promotion both models are shown side by side",)
    target = open_target(None, store=filled.url, work=tmp_path)
    live = target.live()
    assert live is not None
    assert live.model == BASE


def _ratchet(*arguments: str) -> str:
    """What the command prints."""
    runner = CliRunner()
    with runner.isolation() as (out, _, _), pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "_file", None)
        app(["search", *arguments], standalone_mode=False)
        return out.getvalue().decode()


def test_the_command_shows_both_sides_and_nothing_that_a_terminal_obeys(
    filled: Store, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts are escaped and cut; a document says where the model before had it."""
    monkeypatch.setenv("RATCHET_WORK", str(tmp_path))
    monkeypatch.setenv("RATCHET_STORE", filled.url)
    monkeypatch.setenv("COLUMNS", "160")
    with pytest.raises(CliError, match=f"has no index yet: run `ratchet reindex --store {filled.url}`"):
        _ratchet("--store", filled.url, "the quick fox")
    version = _promote(filled, models[1])
    demo_index.build(filled, tmp_path)
    said = _ratchet("--store", filled.url, "the quick fox", "-k", str(COUNT))
    assert "before: the base model" in said
    assert f"after: version {version}" in said
    assert "\x1b]52" not in said
    assert "\u202e" not in said
    assert "[bold]not markup[/]" in said
    assert "was " in said
    few = _ratchet("--store", filled.url, "the quick fox", "-k", "1")
    assert few.count("fox number") <= 2


@pytest.mark.parametrize("question", ["", " \n", "\udcff not UTF-8"])
def test_what_is_no_question_is_refused(question: str, store: Store) -> None:
    """As the shell hands on bytes that are not UTF-8."""
    with pytest.raises(UsageError, match="ask a question"):
        _ratchet("--store", store.url, question)


def test_a_question_is_asked_of_the_model_that_made_the_index(
    filled: Store, models: list[Path], tmp_path: Path
) -> None:
    """Before a promotion the base model that the reindex was given; another one of the same dimension is refused."""
    target = open_target(None, store=filled.url, work=tmp_path)
    serving = index.find_serving(filled, tmp_path, str(models[1]))
    done = index.embed(filled, serving, tmp_path, workers=0)
    index.load(filled, target, done.index)
    index.switch(filled, target, done.index, serving, index.Rule(), tmp_path)
    [hit] = _compared(filled, tmp_path, 1).after.hits
    asked, document = (
        encode(load(models[1]), ["the quick fox"], "query"),
        encode(load(models[1]), [hit.text], "document"),
    )
    assert hit.score == pytest.approx(float((asked @ document.T)[0, 0]), abs=1e-5)
    with pytest.raises(TargetError, match=f"was made with another model than the one found for base: .*{models[1]}"):
        Searcher(target, query_encoders(filled, tmp_path, str(models[0]))).search(["the quick fox"])


def test_only_one_result_is_asked_for_with_a_number_that_makes_sense(store: Store) -> None:
    """Typer refuses what is out of bounds."""
    done = CliRunner().invoke(app, ["search", "x", "-k", "0", "--store", store.url])
    assert done.exit_code == 2


def test_after_the_demo_it_needs_no_store_and_no_stack_that_runs(tmp_path: Path, models: list[Path]) -> None:
    """The S3 server runs for the question, and the demo's store is asked, since nothing serves in the main one."""
    state = tmp_path / "state"
    (state / "seaweedfs").mkdir(parents=True)
    with mock.patch.dict(os.environ):
        os.environ.pop("RATCHET_STORE", None)
        os.environ["COLUMNS"] = "160"
        with local.store_alone(state):
            demo = Store.open(local.store_url("demo"))
            demo.create_bucket()
            version = _promote(_fill(demo), models[1])
            demo_index.build(demo, work_folder())
        assert _running(state) == []
        said = _ratchet("the quick fox", "--state", str(state))
        assert _running(state) == []
    assert "s3://ratchet/demo" in said
    assert f"after: version {version}" in said


def _running(state: Path) -> list[int]:
    """Processes that work in a folder."""
    return [one.pid for one in psutil.process_iter(["cmdline"]) if str(state) in " ".join(one.info["cmdline"] or ())]
