"""Labelled rows to a candidate: a fine-tuned sentence-transformers folder."""

from tasks.records import Estimate, Plan, Trained
from tasks.training.checkpoints import Checkpoints
from tasks.training.corpus import Documents
from tasks.training.fine_tune import train
from tasks.training.plan import BASE
from tasks.training.query_side import known_documents
from tasks.training.rehearsal import rehearse
from tasks.training.rendezvous import Rendezvous
from tasks.training.result import TrainingError
from tasks.training.start import FROM_BASE, Start

__all__ = [
    "BASE",
    "FROM_BASE",
    "Checkpoints",
    "Documents",
    "Estimate",
    "Plan",
    "Rendezvous",
    "Start",
    "Trained",
    "TrainingError",
    "known_documents",
    "rehearse",
    "train",
]
