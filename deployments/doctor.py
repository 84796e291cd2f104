"""What could keep a night from running, checked one by one, each with what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deployments import access
from deployments.places import POOLS
from tasks.config import BUNDLED_MODEL, Limits
from tasks.storage import Store, StoreError

_BELOW: Final = {
    "fastapi": ((0, 151), "Prefect's server does not start with later ones"),
    "sqlalchemy": ((2, 1), "with later ones Prefect's server never creates a scheduled run, and says nothing"),
}
_EXACTLY: Final = {
    "prefect": "3.8.8",
    "sentence-transformers": "6.2.0",
    "torch": "2.13.0",
}
_FREE_BYTES: Final = 5 << 30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: its name, whether it is as it must be, and what was seen or what to do."""

    name: str
    sound: bool
    text: str
    advice: bool = False
    """Sound enough for a night, and yet better changed."""


def examine(store: str | None, base_model: str = BUNDLED_MODEL) -> Iterator[Finding]:
    """Look at everything that a night needs; one finding after the other, none raises."""
    yield from versions(importlib.metadata.version)
    if store is None:
        yield Finding(
            "store", False, "not set: RATCHET_STORE=s3://bucket/prefix, or start the local stack with `ratchet up`"
        )
    else:
        yield from examine_store(store)
    yield _examine_prefect()
    yield examine_model(base_model)
    yield _device()
    yield _disk()


def versions(installed: Callable[[str], str]) -> Iterator[Finding]:
    """Packages of which other versions are known to break without saying so; `installed` gives a package's."""
    for name, wanted in _EXACTLY.items():
        found = installed(name).split("+")[0]  # +cpu, +cu130: the build, not the version
        sound = found == wanted
        yield Finding(name, sound, found if sound else f"{found} is installed, {wanted} is what was tested")
    for name, (bound, why) in _BELOW.items():
        found = installed(name)
        sound = tuple(int(part) for part in found.split(".")[:2]) < bound
        limit = ".".join(map(str, bound))
        yield Finding(name, sound, found if sound else f"{found} is installed: needs a version below {limit}; {why}")


def examine_store(url: str) -> Iterator[Finding]:
    """Whether the store can be listed and written, keeps its promise on conditional writes, and grants no more."""
    try:
        store = Store.open(url)
        next(store.entries("pairs/"), None)
        yield Finding("store, reading", True, store.url)
        problems = store.probe()
    except StoreError as error:
        yield Finding("store", False, str(error))
        return
    yield Finding("store, writing", True, "an object was written, read and deleted again")
    yield Finding(
        "store, conditional writes",
        not problems,
        "If-None-Match and If-Match are honoured"
        if not problems
        else f"{'; '.join(problems)}. Nothing can be promoted safely there: use another S3 server or proxy",
    )
    if not problems:
        yield _parts(store)
        yield _rights(store)
    yield _guards(store)


def _parts(store: Store) -> Finding:
    """Whether files of more than 5 GiB can be stored: models and checkpoints of large base models."""
    try:
        problems = store.probe_parts()
    except StoreError as error:
        return Finding("store, uploads in parts", False, str(error))
    if not problems:
        return Finding("store, uploads in parts", True, "completed only where there is no object yet")
    text = f"{'; '.join(problems)}. Only files of more than {store.multipart_bytes >> 20} MiB need them"
    return Finding("store, uploads in parts", True, text, advice=True)


def _guards(store: Store) -> Finding:
    """Whether every guard set can be read: one that cannot holds every candidate."""
    from tasks.scoring import guards

    sizes, broken = [], []
    with tempfile.TemporaryDirectory() as work:
        try:
            for listed in guards.find(store):
                try:
                    sizes.append(
                        f"{listed.name} ({len(guards.read(store, listed, Limits(), Path(work)).test):,} queries)"
                    )
                except guards.GuardError as error:
                    broken.append(str(error))
        except StoreError as error:
            return Finding("store, guard sets", False, str(error))
    if broken:
        return Finding("store, guard sets", False, f"{'; '.join(broken)}. Until then nothing is promoted")
    return Finding("store, guard sets", True, ", ".join(sizes) or "none")


def _rights(store: Store) -> Finding:
    """What the credentials may not do and must, and what they may do that no night needs."""
    try:
        less = access.lacking(store)
        more = [] if less else access.excess(store)
    except StoreError as error:
        return Finding("store, rights", False, str(error))
    grants = "deployments/iam/trainer.json grants what nights, watch, rollback and retention need"
    if less:
        return Finding("store, rights", False, f"the credentials may not {', '.join(less)}; {grants}")
    if more:
        return Finding("store, rights", True, f"the credentials may also {', '.join(more)}; {grants}", advice=True)
    return Finding("store, rights", True, "exactly what is needed, as far as can be tried without changing anything")


def _examine_prefect() -> Finding:
    """Whether the Prefect API answers with the credentials of this environment."""
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError

    url = os.environ.get("PREFECT_API_URL")
    if url is None:
        text = "PREFECT_API_URL is not set: `ratchet run` works without it, nights on a schedule need it"
        return Finding("Prefect API", True, text, advice=True)
    try:
        with get_client(sync_client=True) as client:
            pools = {pool.name for pool in client.read_work_pools()}
    except PrefectHTTPStatusError as error:
        return Finding("Prefect API", False, f"{url}: {error.response.status_code}; check PREFECT_API_AUTH_STRING")
    except (httpx.HTTPError, RuntimeError) as error:
        return Finding("Prefect API", False, f"{url} does not answer: {error}")
    missing = set(POOLS) - pools
    if missing:
        return Finding("Prefect API", False, f"{url} has no work pool {', '.join(sorted(missing))}: `ratchet deploy`")
    return Finding("Prefect API", True, f"{url}, work pools {' and '.join(POOLS)}")


def examine_model(name: str) -> Finding:
    """Whether the base model is where its name says, safe to load, and passes the rehearsal of a night."""
    from tasks.config import Training
    from tasks.encoding import ModelError, resolve_model
    from tasks.training import TrainingError, rehearse

    try:
        folder = resolve_model(name)
        rehearse(Training(base_model=name))
    except (ModelError, TrainingError) as error:
        return Finding("base model", False, str(error))
    return Finding("base model", True, f"{name} in {folder}: saves, publishes, loads and encodes as it is")


def _device() -> Finding:
    """What will train, after a product of matrices on it in the precision that training would choose."""
    from tasks.training import TrainingError, hardware

    try:
        where = hardware.device()
        precision = hardware.half(where)
        hardware.try_out(where, precision)
    except (RuntimeError, TrainingError) as error:
        return Finding("device", False, str(error))
    return Finding("device", True, f"{hardware.describe(where)}; training computes in {precision}")


def _disk() -> Finding:
    folder = Path(os.environ.get("RATCHET_WORK") or tempfile.gettempdir())
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return Finding("disk", free >= _FREE_BYTES, f"{free / 2**30:.1f} GiB free in {folder}; a night needs about 5")
