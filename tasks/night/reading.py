"""What several steps of a night read: its data, a model's folder, vectors that are known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from tasks.storage import Store

if TYPE_CHECKING:
    from tasks.dataset import Dataset
    from tasks.encoding import CachedEncoder, ModelEncoder, VectorCache

JUDGED: Final = ("candidate", "production")


def dataset_of(store: Store, commit: int) -> Dataset:
    """What the commit trains on and is judged by: the same on every machine and at every attempt."""
    from tasks import dataset, intake, splits

    return dataset.build(intake.read_rows(store, commit), splits.load_split(store))


def model_folder(store: Store, version: str | None, base_model: str, work: Path) -> Path:
    """The verified folder of a published version, or of the base model where there is none."""
    from tasks import encoding, registry

    if version is None:
        return encoding.resolve_model(base_model)
    return registry.pull_to_work(store, version, work)


def cached(store: Store, encoder: ModelEncoder, work: Path) -> CachedEncoder:
    """An encoder that takes every text that its model ever encoded from the cache."""
    from tasks.encoding import CachedEncoder

    return CachedEncoder(encoder, vectors(store, work))


def vectors(store: Store, work: Path) -> VectorCache:
    """The vectors that are kept from night to night."""
    from tasks.encoding import VectorCache

    return VectorCache(work / "vectors", store)
