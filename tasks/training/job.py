"""One training run as a value: what to train on and how, handed to other processes as files that hold data only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.config import Training
from tasks.storage import Store
from tasks.training.checkpoints import Checkpoints
from tasks.training.corpus import Documents
from tasks.training.start import Start

if TYPE_CHECKING:
    from tasks.dataset import EvaluationSet

_SETTINGS: Final = "job.json"
_ROWS: Final = "rows.parquet"
_DEV: Final = "dev.parquet"
_DOCUMENTS: Final = "documents.parquet"
_AGAINST: Final = "against.parquet"
_VECTORS: Final = "against.npy"


@dataclass(frozen=True)
class Job:
    """Everything that a training process needs.

    Attributes:
        rows: the training rows: query, document, negatives, score.
        dev: the dev queries, or None.
        documents: what `dev.relevant` refers to.
        training: the settings.
        start: the model to start from.
        folder: where the leader saves the model.
        commit: the data commit, for the model card.
        checkpoints: where checkpoints are kept, or None.
        began: when the run began, in seconds since the epoch.
        against: the documents of a training of the query side alone.
    """

    rows: pa.Table
    dev: EvaluationSet | None
    documents: Sequence[str]
    training: Training
    start: Start
    folder: Path
    commit: int | None
    checkpoints: Checkpoints | None
    began: float
    against: Documents | None = None

    def write(self, folder: Path) -> None:
        """Write the job into an empty folder, as JSON and Parquet."""
        pq.write_table(self.rows, folder / _ROWS)
        pq.write_table(pa.table({"document": pa.array(self.documents, pa.string())}), folder / _DOCUMENTS)
        if self.dev is not None:
            columns = {
                "query": pa.array(self.dev.queries, pa.string()),
                "relevant": pa.array([places.tolist() for places in self.dev.relevant], pa.list_(pa.int64())),
                "slice": pa.array(self.dev.slices, pa.string()),
                "golden": pa.array(self.dev.golden, pa.bool_()),
            }
            pq.write_table(pa.table(columns), folder / _DEV)
        if self.against is not None:
            pq.write_table(pa.table({"text": pa.array(self.against.texts, pa.string())}), folder / _AGAINST)
            np.save(folder / _VECTORS, self.against.vectors, allow_pickle=False)
        settings = {
            "training": self.training.model_dump(mode="json"),
            "start": {"name": self.start.name, "folder": None if self.start.folder is None else str(self.start.folder)},
            "folder": str(self.folder.resolve()),
            "commit": self.commit,
            "checkpoints": None if self.checkpoints is None else [self.checkpoints.url, self.checkpoints.prefix],
            "began": self.began,
            "against": None if self.against is None else [str(self.against.folder), self.against.identity],
            "excluded": None if self.dev is None else self.dev.excluded,
        }
        (folder / _SETTINGS).write_text(json.dumps(settings), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Job:
        """Read what `write` wrote; the store of the checkpoints is opened again."""
        settings = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
        start, kept = settings["start"], settings["checkpoints"]
        return cls(
            rows=pq.read_table(folder / _ROWS),
            dev=None if settings["excluded"] is None else _read_dev(folder / _DEV, settings["excluded"]),
            documents=pq.read_table(folder / _DOCUMENTS)["document"].to_pylist(),
            training=Training.model_validate(settings["training"]),
            start=Start(start["name"], None if start["folder"] is None else Path(start["folder"])),
            folder=Path(settings["folder"]),
            commit=settings["commit"],
            checkpoints=None if kept is None else Checkpoints(Store.open(kept[0]), kept[1]),
            began=settings["began"],
            against=_read_against(folder, settings["against"]),
        )


def _read_against(folder: Path, settings: list[str] | None) -> Documents | None:
    if settings is None:
        return None
    texts = pq.read_table(folder / _AGAINST)["text"].to_pylist()
    vectors = np.load(folder / _VECTORS, allow_pickle=False)
    return Documents(Path(settings[0]), settings[1], texts, vectors)


def _read_dev(path: Path, excluded: int) -> EvaluationSet:
    from tasks.dataset import EvaluationSet

    table = pq.read_table(path)
    return EvaluationSet(
        queries=table["query"].to_pylist(),
        relevant=[np.array(places, np.int64) for places in table["relevant"].to_pylist()],
        slices=table["slice"].to_pylist(),
        golden=table["golden"].to_numpy(zero_copy_only=False),
        excluded=excluded,
    )
