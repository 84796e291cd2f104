"""Tiny model folders for the registry's tests: the files of a model, a few bytes each."""

from __future__ import annotations

from pathlib import Path

from tasks.registry import Description, publish
from tasks.storage import Store

DESCRIPTION = Description(
    dimension=384, normalisation="l2", prompts={"query": "query: "}, max_length=256, matryoshka_dims=(128, 32)
)


def model_folder(folder: Path, weights: bytes = b"weights") -> Path:
    """A folder that looks like a saved model; different `weights` make another version."""
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "modules.json").write_text("[]")
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "README.md").write_text("# A model\n")
    return folder


def published(store: Store, folder: Path, weights: bytes) -> str:
    """Publish a tiny model with these weights; returns its version."""
    return publish(store, model_folder(folder, weights), DESCRIPTION)
