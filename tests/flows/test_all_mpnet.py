"""A second real model, five times the size of the one that the project ships with: all-mpnet-base-v2."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from deployments import demo
from deployments.demo.tour import SPLIT, cut
from flows.retrain import retrain
from tasks import encoding, registry
from tasks.config import Checks, Training
from tasks.encoding import BF16, PLAIN
from tasks.storage import Store
from tests import all_mpnet

pytestmark = [pytest.mark.slow, pytest.mark.stack, pytest.mark.timeout(3_600)]

PAIRS = 400
CHARS = 120
"""Beginnings of texts, so that a night takes minutes on two cores."""

TEXTS = ["This is an example sentence", "Each sentence is converted", "delete a bucket " * 200]


@pytest.fixture(scope="module")
def mpnet() -> Path:
    """The model's folder, verified."""
    return all_mpnet.fetch()


def test_it_is_what_its_card_says(mpnet: Path) -> None:
    """768 dimensions, cut at 384 tokens, and the vectors of the card's own code: mean over the tokens, length 1."""
    model = encoding.load(mpnet, "cpu")
    facts = encoding.served(model)
    assert (facts.dimension, facts.max_length, facts.normalisation, facts.prompts) == (768, 384, "l2", {})
    tokens = AutoTokenizer.from_pretrained(mpnet)(
        TEXTS, padding=True, truncation=True, max_length=384, return_tensors="pt"
    )
    with torch.no_grad():
        states = AutoModel.from_pretrained(mpnet)(**tokens)[0]
    mask = tokens["attention_mask"].unsqueeze(-1)
    mean = (states * mask).sum(1) / mask.sum(1)
    expected = torch.nn.functional.normalize(mean, dim=1).numpy()
    np.testing.assert_allclose(encoding.encode(model, TEXTS, "document", path=PLAIN), expected, atol=2e-6)
    half = encoding.encode(model, TEXTS, "document", path=BF16)
    assert encoding.least_cosine(half, expected) > 0.999


def test_a_whole_night_promotes_nothing_worse(mpnet: Path, night_store: Store, tmp_path: Path) -> None:
    """Rehearsed, fine-tuned, published, scored against itself, judged, and served as it was scored."""
    data = demo.build()
    every = cut(data.pairs, "document", CHARS)
    night_store.put("split.json", SPLIT)
    night_store.put("pairs/a.jsonl", b"".join(every[len(every) * i // PAIRS] for i in range(PAIRS)))
    night_store.put("corpus/a.jsonl", b"".join(cut(data.corpus, "text", CHARS)[:150]))
    training = Training(base_model=str(mpnet), quick=True, max_length=40)
    began = time.process_time()
    outcome = retrain(store=night_store.url, training=training, checks=Checks(), reason="another model")
    print(f"{time.process_time() - began:.0f} CPU s in this process; {outcome.model_dump_json(indent=1)}")
    assert outcome.verdict in {"promoted", "held"}, outcome.reasons
    assert outcome.candidate is not None
    assert outcome.candidate.version is not None
    assert outcome.production is not None
    assert not any("not the scored ones" in reason or "cannot be served" in reason for reason in outcome.reasons)
    assert outcome.candidate.scores["recall_at_10"] >= outcome.production.scores["recall_at_10"] - 0.02
    described = registry.read_manifest(night_store, outcome.candidate.version).description
    assert (described.dimension, described.max_length) == (768, 384)
    folder = registry.pull(night_store, outcome.candidate.version, tmp_path / "pulled")
    assert encoding.served(encoding.load(folder, "cpu")).max_length == 384
