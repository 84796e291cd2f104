"""The README of a fine-tuned model: what it is, what it was trained on and how, and what it was made with.

It holds no time, path or run: the bytes of a model's folder depend on its data, settings, seed and machine only.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final

import yaml

from tasks.config import NOT_COMPUTED, Training
from tasks.encoding import LEAST_VERSIONS

if TYPE_CHECKING:
    from tasks.records import Trained

_LIBRARIES: Final = ("sentence-transformers", "transformers", "torch", "tokenizers")


_QUERIES: Final = (
    "- Side: queries alone. `encode_query` has weights of its own; those of `encode_document` are, file by file, those "
    "of the model whose documents it was trained against, so an index of that model stays valid"
)


def text(base: Path, training: Training, trained: Trained, commit: int | None) -> str:
    """The model card in Markdown, with the YAML header that the hub reads."""
    licence = base_licence(base)
    rows = [f"| {kind} | {count:,} |" for kind, count in trained.rows.items()]
    settings = [f"| `{name}` | {value} |" for name, value in _recipe(training).items()]
    dev = [f"| {score.step} | {score.recall_at_10:.4f} | {score.mrr:.4f} |" for score in trained.dev]
    smaller = ", ".join(str(dim) for dim in trained.dims[1:]) or "none"
    return "\n".join(
        [
            "---",
            "library_name: sentence-transformers",
            "pipeline_tag: sentence-similarity",
            "tags: [sentence-transformers, feature-extraction]",
            f"license: {licence or 'unknown'}",
            "---",
            "",
            "# Fine-tuned embedding model",
            "",
            f"Vectors of {trained.dims[0]} dimensions, compared by cosine; also trained to be cut to: {smaller}",
            "(`SentenceTransformer(path, truncate_dim=...)`).",
            "",
            f"- Base model: `{_name(training.base_model)}`, licence {licence or 'not stated by it'}",
            f"- Started from: {trained.started_from}; distance of the weights from {_origin(trained)} "
            f"{trained.distance_from_base:.4f} (norm of the difference / norm of those)",
            *([_QUERIES] if trained.side == "query" else []),
            *([f"- Averaged: {trained.alpha:g} of the way from the starting weights"] if trained.averaged else []),
            f"- Data: commit {'unknown' if commit is None else commit}",
            f"- Steps: {trained.steps} of {trained.planned_steps}, weights of step {trained.best_step}"
            + (f" (stopped: {trained.stopped})" if trained.stopped else ""),
            f"- Computed in {trained.precision}, seed {training.seed}",
            "",
            "## Training rows, by loss",
            "",
            "| loss | rows |",
            "|---|---:|",
            *rows,
            *([f"| mined negatives | {trained.mined:,} |"] if trained.mined else []),
            "",
            "## Recipe",
            "",
            "| setting | value |",
            "|---|---|",
            *settings,
            "",
            "## Dev scores",
            "",
            "On a sample of dev queries and documents, to pick the checkpoint; the verdict is made on other data.",
            "",
            "| step | Recall@10 | MRR |",
            "|---:|---:|---:|",
            *(dev or ["| - | - | - |"]),
            "",
            "## Made with",
            "",
            *(f"- {name} {version(name)}" for name in _LIBRARIES),
            "",
            "It loads with " + " and ".join(f"{name} {least}" for name, least in LEAST_VERSIONS.items()) + " or later.",
            "",
        ]
    )


def _origin(trained: Trained) -> str:
    return "those it started from" if trained.side == "query" else "the base model's"


def _recipe(training: Training) -> dict[str, object]:
    """The settings that decide what the weights are."""
    return {name: value for name, value in training.model_dump().items() if name not in NOT_COMPUTED | {"seed"}}


def _name(base_model: str) -> str:
    """A base model's name; of a folder its last part, since the rest says where this machine keeps it."""
    return Path(base_model).name if Path(base_model).is_dir() else base_model


def base_licence(base: Path) -> str | None:
    """The licence that the base model's own card states in its header, or None."""
    from huggingface_hub import metadata_load

    card = base / "README.md"
    try:
        licence = (metadata_load(card) or {}).get("license") if card.is_file() else None
    except (ValueError, yaml.YAMLError):
        return None  # a header that cannot be read states nothing
    return licence if isinstance(licence, str) else None
