"""What a night can only use after its training is tried before it: nothing is trained, and what serves stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks import intake, night, registry, runs
from tasks.config import Training
from tasks.encoding import ModelError, load, served
from tasks.night.rehearsing import UnreadyError, rehearse
from tasks.records import Plan
from tasks.registry import Description, LedgerError
from tasks.runs import Run
from tasks.splits import SPLIT_KEY
from tasks.storage import Store
from tests import model_folders, model_zoo, tiny_models
from tests.test_query_night import PAIRS, SPLIT

FIRST, SECOND = "20261101T033000Z-00000000", "20261102T033000Z-00000000"
PRODUCTION = "production.json"

Damage = Callable[[Store, str], None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT."""
    return tiny_models.save(tmp_path_factory.mktemp("base"))


def _publish(store: Store, folder: Path) -> str:
    """A version as an older release may have published it: without looking at its vectors."""
    try:
        described = Description(**served(load(folder, "cpu")).described())
    except ModelError:
        described = Description(dimension=32, normalisation="l2", max_length=40)
    return registry.publish(store, folder, described)


def _promote(store: Store, version: str, run_id: str = FIRST) -> None:
    production = registry.read_production(store)
    etag = production.etag if production else None
    registry.promote(store, version, etag, run_id=run_id, who="test", reason="test", scores={"mrr": 0.5})


def _take_in(store: Store, run_id: str, rows: int = 60) -> int:
    if store.find(SPLIT_KEY) is None:
        store.put(SPLIT_KEY, SPLIT)
    store.put("pairs/a.jsonl", b"".join(json.dumps(pair).encode() + b"\n" for pair in PAIRS[:rows]))
    night.begin(store, run_id)
    return night.take_in(store, run_id, 0).commit


def _assert_refused(
    store: Store, base: Path, work: Path, message: str, error: type[Exception] = UnreadyError, **settings: object
) -> None:
    """A night that ends before its first step, with these words; nothing is published, and the same serves."""
    commit = _take_in(store, SECOND)
    pointer = store.find(PRODUCTION)
    published = [entry.key for entry in store.entries("models/")]
    steps: list[int] = []
    training = Training.model_validate({"base_model": str(base), "max_length": 16, "matryoshka_dims": (), **settings})
    production = registry.read_production(store)
    with pytest.raises(error, match=message):
        night.train(
            store,
            SECOND,
            commit,
            training,
            work,
            lambda step, _: steps.append(step),
            production=production.version if production else None,
        )
    assert steps == []
    assert [entry.key for entry in store.entries("models/")] == published
    after = store.find(PRODUCTION)
    assert (after and after.body) == (pointer and pointer.body)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (model_zoo.similar_by("dot", False), "its similarity function is 'dot'"),
        (model_zoo.similar_by("euclidean", False), "its similarity function is 'euclidean'"),
        (model_zoo.similar_by("manhattan", True), "its similarity function is 'manhattan'"),
        (model_folders.tensors(model_folders._poisoned), "word_embeddings.weight holds NaN"),
        (model_folders.changed(model_folders.edited("config.json", model_type="wonder")), "cannot be loaded: .*wonder"),
        (
            model_folders.changed(model_folders.edited("1_Pooling/config.json", embedding_dimension=48)),
            "gives 32 dimensions as query, and says that it has 48",
        ),
    ],
)
def test_production_that_cannot_be_scored_is_found_before_the_training(
    store: Store, base: Path, tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    """Promoted by another release, or loaded by other libraries than now: the words name it and the way out."""
    version = _publish(store, make(tmp_path / "old"))
    _promote(store, version)
    remedy = r"`ratchet rollback --to VERSION`\), or the base model \(`--to base`"
    _assert_refused(store, base, tmp_path, f"compared with version {version}, which serves: .*{message}.*{remedy}")


def _delete(store: Store, version: str) -> None:
    store.delete([f"models/{version}/model.safetensors"])


def _overwrite(store: Store, version: str) -> None:
    key = f"models/{version}/model.safetensors"
    store.put(key, store.get(key).body[::-1])


@pytest.mark.parametrize(
    ("damage", "message"), [(_delete, "model.safetensors is missing"), (_overwrite, "another sha256")]
)
def test_production_whose_files_are_damaged_is_found_before_the_training(
    store: Store, base: Path, tmp_path: Path, damage: Damage, message: str
) -> None:
    """By a hand, or by a rule of the bucket."""
    version = _publish(store, model_zoo.architecture("bert")(tmp_path / "old"))
    _promote(store, version)
    damage(store, version)
    _assert_refused(store, base, tmp_path, f"which serves: .*{message}.*ratchet rollback")


def test_a_base_model_that_cannot_be_scored_beside_production_is_found(
    store: Store, base: Path, tmp_path: Path
) -> None:
    """A training that goes on from production never loads the base model, which is scored all the same."""
    version = _publish(store, base)
    _promote(store, version)
    commit = _take_in(store, SECOND)
    data = night.reading.dataset_of(store, commit)
    other = model_zoo.similar_by("dot", False)(tmp_path / "other")
    plan = Plan(version, commit, "")
    run = Run(store, SECOND)
    with pytest.raises(UnreadyError, match=r"base model '.*': .*'dot'.*name one that can be used"):
        rehearse(run, version, plan, Training(base_model=str(other)), data, tmp_path)
    rehearse(run, version, plan, Training(base_model=str(base)), data, tmp_path)


def test_a_store_that_takes_no_candidate_is_found(
    store: Store, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Credentials that may not write models, and a server that ignores conditional writes."""
    with monkeypatch.context() as patch:
        patch.setattr(Store, "may_write", lambda _, key: not key.startswith("models/"))
        _assert_refused(store, base, tmp_path, r"may not write .*models/; .*iam/trainer.json")
    monkeypatch.setattr(Store, "probe", lambda _: ["If-Match is ignored: an object was replaced under a stale ETag"])
    _assert_refused(store, base, tmp_path, "no candidate could be promoted in .*If-Match is ignored")


def test_a_damaged_ledger_is_found(store: Store, base: Path, tmp_path: Path) -> None:
    """Scoring asks it what production was trained on."""
    for pooling in ("mean", "max"):
        _promote(store, _publish(store, model_zoo.pooled(pooling)(tmp_path / pooling)))
    store.put("promotions/000000000001.json", b"{}")
    _assert_refused(store, base, tmp_path, "000000000001.json", LedgerError)


def test_a_missing_batch_of_the_commit_that_production_knew_is_found(store: Store, base: Path, tmp_path: Path) -> None:
    """Tonight's rows do not need it any more: its object was replaced since."""
    _take_in(store, FIRST, 40)
    [batch] = [entry.key for entry in store.entries("batches/")]
    _promote(store, _publish(store, model_zoo.architecture("bert")(tmp_path / "old")))
    _take_in(store, SECOND)
    store.delete([batch])
    _assert_refused(store, base, tmp_path, "is missing, though commit 1 names it", intake.LogError)


def test_workers_of_ray_that_cannot_be_had_are_found(
    store: Store, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No cluster at the address; no Ray at all."""
    from tasks.index.on_ray import RayError

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    _assert_refused(store, base, tmp_path, "no cluster of Ray at RAY_ADDRESS", RayError, scoring_workers=2)
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    _assert_refused(store, base, tmp_path, "Ray is not installed: install the extra", RayError, scoring_workers=2)


def test_a_full_disk_is_found(store: Store, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rehearsal saves where the candidate will be saved."""
    from sentence_transformers import SentenceTransformer

    from tasks.training import TrainingError

    honest = SentenceTransformer.save

    def save(self: SentenceTransformer, path: str, **options: object) -> None:
        if path.startswith(str(tmp_path)):
            raise OSError(28, "No space left on device")
        honest(self, path, **options)

    monkeypatch.setattr(SentenceTransformer, "save", save)
    _assert_refused(store, base, tmp_path, "cannot be saved: OSError: .*No space left", TrainingError)


def test_a_sound_night_trains(store: Store, base: Path, tmp_path: Path) -> None:
    """The same night with nothing injected: it does take steps, and publishes."""
    commit = _take_in(store, SECOND)
    training = Training(base_model=str(base), max_length=16, matryoshka_dims=())
    candidate = night.train(store, SECOND, commit, training, tmp_path)
    assert candidate.steps > 0
    assert Run(store, SECOND).read(runs.CANDIDATE).version == candidate.version
