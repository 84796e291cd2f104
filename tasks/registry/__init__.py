"""What serves: published versions, `production.json`, and the ledger of its changes."""

from tasks.registry.production import (
    POINTER,
    Change,
    LedgerError,
    Production,
    ProductionChangedError,
    RefusedError,
    history,
    promote,
    pull_production,
    read_production,
    rollback,
    served_on,
    settle,
)
from tasks.registry.versions import Description, RegistryError, VersionError, hold, publish, pull, read_manifest, verify

__all__ = [
    "POINTER",
    "Change",
    "Description",
    "LedgerError",
    "Production",
    "ProductionChangedError",
    "RefusedError",
    "RegistryError",
    "VersionError",
    "history",
    "hold",
    "promote",
    "publish",
    "pull",
    "pull_production",
    "read_manifest",
    "read_production",
    "rollback",
    "served_on",
    "settle",
    "verify",
]
