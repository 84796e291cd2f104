"""The canary: the same texts by the same model, night after night, give the same vectors, or a library has drifted.

Both sides of a comparison share their libraries, so no gate can see that these changed. The index that was built
with other vectors does. The texts are fixed and nobody's: what is stored of them needs no erasing.
"""

from __future__ import annotations

import base64
import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from tasks import runs
from tasks.encoding import FP32, encode
from tasks.records import Canary, Drift
from tasks.storage import Store

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

PREFIX: Final = "watch/canary/"

TOLERANCE: Final = 1e-5
"""Largest 1 - cosine that is numeric noise. In float32, another shape of the batches and other threads make
1e-7 (all-MiniLM-L6-v2 on a CPU); products in bfloat16, which is another precision, 8e-5. GPUs were not measured."""

_LIBRARIES: Final = ("torch", "sentence-transformers", "transformers", "tokenizers", "numpy")
_DRIVER: Final = Path("/sys/module/nvidia/version")

_SENTENCES: Final = (
    "How do I reset my password?",
    "The quarterly report is due on 31 March 2024, not on the 30th.",
    "find . -name '*.log' -mtime +7 -exec rm {} \\;",
    "Le café est fermé le dimanche; où puis-je déjeuner?",
    "Größere Änderungen müssen vorher angekündigt werden.",
    "¿Dónde está la estación de tren más cercana?",
    "Необходимо перезагрузить сервер после обновления.",
    "東京の天気は明日晴れるでしょう。",
    "如何取消我的订阅",
    "비밀번호를 잊어버렸어요.",
    "كيف يمكنني تغيير عنوان التسليم؟",
    "कृपया अपना खाता नंबर दर्ज करें",
    "SELECT id, name FROM users WHERE created_at > '2023-01-01';",
    "Unpaid invoices: 1,234.56 EUR; 99.9% uptime; 5 °C to 40 °C",
    "e\u0301 and \u00e9 look alike, as do \u2126 and \u03a9, or \ufb01 and fi 🙂",
    "def mean(values: list[float]) -> float:\n    return sum(values) / len(values)",
)
TEXTS: Final = tuple(
    text for one in _SENTENCES for text in (one, f"{one.upper()} 42", f"  {one}\t{one} ", " ".join([one] * 12))
)
"""64 texts: scripts, cases, white space, and lengths up to where models cut them."""


def check(store: Store, run_id: str, model: SentenceTransformer, fingerprint: str, version: str | None) -> Drift:
    """Encode the canary's texts anew, and compare with what was stored when this model was first seen in production.

    `model` is what serves, or the base model where `version` is None; `run_id` is the run that asks.
    """
    vectors = encode(model, TEXTS, "document", path=FP32)

    def first() -> Canary:
        body = base64.b64encode(vectors.astype("<f4").tobytes()).decode()
        return Canary(version, run_id, environment(str(model.device.type)), vectors.shape[1], body)

    return compare(runs.once(store, f"{PREFIX}{fingerprint}.json", Canary, first), vectors, str(model.device.type))


def compare(stored: Canary, vectors: NDArray[np.float32], device: str) -> Drift:
    """How far vectors of `TEXTS`, unit length and of shape (64, d), are from the stored ones, and what has changed."""
    before = np.frombuffer(base64.b64decode(stored.vectors), "<f4").reshape(-1, stored.dimension)
    changed = _changed(stored.environment, environment(device))
    if before.shape != vectors.shape:
        return Drift(stored.run_id, 0.0, 0, changed, _warning(stored, f"vectors of shape {vectors.shape}", changed))
    cosines = (before.astype(np.float64) * vectors).sum(axis=1)
    drifted = int((~(cosines >= 1 - TOLERANCE)).sum())  # NaN drifts
    least = float(cosines.min())
    what = f"{drifted} of {len(TEXTS)} texts have other vectors (least cosine {least:.6f})"
    return Drift(stored.run_id, least, drifted, changed, _warning(stored, what, changed) if drifted else "")


def environment(device: str) -> dict[str, str]:
    """What vectors depend on besides model and text: libraries, processor or GPU, and what drives it."""
    import torch

    found = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    found |= {"device": device, "machine": platform.machine(), "CPU kernels": torch.backends.cpu.get_cpu_capability()}
    if device == "cuda":
        found |= {"GPU": torch.cuda.get_device_name(), "CUDA": str(torch.version.cuda)}
        found |= {"driver": _DRIVER.read_text().strip()} if _DRIVER.exists() else {}
    return found


def _changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    names = sorted({*before, *now})
    return [
        f"{name} {before.get(name, 'none')} to {now.get(name, 'none')}"
        for name in names
        if before.get(name) != now.get(name)
    ]


def _warning(stored: Canary, what: str, changed: list[str]) -> str:
    why = ", ".join(changed) or "no version that is known: a file of the installation, or a setting"
    return (
        f"The vectors of what serves have drifted since run {stored.run_id}: {what}. Changed since: {why}. An index "
        "that was built before does not fit them: build it anew, or go back to the former versions."
    )
