"""An index of documents that follows what serves."""

from __future__ import annotations

from dataclasses import dataclass

from prefect import flow
from prefect.logging import get_run_logger
from pydantic import BaseModel, Field

from flows.context import store_url, this_run, work_folder
from tasks import steps, telemetry
from tasks.config import Limits
from tasks.index import MIN_RECALL, Rule
from tasks.storage import Store

_LIMITS = Limits()
_ATTEMPTS = 5


class ProductionMovedError(Exception):
    """Production changed each time before the index was ready; what served last is what the message names."""


class Reindexed(BaseModel):
    """What a reindex came to.

    Attributes:
        index: name of the index that serves.
        model: version whose queries it answers, or `base`.
        promotion: the change of production that it follows.
        documents, encoded, made: documents in it, texts that were encoded by this run, shards made.
        loaded: shards that were loaded into the target.
        recall: share of the exact nearest documents that its search structure finds.
        followed: the index that the target had already and that served from the beginning of the run, if any.
        dropped: indexes that were deleted from the target.
        rejected: rows that are not documents; `rejections` names the first ones.
        left_out: columns of documents that are not taken as metadata.
    """

    index: str
    model: str
    promotion: int
    documents: int
    encoded: int
    made: int
    loaded: int
    recall: float
    followed: str | None = None
    dropped: tuple[str, ...] = ()
    rejected: int = 0
    rejections: tuple[str, ...] = ()
    left_out: str = ""


@dataclass(frozen=True)
class _Settings:
    """How an index is made and tried."""

    workers: int | None
    rule: Rule
    base_model: str | None
    limits: Limits


@flow(name="reindex", flow_run_name="reindex")
def reindex(
    store: str | None = None,
    target: str | None = None,
    workers: int | None = None,
    min_recall: float = Field(MIN_RECALL, ge=0, le=1),
    drop_previous: bool = False,
    base_model: str | None = None,
    limits: Limits = _LIMITS,
) -> Reindexed:
    """Embed the documents with the model that serves, load them beside the index that serves, verify, and switch.

    What was embedded or loaded before is not done again, so a run that broke off may be started anew at any time.
    Until the switch, and when anything fails, the index that serves stays as it is.

    Args:
        store: Where documents, models and vectors are: s3://bucket/prefix. None: what the worker's RATCHET_STORE names.
        target: Where the index is: lancedb:FOLDER or postgresql://user@host/database. None: LanceDB in RATCHET_WORK.
        workers: Actors of Ray that encode. 0: this process alone. None: one a GPU, else one for four cores, if several.
        min_recall: Least share of the 10 exact nearest documents that the index must find, over test queries.
        drop_previous: Delete the index that served before as well, as after `ratchet forget`.
        base_model: Model that serves before anything is promoted. None: what the last night started from.
        limits: What one object under documents/ may be.

    Returns:
        What serves now, and what it took.
    """
    where = _Where(store_url(store), target, str(work_folder()))
    settings = _Settings(workers, Rule(min_recall, drop_previous), base_model, limits)
    with telemetry.told(Store.open(where.store), "reindex", this_run().run_id) as lineage:
        found = _until_it_serves(where, settings)
        lineage.reads("documents", found.index, found.documents)
        lineage.reads_model(None if found.model == "base" else found.model)
        lineage.fills(target, found.index, found.documents)
    return found


def _until_it_serves(where: _Where, settings: _Settings) -> Reindexed:
    for _ in range(_ATTEMPTS):
        found = _once(where, settings)
        if found is not None:
            get_run_logger().info("index %s serves %s", found.index, found.model)
            return found
        get_run_logger().info("production changed meanwhile: the index follows what serves now")
    raise ProductionMovedError(f"production changed {_ATTEMPTS} times before the index was ready: run it again")


@dataclass(frozen=True)
class _Where:
    """Store, target, and folder of this machine."""

    store: str
    target: str | None
    work: str


def _once(where: _Where, settings: _Settings) -> Reindexed | None:
    """One pass; None where production changed before the index was ready."""
    serving = steps.serving(where.store, settings.base_model, where.work)
    # first of all: after a rollback the target may have the index of what serves
    followed = steps.follow(where.store, where.target, serving, where.work)
    embedded = steps.embed(where.store, serving, settings.limits, settings.workers, where.work)
    loaded = steps.load(where.store, where.target, embedded.index, where.work)
    renewed = steps.switch(where.store, where.target, embedded.index, serving, settings.rule, where.work)
    if renewed is None:
        return None
    return Reindexed(
        index=renewed.live.index.name,
        model=renewed.live.model,
        promotion=renewed.live.promotion,
        documents=embedded.documents,
        encoded=embedded.encoded,
        made=embedded.made,
        loaded=loaded,
        recall=renewed.verified.recall,
        followed=followed,
        dropped=renewed.dropped,
        rejected=embedded.rejected,
        rejections=embedded.rejections,
        left_out=embedded.left_out,
    )
