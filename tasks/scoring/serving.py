"""The serving check: does the candidate, as it lies in the store, serve what was scored?

Scores are taken from a model in memory. What will serve is what was saved, uploaded, downloaded and loaded by
another process: a module that was not saved, a prompt that was lost, a limit that changed would all go unnoticed.
So the stored version is downloaded, every hash is checked, and a fresh process (this module, run) loads it and encodes
texts whose scored vectors are known. Processes exchange JSON and plain arrays in files, never pickles; the
fresh one gets no credentials.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from tasks.encoding import FP32, PLAIN, NumericPath, document_identity, encode, load, out_of_memory, served
from tasks.registry import Description, VersionError, pull, read_manifest
from tasks.scoring.index import differing_files
from tasks.storage import Store

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

TOLERANCE: Final = 1e-4
"""Largest Euclidean distance between two unit vectors of one text, computed in float32, that still counts as the same
vector. Batches of another shape move one by 7e-7 (all-MiniLM-L6-v2, 300 texts, CPU); other devices by more."""

TOLERANCE_BF16: Final = 2e-2
"""The same where the scored vector was computed in bfloat16: 6e-3 in other batches, 7e-3 from plain float32."""

ROUNDS: Final = 5
"""Times that candidate and baseline each encode the sample, in turn; the fastest of each are compared. On a CPU it is
CPU time: what else runs on the machine makes a round slower, never faster, and must not hold a good candidate back."""

_MACHINE: Final = 75
"""Exit status of the fresh process where memory ran out: nothing is said about the candidate (EX_TEMPFAIL)."""

_TIMED: Final = 32
"""Texts that are encoded for the time."""


class MachineError(Exception):
    """The serving check could not be made for want of memory: that says nothing about the candidate."""


@dataclass(frozen=True)
class Sample:
    """Texts and the vectors that were scored for them: float32 of shape (n_queries, d) and (n_documents, d)."""

    queries: Sequence[str]
    query_vectors: np.ndarray
    documents: Sequence[str]
    document_vectors: np.ndarray

    def __post_init__(self) -> None:
        for texts, vectors in ((self.queries, self.query_vectors), (self.documents, self.document_vectors)):
            if vectors.ndim != 2 or len(texts) != len(vectors):
                raise ValueError(f"{len(texts)} texts need as many vectors, got an array of shape {vectors.shape}")

    def cut(self, size: int) -> Sample:
        """At most `size` queries and `size` documents, evenly from the shortest to the longest."""
        queries, documents = _spread(self.queries, size), _spread(self.documents, size)
        return Sample(
            [self.queries[i] for i in queries],
            np.asarray(self.query_vectors[queries], np.float32),
            [self.documents[i] for i in documents],
            np.asarray(self.document_vectors[documents], np.float32),
        )


def _spread(texts: Sequence[str], size: int) -> list[int]:
    """Indices of `size` texts, evenly spread over the order of their lengths, both ends included."""
    order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))
    picked = np.linspace(0, len(order) - 1, min(size, len(order))).round().astype(int)
    return [order[i] for i in picked]


def describe(folder: Path, matryoshka_dims: Sequence[int] = ()) -> Description:
    """What a saved model's vectors are like, asked of the loaded model.

    `matryoshka_dims` are the shorter dimensions that it was trained for: no file of the model says so.
    """
    return _describe(folder, load(folder, "cpu"), matryoshka_dims)


def _describe(folder: Path, model: SentenceTransformer, matryoshka_dims: Sequence[int]) -> Description:
    facts = served(model).described()
    return Description(**facts, matryoshka_dims=tuple(matryoshka_dims), documents=document_identity(folder))


def check_serving(
    store: Store,
    version: str,
    sample: Sample,
    *,
    baseline: Path,
    max_slowdown: float,
    path: NumericPath = FP32,
    device: str | None = None,
    timeout: float = 900.0,
) -> list[str]:
    """Reasons why a stored version must not serve; empty when it may.

    It must download and verify, and be what its manifest describes; the rest is `check_saved`. Raises StoreError when
    the store cannot be read, MachineError when memory ran out.
    """
    with tempfile.TemporaryDirectory() as name:
        try:
            declared = read_manifest(store, version).description
            folder = pull(store, version, Path(name) / "candidate")
        except VersionError as error:
            return [str(error)]
        return check_saved(
            folder,
            sample,
            declared,
            baseline=baseline,
            max_slowdown=max_slowdown,
            path=path,
            device=device,
            timeout=timeout,
        )


def check_saved(
    candidate: Path,
    sample: Sample,
    declared: Description,
    *,
    baseline: Path,
    max_slowdown: float,
    path: NumericPath = FP32,
    device: str | None = None,
    timeout: float = 900.0,
) -> list[str]:
    """Why a saved model must not serve; empty when it may.

    It must load in a fresh process within `timeout` seconds, be what `declared` says, give the scored vectors of
    `sample`, by `path` and by the library's own encode (`TOLERANCE`), and encode in at most `max_slowdown` times what
    `baseline` (the folder of production, or of the base model) takes. Where it declares the documents of `baseline`,
    the files that encode them must be the same bytes, and their vectors the same.

    Raises MachineError when memory ran out.
    """
    if not sample.queries or not sample.documents:
        return ["the serving check had no texts to encode"]
    stays = declared.documents is not None and declared.documents == document_identity(baseline)
    request = {
        "candidate": str(candidate.resolve()),
        "queries": list(sample.queries),
        "documents": list(sample.documents),
        "baseline": str(baseline.resolve()),
        "matryoshka_dims": declared.matryoshka_dims,
        "path": asdict(path),
        "device": device,
        "stays": stays,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "request.json").write_text(json.dumps(request))
        failure = _run(folder, timeout)
        if failure:
            return [failure]
        wrong = differing_files(candidate, baseline) if stays else []
        claim = f"the manifest says that documents stay as they are, but {', '.join(wrong[:3])} is another file"
        return [*([claim] if wrong else []), *_judge(folder, sample, declared, max_slowdown, path)]


def _run(folder: Path, timeout: float) -> str:
    """Serve the request in a fresh process; returns why that failed, or nothing."""
    root = str(Path(__file__).resolve().parents[2])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tasks.scoring.serving", str(folder)],
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"the stored model did not load and encode within {timeout:g} seconds"
    if done.returncode in (_MACHINE, -signal.SIGKILL):
        raise MachineError(
            "the serving check could not be made: this machine ran out of memory, or something killed the check "
            f"(exit status {done.returncode}): {' '.join(done.stderr.strip().splitlines()[-1:])[:500]}"
        )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        return f"the stored model cannot be served (exit status {done.returncode}): {last[0][:500]}"
    return ""


def _judge(folder: Path, sample: Sample, declared: Description, max_slowdown: float, path: NumericPath) -> list[str]:
    """Compare what the fresh process found with what was scored and declared."""
    reply = json.loads((folder / "reply.json").read_text())
    reasons: list[str] = []
    found = Description.model_validate(reply["description"])
    unsaid = {"requires", *(["documents"] if declared.documents is None else [])}  # what loads it is seen by loading it
    for field in sorted(Description.model_fields.keys() - unsaid):
        said, is_ = getattr(declared, field), getattr(found, field)
        if said != is_:
            reasons.append(f"the manifest says {field} {said!r}, the stored model has {is_!r}")
    beyond = [dim for dim in declared.matryoshka_dims if dim > found.dimension]
    if beyond:
        reasons.append(f"Matryoshka dimensions {beyond} are beyond the model's {found.dimension}")
    tolerance = TOLERANCE_BF16 if path.half else TOLERANCE
    for way in ("path", "plain"):
        for kind, scored in (("queries", sample.query_vectors), ("documents", sample.document_vectors)):
            served = np.load(folder / f"{way}-{kind}.npy", allow_pickle=False)
            how = path.name if way == "path" else "the library's own encode"
            reasons += differs(served, scored, tolerance, f"{kind} by {how}")
    if reply["stays"]:  # the same weights by the same steps on the same texts: on a CPU the same bits
        vectors = [np.load(folder / f"{name}-documents.npy", allow_pickle=False) for name in ("path", "baseline")]
        what = "the manifest says that documents stay as they are, but against what serves: documents"
        reasons += differs(vectors[0], vectors[1], 0.0 if reply["device"] == "cpu" else tolerance, what)
    candidate, baseline = min(reply["seconds"]["candidate"]), min(reply["seconds"]["baseline"])
    if not candidate <= max_slowdown * baseline:
        reasons.append(
            f"the candidate encodes in {candidate / baseline:.2f} times the time of what serves "
            f"({candidate:.3f} s, {baseline:.3f} s), more than {max_slowdown:g}"
        )
    return reasons


def differs(served: np.ndarray, scored: np.ndarray, tolerance: float, what: str) -> list[str]:
    """Why two arrays of unit vectors, float32 of shape (n, d), are not the same vectors; NaN never is."""
    if served.shape != scored.shape:
        return [f"{what}: served vectors have the shape {served.shape}, scored ones {scored.shape}"]
    distance = np.linalg.norm(served.astype(np.float64) - scored.astype(np.float64), axis=1)
    wrong = int((~(distance <= tolerance)).sum())
    if wrong:
        return [f"{what}: {wrong} of {len(distance)} vectors are not the scored ones (distance {distance.max():.2g})"]
    return []


# --- in the fresh process ------------------------------------------------------------------------------------


def serve(folder: Path) -> None:
    """Answer `request.json` in a folder with the vectors, the description and the times of the candidate it names."""
    request = json.loads((folder / "request.json").read_text())
    path = NumericPath(**request["path"])
    candidate = load(Path(request["candidate"]), request["device"])
    for way, numeric in (("path", path), ("plain", PLAIN)):
        np.save(folder / f"{way}-queries.npy", encode(candidate, request["queries"], "query", path=numeric))
        np.save(folder / f"{way}-documents.npy", encode(candidate, request["documents"], "document", path=numeric))
    documents = request["documents"]
    texts = [documents[place] for place in _spread(documents, _TIMED)]
    clock = time.process_time if candidate.device.type == "cpu" else time.perf_counter
    models = {"baseline": load(Path(request["baseline"]), request["device"]), "candidate": candidate}
    if request["stays"]:
        np.save(folder / "baseline-documents.npy", encode(models["baseline"], documents, "document", path=path))
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for round_ in range(ROUNDS + 1):
        for name, model in models.items():
            start = clock()
            encode(model, texts, "document", path=path)
            if round_:  # the first one warms up
                seconds[name].append(clock() - start)
    description = _describe(Path(request["candidate"]), candidate, request["matryoshka_dims"]).model_dump(mode="json")
    told = {"stays": request["stays"], "device": candidate.device.type}
    (folder / "reply.json").write_text(json.dumps({"description": description, "seconds": seconds, **told}))


def main(folder: Path) -> int:
    """Serve; returns the exit status, another one where it is the machine that failed."""
    try:
        serve(folder)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        print(error, file=sys.stderr)
        return _MACHINE
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
