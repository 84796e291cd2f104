"""The store's clock: the one that all machines of a store share, whatever their own say."""

from __future__ import annotations

import secrets
from datetime import datetime

from tasks.storage import Store, StoreError


def store_time(store: Store) -> datetime:
    """What time the store's server says it is, to the second: when an object was written that is gone by now.

    Raises StoreError when the object cannot be written, or is not listed.
    """
    key = f"cache/probe/{secrets.token_hex(8)}"
    store.put(key, b"what time is it")
    try:
        for entry in store.entries(key):
            return entry.modified.replace(microsecond=0)
    finally:
        store.delete([key])
    raise StoreError(f"{store.uri(key)} was written, but is not listed")
