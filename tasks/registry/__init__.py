"""What serves: published versions, `production.json`, and the ledger of its changes."""

from tasks.registry.clock import store_time
from tasks.registry.held import Held, find_held, held, release
from tasks.registry.ledger import (
    POINTER,
    Announce,
    Change,
    Fingerprint,
    LedgerError,
    Production,
    dates,
    history,
    name_of,
    read_production,
    served_on,
    serving_since,
    settle,
)
from tasks.registry.production import (
    BASE,
    ProductionChangedError,
    RefusedError,
    promote,
    pull_production,
    rollback,
)
from tasks.registry.retention import retire, tidy
from tasks.registry.versions import Description, RegistryError, VersionError, hold, publish, pull, read_manifest, verify

__all__ = [
    "BASE",
    "POINTER",
    "Announce",
    "Change",
    "Description",
    "Fingerprint",
    "Held",
    "LedgerError",
    "Production",
    "ProductionChangedError",
    "RefusedError",
    "RegistryError",
    "VersionError",
    "dates",
    "find_held",
    "held",
    "history",
    "hold",
    "name_of",
    "promote",
    "publish",
    "pull",
    "pull_production",
    "read_manifest",
    "read_production",
    "release",
    "retire",
    "rollback",
    "served_on",
    "serving_since",
    "settle",
    "store_time",
    "tidy",
    "verify",
]
