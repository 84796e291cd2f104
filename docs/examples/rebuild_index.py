"""Keep a search index in step with what serves.

    python docs/examples/rebuild_index.py s3://bucket/prefix documents.jsonl index

Run it from a timer, or from whatever hears the event `ratchet.production.changed`. It reads the ledger, and does
nothing when no change since the index was built gives other vectors. Else it encodes the documents with the verified
model and puts the new index in the place of the old one in one step: a search never meets half an index, or queries
and documents from different models.

Here the index is a folder with the vectors, the texts, and the number of the change it was built for. With a vector
database make a new collection, fill it, and move its alias.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from sentence_transformers import SentenceTransformer

from tasks.registry import history, pull, read_production
from tasks.storage import Store


def rebuild(store: Store, documents: list[str], index: Path) -> bool:
    """Build the index anew if what serves gives other vectors than those in it; says whether it did."""
    production = read_production(store)
    if production is None or production.version is None:
        raise SystemExit(f"the base model serves in {store.url}: build the index with it")
    state = index / "index.json"
    if state.exists():
        built = json.loads(state.read_text())["promotion"]
        if not any(change.rebuild_index for change in history(store) if change.promotion > built):
            return False
    with TemporaryDirectory() as work:
        model = SentenceTransformer(str(pull(store, production.version, Path(work) / "model")))
        vectors = model.encode_document(documents, normalize_embeddings=True)
    fresh = index.with_name(f"{index.name}-{production.version}-{production.promotion}")
    shutil.rmtree(fresh, ignore_errors=True)  # an attempt that failed after this; the link does not point to it
    fresh.mkdir(parents=True)
    np.save(fresh / "vectors.npy", vectors)
    (fresh / "documents.json").write_text(json.dumps(documents))
    (fresh / "index.json").write_text(json.dumps({"promotion": production.promotion, "version": production.version}))
    link = index.with_name(f"{index.name}.new")
    link.unlink(missing_ok=True)
    link.symlink_to(fresh.name)
    os.replace(link, index)  # the one moment at which the search moves  # noqa: PTH105
    return True


if __name__ == "__main__":
    url, texts, folder = sys.argv[1:]
    lines = [json.loads(line)["text"] for line in Path(texts).read_text().splitlines()]
    print("rebuilt" if rebuild(Store.open(url), lines, Path(folder)) else "the index is up to date")
