"""The password of the index's target as a Prefect block: it is in the block on the server, and in no parameter."""

from __future__ import annotations

from collections.abc import Mapping

from deployments.server.settings import IndexSettings
from tasks.index.targets import SECRET_BLOCK


class IndexSecretError(Exception):
    """There is no password to put into the block; the message names the environment variable."""


def ensure(settings: IndexSettings, environment: Mapping[str, str], *, dry_run: bool) -> list[str]:
    """Create or update the block; returns a line where it differs. Without `secret_env` nothing is done.

    Where the variable is not set, a block that exists is left as it is. Raises IndexSecretError when there is none.
    """
    from prefect.blocks.system import Secret

    from tasks import steps

    if settings.secret_env is None:
        return []
    secret = environment.get(settings.secret_env)
    existing = steps.secret(SECRET_BLOCK)
    if not secret:
        if existing is None:
            raise IndexSecretError(
                f"index: the environment variable {settings.secret_env} is not set, so there is no password for the "
                f"block {SECRET_BLOCK}"
            )
        return []
    if secret == existing:
        return []
    if not dry_run:
        Secret(value=secret).save(SECRET_BLOCK, overwrite=True)
    return [f"block {SECRET_BLOCK}: {'new, Secret' if existing is None else 'value changes'}"]
